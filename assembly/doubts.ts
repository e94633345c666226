// Pages of which a fill said EEXIST. Mostly the page is there, and the WAKE that follows is the answer. But the kernel says
// EEXIST without a page, too: if the pool of huge pages is empty, or for a marker. Then the thread that was woken faults
// again, and would do so for ever.
//
// Rules:
//  - A page that faults again after EEXIST is tried again after a while, longer each time; never in a busy loop.
//  - Only a fill that succeeds, or a change of the mapping, ends that.
//  - Many can be in doubt at once, one for each thread that has found no huge page. So a page has one of several places. If
//    all of them are taken, the page that was tried least often gives way: it may be one that is there.

/** Pages whose tries are counted, and places that each may have. */
const DOUBTS: u32 = 256;
const PLACES: u32 = 16;

@unmanaged
class Doubt {
  /** 0 marks a free place. */
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

/** Place number `index` of those that a page may have. */
function place(page: u64, index: u32): Doubt {
  return at((<u32>((page * 0x9e3779b97f4a7c15) >> 56) + index) & (DOUBTS - 1));
}

/** Where a page is, or would be put. */
function placeOf(page: u64): Doubt {
  let best = place(page, 0);
  for (let i: u32 = 0; i < PLACES; i++) {
    const it = place(page, i);
    if (it.page == page) return it;
    if (best.page != 0 && (it.page == 0 || it.tries < best.tries)) best = it;
  }
  return best;
}

/** How many there are. */
export function doubtCount(): u32 {
  return count;
}

/** How often in a row a fill of this page said EEXIST. */
export function doubtTries(page: u64): u32 {
  if (count == 0) return 0;
  const it = placeOf(page);
  return it.page == page ? it.tries : 0;
}

/** A fill of this page said EEXIST. */
export function doubtAdd(page: u64): void {
  const it = placeOf(page);
  if (it.page == 0) count++;
  it.tries = it.page == page ? it.tries + 1 : 1;
  it.page = page;
}

/** [start, end) was filled, or has changed. */
export function doubtsForget(start: u64, end: u64): void {
  if (count == 0) return;
  for (let i: u32 = 0; i < DOUBTS; i++) {
    const it = at(i);
    if (it.page < start || it.page >= end || it.page == 0) continue;
    it.page = 0;
    count--;
  }
}
