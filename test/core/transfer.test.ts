// The retry rule, row by row, for each of the six operations: what the kernel's struct holds at every call, what
// follows from every answer, and how far it came. No answer of the kernel's makes a transfer endless.

import { strict as assert } from 'node:assert';
import { Op, Option, Step } from '../../src/core.js';
import { suite } from '../harness.js';
import { EAGAIN, fault, feed, fork, makeCore, P, page, put, remap, remove, unmap } from './support.js';
import { EEXIST, EINTR, ENOENT, ESRCH, FILLS, ROWS, type Row, Run, SOURCE, STEPPERS } from './transfers.js';

const test = suite('transfer');

for (const row of ROWS) {
  test(`${row.name}: 0 is all of it`, () => {
    new Run(row)
      .isFill(0)
      .answers(0, 8n * P)
      .ends(Step.done, 8);
    new Run(row, 1).isFill(0).answers(0, P).ends(Step.done, 1);
  });

  test(`${row.name}: the mode bits of every set of options`, () => {
    for (let options = 0; options < 8; options++)
      new Run(row, 8, options).isFill(0).answers(0).ends(Step.done, 8);
    const bits = [Option.dontWake, Option.writeProtect, Option.allowHoles].map(
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
        .ends(Step.done, 8);
    }
  });

  test(`${row.name}: after two reads that brought no change it ends short`, () => {
    new Run(row).answers(EAGAIN, -11n).reads().isFill(0).answers(EAGAIN, -11n).reads().ends(Step.short, 0);
    // The next transfer counts from nothing.
    const core = makeCore();
    new Run(row, 8, 0, core).answers(EAGAIN, 0n).reads().answers(0).ends(Step.done, 8);
    new Run(row, 8, 0, core).answers(EAGAIN, 0n).reads().isFill(0);
    // Faults are no change, however many come in.
    const run = new Run(row)
      .answers(EAGAIN, -11n)
      .reads(fault(page(1)), fault(page(2)))
      .isFill(0);
    run
      .answers(EAGAIN, -11n)
      .reads(fault(page(3)))
      .ends(Step.short, 0);
    // A change starts the count over.
    const again = new Run(row).answers(EAGAIN, 0n).reads().isFill(0).answers(EAGAIN, 0n);
    again
      .reads(unmap(page(30), page(31)))
      .isFill(0)
      .answers(EAGAIN, 0n)
      .reads()
      .isFill(0);
    again.answers(EAGAIN, 0n).reads().ends(Step.short, 0);
  });

  test(`${row.name}: a change that was read and touches the rest ends it short`, () => {
    const touching = [
      remove(page(7), page(9)),
      unmap(page(0), page(100)),
      remap(page(7), page(200), P),
      remap(page(200), page(0) - P, 2n * P),
    ];
    for (const change of touching) {
      new Run(row).answers(EAGAIN, -11n).reads(fork(3), change).ends(Step.short, 0);
      // What waits for its delivery counts before the first call too.
      const core = makeCore();
      put(core, 0, 64);
      feed(core, change);
      new Run(row, 8, 0, core).ends(Step.short, 0);
    }
    const beside = [
      remove(page(8), page(9)),
      unmap(page(0) - P, page(0)),
      remap(page(8), page(200), P),
      remap(page(200), page(0) - 2n * P, 2n * P),
      fork(3),
    ];
    for (const change of beside) {
      new Run(row).answers(EAGAIN, -11n).reads(change).isFill(0).answers(0).ends(Step.done, 8);
      const core = makeCore();
      put(core, 0, 64);
      feed(core, change);
      new Run(row, 8, 0, core).isFill(0).answers(0).ends(Step.done, 8);
    }
  });

  test(`${row.name}: changes that keep coming do not make it endless`, () => {
    const core = makeCore();
    put(core, 0, 64);
    const run = new Run(row, 8, 0, core);
    let reads = 0;
    for (; run.step !== Step.short; reads++) {
      assert.ok(reads < 600, 'still going on');
      run.isFill(0).answers(EAGAIN, -11n);
      // As the channel does it: where there is no room, nothing is read.
      if (core.exports.inboxRoom() > 0) run.reads(remove(page(40), page(41)));
      else run.step = core.exports.transferResume();
    }
    assert.equal(reads, 512 + 2);
  });

  test(`${row.name}: EINTR makes the same call again`, () => {
    const run = new Run(row, 8, row.plain).isFill(0).answers(EINTR, -4n).isFill(0).answers(EINTR).isFill(0);
    run.answers(ENOENT, -2n).isWake(0, 8).answers(EINTR).isWake(0, 8).answers(0).ends(Step.unmapped, 0);
  });

  test(`${row.name}: ENOENT wakes the rest and ends`, () => {
    new Run(row, 8, row.plain).answers(ENOENT, -2n).isWake(0, 8).answers(0).ends(Step.unmapped, 0);
    // Also where the sleepers were to be left asleep: nobody can wake them later.
    const asleep = new Run(row, 8, row.plain | Option.dontWake).answers(ENOENT, -2n);
    asleep.isWake(0, 8).answers(-22).ends(Step.unmapped, 0);
  });

  test(`${row.name}: ESRCH ends at once`, () => {
    new Run(row).answers(ESRCH).ends(Step.exited, 0);
  });

  test(`${row.name}: any other error fails with it`, () => {
    for (const errno of [1, 5, 9, 12, 14, 16, 22, 28]) {
      const run = new Run(row).answers(-errno, BigInt(-errno));
      run.ends(Step.failed, 0, errno);
      // The next transfer knows nothing of it.
      const next = new Run(row, 2, 0, run.core).answers(0);
      next.ends(Step.done, 2);
      assert.equal(run.core.exports.transferErrno(), 0);
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
      .ends(Step.done, 8);
    part()
      .answers(EAGAIN, 5n * P)
      .ends(Step.done, 8);
    part()
      .answers(EAGAIN, P)
      .isFill(4)
      .answers(EAGAIN, P)
      .isFill(5)
      .answers(0, 3n * P)
      .ends(Step.done, 8);
    part().answers(EAGAIN, -11n).reads().isFill(3).answers(0).ends(Step.done, 8);
    part()
      .answers(EAGAIN, -11n)
      .reads(remove(page(3), page(4)))
      .ends(Step.short, 3);
    // A change over what is done already is none of its business.
    part()
      .answers(EAGAIN, -11n)
      .reads(remove(page(0), page(3)))
      .isFill(3)
      .answers(0)
      .ends(Step.done, 8);
    part().answers(ENOENT, -2n).isWake(3, 5).answers(0).ends(Step.unmapped, 3);
    part().answers(ESRCH).ends(Step.exited, 3);
    part().answers(-14, -14n).ends(Step.failed, 3, 14);
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
    const run = new Run(row, count)
      .isFill(0)
      .answers(EAGAIN, 2n ** 33n)
      .isFill(2 ** 21);
    run.answers(0).ends(Step.done, count);
  });
}

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
    run.answers(0).ends(Step.done, 8);
    // All of them, and the last one.
    const all = new Run(row, 3);
    for (const index of [0, 1, 2]) all.isFill(index).answers(EEXIST, -17n).isWake(index, 1).answers(0);
    all.ends(Step.done, 3);
    // A WAKE that was interrupted is repeated; one that fails does not matter.
    new Run(row).answers(EEXIST, -17n).answers(EINTR).isWake(0, 1).answers(-22).isFill(1);
  });

  test(`${row.name}: EEXIST with dontWake steps over without waking`, () => {
    const run = new Run(row, 3, Option.dontWake).isFill(0).answers(EEXIST, -17n).isFill(1);
    run.answers(EEXIST, -17n).isFill(2).answers(EEXIST, -17n).ends(Step.done, 3);
  });

  test(`${row.name}: stepping over a huge page does not go beyond the end`, () => {
    const core = makeCore();
    put(core, 0, 512, { pageShift: 21 });
    const run = new Run(row, 100, 0, core).answers(EEXIST, -17n).isWake(0, 512);
    run.answers(0).ends(Step.done, 100);
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
      .ends(Step.done, 3 * huge);
  });
}

const MOVE = ROWS[Op.move] as Row;

test('MOVE: EEXIST wakes that page and fails, because the source keeps the rest', () => {
  new Run(MOVE).answers(EEXIST, -17n).isWake(0, 1).answers(0).ends(Step.failed, 0, 17);
  const run = new Run(MOVE)
    .answers(EAGAIN, 2n * P)
    .isFill(2)
    .answers(EEXIST, -17n);
  run.isWake(2, 1).answers(EINTR).isWake(2, 1).answers(0).ends(Step.failed, 2, 17);
});

test('MOVE: ENOENT may be a hole in the source where none is allowed: it wakes and fails', () => {
  const run = new Run(MOVE)
    .answers(EAGAIN, 2n * P)
    .isFill(2)
    .answers(ENOENT, -2n)
    .isWake(2, 6);
  run.answers(0).ends(Step.failed, 2, 2);
});

test('MOVE: a change that touches what is left of the source ends it short; for COPY the source is not watched', () => {
  const COPY = ROWS[Op.copy] as Row;
  const first = SOURCE;
  const change = (from: number, count: number) =>
    remove(first + BigInt(from) * P, first + BigInt(from + count) * P);
  new Run(MOVE).answers(EAGAIN, -11n).reads(change(7, 1)).ends(Step.short, 0);
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
    .ends(Step.short, 3);
  new Run(COPY).answers(EAGAIN, -11n).reads(change(0, 8)).isFill(0).answers(0).ends(Step.done, 8);
  const core = makeCore();
  put(core, 0, 64);
  feed(core, change(0, 1));
  new Run(MOVE, 8, 0, core).ends(Step.short, 0);
  new Run(COPY, 8, 0, core).isFill(0);
});

test('WRITEPROTECT has no result: what lies behind its struct says nothing', () => {
  const run = new Run(ROWS[Op.writeProtect] as Row);
  run.words.fill(2n * P, 3);
  run.answers(EAGAIN).reads(fork(1)).isFill(0);
});

test.run();
