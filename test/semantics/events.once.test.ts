// Mapping changes and their events (docs/kernel.md: REMOVE, UNMAP, REMAP). The thread that changes the mapping sleeps
// until the event is read; these tests check the state before and after that.

import { strict as assert } from 'node:assert';
import { Feature, MISSING, openUffd, PROTECT, WP } from './calls.js';
import { stateOf } from './states.js';
import { at, checks, fault, P, type SettingOptions, setting, source } from './support.js';

const check = checks('semantics/events');

const MADV_DONTNEED = 4;
const MADV_FREE = 8;
const MAYMOVE = 1;
const FIXED = 2;
const DONTUNMAP = 4;

const REMOVES: SettingOptions = { features: Feature.eventRemove, filled: 0x61 };
const UNMAPS: SettingOptions = { features: Feature.eventUnmap };
const REMAPS: SettingOptions = { features: Feature.eventRemap };
const ALL: SettingOptions = { features: Feature.eventUnmap | Feature.eventRemap };

type Event = 'remove' | 'unmap';
const over = (event: Event, start: bigint, pages: number) => ({ event, start, end: at(start, pages) });
const remap = (from: bigint, to: bigint, pages: number) => ({ event: 'remap', from, to, length: pages * P });

// ---- REMOVE -----------------------------------------------------------------------------------------------

check('remove.sleeps', 'madvise sleeps until the event is read; the pages go after that', (world) => {
  const { uffd, base, thread } = setting(world, REMOVES);
  assert.equal(thread.madvise(base, 2 * P, MADV_DONTNEED), 'event');
  const witness = world.thread();
  assert.equal(stateOf(base, witness), 'page a');
  assert.equal(witness.write(at(base, 1), 0x7a), 0, 'and can be written');
  assert.deepEqual(uffd.take(), [over('remove', base, 2)]);
  assert.equal(thread.outcome(), 0);
  assert.equal(stateOf(base, witness), 'none');
  assert.equal(stateOf(at(base, 1), witness), 'none');
});

check('remove.eagain-ends', 'when the mutator is through, fills go again', (world) => {
  const { uffd, base, thread } = setting(world, REMOVES);
  assert.equal(thread.madvise(base, P, MADV_DONTNEED), 'event');
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['EAGAIN', -11]);
  assert.equal(uffd.take().length, 1);
  assert.equal(thread.outcome(), 0);
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ok', P]);
});

check(
  'remove.eagain-after-read',
  'between the read and the mutator’s turn fills still give EAGAIN',
  (world) => {
    const { uffd, base, thread } = setting(world, REMOVES);
    assert.equal(thread.madvise(base, P, MADV_DONTNEED), 'event');
    assert.equal(uffd.take().length, 1);
    // The scheduler decides how many times. This fills another page: the removed page could be filled before the zap.
    let answer = uffd.zeropage(at(base, 3), P);
    while (answer[0] === 'EAGAIN') answer = uffd.zeropage(at(base, 3), P);
    assert.deepEqual(answer, ['EEXIST', -17], 'it was there');
    assert.equal(thread.outcome(), 0);
  },
);

check(
  'remove.two-unread',
  'of two events that are unread both must be read before fills go again',
  (world) => {
    const { uffd, base } = setting(world, REMOVES);
    const mutators = [0, 1].map((page) => {
      const mutator = world.thread();
      assert.equal(mutator.madvise(at(base, page), P, MADV_DONTNEED), 'event');
      return mutator;
    });
    assert.deepEqual(uffd.take(1), [over('remove', base, 1)]);
    assert.deepEqual(
      mutators.map((mutator) => mutator.outcome()),
      [0, 'event'],
    );
    assert.deepEqual(uffd.zeropage(base, P), ['EAGAIN', -11]);
    assert.equal(uffd.take(1).length, 1);
    assert.equal(mutators[1]?.outcome(), 0);
    assert.deepEqual(uffd.zeropage(base, P), ['ok', P]);
  },
);

check('remove.per-vma', 'one event for each registered mapping, one after the other', (world) => {
  const { uffd, base, thread } = setting(world, { ...REMOVES, mode: 0n });
  assert.equal(uffd.register(base, P, MISSING)[0], 'ok');
  assert.equal(uffd.register(at(base, 2), 2 * P, MISSING)[0], 'ok');
  assert.equal(thread.madvise(base, 4 * P, MADV_DONTNEED), 'event');
  assert.deepEqual(uffd.take(), [over('remove', base, 1)]);
  assert.equal(thread.outcome(), 'event');
  assert.deepEqual(uffd.take(), [over('remove', at(base, 2), 2)]);
  assert.equal(thread.outcome(), 0);
  assert.deepEqual(uffd.take(), []);
});

check('remove.clipped', 'an event is clipped to what is registered', (world) => {
  const { uffd, base, thread } = setting(world, { ...REMOVES, mode: 0n });
  assert.equal(uffd.register(base, 2 * P, MISSING)[0], 'ok');
  assert.equal(thread.madvise(at(base, 1), 3 * P, MADV_DONTNEED), 'event');
  assert.deepEqual(uffd.take(), [over('remove', at(base, 1), 1)]);
});

check('remove.free', 'MADV_FREE posts the event too; the data stays', (world) => {
  const { uffd, base, thread } = setting(world, REMOVES);
  assert.equal(thread.madvise(base, P, MADV_FREE), 'event');
  assert.deepEqual(uffd.take(), [over('remove', base, 1)]);
  assert.equal(thread.outcome(), 0);
  assert.equal(thread.read(base), 0x61);
});

const REMOVES_SHMEM = Feature.eventRemove | Feature.missingShmem;

check(
  'remove.free.shmem',
  'MADV_FREE of shmem posts the event, and then fails with EINVAL',
  (world) => {
    const { uffd, base, thread } = setting(world, { ...REMOVES, kind: 'shmem', features: REMOVES_SHMEM });
    assert.equal(thread.madvise(base, P, MADV_FREE), 'event');
    assert.deepEqual(uffd.take(), [over('remove', base, 1)]);
    assert.equal(thread.outcome(), 'EINVAL');
  },
  { has: ['shmem'], features: REMOVES_SHMEM },
);

const SILENT = [
  ['remove.silent.cold', 20, []],
  ['remove.silent.pageout', 21, []],
  ['remove.silent.guard-install', 102, ['guard']],
  ['remove.silent.guard-remove', 103, ['guard']],
] as const;

for (const [id, advice, has] of SILENT) {
  check(
    id,
    `madvise(${advice}) posts no event`,
    (world) => {
      const { uffd, base, thread } = setting(world, REMOVES);
      assert.equal(thread.madvise(base, P, advice), 0);
      assert.deepEqual(uffd.take(), []);
    },
    { has },
  );
}

check('remove.silent.mprotect', 'mprotect posts no event', (world) => {
  const { uffd, base, thread } = setting(world, REMOVES);
  assert.equal(thread.mprotect(base, P, 1), 0);
  assert.deepEqual(uffd.take(), []);
});

check('remove.silent.off', 'without EVENT_REMOVE the call does not wait', (world) => {
  const { uffd, base, thread } = setting(world, { filled: 0x61 });
  assert.equal(thread.madvise(base, P, MADV_DONTNEED), 0);
  assert.deepEqual(uffd.take(), []);
  assert.equal(thread.read(base), 'fault');
});

// ---- UNMAP ------------------------------------------------------------------------------------------------

check('unmap.after', 'munmap sleeps until the event is read; the memory is gone already', (world) => {
  const { uffd, base, thread } = setting(world, UNMAPS);
  assert.equal(thread.munmap(base, 2 * P), 'event');
  assert.equal(world.thread().read(base), 'SIGSEGV');
  assert.deepEqual(uffd.take(), [over('unmap', base, 2)]);
  assert.equal(thread.outcome(), 0);
});

check(
  'unmap.whole-range',
  'one event with all of the range asked for, what is not registered included',
  (world) => {
    const { uffd, base, thread } = setting(world, { ...UNMAPS, mode: 0n });
    assert.equal(uffd.register(at(base, 1), P, MISSING)[0], 'ok');
    assert.equal(uffd.register(at(base, 3), P, MISSING)[0], 'ok');
    assert.equal(thread.munmap(base, 4 * P), 'event');
    assert.deepEqual(uffd.take(), [over('unmap', base, 4)]);
    assert.equal(thread.outcome(), 0);
  },
);

check('unmap.per-uffd', 'one event for each userfaultfd that watches a part', (world) => {
  const { uffd, base, thread } = setting(world, { ...UNMAPS, mode: 0n });
  const other = openUffd(world, UNMAPS.features);
  assert.equal(uffd.register(base, P, MISSING)[0], 'ok');
  assert.equal(other.register(at(base, 1), P, MISSING)[0], 'ok');
  assert.equal(thread.munmap(base, 4 * P), 'event');
  // The order of the two messages is not specified.
  const taken = { uffd: [] as unknown[], other: [] as unknown[] };
  while (thread.outcome() === 'event') {
    taken.uffd.push(...uffd.take());
    taken.other.push(...other.take());
  }
  assert.deepEqual(taken, { uffd: [over('unmap', base, 4)], other: [over('unmap', base, 4)] });
  assert.equal(thread.outcome(), 0);
});

check('unmap.unregistered-part', 'unmapping what is not registered posts nothing', (world) => {
  const { uffd, base, thread } = setting(world, { ...UNMAPS, mode: 0n });
  assert.equal(uffd.register(base, P, MISSING)[0], 'ok');
  assert.equal(thread.munmap(at(base, 1), P), 0);
  assert.deepEqual(uffd.take(), []);
});

check(
  'unmap.overlay',
  'mapping over it with MAP_FIXED posts the event; what is there now is not registered',
  (world) => {
    const { uffd, base, thread } = setting(world, UNMAPS);
    assert.equal(thread.overlay(base, 2 * P), 'event');
    assert.deepEqual(uffd.take(), [over('unmap', base, 2)]);
    assert.equal(thread.outcome(), Number(base));
    assert.equal(thread.read(base), 0);
  },
);

check('unmap.shrink', 'a shrinking mremap posts the event for what it cuts off', (world) => {
  const { uffd, base, thread } = setting(world, ALL);
  assert.equal(thread.mremap(base, 4 * P, P, 0), 'event');
  assert.deepEqual(uffd.take(), [over('unmap', at(base, 1), 3)]);
  assert.equal(thread.outcome(), Number(base));
});

check('unmap.wakes-none', 'munmap wakes no thread; a WAKE of the old address does, to SIGSEGV', (world) => {
  const { uffd, base, thread } = setting(world);
  const waiter = world.thread();
  assert.equal(waiter.read(base), 'fault');
  assert.equal(thread.munmap(base, 4 * P), 0);
  assert.equal(waiter.outcome(), 'fault');
  assert.equal(uffd.wake(base, P), 'ok');
  assert.equal(waiter.outcome(), 'SIGSEGV');
});

// ---- REMAP ------------------------------------------------------------------------------------------------

check(
  'remap.moves',
  'a moving mremap posts REMAP, then UNMAP of the old place; the new one is registered',
  (world) => {
    const { uffd, base, thread } = setting(world, ALL);
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 4 * P, 4 * P, MAYMOVE | FIXED, to), 'event');
    assert.deepEqual(uffd.take(), [remap(base, to, 4)]);
    assert.equal(thread.outcome(), 'event');
    assert.deepEqual(uffd.take(), [over('unmap', base, 4)]);
    assert.equal(thread.outcome(), Number(to));
    assert.equal(thread.read(to), 'fault');
  },
);

check(
  'remap.all-events',
  'onto a registered target, and shrunk: UNMAP of the target, REMAP, UNMAP of the tail, of the old',
  (world) => {
    const { uffd, base, thread } = setting(world, ALL);
    const target = world.map('anonymous', 4).address;
    assert.equal(uffd.register(target, 4 * P, MISSING)[0], 'ok');
    const messages: unknown[] = [];
    let outcome = thread.mremap(base, 4 * P, 2 * P, MAYMOVE | FIXED, target);
    while (outcome === 'event') {
      messages.push(...uffd.take(1));
      outcome = thread.outcome();
    }
    assert.equal(outcome, Number(target));
    assert.deepEqual(messages, [
      over('unmap', target, 2),
      remap(base, target, 2),
      over('unmap', at(base, 2), 2),
      over('unmap', base, 2),
    ]);
  },
);

check(
  'remap.grows-moving',
  'a move that grows: REMAP has the old length, and the tail is registered',
  (world) => {
    const { uffd, base, thread } = setting(world, { ...REMAPS, pages: 2 });
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 2 * P, 4 * P, MAYMOVE | FIXED, to), 'event');
    assert.deepEqual(uffd.take(), [remap(base, to, 2)]);
    assert.equal(thread.outcome(), Number(to));
    assert.equal(thread.read(at(to, 3)), 'fault');
  },
);

check('remap.grows-in-place', 'growth in place posts nothing, and the tail is registered', (world) => {
  const { uffd, base, thread } = setting(world, { ...ALL, pages: 2 });
  assert.equal(thread.mremap(base, 2 * P, 4 * P, 0), Number(base));
  assert.deepEqual(uffd.take(), []);
  assert.equal(thread.read(at(base, 3)), 'fault');
  assert.deepEqual(uffd.take(), [fault(at(base, 3))]);
});

check('remap.dontunmap', 'MREMAP_DONTUNMAP posts REMAP only; both places are registered', (world) => {
  const { uffd, base, thread } = setting(world, { ...ALL, filled: 0x61 });
  const to = world.vacant(4);
  assert.equal(thread.mremap(base, 4 * P, 4 * P, MAYMOVE | FIXED | DONTUNMAP, to), 'event');
  assert.deepEqual(uffd.take(), [remap(base, to, 4)]);
  assert.equal(thread.outcome(), Number(to));
  assert.equal(thread.read(to), 0x61);
  assert.equal(thread.madvise(to, P, MADV_DONTNEED), 0);
  assert.equal(thread.read(to), 'fault');
  assert.equal(world.thread().read(base), 'fault');
  assert.deepEqual(uffd.take(), [fault(to), fault(base)]);
});

check(
  'remap.dontunmap-old',
  'MREMAP_DONTUNMAP leaves the old place empty, without a REMOVE; it can be filled again',
  (world) => {
    const { uffd, base, thread } = setting(world, {
      features: Feature.eventRemap | Feature.eventUnmap | Feature.eventRemove,
      filled: 0x61,
    });
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 4 * P, 4 * P, MAYMOVE | FIXED | DONTUNMAP, to), 'event');
    assert.deepEqual(uffd.take(), [remap(base, to, 4)]);
    assert.equal(thread.outcome(), Number(to));
    assert.deepEqual(uffd.take(), []);
    assert.equal(stateOf(base, thread), 'none');
    assert.deepEqual(uffd.zeropage(to, P), ['EEXIST', -17], 'the pages are in the new place');
    assert.deepEqual(uffd.zeropage(base, P), ['ok', P]);
  },
);

check(
  'remap.off',
  'without EVENT_REMAP the new place is not registered, and not write-protected',
  (world) => {
    const { uffd, base, thread } = setting(world, {
      mode: MISSING | WP,
      features: Feature.flagWp,
      filled: 0x61,
    });
    assert.equal(thread.munmap(at(base, 3), P), 0);
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.madvise(at(base, 1), P, MADV_DONTNEED), 0);
    const to = world.vacant(3);
    assert.equal(thread.mremap(base, 3 * P, 3 * P, MAYMOVE | FIXED, to), Number(to));
    assert.deepEqual(uffd.take(), []);
    assert.equal(stateOf(to, thread), 'page a');
    assert.equal(thread.read(at(to, 1)), 0);
    assert.deepEqual(uffd.zeropage(at(to, 2), P), ['ENOENT', -2]);
  },
  { features: Feature.flagWp },
);

check(
  'remap.keeps-wp',
  'with EVENT_REMAP write-protection moves along',
  (world) => {
    const features = Feature.eventRemap | Feature.flagWp;
    const { uffd, base, thread } = setting(world, { mode: WP, features, filled: 0x61 });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 4 * P, 4 * P, MAYMOVE | FIXED, to), 'event');
    assert.equal(uffd.take().length, 1);
    assert.equal(thread.outcome(), Number(to));
    assert.equal(thread.write(to, 1), 'fault');
    assert.deepEqual(uffd.take(), [fault(to, 3)]);
  },
  { features: Feature.flagWp },
);

check('remap.wakes-none', 'mremap wakes no thread; a WAKE of the old address does', (world) => {
  const { uffd, base, thread } = setting(world, REMAPS);
  const waiter = world.thread();
  assert.equal(waiter.read(base), 'fault');
  const to = world.vacant(4);
  assert.equal(thread.mremap(base, 4 * P, 4 * P, MAYMOVE | FIXED, to), 'event');
  assert.equal(uffd.take().length, 2);
  assert.equal(thread.outcome(), Number(to));
  assert.deepEqual(uffd.zeropage(to, P), ['ok', P]);
  assert.equal(waiter.outcome(), 'fault');
  assert.equal(uffd.wake(base, P), 'ok');
  assert.equal(waiter.outcome(), 'SIGSEGV');
});

check.run();
