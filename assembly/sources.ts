// Where the data of missing pages lies, as far as it lies in memory.
//
// Rules:
//  - A source is a shortcut and nothing more: whoever cannot use it asks the handler. So one may be forgotten at any time.
//  - It ends with the registration of its memory: what is mapped there later is somebody else's.
//  - A source may have a keeper, the number under which the caller keeps its data alive. The end of each source that has
//    one is reported once (`sourceEnded`), so that its data can be let go.
//  - The table has room for LEAST sources, and grows once, to MOST. Beyond what it holds a further source takes the place
//    of another one; which one, goes round by address, so the latest stay longest.

import { spanTake } from './pool';
import { argument } from './request';

/** The bytes of [start, end) lie at `data`. `window`: how many pages a fault installs at most. */
@unmanaged
export class Source {
  start: u64;
  end: u64;
  data: u64;
  window: u32;
  /** 0: none. */
  keeper: u32;
}

const SOURCE: u32 = 32;
/** A keeper's number, in the list of those whose source has ended. */
const KEEPER: u32 = 4;
const LEAST: u32 = 1024;
/** An insertion moves half of this many at most: some microseconds. */
const MOST: u32 = 16384;

/** In ascending order; none overlaps another. Behind them lie the keepers whose source has ended. */
let sources: usize = memory.data(LEAST * (SOURCE + KEEPER), 8);
let capacity: u32 = LEAST;
let count: u32 = 0;
let ended: u32 = 0;
/** Where the next source that gives way is looked for. */
let hand: u64 = 0;

function at(index: u32): Source {
  return changetype<Source>(sources + <usize>(index * SOURCE));
}

/** Of the list of keepers whose source has ended. */
function endedAt(index: u32): usize {
  return sources + <usize>(capacity * SOURCE + index * KEEPER);
}

/** The first that ends behind `address`; `count`: there is none. */
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

/** Moves those from `index` on to `to`, one place further or back. */
function move(index: u32, to: u32): void {
  memory.copy(changetype<usize>(at(to)), changetype<usize>(at(index)), <usize>((count - index) * SOURCE));
  count += to - index;
}

/** Takes a source out. */
function drop(index: u32): void {
  const keeper = at(index).keeper;
  // There is room for all that the table can hold, and the caller asks after each call that ends some.
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

/** Arguments 0 (start), 1 (length), 2 (where the data lies). */
export function sourcePut(window: u32, keeper: u32): void {
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
  it.keeper = keeper;
}

/** Forgets what is known of [start, end); and, of a source that reaches from before it to behind it, what lies behind. */
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

/** Forgets all, and the keepers with them. */
export function sourcesClear(): void {
  count = 0;
  ended = 0;
}

/** A keeper whose source has ended and that was not reported yet; 0: there is none. */
export function sourceEnded(): u32 {
  return ended ? load<u32>(endedAt(--ended)) : 0;
}

/** What has the data of `address`, or null. */
export function sourceOf(address: u64): Source | null {
  const index = seek(address);
  return index < count && at(index).start <= address ? at(index) : null;
}
