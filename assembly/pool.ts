// Allocates all linear memory above the static data: frames of 1 KiB for the tables, and spans of several contiguous
// frames for the directories that index the tables.
//
// Rules:
//  - Memory grows only in `grow`. Callers reserve or promise frames in advance, in operations that may grow memory (a
//    registration, a mapping change, making room for a read). After that, taking a frame cannot fail.
//  - A promise sets a frame aside. Frames for page bitmaps are promised when a range is registered, and taken when a
//    page in them first changes its state. Linear memory that was never touched takes no memory of the host.
//  - Frames and spans are zeroed when they are taken.

export const FRAME: usize = 1024;
const WASM_PAGE: usize = 65536;

/** First byte that was never allocated. */
let top: usize = (__heap_base + FRAME - 1) & ~(FRAME - 1);
/** Freed frames, linked through their first word. */
let freeHead: usize = 0;
let freeCount: u32 = 0;
let promised: u32 = 0;

function untouched(): u32 {
  return <u32>((<usize>memory.size() * WASM_PAGE - top) / FRAME);
}

function grow(frames: u32): bool {
  // Count in WebAssembly pages: the bytes of all requested frames may not fit into 32 bits.
  return memory.grow(<i32>(frames / <u32>(WASM_PAGE / FRAME) + 1)) >= 0;
}

/**
 * Makes sure that `frames` frames can be taken in addition to the promised frames. False: linear memory has reached its
 * maximum.
 */
export function poolReserve(frames: u32): bool {
  const spare = freeCount + untouched() - promised;
  return spare >= frames || grow(frames - spare);
}

/** Sets `frames` frames aside until `poolTakePromised` takes them or `poolForgive` releases them. */
export function poolPromise(frames: u32): bool {
  if (!poolReserve(frames)) return false;
  promised += frames;
  return true;
}

export function poolForgive(frames: u32): void {
  assert(promised >= frames, 'more promises given up than made');
  promised -= frames;
}

/** Takes a zeroed frame. The caller must have reserved it. */
export function poolTake(): usize {
  if (freeHead) {
    const frame = freeHead;
    freeHead = load<usize>(frame);
    freeCount--;
    memory.fill(frame, 0, FRAME);
    return frame;
  }
  assert(untouched() > 0, 'a frame was taken without a reservation');
  const frame = top;
  top += FRAME;
  return frame;
}

export function poolTakePromised(): usize {
  poolForgive(1);
  return poolTake();
}

export function poolGive(frame: usize): void {
  assert(frame % FRAME == 0 && frame < top, 'not a frame');
  store<usize>(frame, freeHead);
  freeHead = frame;
  freeCount++;
}

/** Takes `bytes` contiguous zeroed bytes; 0 if linear memory has reached its maximum. */
export function spanTake(bytes: usize): usize {
  const frames = framesOf(bytes);
  // The span comes from untouched memory. What is left, with the freed frames, must still cover all promises.
  if (!poolReserve(frames)) return 0;
  const rest = untouched();
  if (rest < frames && !grow(frames - rest)) return 0;
  const span = top;
  top += <usize>frames * FRAME;
  return span;
}

export function spanGive(span: usize, bytes: usize): void {
  for (let frames = framesOf(bytes); frames > 0; frames--, span += FRAME) poolGive(span);
}

function framesOf(bytes: usize): u32 {
  return <u32>((bytes + FRAME - 1) / FRAME);
}
