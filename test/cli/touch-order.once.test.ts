// For every count and seed, the order is a permutation: each page comes exactly once.

import * as assert from 'uvu/assert';
import { shuffledOrder } from '../../src/cli/guest/permutation.js';
import { generator, seed, suite } from '../support/harness.js';

const test = suite('cli/touch-order');

function assertPermutation(count: number, key: number): void {
  const order = shuffledOrder(count, key);
  const seen = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const page = order(i);
    assert.ok(
      Number.isInteger(page) && page >= 0 && page < count,
      `count ${count}, seed ${key}: ${i} gives ${page}`,
    );
    assert.is(seen[page], 0, `count ${count}, seed ${key}: ${page} comes twice`);
    seen[page] = 1;
  }
}

test('each page comes exactly once: all small counts', () => {
  for (let count = 1; count <= 300; count++)
    for (const key of [0, 1, 2 ** 32 - 1]) assertPermutation(count, key);
});

test('each page comes exactly once: around powers of two', () => {
  for (const power of [10, 13, 16, 18]) {
    for (const off of [-1, 0, 1]) assertPermutation(2 ** power + off, 12345);
  }
});

test('each page comes exactly once: random counts and seeds', () => {
  const next = generator(seed());
  for (let i = 0; i < 50; i++) assertPermutation(1 + next(20_000), next(2 ** 32));
});

test('the largest count stays inside', () => {
  for (const count of [2 ** 31, 2 ** 31 + 1, 2 ** 32 - 1, 2 ** 32]) {
    const order = shuffledOrder(count, 7);
    const pages = Array.from({ length: 1000 }, (_, i) => order(count - 1 - i));
    assert.ok(pages.every((page) => Number.isInteger(page) && page >= 0 && page < count));
    assert.is(new Set(pages).size, pages.length);
  }
});

test('the same seed gives the same order, another one another', () => {
  const orderOf = (key: number): number[] =>
    Array.from({ length: 1000 }, (_, i) => shuffledOrder(1000, key)(i));
  assert.equal(orderOf(5), orderOf(5));
  assert.not.equal(orderOf(5), orderOf(6));
});

test('it is no walk: neighbours in the order are seldom neighbours in memory', () => {
  const count = 10_000;
  const order = shuffledOrder(count, 1);
  let steps = 0;
  for (let i = 1; i < count; i++) if (Math.abs(order(i) - order(i - 1)) <= 16) steps++;
  // A random order would have 32 such steps on average.
  assert.ok(steps < 200, `${steps} of ${count} steps are to a page within 16`);
});

test.run();
