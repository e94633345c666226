// The retry rule, row by row, for each of the six operations: the kernel's struct at every call, the next step after
// every result, and how many pages are done. No sequence of results makes a transfer endless.

import { strict as assert } from 'node:assert';
import { Action, ADAPTIVE, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';
import {
  answer,
  apply,
  deliver,
  EAGAIN,
  fault,
  feed,
  fork,
  holding,
  type Message,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  put,
  remap,
  remove,
  unmap,
  windowOf,
} from './support.js';
import {
  EEXIST,
  EFAULT,
  EINTR,
  ENOENT,
  ESRCH,
  FILLS,
  ROWS,
  type Row,
  Run,
  SOURCE,
  STEPPERS,
  wordsOf,
} from './transfers.js';

const test = suite('transfer');

/** A core that has read this change and not delivered it, because it delivered another one first. */
function undelivered(change: Message): Core {
  const core = makeCore();
  put(core, 0, 64);
  feed(core, fork(9), change);
  assert.equal(deliver(core).is, 'forked');
  return core;
}

for (const row of ROWS) {
  test(`${row.name}: 0 is all of it`, () => {
    new Run(row)
      .isFill(0)
      .answers(0, 8n * P)
      .ends(Step.DONE, 8);
    new Run(row, 1).isFill(0).answers(0, P).ends(Step.DONE, 1);
  });

  test(`${row.name}: the mode bits of every set of options`, () => {
    for (let options = 0; options < 8; options++)
      new Run(row, 8, options).isFill(0).answers(0).ends(Step.DONE, 8);
    const bits = [Option.DONTWAKE, Option.WRITE_PROTECT, Option.ALLOW_HOLES].map(
      (option) => new Run(row, 1, option).mode,
    );
    assert.deepEqual(bits, [row.dontWake, row.writeProtect, row.holes]);
  });

  test(`${row.name}: EAGAIN without progress reads, then makes the same call`, () => {
    for (const out of [-11n, 0n]) {
      const run = new Run(row).isFill(0).answers(EAGAIN, out);
      run
        .reads(remove(page(20), page(21)))
        .isFill(0)
        .answers(0)
        .ends(Step.DONE, 8);
    }
  });

  test(`${row.name}: after two reads that brought no change it ends short`, () => {
    new Run(row).answers(EAGAIN, -11n).reads().isFill(0).answers(EAGAIN, -11n).reads().ends(Step.SHORT, 0);
    // The next transfer starts its count at 0.
    const core = makeCore();
    new Run(row, 8, 0, core).answers(EAGAIN, 0n).reads().answers(0).ends(Step.DONE, 8);
    new Run(row, 8, 0, core).answers(EAGAIN, 0n).reads().isFill(0);
    // Faults do not count as changes, however many are read.
    const run = new Run(row)
      .answers(EAGAIN, -11n)
      .reads(fault(page(1)), fault(page(2)))
      .isFill(0);
    run
      .answers(EAGAIN, -11n)
      .reads(fault(page(3)))
      .ends(Step.SHORT, 0);
    // A change resets the count.
    const again = new Run(row).answers(EAGAIN, 0n).reads().isFill(0).answers(EAGAIN, 0n);
    again
      .reads(unmap(page(30), page(31)))
      .isFill(0)
      .answers(EAGAIN, 0n)
      .reads()
      .isFill(0);
    again.answers(EAGAIN, 0n).reads().ends(Step.SHORT, 0);
  });

  test(`${row.name}: a change that was read and touches the rest ends it short`, () => {
    const touching = [
      remove(page(7), page(9)),
      unmap(page(0), page(100)),
      remap(page(7), page(200), P),
      remap(page(200), page(0) - P, 2n * P),
    ];
    for (const change of touching) {
      new Run(row).answers(EAGAIN, -11n).reads(fork(3), change).ends(Step.SHORT, 0);
      // A change that was read and not delivered ends the fill even before its first call.
      new Run(row, 8, 0, undelivered(change)).ends(Step.SHORT, 0);
    }
    const beside = [
      remove(page(8), page(9)),
      unmap(page(0) - P, page(0)),
      remap(page(8), page(200), P),
      remap(page(200), page(0) - 2n * P, 2n * P),
      fork(3),
    ];
    for (const change of beside) {
      new Run(row).answers(EAGAIN, -11n).reads(change).isFill(0).answers(0).ends(Step.DONE, 8);
      new Run(row, 8, 0, undelivered(change)).isFill(0).answers(0).ends(Step.DONE, 8);
    }
  });

  test(`${row.name}: changes that keep coming do not make it endless`, () => {
    const run = new Run(row);
    let calls = 0;
    let reads = 0;
    for (; run.action !== Action.FILLED; calls++) {
      assert.ok(calls < 600, 'still going on');
      run.isFill(0).answers(EAGAIN, -11n);
      // If no further change fits into the queue, the core does not read.
      if (run.action !== Action.READ) continue;
      run.reads(remove(page(40), page(41)));
      reads++;
    }
    run.ends(Step.SHORT, 0);
    assert.deepEqual([reads, calls], [512, 512 + 2]);
  });

  test(`${row.name}: EINTR makes the same call again`, () => {
    const run = new Run(row, 1, row.plain).isFill(0).answers(EINTR, -4n).isFill(0).answers(EINTR).isFill(0);
    run.answers(ENOENT, -2n).isWake(0, 1).answers(EINTR).isWake(0, 1).answers(0).ends(Step.UNMAPPED, 0);
    // A narrowed call stays narrowed when it is repeated.
    if (row.op === Op.MOVE) return;
    const narrowed = new Run(row).answers(ENOENT, -2n).isFill(0, 4).answers(EINTR).isFill(0, 4);
    narrowed.answers(EAGAIN, -11n).reads().isFill(0, 4);
  });

  test(`${row.name}: ENOENT of one page wakes it and ends`, () => {
    new Run(row, 1, row.plain).answers(ENOENT, -2n).isWake(0, 1).answers(0).ends(Step.UNMAPPED, 0);
    // Also with dontWake, because no later call can wake these threads.
    const asleep = new Run(row, 1, row.plain | Option.DONTWAKE).answers(ENOENT, -2n);
    asleep.isWake(0, 1).answers(-22).ends(Step.UNMAPPED, 0);
  });

  test(`${row.name}: ESRCH ends at once`, () => {
    new Run(row).answers(ESRCH).ends(Step.EXITED, 0);
  });

  test(`${row.name}: any other error fails with it`, () => {
    for (const errno of [1, 5, 9, 12, 14, 16, 22, 28]) {
      const run = new Run(row).answers(-errno, BigInt(-errno));
      run.ends(Step.FAILED, 0, errno);
      // The error does not affect the next transfer.
      const next = new Run(row, 2, 0, run.core).answers(0);
      next.ends(Step.DONE, 2);
      assert.equal(run.core.errno, 0);
    }
  });
}

for (const row of FILLS) {
  test(`${row.name}: goes on after a part, and then meets any cause`, () => {
    const part = () =>
      new Run(row, 8, row.plain)
        .isFill(0)
        .answers(EAGAIN, 3n * P)
        .isFill(3);
    part()
      .answers(0, 5n * P)
      .ends(Step.DONE, 8);
    part()
      .answers(EAGAIN, 5n * P)
      .ends(Step.DONE, 8);
    part()
      .answers(EAGAIN, P)
      .isFill(4)
      .answers(EAGAIN, P)
      .isFill(5)
      .answers(0, 3n * P)
      .ends(Step.DONE, 8);
    part().answers(EAGAIN, -11n).reads().isFill(3).answers(0).ends(Step.DONE, 8);
    part()
      .answers(EAGAIN, -11n)
      .reads(remove(page(3), page(4)))
      .ends(Step.SHORT, 3);
    // A change of pages that are already done does not end the fill.
    part()
      .answers(EAGAIN, -11n)
      .reads(remove(page(0), page(3)))
      .isFill(3)
      .answers(0)
      .ends(Step.DONE, 8);
    const last = part().answers(ENOENT, -2n);
    if (row.op === Op.MOVE) last.isWake(3, 5).answers(0).ends(Step.UNMAPPED, 3);
    else last.plays([3, 5, ENOENT], [3, 4, ENOENT]).isWake(3, 1).answers(0).ends(Step.UNMAPPED, 3);
    part().answers(ESRCH).ends(Step.EXITED, 3);
    part().answers(-14, -14n).ends(Step.FAILED, 3, 14);
    part().answers(EINTR).isFill(3);
  });

  test(`${row.name}: more than was asked for is no progress`, () => {
    new Run(row)
      .answers(EAGAIN, 9n * P)
      .reads()
      .isFill(0);
  });

  test(`${row.name}: more than 4 GiB in one transfer`, () => {
    const count = 3 * 2 ** 20;
    const core = makeCore();
    put(core, 0, count);
    const run = new Run(row, count, 0, core)
      .isFill(0)
      .answers(EAGAIN, 2n ** 33n)
      .isFill(2 ** 21);
    run.answers(0).ends(Step.DONE, count);
  });
}

// ---- two mappings under one call -----------------------------------------------------------------------------

const NARROWED = ROWS.filter((row) => row.op !== Op.MOVE);

for (const row of NARROWED) {
  test(`${row.name}: ENOENT on several pages halves the call; the border is found, and costs nothing again`, () => {
    // The second mapping begins with page 5.
    const run = new Run(row, 16).plays([0, 16, ENOENT], [0, 8, ENOENT], [0, 4], [4, 8, ENOENT]);
    run.plays([4, 6, ENOENT], [4, 5], [5, 6], [6, 16]).ends(Step.DONE, 16);
    new Run(row, 16, 0, run.core).plays([0, 5], [5, 16]).ends(Step.DONE, 16);
    new Run(row, 5, 0, run.core).plays([0, 5]).ends(Step.DONE, 5);
  });

  test(`${row.name}: a border is found behind a part, too, and right where a call was halved`, () => {
    const parts = new Run(row, 8).plays([0, 8, ENOENT]).isFill(0, 4);
    if (row.result === undefined) parts.answers(0);
    else parts.answers(EAGAIN, 2n * P).plays([2, 8, ENOENT], [2, 5, ENOENT], [2, 3], [3, 5, ENOENT], [3, 4]);
    parts.plays(row.result === undefined ? [4, 8] : [4, 5]);
    if (row.result !== undefined) parts.plays([5, 8]);
    parts.ends(Step.DONE, 8);
    new Run(row, 8, 0, parts.core).plays([0, 4], [4, 8]).ends(Step.DONE, 8);
  });

  test(`${row.name}: a page in the middle that is gone ends it there, and is woken alone`, () => {
    const run = new Run(row, 8).plays([0, 8, ENOENT], [0, 4], [4, 8, ENOENT], [4, 6, ENOENT], [4, 5, ENOENT]);
    run.isWake(4, 1).answers(0).ends(Step.UNMAPPED, 4);
    // Later fills know the border in front of page 4, and end a call there.
    new Run(row, 8, 0, run.core).plays([0, 4], [4, 8, ENOENT], [4, 6, ENOENT], [4, 5, ENOENT]).isWake(4, 1);
  });

  test(`${row.name}: with dontWake, threads that were left asleep are woken with the page that is gone`, () => {
    const run = new Run(row, 4, Option.DONTWAKE).plays(
      [0, 4, ENOENT],
      [0, 2],
      [2, 4, ENOENT],
      [2, 3, ENOENT],
    );
    run.isWake(0, 3).answers(0).ends(Step.UNMAPPED, 2);
  });

  test(`${row.name}: if the page of the current fault lies behind the gone one, it goes on there`, () => {
    const core = holding(fault(page(5)));
    assert.equal(deliver(core).is, 'fault');
    const run = new Run(row, 8, 0, core).plays(
      [0, 8, ENOENT],
      [0, 4, ENOENT],
      [0, 2, ENOENT],
      [0, 1, ENOENT],
    );
    run.isWake(0, 1).answers(0).plays([5, 8]).ends(Step.DONE, 3);
    answer(core, true);
    assert.equal(core.waiting, 0);
    // The next fill that begins before page 5 stops in front of it.
    new Run(row, 8, 0, core).isFill(0, 5);
  });

  test(`${row.name}: with dontWake, behind the jump a run of its own begins`, () => {
    const core = holding(fault(page(5)));
    deliver(core);
    const run = new Run(row, 8, Option.DONTWAKE, core);
    run.plays([0, 8, ENOENT], [0, 4], [4, 8, ENOENT], [4, 6, ENOENT], [4, 5, ENOENT]).isWake(0, 5);
    run.answers(0).plays([5, 8, ENOENT], [5, 6], [6, 8, ENOENT], [6, 7, ENOENT]).isWake(5, 2);
    run.answers(0).ends(Step.UNMAPPED, 5);
    assert.equal(core.start, page(6));
    answer(core, true);
    assert.equal(core.waiting, 0, 'its page was filled');
  });

  test(`${row.name}: if the page of the current fault is gone itself, the fault is over`, () => {
    const core = holding(fault(page(2)), fault(page(6)));
    deliver(core);
    new Run(row, 3, 0, core)
      .plays([0, 3, ENOENT], [0, 1], [1, 3, ENOENT], [1, 2], [2, 3, ENOENT])
      .isWake(2, 1)
      .answers(0);
    answer(core, false);
    assert.equal(core.waiting, 1);
    // An unmapped page in front of the current fault's page does not end the fault, however often a fill meets it.
    assert.deepEqual(pagesOf([deliver(core)]), [6]);
    new Run(row, 5, 0, core)
      .plays([0, 2, ENOENT], [0, 1, ENOENT])
      .isWake(0, 1)
      .answers(0)
      .ends(Step.UNMAPPED, 0);
    answer(core, false);
    assert.equal(core.waiting, 1);
  });

  test(`${row.name}: two ranges are two calls from the first time on, whatever the size of their pages`, () => {
    const huge = 512;
    const core = makeCore();
    put(core, 0, 2 * huge, { pageShift: 21 });
    put(core, 2 * huge, 8);
    put(core, 2 * huge + 8, huge - 8, { operations: 0n });
    new Run(row, 2 * huge + 20, 0, core)
      .plays([0, 2 * huge], [2 * huge, 2 * huge + 8], [2 * huge + 8, 2 * huge + 20])
      .ends(Step.DONE, 2 * huge + 20);
    const narrowed = new Run(row, 2 * huge + 20, 0, core).plays([0, 2 * huge, ENOENT], [0, huge, ENOENT]);
    narrowed.isWake(0, huge).answers(0).ends(Step.UNMAPPED, 0);
  });
}

test('a border is found behind a page that was stepped over, too', () => {
  for (const row of STEPPERS) {
    const run = new Run(row, 4).plays([0, 4, ENOENT], [0, 2], [2, 4, ENOENT]).isFill(2, 3);
    run.answers(EEXIST).isWake(2, 1).answers(0).plays([3, 4]).ends(Step.DONE, 4);
    new Run(row, 4, 0, run.core).plays([0, 3], [3, 4]).ends(Step.DONE, 4);
    // The same if the present page is the first of the second mapping.
    const other = new Run(row, 4).plays([0, 4, ENOENT], [0, 2]).isFill(2).answers(EEXIST).isWake(2, 1);
    other.answers(0).plays([3, 4]).ends(Step.DONE, 4);
    new Run(row, 4, 0, other.core).plays([0, 2], [2, 4]).ends(Step.DONE, 4);
  }
});

test('a border is forgotten with its memory; a wrong one costs a call and nothing else', () => {
  const row = ROWS[Op.COPY] as Row;
  const { core } = new Run(row, 8).plays([0, 8, ENOENT], [0, 4], [4, 8]);
  for (const forget of [unmap(page(5), page(9)), unmap(page(0), page(4)), remap(page(40), page(5), 4n * P)]) {
    apply(core, forget);
    put(core, 0, 64);
    new Run(row, 8, 0, core).plays([0, 4], [4, 8]);
  }
  for (const forget of [unmap(page(4), page(5)), remap(page(40), page(1), 4n * P)]) {
    apply(core, forget);
    put(core, 0, 64);
    new Run(row, 8, 0, core).plays([0, 8, ENOENT], [0, 4], [4, 8]);
  }
});

test('windows stop at borders, in front of them and behind', () => {
  const row = ROWS[Op.WRITEPROTECT] as Row;
  const { core } = new Run(row, 16).plays([0, 16, ENOENT], [0, 8], [8, 16]);
  new Run(row, 32, 0, core).plays([0, 8], [8, 32, ENOENT], [8, 20], [20, 32]);
  assert.deepEqual(windowOf(core, 3, 64), [0, 8]);
  assert.deepEqual(windowOf(core, 8, 64), [8, 12]);
  assert.deepEqual(windowOf(core, 19, 64), [8, 12]);
  assert.deepEqual(windowOf(core, 20, 64), [20, 44]);
  assert.deepEqual(windowOf(core, 20, ADAPTIVE + 64), [20, 1]);
  assert.deepEqual(windowOf(core, 5, ADAPTIVE + 64), [5, 1]);
  // The second fault of a run gets a window of 2 pages.
  assert.deepEqual(windowOf(core, 6, ADAPTIVE + 64), [6, 2], 'it would come to page 8 by itself');
});

test('4,096 borders are known at once; with one more they are found anew', () => {
  const core = makeCore();
  put(core, 0, 10_000);
  const play = (results: readonly number[]) => {
    const actions = results.map((result) => core.exports.handleResult(result));
    assert.equal(actions.at(-1), Action.FILLED);
  };
  /** The number of pages in the first call of a fill of two pages, whose calls then return `results`. */
  const begun = (first: number, results: readonly number[] = [EFAULT]) => {
    assert.equal(core.arguments(page(first), 2 * PAGE).beginFill(Op.ZEROPAGE, 0), Action.IOCTL);
    const pages = Number(wordsOf(core).subarray(core.request >>> 3)[1]) / PAGE;
    play(results);
    return pages;
  };
  const learn = (first: number) => assert.equal(begun(first, [ENOENT, 0, 0]), 2);
  // In shuffled order.
  for (let i = 0; i < 4096; i++) learn(((i * 1237) % 4096) * 2);
  for (let i = 0; i < 4096; i++) assert.equal(begun(2 * i), 1, `border ${2 * i + 1}`);
  learn(9000);
  assert.equal(begun(9000), 1);
  for (let i = 0; i < 4096; i++) assert.equal(begun(2 * i), 2, `border ${2 * i + 1}`);
});

for (const row of STEPPERS) {
  test(`${row.name}: EEXIST wakes that page and steps over it`, () => {
    const run = new Run(row).answers(EEXIST, -17n).isWake(0, 1).answers(0).isFill(1);
    run
      .answers(EAGAIN, 2n * P)
      .isFill(3)
      .answers(EEXIST, -17n)
      .isWake(3, 1)
      .answers(0)
      .isFill(4);
    run.answers(0).ends(Step.DONE, 8);
    // Every page is stepped over, the last one too.
    const all = new Run(row, 3);
    for (const index of [0, 1, 2]) all.isFill(index).answers(EEXIST, -17n).isWake(index, 1).answers(0);
    all.ends(Step.DONE, 3);
    // An interrupted WAKE is repeated. A WAKE that fails does not matter.
    new Run(row).answers(EEXIST, -17n).answers(EINTR).isWake(0, 1).answers(-22).isFill(1);
  });

  test(`${row.name}: EEXIST with dontWake steps over without waking`, () => {
    const run = new Run(row, 3, Option.DONTWAKE).isFill(0).answers(EEXIST, -17n).isFill(1);
    run.answers(EEXIST, -17n).isFill(2).answers(EEXIST, -17n).ends(Step.DONE, 3);
  });

  test(`${row.name}: stepping over a huge page does not go beyond the end`, () => {
    const core = makeCore();
    put(core, 0, 512, { pageShift: 21 });
    const run = new Run(row, 100, 0, core).answers(EEXIST, -17n).isWake(0, 512);
    run.answers(0).ends(Step.DONE, 100);
  });

  test(`${row.name}: a huge page is stepped over as a whole`, () => {
    const huge = 512;
    const core = makeCore();
    put(core, 0, 4 * huge, { pageShift: 21 });
    const run = new Run(row, 3 * huge, 0, core).isFill(0).answers(EEXIST, -17n).isWake(0, huge);
    run
      .answers(0)
      .isFill(huge)
      .answers(EAGAIN, BigInt(huge) * P)
      .isFill(2 * huge);
    run
      .answers(EEXIST, -17n)
      .isWake(2 * huge, huge)
      .answers(0)
      .ends(Step.DONE, 3 * huge);
  });
}

const MOVE = ROWS[Op.MOVE] as Row;

test('MOVE: EEXIST wakes that page and fails, because the source keeps the rest', () => {
  new Run(MOVE).answers(EEXIST, -17n).isWake(0, 1).answers(0).ends(Step.FAILED, 0, 17);
  const run = new Run(MOVE)
    .answers(EAGAIN, 2n * P)
    .isFill(2)
    .answers(EEXIST, -17n);
  run.isWake(2, 1).answers(EINTR).isWake(2, 1).answers(0).ends(Step.FAILED, 2, 17);
});

test('MOVE: ENOENT may be a hole in the source where none is allowed: it wakes and fails', () => {
  const run = new Run(MOVE)
    .answers(EAGAIN, 2n * P)
    .isFill(2)
    .answers(ENOENT, -2n)
    .isWake(2, 6);
  run.answers(0).ends(Step.FAILED, 2, 2);
});

test('MOVE: a change that touches what is left of the source ends it short; for COPY the source is not watched', () => {
  const COPY = ROWS[Op.COPY] as Row;
  const first = SOURCE;
  const change = (from: number, count: number) =>
    remove(first + BigInt(from) * P, first + BigInt(from + count) * P);
  new Run(MOVE).answers(EAGAIN, -11n).reads(change(7, 1)).ends(Step.SHORT, 0);
  new Run(MOVE).answers(EAGAIN, -11n).reads(change(8, 1), change(-1, 1)).isFill(0);
  new Run(MOVE)
    .answers(EAGAIN, 3n * P)
    .answers(EAGAIN, -11n)
    .reads(change(0, 3))
    .isFill(3);
  new Run(MOVE)
    .answers(EAGAIN, 3n * P)
    .answers(EAGAIN, -11n)
    .reads(change(2, 2))
    .ends(Step.SHORT, 3);
  new Run(COPY).answers(EAGAIN, -11n).reads(change(0, 8)).isFill(0).answers(0).ends(Step.DONE, 8);
  const core = undelivered(change(0, 1));
  new Run(MOVE, 8, 0, core).ends(Step.SHORT, 0);
  new Run(COPY, 8, 0, core).isFill(0);
});

test('WRITEPROTECT has no result: what lies behind its struct says nothing', () => {
  const run = new Run(ROWS[Op.WRITEPROTECT] as Row);
  run.words.fill(2n * P, 3);
  run.answers(EAGAIN).reads(fork(1)).isFill(0);
});

test.run();
