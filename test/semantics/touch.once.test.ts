// The effect of a touch on private anonymous memory (docs/kernel.md: touch, userfault): by page state, by access from
// user mode or kernel mode, and by registration; in the order in which the kernel checks.

import { strict as assert } from 'node:assert';
import { Feature, Flag, type Message, MISSING, PROTECT, WP } from './calls.js';
import { bring, type State, stateOf } from './states.js';
import { at, checks, P, setting, source } from './support.js';
import type { By, Outcome } from './world.js';

const check = checks('semantics/touch');

const READ = 'read';
const WRITE = 'write';
const USER = 'user';
const KERNEL = 'kernel';
const SYNC = Feature.flagWp | Feature.wpUnpopulated | Feature.poison;
const SIGBUS = SYNC | Feature.sigbus;
const ASYNC = SYNC | Feature.wpAsync;
const NONBLOCK = Flag.cloexec | Flag.nonblock;

/** The byte that a write stores, and the byte that a page holds before. */
const NEW = 0x78;
const OLD = 0x61;

/** How the memory is registered: modes, features, flags of the descriptor. */
type How = readonly [mode: bigint, features: bigint, flags?: number];
const MISSING_WP: How = [MISSING | WP, SYNC];
const WP_ONLY: How = [WP, SYNC];
const UNREGISTERED: How = [0n, SYNC];
const RAISES: How = [MISSING | WP, SIGBUS];
const USER_ONLY: How = [MISSING | WP, SYNC, NONBLOCK | Flag.userModeOnly];
const WP_ASYNC: How = [MISSING | WP, ASYNC];

/** `flags`: the flags of the message, if the touch posts one. */
type Row = readonly [
  id: string,
  how: How,
  before: State,
  access: typeof READ | typeof WRITE,
  by: By,
  outcome: Outcome,
  flags: number | undefined,
  after: string,
];

const ROWS: readonly Row[] = [
  ['touch.guard.read', MISSING_WP, 'guard', READ, USER, 'SIGSEGV', undefined, 'guard'],
  ['touch.guard.write', MISSING_WP, 'guard', WRITE, USER, 'SIGSEGV', undefined, 'guard'],
  ['touch.guard.kernel', MISSING_WP, 'guard', READ, KERNEL, 'EFAULT', undefined, 'guard'],
  ['touch.poison.read', MISSING_WP, 'poison', READ, USER, 'SIGBUS', undefined, 'poison'],
  ['touch.poison.write', MISSING_WP, 'poison', WRITE, USER, 'SIGBUS', undefined, 'poison'],
  ['touch.poison.kernel-read', MISSING_WP, 'poison', READ, KERNEL, 'EFAULT', undefined, 'poison'],
  ['touch.poison.kernel-write', MISSING_WP, 'poison', WRITE, KERNEL, 'EFAULT', undefined, 'poison'],
  ['touch.none.read', MISSING_WP, 'none', READ, USER, 'fault', 0, 'none'],
  ['touch.none.write', MISSING_WP, 'none', WRITE, USER, 'fault', 1, 'none'],
  ['touch.none.kernel-read', MISSING_WP, 'none', READ, KERNEL, 'fault', 0, 'none'],
  ['touch.none.kernel-write', MISSING_WP, 'none', WRITE, KERNEL, 'fault', 1, 'none'],
  ['touch.wp-marker.missing-read', MISSING_WP, 'wp-marker', READ, USER, 'fault', 0, 'wp-marker'],
  ['touch.wp-marker.missing-write', MISSING_WP, 'wp-marker', WRITE, USER, 'fault', 1, 'wp-marker'],
  ['touch.none.wp-only-read', WP_ONLY, 'none', READ, USER, 0, undefined, 'zero'],
  ['touch.none.wp-only-write', WP_ONLY, 'none', WRITE, USER, 0, undefined, 'page x'],
  ['touch.none.unregistered-read', UNREGISTERED, 'none', READ, USER, 0, undefined, 'zero'],
  ['touch.none.unregistered-write', UNREGISTERED, 'none', WRITE, USER, 0, undefined, 'page x'],
  ['touch.wp-marker.wp-only-read', WP_ONLY, 'wp-marker', READ, USER, 0, undefined, 'zero+wp'],
  ['touch.wp-marker.wp-only-write', WP_ONLY, 'wp-marker', WRITE, USER, 'fault', 3, 'page+wp'],
  ['touch.zero.read', MISSING_WP, 'zero', READ, USER, 0, undefined, 'zero'],
  ['touch.zero.write', MISSING_WP, 'zero', WRITE, USER, 0, undefined, 'page x'],
  ['touch.zero-wp.read', MISSING_WP, 'zero+wp', READ, USER, 0, undefined, 'zero+wp'],
  ['touch.zero-wp.write', MISSING_WP, 'zero+wp', WRITE, USER, 'fault', 3, 'zero+wp'],
  ['touch.page.read', MISSING_WP, 'page', READ, USER, OLD, undefined, 'page a'],
  ['touch.page.write', MISSING_WP, 'page', WRITE, USER, 0, undefined, 'page x'],
  ['touch.page-wp.read', MISSING_WP, 'page+wp', READ, USER, OLD, undefined, 'page+wp a'],
  ['touch.page-wp.write', MISSING_WP, 'page+wp', WRITE, USER, 'fault', 3, 'page+wp a'],
  ['touch.page-wp.kernel-write', MISSING_WP, 'page+wp', WRITE, KERNEL, 'fault', 3, 'page+wp a'],
  ['touch.shared.read', MISSING_WP, 'shared', READ, USER, OLD, undefined, 'shared a'],
  ['touch.shared.write', MISSING_WP, 'shared', WRITE, USER, 0, undefined, 'page x'],
  ['touch.async.zero-wp', WP_ASYNC, 'zero+wp', WRITE, USER, 0, undefined, 'page x'],
  ['touch.async.page-wp', WP_ASYNC, 'page+wp', WRITE, USER, 0, undefined, 'page x'],
  ['touch.async.page-wp-kernel', WP_ASYNC, 'page+wp', WRITE, KERNEL, 0, undefined, 'page x'],
  ['touch.async.wp-marker-missing', WP_ASYNC, 'wp-marker', WRITE, USER, 'fault', 1, 'wp-marker'],
  ['touch.async.wp-marker', [WP, ASYNC], 'wp-marker', WRITE, USER, 0, undefined, 'page x'],
  ['touch.sigbus.none', RAISES, 'none', READ, USER, 'SIGBUS', undefined, 'none'],
  ['touch.sigbus.none-kernel', RAISES, 'none', READ, KERNEL, 'EFAULT', undefined, 'none'],
  ['touch.sigbus.page-wp', RAISES, 'page+wp', WRITE, USER, 'SIGBUS', undefined, 'page+wp a'],
  ['touch.sigbus.page-wp-kernel', RAISES, 'page+wp', WRITE, KERNEL, 'EFAULT', undefined, 'page+wp a'],
  ['touch.user-mode-only.user', USER_ONLY, 'none', READ, USER, 'fault', 0, 'none'],
  ['touch.user-mode-only.kernel-read', USER_ONLY, 'none', READ, KERNEL, 'EFAULT', undefined, 'none'],
  ['touch.user-mode-only.kernel-write', USER_ONLY, 'none', WRITE, KERNEL, 'EFAULT', undefined, 'none'],
  ['touch.user-mode-only.kernel-wp', USER_ONLY, 'page+wp', WRITE, KERNEL, 'EFAULT', undefined, 'page+wp a'],
];

for (const [id, [mode, features, flags = NONBLOCK], before, access, by, outcome, fault, after] of ROWS) {
  check(
    id,
    `${access} of ${before} by ${by}: ${outcome}${fault === undefined ? '' : ` with flags ${fault}`}, then ${after}`,
    (world) => {
      const { uffd, base, thread } = setting(world, { mode, features, flags });
      bring(before, base, { uffd, thread, bytes: source(world, 1, OLD) });
      const got = access === READ ? thread.read(base, by) : thread.write(base, NEW, by);
      assert.equal(got, outcome);
      const messages: Message[] =
        fault === undefined ? [] : [{ event: 'pagefault', flags: fault, address: base, ptid: 0 }];
      assert.deepEqual(uffd.take(), messages);
      assert.equal(stateOf(base, world.thread()), after);
    },
    { features, has: before === 'guard' ? ['guard'] : [] },
  );
}

// ---- protection comes first --------------------------------------------------------------------------------

const PROTECTED = [
  ['touch.protection.none-read', 0, READ, USER, 'SIGSEGV'],
  ['touch.protection.none-write', 0, WRITE, USER, 'SIGSEGV'],
  ['touch.protection.none-kernel', 0, READ, KERNEL, 'EFAULT'],
  ['touch.protection.read-only-write', 1, WRITE, USER, 'SIGSEGV'],
  ['touch.protection.read-only-kernel', 1, WRITE, KERNEL, 'EFAULT'],
  ['touch.protection.read-only-read', 1, READ, USER, 'fault'],
] as const;

for (const [id, protection, access, by, outcome] of PROTECTED) {
  check(id, `${access} of memory with protection ${protection} by ${by}: ${outcome}`, (world) => {
    const { uffd, base, thread } = setting(world, { map: { protection } });
    assert.equal(access === READ ? thread.read(base, by) : thread.write(base, NEW, by), outcome);
    assert.equal(uffd.take().length, outcome === 'fault' ? 1 : 0);
  });
}

check('touch.protection.no-vma', 'a touch of nothing: SIGSEGV, and EFAULT for the kernel', (world) => {
  const nothing = world.vacant(1);
  const thread = world.thread();
  assert.equal(thread.read(nothing), 'SIGSEGV');
  assert.equal(thread.read(nothing, 'kernel'), 'EFAULT');
});

check(
  'touch.mprotect.keeps-wp',
  'mprotect keeps write-protection',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: WP, features: Feature.flagWp, filled: OLD });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.mprotect(base, P, 1), 0);
    assert.equal(stateOf(base, thread), 'page+wp a');
    assert.equal(thread.write(base, NEW), 'SIGSEGV');
    assert.equal(thread.mprotect(base, P, 3), 0);
    assert.equal(thread.write(base, NEW), 'fault');
    assert.deepEqual(uffd.take(), [{ event: 'pagefault', flags: 3, address: base, ptid: 0 }]);
  },
  { features: Feature.flagWp },
);

check('touch.mlock.faults', 'mlock of missing memory faults and sleeps', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.mlock(base, P), 'fault');
  assert.deepEqual(uffd.zeropage(base, P), ['ok', P]);
  assert.equal(thread.outcome(), 0);
});

check('touch.populate.faults', 'MADV_POPULATE_READ and _WRITE of missing memory fault and sleep', (world) => {
  const { uffd, base, thread } = setting(world);
  for (const [page, advice, flags] of [
    [0, 22, 0],
    [1, 23, 1],
  ] as const) {
    assert.equal(thread.madvise(at(base, page), P, advice), 'fault');
    assert.deepEqual(uffd.take(), [{ event: 'pagefault', flags, address: at(base, page), ptid: 0 }]);
    assert.deepEqual(uffd.copy(at(base, page), source(world, 1), P), ['ok', P]);
    assert.equal(thread.outcome(), 0);
  }
});

check.run();
