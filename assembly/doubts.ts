// Pages for which a fill was answered with EEXIST. Usually the page is there, and the WAKE that follows resolves the
// fault. But the kernel also answers EEXIST if there is no page: if the pool of huge pages is empty, or if a marker is
// in the page's place. Then the woken thread faults again, and could do so forever.
//
// Rules:
//  - A page that faults again after EEXIST is retried with a growing delay, never in a busy loop.
//  - Only a successful fill or a change of the mapping ends the doubt about a page.
//  - Many pages can be in doubt at once, one per thread that found no huge page. So each page has several candidate
//    slots. If all are taken, the page with the fewest tries loses its slot, because it is the one most likely to be
//    installed.

/** Slots for pages in doubt, and how many of them are candidates for one page. */
const DOUBTS: u32 = 256;
const PLACES: u32 = 16;

@unmanaged
class Doubt {
  /** 0 marks a free slot. */
  page: u64;
  tries: u32;
  padding: u32;
}

const DOUBT: u32 = 16;
const doubts: usize = memory.data(DOUBTS * DOUBT, 8);
let count: u32 = 0;

function at(index: u32): Doubt {
  return changetype<Doubt>(doubts + <usize>(index * DOUBT));
}

/** Candidate slot number `index` of a page. */
function place(page: u64, index: u32): Doubt {
  return at((<u32>((page * 0x9e3779b97f4a7c15) >> 56) + index) & (DOUBTS - 1));
}

/** The slot that holds a page. If none does, the slot that the page would get. */
function placeOf(page: u64): Doubt {
  let best = place(page, 0);
  for (let i: u32 = 0; i < PLACES; i++) {
    const it = place(page, i);
    if (it.page == page) return it;
    if (best.page != 0 && (it.page == 0 || it.tries < best.tries)) best = it;
  }
  return best;
}

/** How many pages are in doubt. */
export function doubtCount(): u32 {
  return count;
}

/** How many fills of this page in a row were answered with EEXIST. */
export function doubtTries(page: u64): u32 {
  if (count == 0) return 0;
  const it = placeOf(page);
  return it.page == page ? it.tries : 0;
}

/** Counts a fill of this page that was answered with EEXIST. */
export function doubtAdd(page: u64): void {
  const it = placeOf(page);
  if (it.page == 0) count++;
  it.tries = it.page == page ? it.tries + 1 : 1;
  it.page = page;
}

/** Forgets the pages of [start, end), which were filled or whose mapping changed. */
export function doubtsForget(start: u64, end: u64): void {
  if (count == 0) return;
  for (let i: u32 = 0; i < DOUBTS; i++) {
    const it = at(i);
    if (it.page < start || it.page >= end || it.page == 0) continue;
    it.page = 0;
    count--;
  }
}
