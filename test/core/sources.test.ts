// Faults that the core resolves itself by copying from a source in memory: which faults, with which copy; and which
// faults go to the handler. The table of sources always equals a plain map of pages.

import { strict as assert } from 'node:assert';
import {
  Action,
  ADAPTIVE,
  Operation as Op,
  SourceKind,
  Step,
  UFFDIO_ZEROPAGE,
  ZERO_RUNS,
} from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  answer,
  apply,
  BASE,
  dispatch,
  drive,
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
import { DATA, EEXIST, EFAULT, ENOENT, partly, requested, tallied, wordsOf } from './transfers.js';

const test = suite('sources');

/** Names a source for `count` pages from page `first` on. By default page n has its data at DATA + n pages. */
function name(
  core: Core,
  first: number,
  count: number,
  window = 1,
  data = DATA + BigInt(first) * P,
  keeper = 0,
): void {
  core.arguments(page(first), count * PAGE, data).sourcePut(SourceKind.DATA, window, keeper);
}

/** The keepers whose source has ended, in ascending order. */
function ended(core: Core): number[] {
  const keepers: number[] = [];
  for (let keeper = core.exports.sourceEnded(); keeper !== 0; keeper = core.exports.sourceEnded())
    keepers.push(keeper);
  return keepers.sort((a, b) => a - b);
}

/** A page faults. Returns the copy that the core begins: first page, pages, source. Undefined: the handler got it. */
function copied(core: Core, index: number, flags = 0n): [number, number, bigint] | undefined {
  feed(core, fault(page(index) + 8n, flags));
  const next = dispatch(core);
  if (next === Action.FAULT) {
    answer(core, true);
    return undefined;
  }
  assert.equal(next, Action.IOCTL);
  const call = requested(core);
  assert.ok(call.is === 'copy' && call.mode === 0n);
  return [call.start, call.pages, call.source];
}

/** As `copied`, and the copy succeeds. */
function answered(core: Core, index: number): [number, number, bigint] | undefined {
  const copy = copied(core, index);
  if (!copy) return undefined;
  assert.equal(core.exports.handleResult(0), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: copy[1] });
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
  // The window is clipped to the source and to the missing pages.
  assert.deepEqual(answered(core, 12), [10, 6, DATA + 10n * P]);
  assert.deepEqual(answered(core, 29), [24, 6, DATA + 24n * P]);
  const other = world();
  name(other, 0, 100, 8);
  transfer(other, Op.COPY, 18, 1, 0, DATA);
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
  // The page was removed once and then filled; its fault shows that it counts as removed.
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.COPY, 3, 1, 0, DATA);
  assert.equal(copied(core, 3), undefined);
  assert.equal(stateOf(core, 3), State.removed);
  assert.equal(copied(core, 4, FLAG_WP), undefined);
  assert.deepEqual(answered(core, 0), [0, 1, DATA]);
});

test('a page that was filled, never removed, and is missing again is copied once more, alone', () => {
  const core = world();
  name(core, 0, 16, 8);
  assert.deepEqual(answered(core, 3), [0, 8, DATA]);
  transfer(core, Op.COPY, 9, 1, 0, DATA);
  for (const index of [3, 9]) {
    assert.deepEqual(answered(core, index), [index, 1, DATA + BigInt(index) * P]);
  }
  // The page's state, as the handler sees it, is unchanged.
  assert.equal(stateOf(core, 3), State.present);
  // After a copy that returned EEXIST, the next fault of the page goes to the handler, once its delay is over.
  assert.deepEqual(copied(core, 3), [3, 1, DATA + 3n * P]);
  core.exports.handleResult(EEXIST);
  core.exports.handleResult(0);
  feed(core, fault(page(3)));
  assert.equal(dispatch(core), Action.DONE);
  assert.equal(dispatch(core, 1), Action.FAULT);
  answer(core, true);
  // After a fill, the source answers the page's next fault again.
  transfer(core, Op.COPY, 3, 1, 0, DATA);
  assert.deepEqual(answered(core, 3), [3, 1, DATA + 3n * P]);
});

test('a copy that fails half-way leaves its fault to the handler; what came is there, and is reported', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  partly(core, 2);
  assert.equal(core.exports.handleResult(EAGAIN), Action.IOCTL);
  assert.equal(core.exports.handleResult(EFAULT), Action.FAULT);
  assert.deepEqual(tallied(core), { faults: 0, writes: 0, deferred: 0, pages: 2 });
  assert.equal(core.start, page(5));
  assert.deepEqual([stateOf(core, 1), stateOf(core, 2)], [State.present, State.missing]);
  assert.equal(core.exports.handleAnswer(false, false), Action.TIME);
});

test('zeros: a hole with its window, and what was removed if the source says so', () => {
  const core = world();
  const zeroed = (index: number): [start: bigint, length: bigint] => {
    feed(core, fault(page(index)));
    assert.equal(dispatch(core), Action.IOCTL);
    assert.equal(core.code >>> 0, UFFDIO_ZEROPAGE);
    const [start = 0n, length = 0n] = wordsOf(core).subarray(core.request >>> 3);
    assert.equal(core.exports.handleResult(0), Action.DONE);
    return [start, length];
  };
  core.arguments(page(0), 8 * PAGE).sourcePut(SourceKind.ZEROS, 8, 0);
  assert.deepEqual(zeroed(3), [page(0), 8n * P]);
  assert.deepEqual([core.holeBytes, core.removedBytes], [8 * PAGE, 0]);
  core.arguments(page(8), 8 * PAGE, DATA + 8n * P).sourcePut(SourceKind.DATA_OR_REMOVED, 8, 0);
  assert.deepEqual(answered(core, 10), [8, 8, DATA + 8n * P]);
  apply(core, remove(page(9), page(12)));
  assert.deepEqual(zeroed(10), [page(9), 3n * P]);
  assert.deepEqual([core.holeBytes, core.removedBytes], [0, 3 * PAGE]);
});

test('zeros in runs: twice as many pages with each answer, up to the 2 MiB around the page; data keeps its window', () => {
  const core = world(2048);
  const zeroed = (index: number): [first: number, pages: number] => {
    feed(core, fault(page(index)));
    assert.equal(dispatch(core), Action.IOCTL);
    assert.equal(core.code >>> 0, UFFDIO_ZEROPAGE);
    const [start = 0n, length = 0n] = wordsOf(core).subarray(core.request >>> 3);
    assert.equal(core.exports.handleResult(0), Action.DONE);
    return [Number((start - page(0)) / P), Number(length / P)];
  };
  core.arguments(page(0), 2048 * PAGE, DATA).sourcePut(SourceKind.DATA_OR_REMOVED, 1 + ZERO_RUNS, 0);
  assert.deepEqual(answered(core, 700), [700, 1, DATA + 700n * P]);
  apply(core, remove(page(1), page(2000)));
  const base = Number((page(0) / P) % 512n);
  const around = (index: number, size: number): [number, number] => {
    const first = Math.max(1, index - ((base + index) % size));
    return [first, Math.min(2000, index - ((base + index) % size) + size) - first];
  };
  // The pages are so far apart that their windows do not overlap.
  for (const [index, size] of [
    [1030, 2],
    [1100, 4],
    [1200, 8],
    [1300, 16],
  ] as const)
    assert.deepEqual(zeroed(index), around(index, size), `${size}`);
  for (const index of [600, 640, 704, 832]) zeroed(index);
  assert.deepEqual(zeroed(300), around(300, 512));
  assert.deepEqual(zeroed(1999), around(1999, 512));
  // A page that was not removed is copied from the data, with the window of one page.
  assert.deepEqual(answered(core, 2047), [2047, 1, DATA + 2047n * P]);
});

test('if removals are not reported, a page that was installed and is missing again is for the handler', () => {
  const core = makeCore(0n);
  put(core, 0, 100);
  name(core, 0, 16);
  assert.deepEqual(answered(core, 3), [3, 1, DATA + 3n * P]);
  assert.equal(copied(core, 3), undefined);
});

test('a fault that is read in the middle of a fill, of a page that the fill has installed, is answered like a new one', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  partly(core, 3);
  assert.equal(core.exports.handleResult(EAGAIN), Action.IOCTL);
  partly(core, 0);
  assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
  // The kernel removes pages after their event was read: pages 0 and 1 are missing again.
  feed(core, fault(page(0)), fault(page(1)));
  assert.equal(drive(core, Action.READ), Action.IOCTL);
  const rest = requested(core);
  assert.ok(rest.is === 'copy' && rest.start === 3 && rest.pages === 5);
  const filled: number[] = [];
  let action = core.exports.handleResult(0);
  for (let calls = 0; action !== Action.DONE && action !== Action.ANSWERED; calls++) {
    assert.ok(calls < 10);
    if (action === Action.READ) action = drive(core, action);
    else {
      const call = requested(core);
      if (call.is === 'copy') filled.push(call.start);
      action = core.exports.handleResult(0);
    }
  }
  assert.deepEqual(filled, [0, 1]);
  assert.equal(core.answered, 3);
});

test('a removal that was read on the way defers the fault; memory that is gone ends it', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  partly(core, 0);
  assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
  feed(core, remove(page(5), page(6)));
  assert.equal(drive(core, Action.READ), Action.ANSWERED);
  assert.deepEqual(tallied(core), { faults: 0, writes: 0, deferred: 1, pages: 0 });
  assert.equal(core.waiting, 2);
  const gone = world();
  name(gone, 0, 8, 8);
  copied(gone, 5);
  // The copy installs pages 0 to 4, and then tries page 5 alone.
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
    assert.equal(gone.exports.handleResult(result), Action.IOCTL);
  }
  assert.deepEqual(requested(gone), { is: 'wake', start: 5, pages: 1 });
  assert.equal(gone.exports.handleResult(0), Action.DONE);
  assert.deepEqual(tallied(gone), { faults: 0, writes: 0, deferred: 0, pages: 5 });
  assert.equal(gone.waiting, 0);
});

test('a page of the window that is there is woken and stepped over', () => {
  const core = world();
  name(core, 0, 8, 8);
  copied(core, 5);
  assert.equal(core.exports.handleResult(EEXIST), Action.IOCTL);
  assert.deepEqual(requested(core), { is: 'wake', start: 0, pages: 1 });
  assert.equal(core.exports.handleResult(0), Action.IOCTL);
  assert.equal(core.exports.handleResult(0), Action.DONE);
  // Seven pages were installed. The state of the page that returned EEXIST is not recorded.
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: 7 });
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
    // A source may be named again for the memory behind the cut.
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
  const ahead = (first: number, count: number): [action: number, passed: number] => {
    const action = still(core, 'beginAhead', () => core.arguments(page(first), count * PAGE).beginAhead(0));
    if (action === Action.FILLED) {
      assert.equal(core.outcome, Step.ASK);
      assert.deepEqual([core.resolved, core.installed], [0, 0]);
    }
    return [action, core.passed / PAGE];
  };
  const installs = (pages: number): void => {
    assert.equal(core.exports.handleResult(0), Action.FILLED);
    assert.equal(core.outcome, Step.DONE);
    assert.deepEqual([core.resolved, core.installed], [pages * PAGE, pages * PAGE]);
  };
  assert.deepEqual(ahead(0, 8), [Action.FILLED, 0]);
  name(core, 2, 10);
  transfer(core, Op.COPY, 2, 3, 0, DATA);
  transfer(core, Op.COPY, 8, 1, 0, DATA);
  assert.deepEqual(ahead(2, 3), [Action.FILLED, 3]);
  assert.deepEqual(ahead(2, 90), [Action.IOCTL, 3]);
  installs(3);
  // To the end of the requested range, and to the end of the source.
  assert.deepEqual(ahead(8, 2), [Action.IOCTL, 1]);
  installs(1);
  assert.deepEqual(ahead(8, 90), [Action.IOCTL, 2]);
  installs(2);
  assert.deepEqual(ahead(8, 90), [Action.FILLED, 4]);
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
        core.exports.handleResult(0);
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
  // A source in front of all others: the search for the next one to evict continues behind, so this source stays.
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
  // Random access causes no unneeded copy, and does not end the run.
  for (const index of [3000, 2000, 3500]) assert.deepEqual(answered(core, index)?.slice(0, 2), [index, 1]);
  assert.deepEqual(answered(core, 255)?.slice(0, 2), [255, 64]);
  // The window does not grow with descending faults either.
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
  // The next window would have 16 pages, but page 20 is present.
  assert.deepEqual(answered(core, 20)?.slice(0, 2), [20, 1]);
  assert.deepEqual(answered(core, 15)?.slice(0, 2), [15, 5]);
  // The run of faults continues behind the pages that it got.
  assert.deepEqual(answered(core, 21)?.slice(0, 2), [21, 2]);
  assert.deepEqual(answered(core, 23)?.slice(0, 2), [23, 4]);
  assert.deepEqual(answered(core, 27)?.slice(0, 2), [27, 3], 'the source ends at 30');
});

test.run();
