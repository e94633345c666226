// Faults that the core answers itself, from memory where the data lies: which, with what copy, and when the handler is to
// be asked. What is known of sources is always the same as a plain map of pages would say.

import { strict as assert } from 'node:assert';
import { ADAPTIVE, type Core, Next, Op, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  answer,
  apply,
  BASE,
  drain,
  EAGAIN,
  FLAG_WP,
  fault,
  feed,
  makeCore,
  P,
  PAGE,
  page,
  put,
  remap,
  remove,
  State,
  stateOf,
  still,
  take,
  transfer,
  unmap,
} from './support.js';
import { DATA, EEXIST, EFAULT, ENOENT, partly, requested, tallied } from './transfers.js';

const test = suite('sources');

/** Names a source for `count` pages from page `first` on; its data lies as far behind DATA. */
function name(
  core: Core,
  first: number,
  count: number,
  window = 1,
  data = DATA + BigInt(first) * P,
  keeper = 0,
): void {
  core.arguments(page(first), count * PAGE, data).sourcePut(window, keeper);
}

/** The keepers whose source has ended, in ascending order. */
function ended(core: Core): number[] {
  const keepers: number[] = [];
  for (let keeper = core.exports.sourceEnded(); keeper !== 0; keeper = core.exports.sourceEnded())
    keepers.push(keeper);
  return keepers.sort((a, b) => a - b);
}

/** A page faults; the copy that the core begins for it: first page, pages, source. Undefined: it asks. */
function copied(core: Core, index: number, flags = 0n): [number, number, bigint] | undefined {
  feed(core, fault(page(index) + 8n, flags));
  drain(core);
  const next = still(core, 'roundNext', () => core.exports.roundNext(0));
  if (next === Next.fault) {
    answer(core, true);
    return undefined;
  }
  assert.equal(next, Next.call);
  const call = requested(core);
  assert.ok(call.is === 'copy' && call.mode === 0n);
  return [call.start, call.pages, call.source];
}

/** The same, where the kernel does what it is asked for. */
function answered(core: Core, index: number): [number, number, bigint] | undefined {
  const copy = copied(core, index);
  if (!copy) return undefined;
  assert.equal(core.exports.roundResult(0), Next.answered);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 0, pages: copy[1] });
  return copy;
}

function world(pages = 100): Core {
  const core = makeCore();
  put(core, 0, pages);
  return core;
}

test('a missing page is copied from its source, with what is missing of its window', () => {
  const core = world();
  name(core, 10, 20, 8);
  assert.deepEqual(answered(core, 17), [16, 8, DATA + 16n * P]);
  assert.equal(stateOf(core, 16), State.present);
  // Clipped to the source, and to what is missing.
  assert.deepEqual(answered(core, 12), [10, 6, DATA + 10n * P]);
  assert.deepEqual(answered(core, 29), [24, 6, DATA + 24n * P]);
  const other = world();
  name(other, 0, 100, 8);
  transfer(other, Op.copy, 18, 1, 0, DATA);
  assert.deepEqual(answered(other, 20), [19, 5, DATA + 19n * P]);
});

test('the handler is asked without a source, for pages that are not missing, and for other kinds', () => {
  const core = world();
  name(core, 0, 8);
  assert.equal(copied(core, 8), undefined);
  apply(core, remove(page(1), page(2)));
  assert.equal(copied(core, 1), undefined);
  core.arguments(page(2), PAGE).pageClaim();
  assert.equal(copied(core, 2), undefined);
  // It was removed once, and filled; it goes with the removal.
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.copy, 3, 1, 0, DATA);
  assert.equal(copied(core, 3), undefined);
  assert.equal(stateOf(core, 3), State.removed);
  assert.equal(copied(core, 4, FLAG_WP), undefined);
  assert.deepEqual(answered(core, 0), [0, 1, DATA]);
});

test('a page that was filled, never removed, and is missing again is copied once more, alone', () => {
  const core = world();
  name(core, 0, 16, 8);
  assert.deepEqual(answered(core, 3), [0, 8, DATA]);
  transfer(core, Op.copy, 9, 1, 0, DATA);
  for (const index of [3, 9]) {
    assert.deepEqual(answered(core, index), [index, 1, DATA + BigInt(index) * P]);
  }
  // What the handler is told of the page's state is as before.
  assert.equal(stateOf(core, 3), State.present);
  // A copy that was in vain leaves the next fault of its page to the handler, when it has waited.
  assert.deepEqual(copied(core, 3), [3, 1, DATA + 3n * P]);
  core.exports.roundResult(EEXIST);
  core.exports.roundResult(0);
  feed(core, fault(page(3)));
  drain(core);
  assert.equal(core.exports.roundNext(0), Next.none);
  assert.equal(core.exports.roundNext(1), Next.fault);
  answer(core, true);
  // It was filled: the next one is answered here again.
  transfer(core, Op.copy, 3, 1, 0, DATA);
  assert.deepEqual(answered(core, 3), [3, 1, DATA + 3n * P]);
});

test('a copy that fails half-way leaves its fault to the handler; what came is there, and is told', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  partly(core, 2);
  assert.equal(core.exports.roundResult(EAGAIN), Next.call);
  assert.equal(core.exports.roundResult(EFAULT), Next.fault);
  assert.deepEqual(tallied(core), { faults: 0, writes: 0, putOff: 0, pages: 2 });
  assert.equal(core.delivered(1), page(5));
  assert.deepEqual([stateOf(core, 1), stateOf(core, 2)], [State.present, State.missing]);
  assert.equal(core.exports.inboxAnswer(0), 1);
});

test('a removal that was read on the way puts the fault off; memory that is gone ends it', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  partly(core, 0);
  assert.equal(core.exports.roundResult(EAGAIN), Next.reread);
  feed(core, remove(page(5), page(6)));
  drain(core);
  assert.equal(core.exports.roundResume(), Next.answered);
  assert.deepEqual(tallied(core), { faults: 0, writes: 0, putOff: 1, pages: 0 });
  assert.equal(core.exports.inboxWaiting(), 2);
  const gone = world();
  name(gone, 0, 8, 8);
  copied(gone, 5);
  // The pages in front of it come, then it is tried alone: pages 0 to 4, and 5.
  const calls: [pages: number, result: number][] = [
    [8, ENOENT],
    [4, 0],
    [4, ENOENT],
    [2, ENOENT],
    [1, 0],
    [1, ENOENT],
  ];
  for (const [pages, result] of calls) {
    const call = requested(gone);
    assert.ok(call.is === 'copy' && call.pages === pages);
    assert.equal(gone.exports.roundResult(result), Next.call);
  }
  assert.deepEqual(requested(gone), { is: 'wake', start: 5, pages: 1 });
  assert.equal(gone.exports.roundResult(0), Next.answered);
  assert.deepEqual(tallied(gone), { faults: 0, writes: 0, putOff: 0, pages: 5 });
  assert.equal(gone.exports.inboxWaiting(), 0);
});

test('a page of the window that is there is woken and stepped over', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  assert.equal(core.exports.roundResult(EEXIST), Next.call);
  assert.deepEqual(requested(core), { is: 'wake', start: 0, pages: 1 });
  assert.equal(core.exports.roundResult(0), Next.call);
  assert.equal(core.exports.roundResult(0), Next.answered);
  // Seven were installed; of the one that was there nothing is noted.
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 0, pages: 7 });
  assert.deepEqual([stateOf(core, 0), stateOf(core, 1)], [State.missing, State.present]);
});

test('a source ends with the registration of its memory', () => {
  for (const ends of [
    (core: Core) => take(core, 4, 4),
    (core: Core) => apply(core, unmap(page(4), page(8))),
    (core: Core) => apply(core, remap(page(4), page(200), 4n * P), unmap(page(4), page(8))),
  ]) {
    const core = world();
    name(core, 0, 16);
    ends(core);
    put(core, 4, 4);
    assert.deepEqual(answered(core, 3), [3, 1, DATA + 3n * P]);
    assert.equal(copied(core, 4), undefined);
    assert.equal(copied(core, 7), undefined);
    // What lies behind the cut may be named again.
    assert.equal(copied(core, 8), undefined);
    name(core, 8, 8);
    assert.deepEqual(answered(core, 8), [8, 1, DATA + 8n * P]);
  }
});

test('where huge pages are, a source that begins or ends inside of one leaves it to the handler', () => {
  const core = makeCore();
  const huge = 2 ** 21 / PAGE;
  const first = huge - Number((BASE / P) % BigInt(huge));
  put(core, first, 4 * huge, { pageShift: 21 });
  name(core, first + 1, 3 * huge, 4);
  assert.equal(copied(core, first), undefined);
  const copy = answered(core, first + huge);
  assert.deepEqual(copy, [first + huge, 2 * huge, DATA + BigInt(first + huge) * P]);
  assert.equal(copied(core, first + 3 * huge), undefined);
});

test('ahead of faults, runs of missing pages come from their sources, and others are passed over', () => {
  const core = world();
  const ahead = (first: number, count: number): [step: number, passed: number] => {
    const step = still(core, 'aheadBegin', () => core.arguments(page(first), count * PAGE).aheadBegin(0));
    return [step, core.exports.aheadPassed() / PAGE];
  };
  assert.deepEqual(ahead(0, 8), [Step.ask, 0]);
  name(core, 2, 10);
  transfer(core, Op.copy, 2, 3, 0, DATA);
  transfer(core, Op.copy, 8, 1, 0, DATA);
  assert.deepEqual(ahead(2, 3), [Step.ask, 3]);
  assert.deepEqual(ahead(2, 90), [Step.call, 3]);
  assert.equal(core.exports.transferResult(0), Step.done);
  assert.equal(core.exports.transferDone(), 3 * PAGE);
  // To the end of what was asked for, and of the source.
  assert.deepEqual(ahead(8, 2), [Step.call, 1]);
  assert.equal(core.exports.transferResult(0), Step.done);
  assert.equal(core.exports.transferDone(), PAGE);
  assert.deepEqual(ahead(8, 90), [Step.call, 2]);
  assert.equal(core.exports.transferResult(0), Step.done);
  assert.equal(core.exports.transferDone(), 2 * PAGE);
  assert.deepEqual(ahead(8, 90), [Step.ask, 4]);
});

test('whatever is named, unnamed and named again: each page has the source given last, each end is reported once', () => {
  const first = seed();
  for (let run = first; run < first + 60; run++) {
    const below = generator(run);
    const core = world(300);
    const model = new Map<number, { data: bigint; source: number }>();
    const cut = (from: number, count: number): void => {
      const through = model.get(from - 1)?.source;
      for (const [index, { source }] of model) {
        if (index >= from && (index < from + count || source === through)) model.delete(index);
      }
    };
    for (let step = 0; step < 40; step++) {
      const before = new Set([...model.values()].map(({ source }) => source));
      const from = below(280);
      const count = 1 + below(20);
      if (below(4) === 0) {
        take(core, from, count);
        put(core, from, count);
        cut(from, count);
      } else {
        const data = DATA + BigInt(below(1 << 20)) * P;
        still(core, 'sourcePut', () => name(core, from, count, 1, data, step + 1));
        cut(from, count);
        for (let i = 0; i < count; i++) model.set(from + i, { data: data + BigInt(i) * P, source: step });
      }
      const left = new Set([...model.values()].map(({ source }) => source));
      const gone = [...before].filter((source) => !left.has(source)).map((source) => source + 1);
      assert.deepEqual(
        ended(core),
        gone.sort((a, b) => a - b),
        `step ${step}, run ${run}`,
      );
    }
    for (let index = 0; index < 300; index++) {
      const copy = copied(core, index);
      if (copy) {
        core.exports.roundResult(0);
      }
      assert.equal(copy?.[2], model.get(index)?.data, `page ${index}, run ${run}`);
    }
  }
});

const ROOM = 16_384;

test('there is room for 16,384; then one gives way for each that comes, and the latest stay', () => {
  const core = world(4 * ROOM);
  for (let index = 0; index < ROOM; index++) {
    name(core, index * 2, 1, 1, DATA + BigInt(index * 2) * P, index + 1);
    assert.deepEqual(ended(core), []);
  }
  for (const index of [0, 2 * 1024, 2 * (ROOM - 1)]) {
    assert.deepEqual(answered(core, index), [index, 1, DATA + BigInt(index) * P]);
  }
  for (let more = ROOM; more < 2 * ROOM - 100; more++) {
    still(core, 'sourcePut', () => name(core, more * 2, 1, 1, DATA, more + 1));
    assert.deepEqual(ended(core), [more - ROOM + 1], 'the one that has been there longest');
  }
  assert.equal(copied(core, 4), undefined);
  assert.deepEqual(answered(core, 2 * (2 * ROOM - 101)), [2 * (2 * ROOM - 101), 1, DATA]);
  // In front of all of them: the round goes on behind, so it is not the next to give way.
  name(core, 1, 1, 1, DATA, 7);
  name(core, 4 * ROOM - 8, 1);
  assert.deepEqual(answered(core, 1), [1, 1, DATA]);
});

test('a source that is cut keeps its keeper, one that is cleared reports nothing', () => {
  const core = world();
  name(core, 0, 16, 1, DATA, 5);
  take(core, 4, 4);
  assert.deepEqual(ended(core), []);
  take(core, 0, 4);
  assert.deepEqual(ended(core), [5]);
  name(core, 20, 4, 1, DATA, 6);
  apply(core, unmap(page(20), page(24)));
  core.exports.sourcesClear();
  assert.deepEqual(ended(core), []);
});

const MOST = ADAPTIVE + 64;

test('an adaptive window grows with a run of faults, up to its most, and is the page alone anywhere else', () => {
  const core = world(4096);
  name(core, 0, 4096, MOST);
  const windows: number[] = [];
  for (let next = 0; windows.length < 9; next += windows.at(-1) as number) {
    const [first, pages] = answered(core, next) as [number, number, bigint];
    assert.equal(first, next);
    windows.push(pages);
  }
  assert.deepEqual(windows, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
  // Random access gets nothing in vain, and does not end the run.
  for (const index of [3000, 2000, 3500]) assert.deepEqual(answered(core, index)?.slice(0, 2), [index, 1]);
  assert.deepEqual(answered(core, 255)?.slice(0, 2), [255, 64]);
  // Nor does a descending order grow.
  for (const index of [2999, 2998]) assert.deepEqual(answered(core, index)?.slice(0, 2), [index, 1]);
});

test('as many runs grow at once as threads may have; the oldest gives way', () => {
  const core = world(4096);
  name(core, 0, 4096, MOST);
  const runs = Array.from({ length: 65 }, (_, run) => run * 60);
  for (const first of runs) assert.deepEqual(answered(core, first)?.slice(0, 2), [first, 1]);
  for (const first of runs.slice(1)) assert.deepEqual(answered(core, first + 1)?.slice(0, 2), [first + 1, 2]);
  assert.deepEqual(answered(core, 1)?.slice(0, 2), [1, 1], 'the oldest of 65 was forgotten');
});

test('an adaptive window ends where the run of missing pages, the range and the source do', () => {
  const core = world(40);
  name(core, 0, 30, MOST);
  for (const index of [0, 1, 3, 7]) answered(core, index);
  // 16 would follow; page 20 is there.
  assert.deepEqual(answered(core, 20)?.slice(0, 2), [20, 1]);
  assert.deepEqual(answered(core, 15)?.slice(0, 2), [15, 5]);
  // It goes on behind what it got.
  assert.deepEqual(answered(core, 21)?.slice(0, 2), [21, 2]);
  assert.deepEqual(answered(core, 23)?.slice(0, 2), [23, 4]);
  assert.deepEqual(answered(core, 27)?.slice(0, 2), [27, 3], 'the source ends at 30');
});

test.run();
