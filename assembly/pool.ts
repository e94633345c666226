// The only owner of linear memory behind the static data: frames of 1 KiB for the tables, and spans of
// several frames in a row for the directories that index them.
//
// Rules:
//  - Memory grows in `grow`, and nowhere else. Who needs frames reserves or promises them first, on a path
//    that may grow (a registration, a mapping change, the room for a read); taking one can then not fail.
//  - A promise is a frame set aside for later: page bitmaps are promised when a range is registered and
//    taken when a page in them first changes its state. Untouched memory costs the host nothing.
//  - What is handed out is zero.

export const FRAME: usize = 1024;
const WASM_PAGE: usize = 65536;

/** First byte that was never handed out. */
let top: usize = (__heap_base + FRAME - 1) & ~(FRAME - 1);
/** Frames that came back, linked through their first word. */
let freeHead: usize = 0;
let freeCount: u32 = 0;
let promised: u32 = 0;

function untouched(): u32 {
  return <u32>((<usize>memory.size() * WASM_PAGE - top) / FRAME);
}

function grow(frames: u32): bool {
  // In wasm pages: the bytes of all frames asked for may not fit into 32 bits.
  return memory.grow(<i32>(frames / <u32>(WASM_PAGE / FRAME) + 1)) >= 0;
}

/** Makes sure that `frames` frames can be taken beside those promised. False: the memory's maximum is reached. */
export function poolReserve(frames: u32): bool {
  const spare = freeCount + untouched() - promised;
  return spare >= frames || grow(frames - spare);
}

/** Sets `frames` frames aside until they are taken with `poolTakePromised` or given up with `poolForgive`. */
export function poolPromise(frames: u32): bool {
  if (!poolReserve(frames)) return false;
  promised += frames;
  return true;
}

export function poolForgive(frames: u32): void {
  assert(promised >= frames, 'more promises given up than made');
  promised -= frames;
}

/** A zeroed frame, reserved before. */
export function poolTake(): usize {
  if (freeHead) {
    const frame = freeHead;
    freeHead = load<usize>(frame);
    freeCount--;
    memory.fill(frame, 0, FRAME);
    return frame;
  }
  assert(untouched() > 0, 'a frame was taken that nobody reserved');
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

/** `bytes` zeroed bytes in a row, or 0 where the memory's maximum is reached. */
export function spanTake(bytes: usize): usize {
  const frames = framesOf(bytes);
  // The row comes from untouched memory; what is promised must remain beside it.
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
