// Hits of the pager's replacement, without a kernel: its state machine with effects that do nothing, and a plain LRU.

import { type Effects, Engine, PagerOutcome } from '../src/pager/engine.js';
import { randomFrom } from './statistics.js';

const BLOCKS = 100_000;
const RESIDENT = BLOCKS / 10;
const TOUCHES = 1_000_000;
/** Of these touches, so many at the start do not count. */
const WARM = TOUCHES / 2;
const SKEW = 0.99;
/** One of so many touches belongs to a scan of the other half of the data, if there is a scan. */
const SCAN = 4;

/** Blocks, the k-th most frequent 1/k^0.99 times as often as the first, scattered over the data. */
function zipf(random: () => number): () => number {
  const sums = new Float64Array(BLOCKS);
  let sum = 0;
  for (let k = 0; k < BLOCKS; k++) sums[k] = sum += 1 / (k + 1) ** SKEW;
  const places = Uint32Array.from({ length: BLOCKS }, (_, i) => i);
  for (let i = BLOCKS - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [places[i], places[j]] = [places[j] as number, places[i] as number];
  }
  return () => {
    const wanted = random() * sum;
    let low = 0;
    for (let high = BLOCKS - 1; low < high; ) {
      const middle = (low + high) >> 1;
      if ((sums[middle] as number) < wanted) low = middle + 1;
      else high = middle;
    }
    return places[low] as number;
  };
}

/** Whether a touch finds the block in memory. */
type Touch = (block: number) => boolean;

function lru(): Touch {
  const resident = new Set<number>();
  return (block) => {
    const hit = resident.delete(block);
    resident.add(block);
    if (resident.size > RESIDENT) resident.delete(resident.values().next().value as number);
    return hit;
  };
}

/** The pager, whose source answers at once. `aheadBlocks`: read-ahead, as with blocks of 64 KiB. */
function pager(blocks: number, aheadBlocks = 64, requestBlocks = 16): Touch {
  const mapped = new Uint8Array(blocks);
  const present = new Uint8Array(blocks);
  const fetches: { id: number; block: number; count: number }[] = [];
  const set = (bytes: Uint8Array, value: number) => (block: number, count: number) =>
    void bytes.fill(value, block, block + count);
  const unmap = set(mapped, 0);
  const punched = set(present, 0);
  const effects: Effects = {
    fetch: (id, block, count) => void fetches.push({ id, block, count }),
    cancel(id) {
      const at = fetches.findIndex((one) => one.id === id);
      if (at >= 0) fetches.splice(at, 1);
    },
    expire() {},
    map: set(mapped, 1),
    protect() {},
    drop: unmap,
    punch(block, count) {
      unmap(block, count);
      punched(block, count);
    },
    write() {},
    poison() {},
    wake() {},
  };
  const engine = new Engine(
    {
      ...{
        blocks,
        resident: RESIDENT,
        writable: false,
        writesLate: false,
        requestBlocks,
        aheadBlocks,
        parallel: 1,
      },
      ...{ deadlineMs: Number.POSITIVE_INFINITY, poisonsAtOnce: false, mayStall: false, seed: 1 },
    },
    effects,
    () => 0,
  );
  return (block) => {
    const hit = present[block] === 1;
    if (mapped[block] === 1) return true;
    engine.fault(block, false);
    for (let next = fetches.shift(); next; next = fetches.shift()) {
      present.fill(1, next.block, next.block + next.count);
      engine.fetched(next.id, PagerOutcome.OK);
    }
    if (mapped[block] !== 1) throw new Error(`block ${block} was not mapped`);
    return hit;
  };
}

/** The share of Zipf's touches that hit. With `scan`, one touch of SCAN is the next block of an endless scan. */
function hits(seed: number, touch: Touch, scan: boolean): number {
  const random = randomFrom(seed);
  const next = zipf(random);
  let scanned = 0;
  let hit = 0;
  for (let i = 0; i < TOUCHES; i++) {
    const found = touch(next());
    if (found && i >= WARM) hit++;
    if (scan && i % (SCAN - 1) === 0) touch(BLOCKS + (scanned++ % BLOCKS));
  }
  return hit / (TOUCHES - WARM);
}

/** Hits of the pager with a scan, and of LRU without and with it. */
export function benchHits(seed: number): { pager: number; quiet: number; lru: number; lruScanned: number } {
  return {
    pager: hits(seed, pager(2 * BLOCKS), true),
    quiet: hits(seed, pager(2 * BLOCKS), false),
    lru: hits(seed, lru(), false),
    lruScanned: hits(seed, lru(), true),
  };
}
