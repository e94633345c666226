// Detects sequential runs of faults, so that the window (the pages that one fault installs) can grow with a run. A
// fault right after the last window of a run continues the run and doubles its window. Any other fault begins a new run
// with a window of one page. So random access installs no page that is not used, and each thread can have a run of its
// own.

/**
 * Flag in the number of a window. If it is set, the number is the largest window of a run. If not, it is the window of
 * every fault.
 */
export const ADAPTIVE: u32 = 1 << 31;

/** Most runs that are tracked at a time. A new run replaces the oldest one. */
const STREAMS: u32 = 64;

@unmanaged
class Stream {
  /** The end of the last window of the run. */
  next: u64;
  /** The number of pages of that window. */
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

/** The window for a fault of this page: a number of pages, at most `most`. */
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

/** Sets the address at which the run of the last `streamWindow` call continues. */
export function streamNext(address: u64): void {
  at(current).next = address;
}
