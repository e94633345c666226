// Fills of write-protected pages keep the protection. ZEROPAGE has no flag for that. Both ZEROPAGE and POISON fail if
// there is a write-protect marker but no page.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  EAGAIN,
  MISSING,
  makeCore,
  P,
  PAGE,
  page,
  put,
  State,
  stateOf,
  transfer,
  WRITE_PROTECT,
  zeros,
} from './support.js';
import { DATA, EEXIST, EINTR, ENOENT, ESRCH, ROWS, type Row, Run, wordsOf } from './transfers.js';

const test = suite('protection');
const WITH_WP = 2n;
const DONTWAKE = 1n;
/** Modes of WRITEPROTECT: protect; unprotect without a WAKE. */
const PROTECT = 1n;
const LIFT = 2n;
const { missing, present, writeProtected } = State;

/** A range in mode write-protect. These pages are missing and protected. */
function world(...indexes: number[]): Core {
  const core = makeCore();
  put(core, 0, 64, { modes: MISSING | WRITE_PROTECT });
  for (const index of indexes) transfer(core, Op.WRITEPROTECT, index, 1, Option.WRITE_PROTECT);
  return core;
}

const run = (op: Op, core: Core, count: number, options = 0) =>
  new Run(ROWS[op] as Row, count, options, core);

for (const op of [Op.COPY, Op.CONTINUE] as const) {
  const { name, dontWake } = ROWS[op] as Row;

  test(`${name}: what is protected stays so, and the call is cut where that changes`, () => {
    const core = world(2, 3, 6);
    const calls: [number, number, bigint][] = [
      [0, 2, 0n],
      [2, 4, WITH_WP],
      [4, 6, 0n],
      [6, 7, WITH_WP],
      [7, 8, 0n],
    ];
    for (const options of [0, Option.DONTWAKE]) {
      const one = run(op, core, 8, options);
      for (const [first, end, mode] of calls)
        one.isFill(first, end, mode | (options ? dontWake : 0n)).answers(0);
      one.ends(Step.DONE, 8);
    }
    assert.deepEqual(
      [1, 2, 3, 4, 6, 7].map((index) => stateOf(core, index)),
      [1, 5, 5, 1, 5, 1],
    );
    // A fill that protects is one call, whatever the pages' protection was.
    run(op, core, 8, Option.WRITE_PROTECT).isFill(0).answers(0).ends(Step.DONE, 8);
    assert.deepEqual([stateOf(core, 0), stateOf(core, 7)], [5, 5]);
  });

  test(`${name}: a part, an interruption, EEXIST and ENOENT leave the mode as it is due`, () => {
    const core = world(2, 3, 4, 5);
    const one = run(op, core, 8).isFill(0, 2, 0n).answers(0).isFill(2, 6, WITH_WP);
    one.answers(EINTR).isFill(2, 6, WITH_WP).answers(EAGAIN, P).isFill(3, 6, WITH_WP);
    one.answers(EEXIST, -17n).isWake(3, 1).answers(0).isFill(4, 6, WITH_WP);
    one.answers(ENOENT, -2n).isFill(4, 5, WITH_WP).answers(0).isFill(5, 6, WITH_WP).answers(0);
    one.isFill(6, 8, 0n).answers(0).ends(Step.DONE, 8);
    assert.deepEqual(
      [2, 3, 4, 6].map((index) => stateOf(core, index)),
      [5, missing + writeProtected, 5, 1],
    );
  });
}

test('where nothing was ever protected, one call does it', () => {
  const core = world();
  run(Op.COPY, core, 60).isFill(0).answers(0).ends(Step.DONE, 60);
  const lifted = world(3);
  transfer(lifted, Op.WRITEPROTECT, 3, 1);
  run(Op.COPY, lifted, 60).isFill(0).answers(0).ends(Step.DONE, 60);
});

test('a fill that steps over many pages looks at the protection of each once', () => {
  // The number of look-ups must grow with the pages, not with their square: that would take minutes.
  const core = makeCore();
  const count = 1 << 17;
  put(core, 0, count + 1, { modes: MISSING | WRITE_PROTECT });
  transfer(core, Op.WRITEPROTECT, count, 1, Option.WRITE_PROTECT);
  let action = core.arguments(page(0), count * PAGE, DATA).beginFill(Op.COPY, Option.DONTWAKE);
  for (let i = 0; i < count; i++) {
    assert.equal(action, Action.IOCTL);
    action = core.exports.handleResult(EEXIST);
  }
  assert.equal(action, Action.FILLED);
  assert.equal(core.outcome, Step.DONE);
}, 20_000);

test('ZEROPAGE: zeros are copied to a protected page, and stay protected; their address is asked for once', () => {
  const core = world(2, 3);
  const one = run(Op.ZEROPAGE, core, 5);
  // The calls for the other pages end only at protected pages.
  one.isFill(0, 2, 0n).answers(0);
  one.zeros().isZeros(2, WITH_WP).answers(EAGAIN).reads().isZeros(2, WITH_WP).answers(EINTR);
  one.isZeros(2, WITH_WP).answers(0).isZeros(3, WITH_WP).answers(0).isFill(4, 5, 0n).answers(0);
  one.ends(Step.DONE, 5);
  assert.equal(core.installed, 5 * PAGE);
  assert.deepEqual(
    [2, 3, 4].map((index) => stateOf(core, index)),
    [5, 5, 1],
  );
  // Later fills use the same address of zeros. With DONTWAKE no call wakes.
  const other = run(Op.ZEROPAGE, core, 4, Option.DONTWAKE).isFill(0, 2, DONTWAKE).answers(0);
  other
    .isZeros(2, WITH_WP | DONTWAKE)
    .answers(0)
    .isZeros(3, WITH_WP | DONTWAKE)
    .answers(0);
  other.ends(Step.DONE, 4);
});

test('ZEROPAGE: what the copy of zeros meets is what a fill meets', () => {
  const begun = () => run(Op.ZEROPAGE, world(0, 1), 2).zeros().isZeros(0, WITH_WP);
  begun().answers(EEXIST).isWake(0, 1).answers(0).isZeros(1, WITH_WP).answers(0).ends(Step.DONE, 2);
  begun().answers(ENOENT).isWake(0, 1).answers(0).ends(Step.UNMAPPED, 0);
  begun().answers(ESRCH).ends(Step.EXITED, 0);
  begun().answers(-12).ends(Step.FAILED, 0, 12);
  const core = world(0);
  const two = run(Op.ZEROPAGE, core, 2).zeros().isZeros(0, WITH_WP).answers(0).isFill(1, 2, 0n);
  two.answers(0).ends(Step.DONE, 2);
});

const POISON = ROWS[Op.POISON] as Row;

test('POISON: a marker is lifted without a WAKE, and the page poisoned', () => {
  const core = world(1);
  const one = run(Op.POISON, core, 3).isFill(0);
  one.answers(EAGAIN, P).isFill(1).answers(EEXIST, -17n).isProtect(1, LIFT);
  one.answers(EINTR).isProtect(1, LIFT).answers(0).isFill(1).answers(0).ends(Step.DONE, 3);
  assert.deepEqual(
    [0, 1, 2].map((index) => stateOf(core, index)),
    [present, present, present],
  );
  // The page is not one of the EEXIST pages: a batch does not ask for the time.
  assert.equal(core.exports.begin(), Action.READ);
});

test('POISON: if it says EEXIST again, a page is there; it is protected again, and stepped over', () => {
  for (const options of [0, Option.DONTWAKE]) {
    const core = world(0);
    const one = run(Op.POISON, core, 2, options).isFill(0).answers(EEXIST, -17n).isProtect(0, LIFT);
    one.answers(0).isFill(0).answers(EEXIST, -17n).isProtect(0, PROTECT).answers(EINTR).isProtect(0, PROTECT);
    one.answers(0);
    if (options === 0) one.isWake(0, 1).answers(0);
    one.isFill(1).answers(0).ends(Step.DONE, 2);
    assert.equal(stateOf(core, 0), missing + writeProtected);
  }
});

test('POISON: a marker that cannot be lifted is left where it is', () => {
  const one = run(Op.POISON, world(0), 1).answers(EEXIST, -17n).isProtect(0, LIFT).answers(-14);
  one.isFill(0).answers(EEXIST, -17n).isProtect(0, PROTECT).answers(-14).isWake(0, 1).answers(0);
  one.ends(Step.DONE, 1);
  run(Op.POISON, world(0), 1).answers(EEXIST, -17n).answers(ESRCH).ends(Step.EXITED, 0);
  const busy = run(Op.POISON, world(0), 1).answers(EEXIST, -17n).isProtect(0, LIFT).answers(EAGAIN);
  assert.equal(busy.action, Action.READ);
});

test('POISON: a page that is there for certain, or is not protected, keeps its protection', () => {
  const there = world();
  transfer(there, Op.COPY, 0, 1, Option.WRITE_PROTECT);
  for (const core of [there, world(), world(1)]) {
    const before = stateOf(core, 0);
    run(Op.POISON, core, 1).isFill(0).answers(EEXIST, -17n).isWake(0, 1).answers(0).ends(Step.DONE, 1);
    assert.equal(stateOf(core, 0), before);
  }
  assert.equal(POISON.stepsOver, true);
});

test('random fills, protections and unprotections: no page loses its protection to a fill', () => {
  const first = seed();
  for (let round = first; round < first + 200; round++) {
    const below = generator(round);
    const core = world();
    /** The kernel's state: present pages, and protected pages or markers. */
    const pages = new Set<number>();
    const guarded = new Set<number>();
    for (let step = 0; step < 60; step++) {
      const op = [Op.COPY, Op.ZEROPAGE, Op.CONTINUE, Op.POISON, Op.WRITEPROTECT][below(5)] as Op;
      const from = below(60);
      const count = 1 + below(4);
      const options = op === Op.ZEROPAGE || op === Op.POISON ? 0 : below(2) * Option.WRITE_PROTECT;
      const before = new Set(guarded);
      let action = core.arguments(page(from), count * PAGE, DATA).beginFill(op, options);
      for (let calls = 0; action !== Action.FILLED; calls++) {
        assert.ok(calls < 100, 'it does not end');
        if (action === Action.ZEROS) action = zeros(core);
        else {
          assert.equal(action, Action.IOCTL);
          action = core.exports.handleResult(kernel(core, pages, guarded));
        }
      }
      assert.equal(core.outcome, Step.DONE);
      for (let index = from; index < from + count; index++) {
        const why = `round ${round}, step ${step}, page ${index}`;
        if (op === Op.WRITEPROTECT) assert.equal(guarded.has(index), options !== 0, why);
        else if (op !== Op.POISON && before.has(index)) assert.ok(guarded.has(index), why);
        if (op !== Op.WRITEPROTECT) assert.ok(pages.has(index), why);
        assert.equal((stateOf(core, index) & writeProtected) !== 0, guarded.has(index), why);
      }
    }
  }
});

/** A kernel in which ZEROPAGE and POISON fail with EEXIST at a marker, and COPY and CONTINUE do not. */
function kernel(core: Core, pages: Set<number>, guarded: Set<number>): number {
  const code = core.code >>> 0;
  const [start = 0n, second = 0n, third = 0n, fourth = 0n] = wordsOf(core).subarray(core.request >>> 3);
  const first = Number((start - page(0)) / P);
  const sourced = code === 0xc028aa03;
  const count = Number((sourced ? third : second) / P);
  const mode = sourced ? fourth : third;
  const result = sourced ? 4 : 3;
  if (code === 0x8010aa02) return 0;
  for (let index = first; index < first + count; index++) {
    if (code === 0xc018aa06) {
      if (mode & 1n) guarded.add(index);
      else guarded.delete(index);
      continue;
    }
    const marked = !pages.has(index) && guarded.has(index) && (code === 0xc020aa04 || code === 0xc020aa08);
    if (pages.has(index) || marked) {
      if (index === first) return EEXIST;
      wordsOf(core)[(core.request >>> 3) + result] = BigInt(index - first) * P;
      return EAGAIN;
    }
    pages.add(index);
    if (mode & WITH_WP) guarded.add(index);
    else guarded.delete(index);
  }
  return 0;
}

test.run();
