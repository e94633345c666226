// What an object knows of its pages, on its way to the next owner of the descriptor. The record is handed out with `ranges`,
// before it is known when the descriptor will be given away; so it is shared memory, and filled in then.
//
// Rule: a record that was not filled in says nothing: its object still owns the descriptor, or was closed.

import { SNAPSHOT_BYTES, snapshotSpan } from './core.js';
import type { RegisteredRange } from './handler.js';

/** Two numbers in front of the chunks: whether it was filled in, and how many there are. */
const HEAD_BYTES = 8;
const EMPTY = 0;
const FILLED = 1;
const TOO_SMALL = 2;

/** The records that an object has handed out. */
export class PageRecords {
  readonly #records: SharedArrayBuffer[] = [];

  /** One that has room for what these ranges may come to. */
  of(ranges: readonly RegisteredRange[], pageSize: number): SharedArrayBuffer {
    const bytes = HEAD_BYTES + chunksOf(ranges, pageSize) * SNAPSHOT_BYTES;
    const known = this.#records.find(({ byteLength }) => byteLength >= bytes);
    if (known) return known;
    const record = new SharedArrayBuffer(bytes);
    this.#records.push(record);
    return record;
  }

  /** Fills all of them in. */
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

/** The chunks of the records that came with ranges; undefined: one of them could not hold all that was known. */
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

/** How many chunks of memory the ranges, in ascending order, touch. */
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
