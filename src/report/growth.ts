// The growth of the working set: after each event, how many pages had been faulted on, and how many were resident.

import { type Events, isFault, What } from './events.js';

/** More rows than this are not counted. */
const ROWS_MOST = 2 ** 28;

export interface Growth {
  /** Distinct pages that were faulted on so far. */
  readonly faulted: Float64Array;
  /** Pages that were faulted on or filled ahead, and not removed since. */
  readonly present: Float64Array;
}

export function growthOf(
  events: Events,
  row: Float64Array,
  rows: Float64Array,
  count: number,
): Growth | undefined {
  if (count > ROWS_MOST) return undefined;
  const faulted = new Float64Array(events.length);
  const present = new Float64Array(events.length);
  const [ever, now] = [new Bits(count), new Bits(count)];
  for (let at = 0; at < events.length; at++) {
    const first = row[at] as number;
    const end = first + (rows[at] as number);
    if (events.what[at] === What.removed) now.clear(first, end);
    else now.set(first, end);
    if (isFault(events, at)) ever.set(first, end);
    faulted[at] = ever.count;
    present[at] = now.count;
  }
  return { faulted, present };
}

class Bits {
  count = 0;
  readonly #words: Uint32Array;

  constructor(size: number) {
    this.#words = new Uint32Array(Math.ceil(size / 32));
  }

  set(first: number, end: number): void {
    this.#each(first, end, (word, mask) => word | mask);
  }

  clear(first: number, end: number): void {
    this.#each(first, end, (word, mask) => word & ~mask);
  }

  #each(first: number, end: number, change: (word: number, mask: number) => number): void {
    for (let at = first; at < end; ) {
      const index = at >>> 5;
      const next = Math.min(end, (index + 1) * 32);
      const mask = (0xffffffff >>> (32 - (next - at))) << (at & 31);
      const before = this.#words[index] as number;
      const after = change(before, mask) >>> 0;
      this.#words[index] = after;
      if (after !== before) this.count += bitsOf(after) - bitsOf(before);
      at = next;
    }
  }
}

function bitsOf(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return (((bits + (bits >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}
