// 100,000 ranges: the core finds all of them. Their memory is bounded, and is freed with them.
//
// The test for logarithmic lookups counts loads from memory instead of measuring time: an instrumented copy of the
// module counts them.

import { strict as assert } from 'node:assert';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import { brief, countingCore, lookup, MINOR, MISSING, makeCore, page, put, take } from './support.js';

const test = suite('many ranges');
const MANY = 100_000;

/** The numbers 0 to `count` − 1 in an order that depends on `random` alone. */
function shuffled(count: number, random: (below: number) => number): number[] {
  const order = Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i--) {
    const other = random(i + 1);
    [order[i], order[other]] = [order[other] as number, order[i] as number];
  }
  return order;
}

function checkMany(core: Core): void {
  assert.equal(core.exports.rangeCount(), MANY);
  for (let i = 0; i < MANY; i++) {
    const found = lookup(core, page(i * 2) + 1n);
    assert.ok(found?.start === page(i * 2) && found.end === page(i * 2 + 1), `range ${i}`);
    assert.equal(core.arguments(page(i * 2 + 1)).rangeAt(), 0, `hole ${i}`);
  }
}

/** MiB by which memory grows while `body` runs. */
function grown(core: Core, body: () => void): number {
  const before = core.memory.buffer.byteLength;
  body();
  return (core.memory.buffer.byteLength - before) / 2 ** 20;
}

test('100,000 ranges, ascending: all are found, in 32 bytes each', () => {
  const core = makeCore();
  const mib = grown(core, () => {
    for (let i = 0; i < MANY; i++) put(core, i * 2, 1);
  });
  checkMany(core);
  // 3.05 MiB of ranges; the rest is the directory, in all sizes it had so far, and the room reserved for page bitmaps.
  assert.ok(mib < 4, `${mib} MiB`);
});

test('100,000 ranges, shuffled: all are found, in half-full blocks at worst, and given back', () => {
  const random = generator(seed());
  const core = makeCore();
  const insert = () => {
    for (const i of shuffled(MANY, random)) put(core, i * 2, 1);
  };
  const mib = grown(core, insert);
  checkMany(core);
  assert.ok(mib < 7.5, `${mib} MiB`);
  for (const i of shuffled(MANY, random)) take(core, i * 2, 1);
  assert.equal(core.exports.rangeCount(), 0);
  assert.equal(core.arguments(0n).rangeFrom(), 0);
  // The order differs from the first one, so a few more blocks may be needed.
  const again = grown(core, insert);
  checkMany(core);
  assert.ok(again < 0.5, `${again} MiB the second time`);
  // One registration of the whole range fills the holes and merges everything into one range.
  put(core, 0, MANY * 2);
  assert.deepEqual(brief(core), [[0, MANY * 2, 1]]);
});

test('100,000 ranges whose modes are replaced all at once, holes included', () => {
  const core = makeCore();
  for (let i = 0; i < MANY; i++) put(core, i * 2, 1, { modes: i % 3 === 0 ? MISSING | MINOR : MISSING });
  put(core, 0, MANY * 2, { modes: MINOR });
  const expected: number[][] = [];
  const ranges = brief(core);
  for (let i = 0; i < MANY; i++) {
    if (i % 3 === 0)
      expected.push([i * 2, i * 2 + 1, MISSING | MINOR], [i * 2 + 1, Math.min(i * 2 + 6, MANY * 2), MINOR]);
  }
  assert.deepEqual(ranges, expected);
  take(core, 0, MANY * 2);
  assert.equal(core.exports.rangeCount(), 0);
});

test('blocks that are nearly empty are joined: what is left over keeps no memory', () => {
  for (const ascending of [true, false]) leaveFew(ascending);
});

function leaveFew(ascending: boolean): void {
  const core = makeCore();
  for (let i = 0; i < MANY; i++) put(core, i * 2, 1);
  // One range stays in every block of 32.
  for (let i = 0; i < MANY; i++) {
    const index = ascending ? i : MANY - 1 - i;
    if (index % 32 !== 7) take(core, index * 2, 1);
  }
  assert.equal(core.exports.rangeCount(), MANY / 32);
  const mib = grown(core, () => {
    for (let i = 0; i < MANY * 0.9; i++) put(core, (MANY + i) * 2, 1);
  });
  assert.ok(mib < 0.25, `${mib} MiB`);
  for (let i = 7; i < MANY; i += 32) assert.equal(lookup(core, page(i * 2))?.end, page(i * 2 + 1));
}

test('the work of a lookup is logarithmic, in loads from memory', async () => {
  // Among 128 times as many ranges, a lookup may need at most 7 more steps (log2(128)), of a handful of loads each.
  const { core, loads } = await countingCore();
  const most = (count: number) => {
    let result = 0;
    for (let i = core.exports.rangeCount(); i < count; i++) put(core, i * 2, 1);
    for (let i = 0; i < count; i += Math.ceil(count / 1000)) {
      core.arguments(page(i * 2));
      result = Math.max(
        result,
        loads(() => assert.equal(core.exports.rangeAt(), 1)),
      );
    }
    return result;
  };
  const few = most(800);
  const many = most(102_400);
  assert.ok(few > 0 && many > few, 'the instrumented module counts nothing');
  assert.ok(many - few <= 7 * 4, `${few} loads among 800 ranges, ${many} among 102,400`);
});

test.run();
