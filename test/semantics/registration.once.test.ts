// REGISTER, UNREGISTER and WAKE (docs/kernel.md: REGISTER's output).

import { strict as assert } from 'node:assert';
import { END, Feature, MINOR, MISSING, OUTSIDE, openUffd, PROTECT, WP } from './calls.js';
import { stateOf } from './states.js';
import { at, changing, checks, fault, featuresOf, orphan, P, setting } from './support.js';
import type { MemoryKind, World } from './world.js';

const check = checks('semantics/registration');

// ---- what REGISTER answers --------------------------------------------------------------------------------

/** Bits of `ioctls`: WAKE, COPY, ZEROPAGE, MOVE, POISON (HUGE: no ZEROPAGE, MOVE). WP and MINOR add one each. */
const SMALL = 0x13cn;
const HUGE = 0x10cn;
/** The two operations that the kernel added last. */
const LATE = { move: 0x20n, poison: 0x100n };
const WITH_WRITEPROTECT = 0x40n;
const WITH_CONTINUE = 0x80n;
const MODE_NAMES: Readonly<Record<string, string>> = {
  0: 'no mode',
  1: 'MISSING',
  2: 'WP',
  3: 'MISSING|WP',
  4: 'MINOR',
  5: 'MISSING|MINOR',
  6: 'WP|MINOR',
  7: 'all modes',
  8: 'an unknown mode',
};

const ALL_WP = Feature.flagWp | Feature.wpHugetlbShmem;
const MINORS = Feature.minorShmem | Feature.minorHugetlb;

/** `ioctls` without the operations that this kernel does not have yet. */
function allowed(world: World, ioctls: bigint): bigint {
  const features = featuresOf(world);
  const without = (features & Feature.move ? 0n : LATE.move) | (features & Feature.poison ? 0n : LATE.poison);
  return ioctls & ~without;
}

type Row = readonly [
  id: string,
  kind: MemoryKind,
  mode: bigint,
  expected: bigint | string,
  features?: bigint,
];

const REGISTERED: readonly Row[] = [
  ['register.ioctls.anonymous-missing', 'anonymous', 1n, SMALL],
  ['register.ioctls.anonymous-wp', 'anonymous', 2n, SMALL | WITH_WRITEPROTECT],
  ['register.ioctls.anonymous-missing-wp', 'anonymous', 3n, SMALL | WITH_WRITEPROTECT],
  ['register.ioctls.anonymous-minor', 'anonymous', 4n, 'EINVAL'],
  ['register.ioctls.anonymous-missing-minor', 'anonymous', 5n, 'EINVAL'],
  ['register.ioctls.thp-missing', 'thp', 1n, SMALL],
  ['register.ioctls.shmem-missing', 'shmem', 1n, SMALL],
  ['register.ioctls.shmem-wp', 'shmem', 2n, SMALL | WITH_WRITEPROTECT],
  ['register.ioctls.shmem-missing-wp', 'shmem', 3n, SMALL | WITH_WRITEPROTECT],
  ['register.ioctls.shmem-minor', 'shmem', 4n, SMALL | WITH_CONTINUE],
  ['register.ioctls.shmem-missing-minor', 'shmem', 5n, SMALL | WITH_CONTINUE],
  ['register.ioctls.shmem-wp-minor', 'shmem', 6n, SMALL | WITH_WRITEPROTECT | WITH_CONTINUE],
  ['register.ioctls.shmem-all', 'shmem', 7n, SMALL | WITH_WRITEPROTECT | WITH_CONTINUE],
  ['register.ioctls.private-shmem-missing', 'private-shmem', 1n, SMALL],
  ['register.ioctls.private-shmem-minor', 'private-shmem', 4n, SMALL | WITH_CONTINUE],
  ['register.ioctls.hugetlb-missing', 'hugetlb', 1n, HUGE],
  ['register.ioctls.hugetlb-wp', 'hugetlb', 2n, HUGE | WITH_WRITEPROTECT],
  ['register.ioctls.hugetlb-missing-wp', 'hugetlb', 3n, HUGE | WITH_WRITEPROTECT],
  ['register.ioctls.hugetlb-minor', 'hugetlb', 4n, HUGE | WITH_CONTINUE],
  ['register.ioctls.hugetlb-all', 'hugetlb', 7n, HUGE | WITH_WRITEPROTECT | WITH_CONTINUE],
  ['register.einval.file-missing', 'file', 1n, 'EINVAL'],
  ['register.einval.file-wp', 'file', 2n, 'EINVAL'],
  ['register.einval.file-minor', 'file', 4n, 'EINVAL'],
  ['register.einval.private-file-missing', 'private-file', 1n, 'EINVAL'],
  ['register.einval.private-file-wp', 'private-file', 2n, 'EINVAL'],
  ['register.ioctls.file-wp-async', 'file', 2n, SMALL | WITH_WRITEPROTECT, Feature.wpAsync],
  ['register.ioctls.private-file-wp-async', 'private-file', 2n, SMALL | WITH_WRITEPROTECT, Feature.wpAsync],
  ['register.einval.file-missing-wp-async', 'file', 3n, 'EINVAL', Feature.wpAsync],
  ['register.einval.mode-0', 'anonymous', 0n, 'EINVAL'],
  ['register.einval.mode-unknown', 'anonymous', 8n, 'EINVAL'],
  ['register.eperm.read-only-shared', 'read-only-shmem', 1n, 'EPERM'],
];

for (const [id, kind, mode, expected, extra = 0n] of REGISTERED) {
  const named = typeof expected === 'bigint' ? `ioctls 0x${expected.toString(16)}` : expected;
  const features = ALL_WP | MINORS | Feature.missingShmem | Feature.missingHugetlb | extra;
  check(
    id,
    `${kind}, ${MODE_NAMES[String(mode)]}: ${named}`,
    (world) => {
      const area = world.map(kind, 1);
      const [result, ioctls] = openUffd(world, features).register(area.address, area.length, mode);
      if (typeof expected === 'bigint') assert.deepEqual([result, ioctls], ['ok', allowed(world, expected)]);
      else assert.deepEqual([result, ioctls], [expected, 'untouched']);
    },
    { has: [kind], features },
  );
}

// ---- REGISTER's refusals ----------------------------------------------------------------------------------

check('register.einval.no-vma', 'nothing is mapped in the range: EINVAL', (world) => {
  assert.deepEqual(openUffd(world).register(world.vacant(2), 2 * P, MISSING), ['EINVAL', 'untouched']);
});

check(
  'register.einval.incompatible',
  'a part of the range cannot be watched: EINVAL, and nothing is registered',
  (world) => {
    const { uffd, base, area, thread } = setting(world, { kind: 'file', mode: 0n });
    assert.equal(thread.overlay(base, P), Number(base));
    assert.equal(uffd.register(base, area.length, MISSING)[0], 'EINVAL');
    assert.equal(thread.read(base), 0);
    assert.equal(uffd.register(base, P, MISSING)[0], 'ok', 'the part that can be');
  },
  { has: ['file'] },
);

for (const [id, offset, length] of [
  ['register.einval.hugetlb-start', P, undefined],
  ['register.einval.hugetlb-length', 0, P],
] as const) {
  check(
    id,
    'a range that is not whole huge pages: EINVAL',
    (world) => {
      const { uffd, area } = setting(world, { kind: 'hugetlb', pages: 2, mode: 0n });
      const start = area.address + BigInt(offset);
      assert.equal(uffd.register(start, length ?? area.pageSize, MISSING)[0], 'EINVAL');
    },
    { has: ['hugetlb'], features: Feature.missingHugetlb },
  );
}

check('register.ebusy.other', 'another userfaultfd has registered a part: EBUSY', (world) => {
  const { uffd, base, area } = setting(world, { mode: 0n });
  assert.equal(uffd.register(at(base, 1), P, MISSING)[0], 'ok');
  const other = openUffd(world);
  assert.deepEqual(other.register(base, area.length, MISSING), ['EBUSY', 'untouched']);
  assert.equal(other.register(base, P, MISSING)[0], 'ok', 'the part before it');
});

check('register.enomem.gone', 'the process has exited: ENOMEM', (world) => {
  const { uffd, base, area } = orphan(world, { mode: 0n });
  assert.deepEqual(uffd.register(base, area.length, MISSING), ['ENOMEM', 'untouched']);
});

check('register.efault.struct', 'an unreadable struct: EFAULT', (world) => {
  assert.equal(openUffd(world).raw('register', [], OUTSIDE), 'EFAULT');
});

check('register.efault.output', 'the output cannot be written: EFAULT, the range is registered', (world) => {
  const { uffd, base, area, thread } = setting(world, { mode: 0n });
  assert.equal(uffd.raw('register', [base, BigInt(area.length), MISSING], END - 24), 'EFAULT');
  assert.equal(thread.read(base), 'fault');
});

check('register.holes', 'a range may have holes', (world) => {
  const { uffd, base, area, thread } = setting(world, { mode: 0n });
  assert.equal(thread.munmap(at(base, 1), 2 * P), 0);
  assert.deepEqual(uffd.register(base, area.length, MISSING), ['ok', allowed(world, SMALL)]);
  assert.equal(thread.read(base), 'fault');
  assert.equal(world.thread().read(at(base, 3)), 'fault');
});

// ---- registering again ------------------------------------------------------------------------------------

/** Modes of the first and of the second registration, and the modes in force afterwards. */
const AGAIN = [
  ['register.again.1-1', 1n, 1n, 1n],
  ['register.again.1-2', 1n, 2n, 2n],
  ['register.again.1-3', 1n, 3n, 3n],
  ['register.again.2-1', 2n, 1n, 1n],
  ['register.again.2-2', 2n, 2n, 2n],
  ['register.again.2-3', 2n, 3n, 3n],
  ['register.again.3-1', 3n, 1n, 3n],
  ['register.again.3-2', 3n, 2n, 3n],
  ['register.again.3-3', 3n, 3n, 3n],
] as const;

for (const [id, first, second, holds] of AGAIN) {
  const text = `${MODE_NAMES[`${first}`]}, then ${MODE_NAMES[`${second}`]}: ${MODE_NAMES[`${holds}`]} holds`;
  check(
    id,
    text,
    (world) => {
      const { uffd, base, area, thread } = setting(world, { mode: first, features: Feature.flagWp });
      const [result, ioctls] = uffd.register(base, area.length, second);
      assert.equal(result, 'ok');
      // REGISTER returns the operations of the requested modes, even if more modes are in force.
      assert.equal(ioctls, allowed(world, second & WP ? SMALL | WITH_WRITEPROTECT : SMALL));
      assert.equal(thread.read(base), holds & MISSING ? 'fault' : 0);
      assert.equal(uffd.writeprotect(at(base, 1), P, PROTECT), holds & WP ? 'ok' : 'ENOENT');
    },
    { features: Feature.flagWp },
  );
}

// ---- UNREGISTER -------------------------------------------------------------------------------------------

check('unregister.einval.no-vma', 'nothing is mapped in the range: EINVAL', (world) => {
  assert.equal(openUffd(world).unregister(world.vacant(2), 2 * P), 'EINVAL');
});

check(
  'unregister.einval.incompatible',
  'a part of the range could not be watched: EINVAL',
  (world) => {
    const { uffd, area } = setting(world, { kind: 'file', mode: 0n });
    assert.equal(uffd.unregister(area.address, area.length), 'EINVAL');
  },
  { has: ['file'] },
);

check(
  'unregister.einval.hugetlb',
  'a range that is not whole huge pages: EINVAL',
  (world) => {
    const { uffd, area } = setting(world, { kind: 'hugetlb', features: Feature.missingHugetlb, pages: 1 });
    assert.equal(uffd.unregister(area.address, P), 'EINVAL');
    assert.equal(uffd.unregister(area.address, area.length), 'ok');
  },
  { has: ['hugetlb'], features: Feature.missingHugetlb },
);

check(
  'unregister.einval.other',
  'a range of another userfaultfd: EINVAL, and it stays; older kernels let it go',
  (world) => {
    const { base, area, thread } = setting(world);
    const result = openUffd(world).unregister(base, area.length);
    if (result === 'EINVAL') assert.equal(thread.read(base), 'fault');
    else assert.deepEqual([result, thread.read(base)], ['ok', 0]);
  },
);

check('unregister.enomem.gone', 'the process has exited: ENOMEM', (world) => {
  const { uffd, base, area } = orphan(world);
  assert.equal(uffd.unregister(base, area.length), 'ENOMEM');
});

check('unregister.efault.struct', 'an unreadable struct: EFAULT', (world) => {
  assert.equal(openUffd(world).raw('unregister', [], OUTSIDE), 'EFAULT');
});

check('unregister.never-registered', 'anonymous memory that never was registered: ok', (world) => {
  const { uffd, base, area } = setting(world, { mode: 0n });
  assert.equal(uffd.unregister(base, area.length), 'ok');
});

check('unregister.wakes.missing', 'it wakes a thread that waits for a missing page', (world) => {
  const { uffd, base, area, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  assert.equal(uffd.unregister(base, area.length), 'ok');
  assert.equal(thread.outcome(), 0);
});

for (const [id, mode, woken] of [
  ['unregister.wakes.missing-wp', MISSING | WP, true],
  ['unregister.sleeps.wp', WP, false],
] as const) {
  check(
    id,
    `in ${MODE_NAMES[`${mode}`]} it ${woken ? 'wakes' : 'leaves asleep'} a thread that waits to write a protected page`,
    (world) => {
      const { uffd, base, area, thread } = setting(world, { mode, features: Feature.flagWp, filled: 1 });
      assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
      assert.equal(thread.write(base, 2), 'fault');
      assert.equal(uffd.unregister(base, area.length), 'ok');
      assert.equal(thread.outcome(), woken ? 0 : 'fault');
      assert.equal(stateOf(base, world.thread()), woken ? 'page \u0002' : 'page \u0001');
      assert.equal(uffd.wake(base, P), 'ok');
      assert.equal(thread.outcome(), 0);
    },
    { features: Feature.flagWp },
  );
}

check(
  'unregister.sleeps.minor',
  'it leaves a thread asleep that waits for a page of the page cache',
  (world) => {
    const features = Feature.minorShmem;
    const { uffd, base, area, thread } = setting(world, { kind: 'shmem', mode: MINOR, features });
    world.thread().write(area.alias, 5);
    assert.equal(thread.read(base), 'fault');
    assert.equal(uffd.unregister(base, area.length), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 5);
  },
  { has: ['shmem'], features: Feature.minorShmem },
);

// ---- WAKE -------------------------------------------------------------------------------------------------

check('wake.efault.struct', 'an unreadable struct: EFAULT', (world) => {
  assert.equal(openUffd(world).raw('wake', [], OUTSIDE), 'EFAULT');
});

check('wake.ok.unmapped', 'a range where nothing is mapped: ok', (world) => {
  assert.equal(openUffd(world).wake(world.vacant(1), P), 'ok');
});

check('wake.ok.unregistered', 'a range that is not registered: ok', (world) => {
  const { uffd, base } = setting(world, { mode: 0n });
  assert.equal(uffd.wake(base, P), 'ok');
});

check('wake.ok.changing', 'while a mapping change is in progress: ok', (world) => {
  const { uffd, base } = changing(world);
  assert.equal(uffd.wake(base, P), 'ok');
});

check('wake.ok.gone', 'after the process has exited: ok', (world) => {
  const { uffd, base } = orphan(world);
  assert.equal(uffd.wake(base, P), 'ok');
});

check(
  'wake.refaults',
  'a thread that is woken without a page faults again, and posts a new message',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)]);
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)]);
  },
);

check('wake.range', 'it wakes the threads that wait in the range, and no others', (world) => {
  const { uffd, base } = setting(world);
  const threads = [0, 1, 2].map((page) => {
    const thread = world.thread();
    assert.equal(thread.read(at(base, page)), 'fault');
    return thread;
  });
  assert.equal(uffd.take().length, 3);
  assert.equal(uffd.wake(at(base, 1), P), 'ok');
  for (const thread of threads) assert.equal(thread.outcome(), 'fault');
  assert.deepEqual(uffd.take(), [fault(at(base, 1))]);
});

check.run();
