// Where the data of missing pages lies, as far as it lies in memory.
//
// Rules:
//  - A source is a shortcut and nothing more: whoever cannot use it asks the handler. So one may be forgotten at any time.
//  - It ends with the registration of its memory: what is mapped there later is somebody else's.

import { argument } from './request';

/** The bytes of [start, end) lie at `data`. `window`: how many pages a fault installs at most. */
@unmanaged
export class Source {
  start: u64;
  end: u64;
  data: u64;
  window: u32;
  padding: u32;
}

const SOURCE: u32 = 32;
/** So many there are at most. */
const SOURCES: u32 = 1024;

/** In ascending order; none overlaps another. */
const sources: usize = memory.data(SOURCES * SOURCE, 8);
let count: u32 = 0;
/** Where the last search stopped. */
let near: u32 = 0;

function at(index: u32): Source {
  return changetype<Source>(sources + <usize>(index * SOURCE));
}

/** The first that ends behind `address`; `count`: there is none. */
function seek(address: u64): u32 {
  if (near < count && at(near).end > address && at(near).start <= address) return near;
  let low: u32 = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (at(middle).end <= address) low = middle + 1;
    else high = middle;
  }
  near = low;
  return low;
}

/** Makes room at `index`. False: there is none. */
function insert(index: u32): bool {
  if (count == SOURCES) return false;
  memory.copy(
    changetype<usize>(at(index + 1)),
    changetype<usize>(at(index)),
    <usize>((count - index) * SOURCE),
  );
  count++;
  return true;
}

function drop(index: u32): void {
  count--;
  memory.copy(
    changetype<usize>(at(index)),
    changetype<usize>(at(index + 1)),
    <usize>((count - index) * SOURCE),
  );
}

/** Arguments 0 (start), 1 (length), 2 (where the data lies). False: there is no room for it. */
export function sourcePut(window: u32): bool {
  const start = argument(0);
  const end = start + argument(1);
  sourcesForget(start, end);
  const index = seek(start);
  if (!insert(index)) return false;
  const it = at(index);
  it.start = start;
  it.end = end;
  it.data = argument(2);
  it.window = window;
  return true;
}

/** Forgets what is known of [start, end). */
export function sourcesForget(start: u64, end: u64): void {
  for (let index = seek(start); index < count && at(index).start < end; ) {
    const it = at(index);
    const rest = it.end;
    if (it.start < start) {
      it.end = start;
      index++;
      // Without room for what is left behind, it is forgotten, too.
      if (rest > end && insert(index)) {
        memory.copy(changetype<usize>(at(index)), changetype<usize>(at(index - 1)), <usize>SOURCE);
        advance(at(index), end);
        at(index).end = rest;
      }
    } else if (rest > end) {
      advance(it, end);
      return;
    } else {
      drop(index);
    }
  }
}

function advance(it: Source, to: u64): void {
  it.data += to - it.start;
  it.start = to;
}

/** What has the data of `address`, or null. */
export function sourceOf(address: u64): Source | null {
  const index = seek(address);
  return index < count && at(index).start <= address ? at(index) : null;
}
