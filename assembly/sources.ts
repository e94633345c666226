// The sources of missing pages: data that lies in memory, or zeros.
//
// Rules:
//  - A source is only a shortcut: if it cannot be used, the handler gets the fault. So a source may be forgotten at any time.
//  - A source ends when its memory is unregistered, because other memory may be mapped there later.
//  - A source may have a keeper: a number under which the caller keeps the source's data alive. The end of each source
//    with a keeper is reported once (`sourceEnded`), so that the caller can release the data.
//  - The table has room for LEAST sources, and grows once, to MOST. When it is full, a new source replaces another one.
//    The search for a victim goes through the addresses in turn, so that the latest sources usually stay longest.

import { argument, shared } from './exchange';
import { spanTake } from './pool';

/** Kind of a source. */
export enum SourceKind {
  /** Bytes, which are copied. The handler gets the faults of removed pages. */
  DATA,
  /** Bytes, which are copied. Removed pages get zeros. */
  DATA_OR_REMOVED,
  /** Zeros, also for removed pages. */
  ZEROS,
}

/**
 * Flag in the number of a source's window. If it is set, zeros (for removed pages and for holes) are installed in runs.
 * It is for private anonymous memory, where zeros take no memory, because the kernel maps one shared zero page.
 */
export const ZERO_RUNS: u32 = 1 << 28;

/** The source of [start, end); its data lies at `data`. `window`: how many pages a fault installs at most. */
@unmanaged
export class Source {
  start: u64;
  end: u64;
  data: u64;
  window: u32;
  kind: u32;
  /** The number of the source's keeper; 0: none. */
  keeper: u32;
  padding: u32;
}

const SOURCE: u32 = 40;
/** Bytes of an entry in the list of keepers whose source has ended. */
const KEEPER: u32 = 4;
const LEAST: u32 = 1024;
/** Most sources. An insertion moves half of the table on average, which takes some microseconds. */
const MOST: u32 = 16384;

/**
 * The sources, in ascending order, without overlaps. The list of keepers whose source has ended follows in the same
 * memory.
 */
let sources: usize = memory.data(LEAST * (SOURCE + KEEPER), 8);
let capacity: u32 = LEAST;
let count: u32 = 0;
let ended: u32 = 0;
/** Address at which the search for the next victim begins. */
let hand: u64 = 0;

function at(index: u32): Source {
  return changetype<Source>(sources + <usize>(index * SOURCE));
}

/** Address of an entry in the list of keepers whose source has ended. */
function endedAt(index: u32): usize {
  return sources + <usize>(capacity * SOURCE + index * KEEPER);
}

/** Index of the first source that ends above `address`; `count` if there is none. */
function seek(address: u64): u32 {
  let low: u32 = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (at(middle).end <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Moves the sources from `index` on to `to`. */
function move(index: u32, to: u32): void {
  memory.copy(changetype<usize>(at(to)), changetype<usize>(at(index)), <usize>((count - index) * SOURCE));
  count += to - index;
  shared().sourced = count > 0 ? 1 : 0;
}

/** Deletes a source. */
function drop(index: u32): void {
  const keeper = at(index).keeper;
  // The list cannot overflow: it has an entry for each source, and the caller drains it after each call that can end a
  // source.
  if (keeper && ended < capacity) store<u32>(endedAt(ended++), keeper);
  move(index + 1, index);
}

function makeRoom(): void {
  if (count < capacity) return;
  const span = capacity < MOST ? spanTake(<usize>(MOST * (SOURCE + KEEPER))) : 0;
  if (span) {
    memory.copy(span, sources, <usize>(count * SOURCE));
    memory.copy(span + <usize>(MOST * SOURCE), endedAt(0), <usize>(ended * KEEPER));
    sources = span;
    capacity = MOST;
    return;
  }
  const index = seek(hand) % count;
  hand = at(index).end;
  drop(index);
}

/**
 * Adds a source. Arguments: 0 (start), 1 (length), 2 (address of the data). `keeper`: the number of the object that
 * keeps the data alive; 0: none.
 */
export function sourcePut(kind: u32, window: u32, keeper: u32): void {
  const start = argument(0);
  const end = start + argument(1);
  sourcesForget(start, end);
  makeRoom();
  const index = seek(start);
  move(index, index + 1);
  const it = at(index);
  it.start = start;
  it.end = end;
  it.data = argument(2);
  it.window = window;
  it.kind = kind;
  it.keeper = keeper;
}

/** Forgets the sources in [start, end). Of a source that extends beyond both ends, only the part before `start` is kept. */
export function sourcesForget(start: u64, end: u64): void {
  for (let index = seek(start); index < count && at(index).start < end; ) {
    const it = at(index);
    if (it.start < start) {
      it.end = start;
      index++;
    } else if (it.end > end) {
      it.data += end - it.start;
      it.start = end;
    } else {
      drop(index);
    }
  }
}

/** Forgets all sources. The ends of their keepers are not reported. */
export function sourcesClear(): void {
  count = 0;
  shared().sourced = 0;
  ended = 0;
}

/** The next keeper whose source has ended, if that was not reported yet; 0: there is none. */
export function sourceEnded(): u32 {
  return ended ? load<u32>(endedAt(--ended)) : 0;
}

/** The source of `address`, or null. */
export function sourceOf(address: u64): Source | null {
  const index = seek(address);
  return index < count && at(index).start <= address ? at(index) : null;
}
