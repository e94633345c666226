// Sequential readers. Each is remembered by the block that it will want next, and gets a window of read-ahead that
// doubles as it goes on. A reader that jumps gets single blocks.

@unmanaged
class Stream {
  /** The block after the last one that was requested for it. */
  next: u32;
  /** Blocks that were requested at once, last time. */
  window: u32;
  /** When it was used last; 0: the stream is free. */
  used: u32;
}
const STREAMS: u32 = 8;
const STREAM_BYTES: usize = 12;
const streams: usize = memory.data(8 * 12, 8);
let clock: u32 = 0;
let windowMost: u32 = 1;

/** Sets how many blocks are read ahead for one reader at most. */
export function streamsMost(mostBlocks: u32): void {
  windowMost = mostBlocks;
}

function at(index: u32): Stream {
  return changetype<Stream>(streams + <usize>index * STREAM_BYTES);
}

/** The stream that wants a block next; if there is none, the one that was not used for the longest time. */
function forMiss(block: u32): Stream {
  let oldest = at(0);
  for (let i: u32 = 0; i < STREAMS; i++) {
    const one = at(i);
    if (one.used != 0 && one.next == block) return one;
    if (one.used < oldest.used) oldest = one;
  }
  oldest.used = 0;
  return oldest;
}

/** A block is missing. Returns how many blocks to request, from it on. */
export function streamMiss(block: u32): u32 {
  const one = forMiss(block);
  one.window = one.used == 0 ? 1 : grown(one.window);
  one.used = ++clock;
  one.next = block + one.window;
  return one.window;
}

/**
 * A reader has reached the marker of its window, at `block`. Returns how many blocks to request more, from
 * `streamNext` on; 0: no stream is there.
 */
export function streamAdvance(block: u32): u32 {
  for (let i: u32 = 0; i < STREAMS; i++) {
    const one = at(i);
    if (one.used == 0 || block >= one.next || one.next - block > 2 * windowMost) continue;
    one.window = grown(one.window);
    one.used = ++clock;
    streamNext = one.next;
    one.next += one.window;
    return one.window;
  }
  return 0;
}
export let streamNext: u32 = 0;

function grown(window: u32): u32 {
  return min(max(2 * window, 2), windowMost);
}
