// Pages of which a fill said EEXIST. Mostly the page is there, and the WAKE that follows is the answer. But the kernel says
// EEXIST without a page, too: if the pool of huge pages is empty, or for a marker. Then the thread that was woken faults
// again, and would do so for ever.
//
// Rules:
//  - A page that faults again after EEXIST is tried again after a while, longer each time; never in a busy loop.
//  - Only a fill that succeeds, or a change of the mapping, ends that.

/** Pages whose tries are counted. Two that share a place forget each other's count, and begin anew. */
const DOUBTS: u32 = 256;

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

function placeOf(page: u64): Doubt {
  return at(<u32>((page * 0x9e3779b97f4a7c15) >> 56) & (DOUBTS - 1));
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
