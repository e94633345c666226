// Page states are saved and loaded into another core, chunk by chunk: everything except claims, for pages that are
// registered there. A malformed chunk does no harm.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, SNAPSHOT_BYTES } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  apply,
  BASE,
  deliverAll,
  fault,
  feed,
  MISSING,
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
  WRITE_PROTECT,
} from './support.js';
import { wordsOf } from './transfers.js';

const test = suite('snapshots');
const BOTH = MISSING | WRITE_PROTECT;
const CHUNK = 8192;
const { missing, present, removed, writeProtected } = State;

/** All page states of a core, as chunks. */
function saved(core: Core): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  for (let place = 0; place < core.exports.pagesPlaces(); place++) {
    if (core.exports.pagesSave(place)) chunks.push(core.snapshot.slice());
  }
  return chunks;
}

function load(core: Core, chunks: readonly Uint8Array[]): void {
  for (const chunk of chunks) {
    core.snapshot.set(chunk);
    still(core, 'pagesLoad', () => core.exports.pagesLoad());
  }
}

const keyOf = (index: number) => (BASE / P + BigInt(index)) / BigInt(CHUNK) + 1n;

test('a chunk is its key, then the planes of what was removed, is present, is protected', () => {
  const core = makeCore();
  assert.deepEqual(saved(core), []);
  put(core, 0, 3 * CHUNK, { modes: BOTH });
  assert.deepEqual(saved(core), [], 'nothing is known');
  core.arguments(page(CHUNK), PAGE).pageClaim();
  assert.deepEqual(saved(core), [], 'claims stay');
  transfer(core, Op.COPY, CHUNK + 9, 1);
  transfer(core, Op.WRITEPROTECT, 2 * CHUNK + 1, 1, Option.WRITE_PROTECT);
  apply(core, remove(page(2 * CHUNK - 1), page(2 * CHUNK + 1)));
  const chunks = saved(core).sort((a, b) => Buffer.compare(b, a));
  const words = chunks.map((chunk) => new BigUint64Array(chunk.buffer));
  assert.deepEqual(
    chunks.map(({ length }) => length),
    [SNAPSHOT_BYTES, SNAPSHOT_BYTES],
  );
  const expected = (key: bigint, ...set: [plane: number, bit: number][]) => {
    const all = new BigUint64Array(SNAPSHOT_BYTES / 8);
    all[0] = key;
    for (const [plane, bit] of set) {
      const at = 1 + plane * 128 + (bit >> 6);
      all[at] = (all[at] as bigint) | (1n << BigInt(bit & 63));
    }
    return all;
  };
  const own = new Map(words.map((all) => [all[0], all]));
  assert.deepEqual(own.get(keyOf(CHUNK)), expected(keyOf(CHUNK), [0, CHUNK - 1], [1, 9]));
  assert.deepEqual(own.get(keyOf(2 * CHUNK)), expected(keyOf(2 * CHUNK), [0, 0], [2, 1]));
});

test('what is loaded is known as if it had been seen: removals too, of pages that were filled since', () => {
  const core = makeCore();
  put(core, 0, 8, { modes: BOTH });
  apply(core, remove(page(0), page(2)));
  transfer(core, Op.COPY, 1, 2, Option.WRITE_PROTECT);
  core.arguments(page(3), PAGE).pageClaim();
  const other = makeCore();
  put(other, 0, 8, { modes: BOTH });
  load(other, saved(core));
  const states = () => [0, 1, 2, 3].map((index) => stateOf(other, index));
  const there = present + writeProtected;
  assert.deepEqual(states(), [removed, there, there, missing]);
  feed(other, fault(page(1)), fault(page(2)));
  deliverAll(other);
  assert.deepEqual(states(), [removed, removed + writeProtected, there, missing]);
  // The first fill keeps the loaded protection.
  assert.equal(other.arguments(page(2), PAGE).beginFill(Op.COPY, 0), Action.IOCTL);
  assert.equal(wordsOf(other)[(other.request >>> 3) + 3], 2n);
});

test('what is loaded beside what is known adds to it', () => {
  const core = makeCore();
  put(core, 0, 8);
  transfer(core, Op.COPY, 0, 2);
  const other = makeCore();
  put(other, 0, 8);
  transfer(other, Op.COPY, 4, 1);
  apply(other, remove(page(5), page(6)));
  load(other, saved(core));
  assert.deepEqual(
    [0, 1, 2, 4, 5].map((index) => stateOf(other, index)),
    [present, present, missing, present, removed],
  );
});

test('chunks of memory that is not registered there are passed over, and nonsense does no harm', () => {
  const core = makeCore();
  put(core, 0, 1);
  for (const key of [0n, 1n, keyOf(CHUNK), keyOf(-CHUNK), 2n ** 51n, 2n ** 64n - 1n]) {
    const chunk = new Uint8Array(SNAPSHOT_BYTES).fill(0xff);
    new BigUint64Array(chunk.buffer)[0] = key;
    load(core, [chunk]);
  }
  assert.equal(core.exports.pagesBytes(), 64 * 32);
  assert.equal(stateOf(core, 0), missing);
  // A chunk with every bit of every page set; one page is registered, without mode write-protect.
  const all = new Uint8Array(SNAPSHOT_BYTES).fill(0xff);
  new BigUint64Array(all.buffer)[0] = keyOf(0);
  load(core, [all]);
  assert.deepEqual([stateOf(core, 0), stateOf(core, 1)], [present, removed]);
  assert.equal(core.exports.pagesBytes(), 64 * 32 + 2 * 1024);
  // If no page of the chunk is registered, only removals are kept.
  take(core, 0, 1);
  load(core, [all]);
  assert.deepEqual([stateOf(core, 0), stateOf(core, 1)], [removed, removed]);
  assert.equal(core.exports.pagesBytes(), 64 * 32 + 1024);
  put(core, 0, 1);
  assert.equal(stateOf(core, 0), removed);
});

test('whatever happened: another core with the same ranges knows the same, but for claims', () => {
  const first = seed();
  const stretch = { first: CHUNK - 200, count: 400 };
  for (let run = first; run < first + 100; run++) {
    const below = generator(run);
    const core = makeCore();
    const registered: boolean[] = [];
    const watch = (one: Core, modes: number) => {
      for (let index = 0; index < stretch.count; index++) {
        if (registered[index]) put(one, stretch.first + index, 1, { modes });
      }
    };
    const fresh = (from: number, count: number, on: boolean) => {
      for (let index = from; index < from + count; index++) registered[index] = on;
    };
    const pick = (): [number, number] => {
      const from = below(stretch.count);
      return [from, 1 + below(Math.min(60, stretch.count - from))];
    };
    for (let step = 0; step < 60; step++) {
      const [from, count] = pick();
      const at = stretch.first + from;
      switch (below(7)) {
        case 0:
        case 1:
          put(core, at, count, { modes: BOTH });
          fresh(from, count, true);
          break;
        case 2:
          if (below(3)) break;
          take(core, at, count);
          fresh(from, count, false);
          break;
        case 3:
          apply(core, remove(page(at), page(at + count)));
          break;
        case 4:
          core.arguments(page(at), count * PAGE).pageClaim();
          break;
        case 5: {
          const [to] = pick();
          if (Math.abs(to - from) < count || to + count > stretch.count) break;
          apply(core, remap(page(at), page(stretch.first + to), BigInt(count) * P));
          for (let i = 0; i < count; i++) registered[to + i] = registered[from + i] ?? false;
          break;
        }
        default:
          transfer(core, Op.COPY, at, count, below(2) * Option.WRITE_PROTECT);
      }
    }
    const chunks = saved(core);
    const same = makeCore();
    watch(same, BOTH);
    load(same, chunks);
    const plain = makeCore();
    watch(plain, MISSING);
    load(plain, chunks);
    for (let index = 0; index < stretch.count; index++) {
      const known = stateOf(core, stretch.first + index);
      const travels = (known & 3) === State.inFlight ? known - State.inFlight : known;
      const why = `run ${run}, page ${index}`;
      // For a page that is not registered, the chunk holds only whether it was removed.
      if (!registered[index]) continue;
      assert.equal(stateOf(same, stretch.first + index), travels, why);
      assert.equal(stateOf(plain, stretch.first + index), travels & 3, why);
    }
    // Removals of pages that were filled since are loaded too: a fault of each page shows it.
    const touch = (one: Core) => {
      const seen: number[] = [];
      for (let index = 0; index < stretch.count; index++) {
        if (!registered[index]) continue;
        feed(one, fault(page(stretch.first + index)));
        deliverAll(one);
        seen.push(stateOf(one, stretch.first + index) & 3);
      }
      return seen;
    };
    const faulted = touch(core).map((state) => (state === State.inFlight ? missing : state));
    assert.deepEqual(touch(same), faulted, `run ${run}`);
    // Chunks whose planes are all zero again are not saved by the second core.
    const filled = saved(core).filter((chunk) => chunk.subarray(8).some((byte) => byte !== 0));
    assert.equal(saved(same).length, filled.length);
  }
});

test.run();
