// The order in which the kernel checks a call (docs/kernel.md: COPY / ZEROPAGE / CONTINUE / POISON / MOVE, in
// evaluation order), the value of the output field, and which threads the call wakes. Rule 3 is in arguments.

import { strict as assert } from 'node:assert';
import { Errno } from '../../src/errors/errors.js';
import { END, Feature, MINOR, MISSING, OUTSIDE, PATTERN, PROTECT, type Request, WP } from './calls.js';
import { issue, words } from './requests.js';
import { stateOf } from './states.js';
import { at, changing, checks, orphan, P, type SettingOptions, setting, source } from './support.js';
import type { World } from './world.js';

const check = checks('semantics/order');

const FEATURES = Feature.flagWp | Feature.poison | Feature.move | Feature.minorShmem;
const KNOWN: SettingOptions = { mode: MISSING | WP, features: FEATURES };
const NEEDS = { features: FEATURES } as const;

// ---- rules 1 and 2 ----------------------------------------------------------------------------------------

/** EAGAIN, and −11 in the output; kernels before about 6.15 leave the output unchanged. */
function assertEagain([result, out]: readonly [string, bigint]): void {
  assert.equal(result, 'EAGAIN');
  assert.ok(out === PATTERN || BigInt.asIntN(64, out) === -11n, `the output ${out}`);
}

const CHANGING: readonly (readonly [id: string, request: Request])[] = [
  ['order.eagain.copy', 'copy'],
  ['order.eagain.zeropage', 'zeropage'],
  ['order.eagain.continue', 'continue'],
  ['order.eagain.poison', 'poison'],
  ['order.eagain.move', 'move'],
];

for (const [id, request] of CHANGING) {
  check(
    id,
    `${request} while a mapping change is in progress: EAGAIN, the output −11`,
    (world) => {
      const { uffd, base } = changing(world, KNOWN);
      const given = words(request, base, BigInt(P), source(world, 1));
      assertEagain(issue(uffd, request, given));
    },
    NEEDS,
  );
}

const CHANGING_FIRST: readonly (readonly [id: string, request: Request])[] = [
  ['order.eagain-first.copy', 'copy'],
  ['order.eagain-first.zeropage', 'zeropage'],
  ['order.eagain-first.continue', 'continue'],
  ['order.eagain-first.poison', 'poison'],
  ['order.eagain-first.move', 'move'],
];

for (const [id, request] of CHANGING_FIRST) {
  check(
    id,
    `${request} of length 0 while a mapping change is in progress: EAGAIN, not EINVAL`,
    (world) => {
      const { uffd, base } = changing(world, KNOWN);
      const given = words(request, base, 0n, source(world, 1));
      assertEagain(issue(uffd, request, given));
    },
    NEEDS,
  );
}

check(
  'order.eagain.writeprotect',
  'WRITEPROTECT while a mapping change is in progress: EAGAIN',
  (world) => {
    const { uffd, base } = changing(world, KNOWN);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'EAGAIN');
    assert.equal(uffd.writeprotect(base, 0, PROTECT), 'EAGAIN', 'before its arguments are looked at');
  },
  NEEDS,
);

for (const [id, request] of [
  ['order.ok-changing.register', 'register'],
  ['order.ok-changing.unregister', 'unregister'],
] as const) {
  check(
    id,
    `${request} while a mapping change is in progress: ok`,
    (world) => {
      const { uffd, base } = changing(world, KNOWN);
      assert.equal(uffd.raw(request, words(request, base, BigInt(P), 0n)), 'ok');
    },
    NEEDS,
  );
}

check('order.eagain.other-uffd', 'another userfaultfd of the same process is not affected', (world) => {
  const { base } = changing(world);
  const other = setting(world);
  assert.deepEqual(other.uffd.copy(other.base, source(world, 1), P), ['ok', P]);
  assert.deepEqual(other.uffd.copy(base, source(world, 1), P), ['ok', P], 'and may fill what is not its own');
});

const UNREADABLE: readonly (readonly [id: string, request: Request])[] = [
  ['order.efault.copy', 'copy'],
  ['order.efault.zeropage', 'zeropage'],
  ['order.efault.continue', 'continue'],
  ['order.efault.poison', 'poison'],
  ['order.efault.move', 'move'],
  ['order.efault.writeprotect', 'writeprotect'],
];

for (const [id, request] of UNREADABLE) {
  check(
    id,
    `${request} with an unreadable struct: EFAULT`,
    (world) => {
      const { uffd } = setting(world, KNOWN);
      assert.equal(uffd.raw(request, [], OUTSIDE), 'EFAULT');
    },
    NEEDS,
  );
}

// ---- rule 4: the process is gone --------------------------------------------------------------------------

const GONE: readonly (readonly [id: string, request: Request, result: string])[] = [
  ['order.gone.copy', 'copy', 'ESRCH'],
  ['order.gone.zeropage', 'zeropage', 'ESRCH'],
  ['order.gone.continue', 'continue', 'ESRCH'],
  ['order.gone.poison', 'poison', 'ESRCH'],
  ['order.gone.move', 'move', 'EINVAL'],
  ['order.gone.writeprotect', 'writeprotect', 'ESRCH'],
];

for (const [id, request, result] of GONE) {
  check(
    id,
    `${request} after exit: ${result}, the output untouched`,
    (world) => {
      const { uffd, base } = orphan(world, KNOWN);
      const given = words(request, base, BigInt(P), source(world, 1));
      assert.deepEqual(issue(uffd, request, given), [result, PATTERN]);
      const wrong = words(request, base, 0n, source(world, 1));
      assert.deepEqual(issue(uffd, request, wrong), ['EINVAL', PATTERN], 'arguments are judged before');
    },
    NEEDS,
  );
}

// ---- rules 5 to 7: answers that count ---------------------------------------------------------------------

interface Counted {
  readonly request: Request;
  readonly kind: 'anonymous' | 'shmem';
}

const COUNTED: readonly (readonly [full: string, partial: string, Counted])[] = [
  ['order.full.copy', 'order.partial.copy', { request: 'copy', kind: 'anonymous' }],
  ['order.full.zeropage', 'order.partial.zeropage', { request: 'zeropage', kind: 'anonymous' }],
  ['order.full.continue', 'order.partial.continue', { request: 'continue', kind: 'shmem' }],
  ['order.full.poison', 'order.partial.poison', { request: 'poison', kind: 'anonymous' }],
  ['order.full.move', 'order.partial.move', { request: 'move', kind: 'anonymous' }],
];

/** A range of 4 pages, ready for a request, and the source of its bytes. */
function ready(world: World, { request, kind }: Counted) {
  const mode = kind === 'shmem' ? MISSING | MINOR : MISSING;
  const set = setting(world, { ...KNOWN, kind, mode });
  if (request === 'continue')
    for (let page = 0; page < 4; page++) set.thread.write(at(set.area.alias, page), 1);
  return { ...set, from: source(world, 4) };
}

for (const [full, partial, how] of COUNTED) {
  const { request, kind } = how;
  const needs = { ...NEEDS, has: [kind] };
  check(
    full,
    `${request} of 4 pages that can all be done: ok, the output their bytes`,
    (world) => {
      const { uffd, base, from } = ready(world, how);
      assert.deepEqual(issue(uffd, request, words(request, base, BigInt(4 * P), from)), [
        'ok',
        BigInt(4 * P),
      ]);
    },
    needs,
  );

  check(
    partial,
    `${request} of 4 pages, the third present: EAGAIN and 2 pages; from there: EEXIST`,
    (world) => {
      const { uffd, base, from } = ready(world, how);
      const filled = kind === 'shmem' ? uffd.continue(at(base, 2), P) : uffd.zeropage(at(base, 2), P);
      assert.deepEqual(filled, ['ok', P]);
      const all = words(request, base, BigInt(4 * P), from);
      assert.deepEqual(issue(uffd, request, all), ['EAGAIN', BigInt(2 * P)]);
      const rest = words(request, at(base, 2), BigInt(2 * P), at(from, 2));
      const eexist = BigInt.asUintN(64, -BigInt(Errno.EEXIST as number));
      assert.deepEqual(issue(uffd, request, rest), ['EEXIST', eexist]);
      assert.equal(world.thread().read(at(base, 3)), 'fault', 'what is behind it was not reached');
    },
    needs,
  );
}

// ---- rule 8: the output cannot be written -----------------------------------------------------------------

const CUT: readonly (readonly [id: string, request: Request])[] = [
  ['order.cut.copy', 'copy'],
  ['order.cut.zeropage', 'zeropage'],
  ['order.cut.poison', 'poison'],
  ['order.cut.move', 'move'],
];

for (const [id, request] of CUT) {
  check(
    id,
    `${request} whose output cannot be written: EFAULT, the page is done, no thread is woken`,
    (world) => {
      const { uffd, base, thread } = setting(world, KNOWN);
      assert.equal(thread.read(base), 'fault');
      const given = words(request, base, BigInt(P), source(world, 1));
      assert.equal(uffd.raw(request, given, END - 8 * given.length), 'EFAULT');
      assert.equal(thread.outcome(), 'fault');
      const states: Readonly<Record<string, string>> = {
        copy: 'page a',
        move: 'page a',
        zeropage: 'zero',
        poison: 'poison',
      };
      assert.equal(stateOf(base, world.thread()), states[request]);
      assert.equal(uffd.wake(base, P), 'ok');
      assert.equal(thread.outcome(), request === 'poison' ? 'SIGBUS' : request === 'zeropage' ? 0 : 0x61);
    },
    NEEDS,
  );
}

check(
  'order.cut.eagain',
  'a mapping change in progress, the output cannot be written: EFAULT; EAGAIN where it is left alone',
  (world) => {
    const { uffd, base } = changing(world, KNOWN);
    const given = words('copy', base, BigInt(P), source(world, 1));
    assert.ok(['EFAULT', 'EAGAIN'].includes(uffd.raw('copy', given, END - 8 * given.length)));
  },
  NEEDS,
);

// ---- waking -----------------------------------------------------------------------------------------------

check('wakes.full', 'a full answer wakes the threads that wait in the range, and no others', (world) => {
  const { uffd, base, thread } = setting(world);
  const other = world.thread();
  assert.equal(thread.read(base), 'fault');
  assert.equal(other.read(at(base, 1)), 'fault');
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ok', P]);
  assert.equal(thread.outcome(), 0x61);
  assert.equal(other.outcome(), 'fault');
});

check(
  'wakes.partial',
  'a partial answer wakes the threads that wait in the part that was done, and none behind it',
  (world) => {
    const { uffd, base, thread } = setting(world);
    const behind = world.thread();
    assert.equal(thread.read(at(base, 1)), 'fault');
    assert.equal(behind.read(at(base, 3)), 'fault');
    assert.deepEqual(uffd.zeropage(at(base, 2), P), ['ok', P]);
    assert.deepEqual(uffd.copy(base, source(world, 4), 4 * P), ['EAGAIN', 2 * P]);
    assert.equal(thread.outcome(), 0x62);
    assert.equal(behind.outcome(), 'fault');
  },
);

check('wakes.eexist', 'EEXIST wakes no thread; WAKE does', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  assert.deepEqual(uffd.copy(base, source(world, 1), P, 1n), ['ok', P]);
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['EEXIST', -17]);
  assert.equal(thread.outcome(), 'fault');
  assert.equal(uffd.wake(base, P), 'ok');
  assert.equal(thread.outcome(), 0x61);
});

const DONTWAKE: readonly (readonly [id: string, request: Request])[] = [
  ['wakes.dontwake.copy', 'copy'],
  ['wakes.dontwake.zeropage', 'zeropage'],
  ['wakes.dontwake.poison', 'poison'],
  ['wakes.dontwake.move', 'move'],
];

for (const [id, request] of DONTWAKE) {
  check(
    id,
    `${request} with DONTWAKE leaves the thread asleep until a WAKE`,
    (world) => {
      const { uffd, base, thread } = setting(world, KNOWN);
      assert.equal(thread.read(base), 'fault');
      const given = words(request, base, BigInt(P), source(world, 1), 1n);
      assert.deepEqual(issue(uffd, request, given), ['ok', BigInt(P)]);
      assert.equal(thread.outcome(), 'fault');
      assert.equal(uffd.wake(base, P), 'ok');
      assert.notEqual(thread.outcome(), 'fault');
    },
    NEEDS,
  );
}

check.run();
