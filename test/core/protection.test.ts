// Fills of write-protected pages: they stay protected. ZEROPAGE cannot be asked for that, and a marker without a page is in
// its way and in POISON's.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
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
  ZEROS,
} from './support.js';
import { DATA, EEXIST, EINTR, ENOENT, ESRCH, ROWS, type Row, Run } from './transfers.js';

const test = suite('protection');
const WITH_WP = 2n;
const DONTWAKE = 1n;
/** Of WRITEPROTECT: protect; wake nobody. */
const PROTECT = 1n;
const LIFT = 2n;
const { missing, present, writeProtected } = State;

/** Pages that may be protected; these are, and not there. */
function world(...indexes: number[]): Core {
  const core = makeCore();
  put(core, 0, 64, { modes: MISSING | WRITE_PROTECT });
  for (const index of indexes) transfer(core, Op.writeProtect, index, 1, Option.writeProtect);
  return core;
}

const run = (op: Op, core: Core, count: number, options = 0) =>
  new Run(ROWS[op] as Row, count, options, core);

for (const op of [Op.copy, Op.continue] as const) {
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
    for (const options of [0, Option.dontWake]) {
      const one = run(op, core, 8, options);
      for (const [first, end, mode] of calls)
        one.isFill(first, end, mode | (options ? dontWake : 0n)).answers(0);
      one.ends(Step.done, 8);
    }
    assert.deepEqual(
      [1, 2, 3, 4, 6, 7].map((index) => stateOf(core, index)),
      [1, 5, 5, 1, 5, 1],
    );
    // Asked to protect, it is one call, whatever they were.
    run(op, core, 8, Option.writeProtect).isFill(0).answers(0).ends(Step.done, 8);
    assert.deepEqual([stateOf(core, 0), stateOf(core, 7)], [5, 5]);
  });

  test(`${name}: a part, an interruption, EEXIST and ENOENT leave the mode as it is due`, () => {
    const core = world(2, 3, 4, 5);
    const one = run(op, core, 8).isFill(0, 2, 0n).answers(0).isFill(2, 6, WITH_WP);
    one.answers(EINTR).isFill(2, 6, WITH_WP).answers(EAGAIN, P).isFill(3, 6, WITH_WP);
    one.answers(EEXIST, -17n).isWake(3, 1).answers(0).isFill(4, 6, WITH_WP);
    one.answers(ENOENT, -2n).isFill(4, 5, WITH_WP).answers(0).isFill(5, 6, WITH_WP).answers(0);
    one.isFill(6, 8, 0n).answers(0).ends(Step.done, 8);
    assert.deepEqual(
      [2, 3, 4, 6].map((index) => stateOf(core, index)),
      [5, missing + writeProtected, 5, 1],
    );
  });
}

test('where nothing was ever protected, one call does it', () => {
  const core = world();
  run(Op.copy, core, 60).isFill(0).answers(0).ends(Step.done, 60);
  const lifted = world(3);
  transfer(lifted, Op.writeProtect, 3, 1);
  run(Op.copy, lifted, 60).isFill(0).answers(0).ends(Step.done, 60);
});

test('a fill that steps over many pages looks at the protection of each once', () => {
  // As many questions as pages, not their square: it would take minutes.
  const core = makeCore();
  const count = 1 << 17;
  put(core, 0, count + 1, { modes: MISSING | WRITE_PROTECT });
  transfer(core, Op.writeProtect, count, 1, Option.writeProtect);
  let step = core.arguments(page(0), count * PAGE, DATA).transferBegin(Op.copy, Option.dontWake);
  for (let i = 0; i < count; i++) {
    assert.equal(step, Step.call);
    step = core.exports.transferResult(EEXIST);
  }
  assert.equal(step, Step.done);
}, 20_000);

test('ZEROPAGE: zeros are copied to a protected page, and stay protected; their address is asked for once', () => {
  const core = world(2, 3);
  const one = run(Op.zero, core, 5);
  // The others are cut off by what is protected, and told apart by nothing else.
  one.isFill(0, 2, 0n).answers(0);
  one.zeros().isZeros(2, WITH_WP).answers(EAGAIN).reads().isZeros(2, WITH_WP).answers(EINTR);
  one.isZeros(2, WITH_WP).answers(0).isZeros(3, WITH_WP).answers(0).isFill(4, 5, 0n).answers(0);
  one.ends(Step.done, 5);
  assert.equal(core.exports.transferInstalled(), 5 * PAGE);
  assert.deepEqual(
    [2, 3, 4].map((index) => stateOf(core, index)),
    [5, 5, 1],
  );
  // Now it is known, also to later ones. Asked not to wake, it does not.
  const other = run(Op.zero, core, 4, Option.dontWake).isFill(0, 2, DONTWAKE).answers(0);
  other
    .isZeros(2, WITH_WP | DONTWAKE)
    .answers(0)
    .isZeros(3, WITH_WP | DONTWAKE)
    .answers(0);
  other.ends(Step.done, 4);
});

test('ZEROPAGE: what the copy of zeros meets is what a fill meets', () => {
  const begun = () => run(Op.zero, world(0, 1), 2).zeros().isZeros(0, WITH_WP);
  begun().answers(EEXIST).isWake(0, 1).answers(0).isZeros(1, WITH_WP).answers(0).ends(Step.done, 2);
  begun().answers(ENOENT).isWake(0, 1).answers(0).ends(Step.unmapped, 0);
  begun().answers(ESRCH).ends(Step.exited, 0);
  begun().answers(-12).ends(Step.failed, 0, 12);
  const core = world(0);
  const two = run(Op.zero, core, 2).zeros().isZeros(0, WITH_WP).answers(0).isFill(1, 2, 0n);
  two.answers(0).ends(Step.done, 2);
});

const POISON = ROWS[Op.poison] as Row;

test('POISON: a marker is lifted, waking nobody, and the page poisoned', () => {
  const core = world(1);
  const one = run(Op.poison, core, 3).isFill(0);
  one.answers(EAGAIN, P).isFill(1).answers(EEXIST, -17n).isProtect(1, LIFT);
  one.answers(EINTR).isProtect(1, LIFT).answers(0).isFill(1).answers(0).ends(Step.done, 3);
  assert.deepEqual(
    [0, 1, 2].map((index) => stateOf(core, index)),
    [present, present, present],
  );
  // It was no doubt.
  assert.equal(core.exports.inboxPutOff(), 0);
});

test('POISON: if it says EEXIST again, a page is there; it is protected again, and stepped over', () => {
  for (const options of [0, Option.dontWake]) {
    const core = world(0);
    const one = run(Op.poison, core, 2, options).isFill(0).answers(EEXIST, -17n).isProtect(0, LIFT);
    one.answers(0).isFill(0).answers(EEXIST, -17n).isProtect(0, PROTECT).answers(EINTR).isProtect(0, PROTECT);
    one.answers(0);
    if (options === 0) one.isWake(0, 1).answers(0);
    one.isFill(1).answers(0).ends(Step.done, 2);
    assert.equal(stateOf(core, 0), missing + writeProtected);
  }
});

test('POISON: a marker that cannot be lifted is left where it is', () => {
  const one = run(Op.poison, world(0), 1).answers(EEXIST, -17n).isProtect(0, LIFT).answers(-14);
  one.isFill(0).answers(EEXIST, -17n).isProtect(0, PROTECT).answers(-14).isWake(0, 1).answers(0);
  one.ends(Step.done, 1);
  run(Op.poison, world(0), 1).answers(EEXIST, -17n).answers(ESRCH).ends(Step.exited, 0);
  const busy = run(Op.poison, world(0), 1).answers(EEXIST, -17n).isProtect(0, LIFT).answers(EAGAIN);
  assert.equal(busy.step, Step.read);
});

test('POISON: a page that is there for certain, or is not protected, keeps its protection', () => {
  const there = world();
  transfer(there, Op.copy, 0, 1, Option.writeProtect);
  for (const core of [there, world(), world(1)]) {
    const before = stateOf(core, 0);
    run(Op.poison, core, 1).isFill(0).answers(EEXIST, -17n).isWake(0, 1).answers(0).ends(Step.done, 1);
    assert.equal(stateOf(core, 0), before);
  }
  assert.equal(POISON.stepsOver, true);
});

test('whatever is filled, protected and let go: no page loses its protection to a fill', () => {
  const first = seed();
  for (let round = first; round < first + 200; round++) {
    const below = generator(round);
    const core = world();
    /** What the kernel has: pages, and what is protected, be it a page or a marker. */
    const pages = new Set<number>();
    const guarded = new Set<number>();
    for (let step = 0; step < 60; step++) {
      const op = [Op.copy, Op.zero, Op.continue, Op.poison, Op.writeProtect][below(5)] as Op;
      const from = below(60);
      const count = 1 + below(4);
      const options = op === Op.zero || op === Op.poison ? 0 : below(2) * Option.writeProtect;
      const before = new Set(guarded);
      let next = core.arguments(page(from), count * PAGE, DATA).transferBegin(op, options);
      for (let calls = 0; next !== Step.done; calls++) {
        assert.ok(calls < 100, 'it does not end');
        next =
          next === Step.zeros
            ? core.arguments(0n, 0, ZEROS).transferZeros()
            : core.exports.transferResult(kernel(core, pages, guarded));
      }
      for (let index = from; index < from + count; index++) {
        const why = `round ${round}, step ${step}, page ${index}`;
        if (op === Op.writeProtect) assert.equal(guarded.has(index), options !== 0, why);
        else if (op !== Op.poison && before.has(index)) assert.ok(guarded.has(index), why);
        if (op !== Op.writeProtect) assert.ok(pages.has(index), why);
        assert.equal((stateOf(core, index) & writeProtected) !== 0, guarded.has(index), why);
      }
    }
  }
});

/** A kernel in which ZEROPAGE and POISON find a marker in their way, and the others do not. */
function kernel(core: Core, pages: Set<number>, guarded: Set<number>): number {
  const code = core.code >>> 0;
  const [start = 0n, second = 0n, third = 0n, fourth = 0n] = core.words.subarray(core.request >>> 3);
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
      core.words[(core.request >>> 3) + result] = BigInt(index - first) * P;
      return EAGAIN;
    }
    pages.add(index);
    if (mode & WITH_WP) guarded.add(index);
    else guarded.delete(index);
  }
  return 0;
}

test.run();
