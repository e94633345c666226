// Transfers the page states of an object to the next owner of the descriptor. `Userfaultfd.ranges` returns an empty
// record in shared memory. `release` fills it in when it gives the descriptor away.
//
// Rule: a record that is not filled in holds no states. Its object still owns the descriptor, or was closed.

import { SNAPSHOT_BYTES } from '../bindings/core.js';
import { snapshotSpan } from './core.js';
import type { RegisteredRange } from './registered-range.js';

/** Two numbers before the chunks: whether the record is filled in, and how many chunks there are. */
const HEAD_BYTES = 8;
const EMPTY = 0;
const FILLED = 1;
const TOO_SMALL = 2;

/** The records that an object has handed out. */
export class PageRecords {
  readonly #records: SharedArrayBuffer[] = [];

  /** A record with room for all chunks that these ranges can need. */
  of(ranges: readonly RegisteredRange[], pageSize: number): SharedArrayBuffer {
    const bytes = HEAD_BYTES + chunksOf(ranges, pageSize) * SNAPSHOT_BYTES;
    const known = this.#records.find(({ byteLength }) => byteLength >= bytes);
    if (known) return known;
    const record = new SharedArrayBuffer(bytes);
    this.#records.push(record);
    return record;
  }

  /** Fills in all records that were returned so far. */
  fill(chunks: () => Iterable<Uint8Array>): void {
    for (const record of this.#records.splice(0)) fill(record, chunks());
  }
}

/** A record that holds these chunks. */
export function recordOf(chunks: readonly Uint8Array[]): SharedArrayBuffer {
  const record = new SharedArrayBuffer(HEAD_BYTES + chunks.length * SNAPSHOT_BYTES);
  fill(record, chunks);
  return record;
}

function fill(record: SharedArrayBuffer, chunks: Iterable<Uint8Array>): void {
  let offset = HEAD_BYTES;
  let state = FILLED;
  for (const chunk of chunks) {
    if (offset + SNAPSHOT_BYTES > record.byteLength) {
      state = TOO_SMALL;
      break;
    }
    new Uint8Array(record, offset, SNAPSHOT_BYTES).set(chunk);
    offset += SNAPSHOT_BYTES;
  }
  const head = new Int32Array(record, 0, 2);
  head[1] = (offset - HEAD_BYTES) / SNAPSHOT_BYTES;
  Atomics.store(head, 0, state);
}

/** The chunks in the records of these ranges. Undefined if one of the records was too small for its states. */
export function recordedChunks(ranges: readonly RegisteredRange[]): Uint8Array[] | undefined {
  const records = new Set(ranges.flatMap(({ pages }) => (pages ? [pages] : [])));
  const chunks: Uint8Array[] = [];
  for (const record of records) {
    if (record.byteLength < HEAD_BYTES) continue;
    const head = new Int32Array(record, 0, 2);
    const state = Atomics.load(head, 0);
    if (state === TOO_SMALL) return undefined;
    if (state === EMPTY) continue;
    const count = Math.min(head[1] as number, Math.floor((record.byteLength - HEAD_BYTES) / SNAPSHOT_BYTES));
    for (let index = 0; index < count; index++) {
      chunks.push(new Uint8Array(record, HEAD_BYTES + index * SNAPSHOT_BYTES, SNAPSHOT_BYTES));
    }
  }
  return chunks;
}

/** How many chunks the memory of the ranges covers; the ranges are in ascending order. */
function chunksOf(ranges: readonly RegisteredRange[], pageSize: number): number {
  const span = BigInt(snapshotSpan(pageSize));
  let count = 0;
  let next = 0n;
  for (const { start, length } of ranges) {
    const first = start / span > next ? start / span : next;
    const end = (start + BigInt(length) - 1n) / span + 1n;
    if (end > first) count += Number(end - first);
    next = end > next ? end : next;
  }
  return count;
}
