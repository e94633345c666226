// Ranges that are no longer registered: `FormerRanges` contains each of their addresses. It contains no other address
// up to 1,024 pieces; beyond that, it also contains the gaps between merged pieces.

import * as assert from 'uvu/assert';
import { FormerRanges } from '../../src/uffd/former-ranges.js';
import { generator, seed, suite } from '../support/harness.js';

const test = suite('uffd/former-ranges');
const P = 4096n;

test('each page is known as a plain set would say', () => {
  const first = seed();
  for (let run = first; run < first + 50; run++) {
    const below = generator(run);
    const past = new FormerRanges();
    const model = new Set<number>();
    for (let step = 0; step < 60; step++) {
      const [from, count] = [below(200), 1 + below(12)];
      past.add(BigInt(from) * P, BigInt(from + count) * P);
      for (let page = from; page < from + count; page++) model.add(page);
    }
    for (let page = 0; page < 220; page++) {
      for (const offset of [0n, P - 1n])
        assert.is(past.has(BigInt(page) * P + offset), model.has(page), `page ${page}, run ${run}`);
    }
  }
});

test('a hundred thousand pieces: none is forgotten, and a lookup is as quick as among a thousand', () => {
  const past = new FormerRanges();
  const pieces = 100_000;
  for (let piece = 0; piece < pieces; piece++) past.add(BigInt(2 * piece) * P, BigInt(2 * piece + 1) * P);
  for (let piece = 0; piece < pieces; piece++) assert.ok(past.has(BigInt(2 * piece) * P));
  assert.not.ok(past.has(BigInt(2 * pieces) * P));
});

test.run();
