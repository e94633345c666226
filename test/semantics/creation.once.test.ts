// Creation of a userfaultfd (docs/kernel.md: creation, API): flags, privileges, the descriptor, the handshake.

import { strict as assert } from 'node:assert';
import { readFileSync, readlinkSync, readSync, writeSync } from 'node:fs';
import { errnoName } from '../../src/errors/errors.js';
import {
  adopt,
  create,
  Feature,
  Flag,
  MISSING,
  OUTSIDE,
  openUffd,
  REQUESTS,
  type Request,
  type Uffd,
} from './calls.js';
import { at, checks, P } from './support.js';
import type { Actor, World } from './world.js';

const check = checks('semantics/creation');

// ---- flags ------------------------------------------------------------------------------------------------

const FLAGS = [
  ['creation.flags.none', 0, 'ok'],
  ['creation.flags.cloexec', Flag.cloexec, 'ok'],
  ['creation.flags.nonblock', Flag.nonblock, 'ok'],
  ['creation.flags.user-mode-only', Flag.userModeOnly, 'ok'],
  ['creation.flags.all', Flag.cloexec | Flag.nonblock | Flag.userModeOnly, 'ok'],
  ['creation.flags.rdwr', 2, 'EINVAL'],
  ['creation.flags.unknown', 4, 'EINVAL'],
  ['creation.flags.append', 0x400, 'EINVAL'],
  ['creation.flags.unknown-beside-known', Flag.cloexec | Flag.userModeOnly | 8, 'EINVAL'],
] as const;

for (const [id, flags, expected] of FLAGS) {
  check(id, `userfaultfd(0x${flags.toString(16)}): ${expected}`, (world) => {
    const fd = world.kernel.attach(world.memory).userfaultfd(flags);
    if (fd >= 0) adopt(world, fd);
    assert.equal(fd < 0 ? errnoName(-fd) : 'ok', expected);
  });
}

check(
  'creation.device',
  '/dev/userfaultfd: flags by value, a new descriptor',
  (world) => {
    const port = world.kernel.attach(world.memory);
    const device = port.openDevice();
    assert.ok(device >= 0);
    world.defer(() => port.close(device));
    const fd = port.ioctlValue(device, 0xaa00, Flag.cloexec | Flag.nonblock);
    assert.ok(fd > device);
    assert.equal(adopt(world, fd).api()[0], 'ok');
    assert.equal(port.ioctlValue(device, 0xaa00, 4), -22);
  },
  { has: ['device'] },
);

// ---- privileges -------------------------------------------------------------------------------------------

/** A forked process without privileges. */
function unprivileged(world: World): Actor {
  const child = world.thread().fork();
  assert.equal(child.dropPrivileges(), 0);
  return child;
}

/** A userfaultfd that an actor creates; the actor shares descriptors with the test. */
function madeBy(world: World, actor: Actor, flags: number): Uffd {
  const fd = actor.userfaultfd(flags);
  assert.ok(typeof fd === 'number', `userfaultfd: ${fd}`);
  return adopt(world, fd);
}

const SYSCTL = '/proc/sys/vm/unprivileged_userfaultfd';
const PRIVILEGES = { has: ['privileges'] } as const;

check(
  'creation.privilege.full',
  'without CAP_SYS_PTRACE: EPERM, unless vm.unprivileged_userfaultfd is 1',
  (world) => {
    const allowed = readFileSync(SYSCTL, 'utf8').trim() === '1';
    const outcome = unprivileged(world).userfaultfd(Flag.cloexec);
    if (allowed) adopt(world, outcome as number);
    else assert.equal(outcome, 'EPERM');
  },
  PRIVILEGES,
);

check(
  'creation.privilege.user-mode-only',
  'with USER_MODE_ONLY no privilege is needed',
  (world) => {
    const child = unprivileged(world);
    const uffd = madeBy(world, child, Flag.cloexec | Flag.nonblock | Flag.userModeOnly);
    assert.equal(uffd.by(child).api()[0], 'ok');
  },
  PRIVILEGES,
);

check(
  'api.eperm.event-fork',
  'EVENT_FORK without CAP_SYS_PTRACE: EPERM, with USER_MODE_ONLY too; the struct is zeroed',
  (world) => {
    const child = unprivileged(world);
    const uffd = madeBy(world, child, Flag.cloexec | Flag.nonblock | Flag.userModeOnly);
    assert.deepEqual(uffd.by(child).api(Feature.eventFork), ['EPERM', 0n, 0n]);
    assert.equal(uffd.by(child).api()[0], 'ok', 'and may be tried again without');
  },
  PRIVILEGES,
);

check('api.event-fork.user-mode-only', 'EVENT_FORK with CAP_SYS_PTRACE and USER_MODE_ONLY: ok', (world) => {
  openUffd(world, Feature.eventFork, Flag.cloexec | Flag.userModeOnly);
});

// ---- the descriptor ---------------------------------------------------------------------------------------

/** The error code that a body throws, as Node names it. */
function codeOf(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    return (error as NodeJS.ErrnoException).code as string;
  }
  return 'ok';
}

const DESCRIPTORS = { has: ['descriptors'] } as const;
const F_GETFL = 3;
const O_ACCMODE = 3;

check('descriptor.read-only', 'F_GETFL says O_RDONLY, and O_NONBLOCK where it was asked for', (world) => {
  const uffd = create(world);
  const flags = uffd.port.fcntl(uffd.fd, F_GETFL, 0);
  assert.equal(flags & O_ACCMODE, 0);
  assert.equal(flags & Flag.nonblock, Flag.nonblock);
  const other = create(world, Flag.cloexec);
  assert.equal(other.port.fcntl(other.fd, F_GETFL, 0) & Flag.nonblock, 0);
});

check(
  'descriptor.name',
  'it is called anon_inode:[userfaultfd]',
  (world) => {
    assert.equal(readlinkSync(`/proc/self/fd/${create(world).fd}`), 'anon_inode:[userfaultfd]');
  },
  DESCRIPTORS,
);

check(
  'descriptor.pread.espipe',
  'pread: ESPIPE',
  (world) => {
    const { fd } = openUffd(world);
    assert.equal(
      codeOf(() => readSync(fd, Buffer.alloc(32), 0, 32, 0)),
      'ESPIPE',
    );
  },
  DESCRIPTORS,
);

check(
  'descriptor.write.ebadf',
  'write: EBADF',
  (world) => {
    const { fd } = openUffd(world);
    assert.equal(
      codeOf(() => writeSync(fd, Buffer.alloc(32))),
      'EBADF',
    );
  },
  DESCRIPTORS,
);

// ---- the handshake ----------------------------------------------------------------------------------------

/** Refused handshakes: the requested API and features. On an error the kernel zeroes the struct. */
const REFUSED = [
  ['api.einval.api', 0xabn, 0n],
  ['api.einval.zero', 0n, 0n],
  ['api.einval.feature', 0xaan, 1n << 40n],
  ['api.einval.feature-beside-known', 0xaan, Feature.eventRemove | (1n << 63n)],
] as const;

for (const [id, api, features] of REFUSED) {
  check(
    id,
    `api 0x${api.toString(16)} with features 0x${features.toString(16)}: EINVAL, the struct zeroed`,
    (world) => {
      const uffd = create(world);
      assert.deepEqual(uffd.api(features, api), ['EINVAL', 0n, 0n]);
      assert.equal(uffd.word(0), 0n);
      assert.equal(uffd.api()[0], 'ok', 'a failed handshake may be tried again');
    },
  );
}

check('api.efault', 'an unreadable struct: EFAULT', (world) => {
  const uffd = create(world);
  assert.equal(uffd.raw('api', [], OUTSIDE), 'EFAULT');
  assert.equal(uffd.api()[0], 'ok');
});

check('api.answer', 'the answer has all features of the kernel, and API, REGISTER, UNREGISTER', (world) => {
  const [result, features, ioctls] = create(world).api();
  assert.equal(result, 'ok');
  assert.equal(ioctls, 0x8000000000000003n);
  // In Linux 6.18 the last feature is MOVE; a newer kernel may have more features, an older one fewer.
  const all = 0x1ffffn;
  assert.ok((features & all) === all || features < all, `features 0x${features.toString(16)}`);
});

for (const [id, features] of [
  ['api.einval.twice', Feature.eventRemove],
  ['api.einval.twice-without-features', 0n],
] as const) {
  check(
    id,
    `after a handshake with features ${features} there is no other: EINVAL, the struct zeroed`,
    (world) => {
      assert.deepEqual(openUffd(world, features).api(features), ['EINVAL', 0n, 0n]);
    },
  );
}

const BEFORE = [
  ['api.before.register', 'register'],
  ['api.before.unregister', 'unregister'],
  ['api.before.wake', 'wake'],
  ['api.before.copy', 'copy'],
  ['api.before.zeropage', 'zeropage'],
  ['api.before.continue', 'continue'],
  ['api.before.poison', 'poison'],
  ['api.before.move', 'move'],
  ['api.before.writeprotect', 'writeprotect'],
] as const satisfies readonly (readonly [string, Request])[];

for (const [id, request] of BEFORE) {
  check(id, `before the handshake ${request} answers EINVAL`, (world) => {
    const area = world.map('anonymous', 2);
    // Arguments that are valid after the handshake: start, length and mode, or target, source and length.
    const copies = request === 'copy' || request === 'move';
    const second = copies ? at(area.address, 1) : BigInt(P);
    const words = [area.address, second, copies ? BigInt(P) : MISSING, 0n];
    assert.equal(create(world).raw(request, words.slice(0, REQUESTS[request][1])), 'EINVAL');
  });
}

check('api.before.read', 'before the handshake read answers EINVAL', (world) => {
  assert.equal(create(world).read(), 'EINVAL');
});

const POLLERR = 8;

check('api.before.poll', 'before the handshake poll answers POLLERR', (world) => {
  assert.equal(create(world).poll(), POLLERR);
});

check.run();
