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

function at(index: u32): Source {
  return changetype<Source>(sources + <usize>(index * SOURCE));
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

/** Arguments 0 (start), 1 (length), 2 (where the data lies). False: there is no room for it. */
export function sourcePut(window: u32): bool {
  const start = argument(0);
  const end = start + argument(1);
  sourcesForget(start, end);
  if (count == SOURCES) return false;
  const index = seek(start);
  move(index, index + 1);
  const it = at(index);
  it.start = start;
  it.end = end;
  it.data = argument(2);
  it.window = window;
  return true;
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
      move(index + 1, index);
    }
  }
}

/** Forgets all. */
export function sourcesClear(): void {
  count = 0;
}

/** What has the data of `address`, or null. */
export function sourceOf(address: u64): Source | null {
  const index = seek(address);
  return index < count && at(index).start <= address ? at(index) : null;
}
