// WRITEPROTECT (docs/kernel.md), and write-protection that the kernel resolves itself (WP_ASYNC, PAGEMAP_SCAN).

import { strict as assert } from 'node:assert';
import { Feature, MISSING, openUffd, PROTECT, PROTECT_DONTWAKE, WP } from './calls.js';
import { stateOf } from './states.js';
import { at, checks, fault, P, type SettingOptions, SHMEM, setting, source } from './support.js';

const check = checks('semantics/write-protect');

const FLAG_WP = { features: Feature.flagWp } as const;
const MARKED = { features: Feature.flagWp | Feature.wpUnpopulated } as const;
const ASYNC = { features: Feature.wpAsync } as const;
const WATCHED: SettingOptions = { mode: WP, filled: 0x61, ...FLAG_WP };

// ---- refusals ---------------------------------------------------------------------------------------------

check('writeprotect.enoent.no-vma', 'nothing is mapped in the range: ENOENT', (world) => {
  assert.equal(openUffd(world).writeprotect(world.vacant(1), P, PROTECT), 'ENOENT');
});

check('writeprotect.enoent.no-wp-mode', 'memory that is registered without WP: ENOENT', (world) => {
  const { uffd, base } = setting(world);
  assert.equal(uffd.writeprotect(base, P, PROTECT), 'ENOENT');
});

check('writeprotect.enoent.unregistered', 'memory that is not registered: ENOENT', (world) => {
  const { uffd, base } = setting(world, { mode: 0n });
  assert.equal(uffd.writeprotect(base, P, PROTECT), 'ENOENT');
});

check(
  'writeprotect.enoent.second-vma',
  'a range whose second mapping is without WP: ENOENT, the first is protected already',
  (world) => {
    const { uffd, base, thread } = setting(world, { ...WATCHED, mode: 0n });
    assert.equal(uffd.register(base, 2 * P, WP)[0], 'ok');
    assert.equal(uffd.writeprotect(base, 4 * P, PROTECT), 'ENOENT');
    assert.equal(stateOf(base, thread), 'page+wp a');
  },
  FLAG_WP,
);

check(
  'writeprotect.hole',
  'holes are passed over, also at the start: what is mapped in the range is protected',
  (world) => {
    const { uffd, base, thread } = setting(world, WATCHED);
    assert.equal(thread.munmap(base, P), 0);
    assert.equal(thread.munmap(at(base, 2), P), 0);
    assert.equal(uffd.writeprotect(base, 4 * P, PROTECT), 'ok');
    assert.equal(stateOf(at(base, 1), thread), 'page+wp a');
    assert.equal(stateOf(at(base, 3), thread), 'page+wp a');
  },
  FLAG_WP,
);

// ---- what it does -----------------------------------------------------------------------------------------

check(
  'writeprotect.again',
  'it may be repeated',
  (world) => {
    const { uffd, base, thread } = setting(world, WATCHED);
    for (const mode of [PROTECT, PROTECT, 0n, 0n]) {
      assert.equal(uffd.writeprotect(base, 4 * P, mode), 'ok');
      assert.equal(stateOf(base, thread), mode === PROTECT ? 'page+wp a' : 'page a');
    }
  },
  FLAG_WP,
);

check(
  'writeprotect.unpopulated.off',
  'without WP_UNPOPULATED a page that is not there stays unmarked',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: WP, ...FLAG_WP });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(stateOf(base, thread), 'none');
    assert.equal(thread.write(base, 1), 0);
  },
  FLAG_WP,
);

check(
  'writeprotect.unpopulated.shmem',
  'a missing page of shmem is marked without WP_UNPOPULATED, too',
  (world) => {
    const features = SHMEM.features & ~Feature.wpUnpopulated;
    const { uffd, base, thread } = setting(world, { kind: 'shmem', mode: WP, features });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.page(base).uffdWp, true);
  },
  SHMEM,
);

check(
  'writeprotect.unpopulated.on',
  'with WP_UNPOPULATED it is marked, and a write to it is a fault with flags 3',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: WP, ...MARKED });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.write(base, 1), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 3)]);
  },
  MARKED,
);

check(
  'writeprotect.wakes.resolve',
  'taking it away wakes the writer',
  (world) => {
    const { uffd, base, thread } = setting(world, WATCHED);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.write(base, 0x78), 'fault');
    assert.equal(uffd.writeprotect(base, P, 0n), 'ok');
    assert.equal(thread.outcome(), 0);
    assert.equal(stateOf(base, thread), 'page x');
  },
  FLAG_WP,
);

check(
  'writeprotect.wakes.dontwake',
  'with DONTWAKE (2) the writer sleeps until a WAKE',
  (world) => {
    const { uffd, base, thread } = setting(world, WATCHED);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.write(base, 0x78), 'fault');
    assert.equal(uffd.writeprotect(base, P, PROTECT_DONTWAKE), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 0);
  },
  FLAG_WP,
);

check(
  'writeprotect.wakes.protect',
  'protecting wakes no thread',
  (world) => {
    const { uffd, base, thread } = setting(world, WATCHED);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.write(base, 0x78), 'fault');
    assert.equal(uffd.take().length, 1);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.deepEqual(uffd.take(), [], 'it would have faulted again');
  },
  FLAG_WP,
);

check(
  'writeprotect.wakes.every-kind',
  'lifting it wakes a thread that waits for a missing page, too',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: MISSING | WP, ...FLAG_WP });
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)]);
    assert.equal(uffd.writeprotect(base, P, 0n), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)], 'woken, it faulted again');
  },
  FLAG_WP,
);

check(
  'writeprotect.copy-protected',
  'a page that was copied protected faults at the first write',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: MISSING | WP, ...FLAG_WP });
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WP), ['ok', P]);
    assert.equal(thread.read(base), 0x61);
    assert.equal(thread.write(base, 1), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 3)]);
  },
  FLAG_WP,
);

// ---- asynchronous -----------------------------------------------------------------------------------------

check(
  'wp-async.no-message',
  'with WP_ASYNC a write to a protected page goes through, and posts no message',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: WP, filled: 0x61, ...ASYNC });
    assert.equal(uffd.writeprotect(base, 4 * P, PROTECT), 'ok');
    assert.equal(thread.write(base, 0x78), 0);
    assert.deepEqual(uffd.take(), []);
    assert.equal(stateOf(base, thread), 'page x');
    assert.equal(stateOf(at(base, 1), thread), 'page+wp a');
  },
  ASYNC,
);

check(
  'wp-async.implies-unpopulated',
  'WP_ASYNC implies WP_UNPOPULATED: a page that is not there is marked',
  (world) => {
    const { uffd, base, thread } = setting(world, { mode: WP, ...ASYNC });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(stateOf(base, thread), 'wp-marker');
    assert.equal(thread.write(base, 0x78), 0);
    assert.equal(stateOf(base, thread), 'page x');
  },
  ASYNC,
);

check.run();
