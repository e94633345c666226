// Borders: addresses at which one mapping of the watched memory ends and another begins. Only the borders that fills
// have found are known.
//
// Rules:
//  - One call cannot fill pages on both sides of a border: the kernel refuses the whole call with ENOENT. The table
//    keeps each border, so that fills search for it only once. (mprotect, madvise, mlock and mbind split a mapping
//    without an event. There are also borders at holes, and between adjacent memfds.)
//  - The only cost of a stale border is one extra call, so mapping changes need not update borders exactly.

/** Most borders in the table. A full table is cleared, and fills find the borders again that still matter. */
const BORDERS: u32 = 4096;

/** The borders, in ascending order. */
const borders: usize = memory.data(BORDERS * 8, 8);
let count: u32 = 0;

function at(index: u32): u64 {
  return load<u64>(borders + ((<usize>index) << 3));
}

/** Index of the first border above `address`; `count` if there is none. */
function seek(address: u64): u32 {
  let low: u32 = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (at(middle) <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The next known border above `address`; the highest address if none is known. */
export function borderAfter(address: u64): u64 {
  if (count == 0) return u64.MAX_VALUE;
  const index = seek(address);
  return index < count ? at(index) : u64.MAX_VALUE;
}

/** The last known border at or below `address`; 0 if none is known. */
export function borderBefore(address: u64): u64 {
  if (count == 0) return 0;
  const index = seek(address);
  return index > 0 ? at(index - 1) : 0;
}

/** Adds a border. */
export function borderPut(address: u64): void {
  if (count == BORDERS) count = 0;
  const index = seek(address);
  if (index > 0 && at(index - 1) == address) return;
  const place = borders + ((<usize>index) << 3);
  memory.copy(place + 8, place, (<usize>(count - index)) << 3);
  store<u64>(place, address);
  count++;
}

/** Forgets the borders in [start, end). */
export function bordersForget(start: u64, end: u64): void {
  if (count == 0) return;
  const first = start > 0 ? seek(start - 1) : 0;
  const last = seek(end - 1);
  memory.copy(borders + ((<usize>first) << 3), borders + ((<usize>last) << 3), (<usize>(count - last)) << 3);
  count -= last - first;
}
