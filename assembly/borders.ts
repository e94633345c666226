// Addresses at which one mapping of the watched memory ends and another begins, as far as fills have found out.
//
// Rules:
//  - No fill crosses the border of two mappings: the kernel answers ENOENT to the whole call (mprotect, madvise, mlock and
//    mbind split a mapping without an event; so do holes, and two memfds side by side). A border that was found is kept, so
//    that finding it is paid for once.
//  - A border that is none any more costs one call more and nothing else, so a mapping change need not be exact about them.

/** More are not kept: what was found is forgotten then, and found again where it matters. */
const BORDERS: u32 = 4096;

/** In ascending order. */
const borders: usize = memory.data(BORDERS * 8, 8);
let count: u32 = 0;

function at(index: u32): u64 {
  return load<u64>(borders + ((<usize>index) << 3));
}

/** The first that lies behind `address`; `count`: none does. */
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

/** The next border behind `address`; the highest address: none is known. */
export function borderAfter(address: u64): u64 {
  if (count == 0) return u64.MAX_VALUE;
  const index = seek(address);
  return index < count ? at(index) : u64.MAX_VALUE;
}

/** The last border at or before `address`; 0: none is known. */
export function borderBefore(address: u64): u64 {
  if (count == 0) return 0;
  const index = seek(address);
  return index > 0 ? at(index - 1) : 0;
}

/** Notes a border. */
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
