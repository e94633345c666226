// Sequential access: where runs of faults go on, so that a window can grow with them. A fault at the end of what a run
// installed last goes on with it, and gets twice as much; any other begins a run of its own, with a page. So nothing is
// installed in vain where access is random, and each of several threads has a run to itself.

/** A window's bit: it is the most that a run may grow to, and not what every fault gets. */
export const ADAPTIVE: u32 = 1 << 31;

/** Runs that are followed at a time; the oldest gives way to a new one. */
const STREAMS: u32 = 64;

@unmanaged
class Stream {
  /** The address behind what was installed last. */
  next: u64;
  /** Pages that it got last. */
  window: u32;
  padding: u32;
}

const STREAM: u32 = 16;
const streams: usize = memory.data(STREAMS * STREAM, 8);
let oldest: u32 = 0;
let current: u32 = 0;

function at(index: u32): Stream {
  return changetype<Stream>(streams + <usize>(index * STREAM));
}

/** How many pages a fault of this page gets, `most` at most. */
export function streamWindow(page: u64, most: u32): u32 {
  for (current = 0; current < STREAMS; current++) {
    const stream = at(current);
    if (stream.next != page) continue;
    stream.window = min(stream.window * 2, most);
    return stream.window;
  }
  current = oldest;
  oldest = (oldest + 1) % STREAMS;
  at(current).window = 1;
  return 1;
}

/** Where the run of the last `streamWindow` goes on. */
export function streamNext(address: u64): void {
  at(current).next = address;
}
