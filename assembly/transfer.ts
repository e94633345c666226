// One state machine for every call that resolves faults: COPY, ZEROPAGE, CONTINUE, POISON, MOVE and
// WRITEPROTECT. It fills in the kernel's struct, is told the result, and says what is next. Progress has one
// shape everywhere: bytes done, and a step.
//
// The retry rule (kernel's answer → what follows):
//
//   0                      done
//   EAGAIN, out > 0        go on from there: waiters in the part that was done are awake
//   EAGAIN, out ≤ 0        a mapping change is going on, and its thread sleeps until its event is read:
//                          read, then the same arguments. If what was read touches the rest, end short. If
//                          no change was read twice in a row, the change's own thread has to run: end short,
//                          the fault comes again on its delay. Never spin, however many faults come in.
//   EEXIST                 the page is there, but nobody was woken: wake that page, step over it
//                          (MOVE: fail, because the source still holds its pages)
//   ENOENT                 the mapping is gone or not registered: wake the rest, end
//                          (MOVE without holes: fail, because the source may have one)
//   ESRCH                  the process is gone: end
//   EINTR                  the same again
//   any other              failed; `transferErrno` says why, `transferDone` how far it came
//
// The kernel's result field is signed (it holds −errno after a failure) and zeroed before every call, since
// older kernels leave it alone on EAGAIN. After a partial success the cause shows only on the next call.

import {
  EAGAIN,
  EEXIST,
  EINTR,
  ENOENT,
  ESRCH,
  UFFDIO_CONTINUE,
  UFFDIO_CONTINUE_MODE_DONTWAKE,
  UFFDIO_CONTINUE_MODE_WP,
  UFFDIO_COPY,
  UFFDIO_COPY_MODE_DONTWAKE,
  UFFDIO_COPY_MODE_WP,
  UFFDIO_MOVE,
  UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
  UFFDIO_MOVE_MODE_DONTWAKE,
  UFFDIO_POISON,
  UFFDIO_POISON_MODE_DONTWAKE,
  UFFDIO_WAKE,
  UFFDIO_WRITEPROTECT,
  UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
  UFFDIO_WRITEPROTECT_MODE_WP,
  UFFDIO_ZEROPAGE,
  UFFDIO_ZEROPAGE_MODE_DONTWAKE,
  uffdio_copy,
  uffdio_range,
  uffdio_zeropage,
} from './abi';
import { inboxCut, inboxOverlaps, inboxTaken, pageSizeAt } from './inbox';
import { PAGE_MISSING, PAGE_PRESENT, pagesProtect, pagesSet } from './pages';
import { argument, request, requestIs } from './request';

// Operations: the rows of the table below.
export const OP_COPY: u32 = 0;
export const OP_ZEROPAGE: u32 = 1;
export const OP_CONTINUE: u32 = 2;
export const OP_POISON: u32 = 3;
export const OP_MOVE: u32 = 4;
export const OP_WRITEPROTECT: u32 = 5;

// Options, the same for all operations; the row says which bit the kernel has for each.
export const OPTION_DONTWAKE: u32 = 1;
export const OPTION_WP: u32 = 2;
export const OPTION_HOLES: u32 = 4;

// Steps.
/** Issue the ioctl that `request` holds, and pass its result to `transferResult`. */
export const STEP_CALL: i32 = 0;
/** Read events until the queue is empty, then `transferResume`. */
export const STEP_READ: i32 = 1;
export const STEP_DONE: i32 = 2;
/** A mapping change came first. */
export const STEP_SHORT: i32 = 3;
/** The memory is unmapped or not registered; its sleepers were woken. */
export const STEP_UNMAPPED: i32 = 4;
/** The process whose memory it is has exited or called exec. */
export const STEP_EXITED: i32 = 5;
export const STEP_FAILED: i32 = 6;
/** Nothing was begun: the handler is to be asked (see answers.ts). */
export const STEP_ASK: i32 = 7;

/** How one operation differs from the others. */
@unmanaged
class Row {
  request: u32;
  /** 1: dst, src, len, mode; 0: start, len, mode. */
  hasSource: u32;
  /** Where the signed result is; 0: there is none. */
  result: u32;
  /** The kernel's mode bits for the options; 0: not allowed. */
  dontWake: u32;
  writeProtect: u32;
  holes: u32;
  /** Whether a page that is already there counts as done. */
  stepsOver: u32;
}

const ROW: usize = 28;

// biome-ignore format: a table
const rows: usize = memory.data<u32>([
  // request            src result                      DONTWAKE                               WP                               HOLES                                steps over
  UFFDIO_COPY,          1,  32, <u32>UFFDIO_COPY_MODE_DONTWAKE,         <u32>UFFDIO_COPY_MODE_WP,         0,                                     1,
  UFFDIO_ZEROPAGE,      0,  24, <u32>UFFDIO_ZEROPAGE_MODE_DONTWAKE,     0,                                0,                                     1,
  UFFDIO_CONTINUE,      0,  24, <u32>UFFDIO_CONTINUE_MODE_DONTWAKE,     <u32>UFFDIO_CONTINUE_MODE_WP,     0,                                     1,
  UFFDIO_POISON,        0,  24, <u32>UFFDIO_POISON_MODE_DONTWAKE,       0,                                0,                                     1,
  UFFDIO_MOVE,          1,  32, <u32>UFFDIO_MOVE_MODE_DONTWAKE,         0,                                <u32>UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, 0,
  UFFDIO_WRITEPROTECT,  0,  0,  <u32>UFFDIO_WRITEPROTECT_MODE_DONTWAKE, <u32>UFFDIO_WRITEPROTECT_MODE_WP, 0,                                     0,
]);

// What the next result belongs to.
const PHASE_FILL: u32 = 0;
/** The WAKE behind an EEXIST. */
const PHASE_STEP_OVER: u32 = 1;
/** The WAKE behind an ENOENT, or behind a MOVE that failed. */
const PHASE_END: u32 = 2;

/** Reads in a row that may bring no mapping change before the transfer ends short. */
const FRUITLESS_READS: u32 = 2;

let operation: u32 = 0;
let options: u32 = 0;
let mode: u64 = 0;
let cursor: u64 = 0;
let source: u64 = 0;
let start: u64 = 0;
let end: u64 = 0;
let phase: u32 = 0;
let errno: i32 = 0;
let fruitless: u32 = 0;
let takenBefore: u32 = 0;

function row(): Row {
  return changetype<Row>(rows + <usize>operation * ROW);
}

/** Begins an operation over arguments 0 (dst or start), 1 (length) and 2 (src). The caller has checked them. */
export function transferBegin(op: u32, chosen: u32): i32 {
  return begin(op, chosen, argument(0), argument(0) + argument(1), argument(2));
}

/** Begins a COPY to [from, to). */
export function transferCopy(chosen: u32, from: u64, to: u64, src: u64): i32 {
  return begin(OP_COPY, chosen, from, to, src);
}

function begin(op: u32, chosen: u32, from: u64, to: u64, src: u64): i32 {
  operation = op;
  options = chosen;
  start = from;
  end = to;
  source = src;
  cursor = start;
  errno = 0;
  fruitless = 0;
  mode =
    (chosen & OPTION_DONTWAKE ? row().dontWake : 0) |
    (chosen & OPTION_WP ? row().writeProtect : 0) |
    (chosen & OPTION_HOLES ? row().holes : 0);
  return overtaken() ? cut(STEP_SHORT) : fill();
}

/** Bytes resolved. */
export function transferDone(): f64 {
  return <f64>(cursor - start);
}

/** Where it is: everything before that is resolved. */
export function transferCursor(): u64 {
  return cursor;
}

/** Where the data for that lies. */
export function transferSource(): u64 {
  return source;
}

/** The positive errno behind STEP_FAILED. */
export function transferErrno(): i32 {
  return errno;
}

/** Takes the result of the call that `request` held: ≥ 0, or −errno. */
export function transferResult(result: i32): i32 {
  if (result == -EINTR) return phase == PHASE_FILL ? fill() : STEP_CALL;
  // A WAKE cannot fail in a way that matters: it says EINVAL or EFAULT for a bad range only.
  if (phase == PHASE_STEP_OVER) return passOver();
  if (phase == PHASE_END) return errno ? STEP_FAILED : cut(STEP_UNMAPPED);
  if (result >= 0) return resolved(end - cursor);
  const done = row().result ? load<i64>(request + <usize>row().result) : 0;
  if (result == -EAGAIN) {
    if (done > 0 && <u64>done <= end - cursor) return resolved(<u64>done);
    takenBefore = inboxTaken();
    return STEP_READ;
  }
  if (result == -EEXIST) return stepOver();
  if (result == -ENOENT) {
    if (operation == OP_MOVE && !(options & OPTION_HOLES)) errno = ENOENT;
    return wake(end - cursor, PHASE_END);
  }
  if (result == -ESRCH) return cut(STEP_EXITED);
  errno = -result;
  return STEP_FAILED;
}

/** Goes on after the events were read. */
export function transferResume(): i32 {
  if (overtaken()) return cut(STEP_SHORT);
  if (inboxTaken() != takenBefore) fruitless = 0;
  else if (++fruitless >= FRUITLESS_READS) return cut(STEP_SHORT);
  return fill();
}

/** Whether a mapping change that the handler has not heard of touches what is left. */
function overtaken(): bool {
  if (inboxOverlaps(cursor, end)) return true;
  return !!row().hasSource && operation == OP_MOVE && inboxOverlaps(source, source + (end - cursor));
}

/** EEXIST: the page at the cursor is there already. */
function stepOver(): i32 {
  if (!row().stepsOver) {
    errno = EEXIST;
    return wake(pageSizeAt(cursor), PHASE_END);
  }
  return options & OPTION_DONTWAKE ? passOver() : wake(pageSizeAt(cursor), PHASE_STEP_OVER);
}

function passOver(): i32 {
  const to = cursor + pageSizeAt(cursor);
  pagesSet(cursor, to, PAGE_PRESENT);
  return advance(to);
}

/** The kernel did `bytes` more. */
function resolved(bytes: u64): i32 {
  const to = cursor + bytes;
  if (operation != OP_WRITEPROTECT) pagesSet(cursor, to, PAGE_PRESENT);
  if (operation == OP_MOVE) {
    pagesSet(source, source + bytes, PAGE_MISSING);
    pagesProtect(source, source + bytes, false);
  }
  pagesProtect(cursor, to, (mode & row().writeProtect) != 0);
  return advance(to);
}

function advance(to: u64): i32 {
  source += to - cursor;
  cursor = min(to, end);
  return cursor == end ? STEP_DONE : fill();
}

/** Prepares a WAKE of [from, to), outside of any transfer. */
export function transferWake(from: u64, to: u64): void {
  cursor = from;
  wake(to - from, PHASE_END);
}

/** Prepares the call for what is left. */
function fill(): i32 {
  phase = PHASE_FILL;
  requestIs(row().request);
  if (row().hasSource) {
    const it = changetype<uffdio_copy>(request);
    it.dst = cursor;
    it.src = source;
    it.len = end - cursor;
    it.mode = mode;
    it.copy = 0;
  } else {
    const it = changetype<uffdio_zeropage>(request);
    it.start = cursor;
    it.len = end - cursor;
    it.mode = mode;
    it.zeropage = 0;
  }
  return STEP_CALL;
}

function wake(bytes: u64, next: u32): i32 {
  phase = next;
  requestIs(UFFDIO_WAKE);
  const it = changetype<uffdio_range>(request);
  it.start = cursor;
  it.len = bytes;
  return STEP_CALL;
}

/** Ends before the end, and tells the inbox, which may have a fault out on that memory. */
function cut(step: i32): i32 {
  inboxCut(cursor, end, step != STEP_SHORT);
  return step;
}
