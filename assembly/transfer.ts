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
//   EEXIST                 nobody was woken: wake that page, step over it. Mostly the page is there, but not always
//                          (doubts.ts), so nothing is noted of it.
//                          (MOVE: fail, because the source still holds its pages.
//                          ZEROPAGE, POISON of a write-protected page: it may be a marker without a page. Zeros are
//                          copied there, still protected; before POISON the marker is lifted)
//   ENOENT, several pages  the border of two mappings lies among them (borders.ts): try fewer, and then the rest
//   ENOENT, one page       it is unmapped or not registered: wake it. If the fault that is out is of a page behind it, go on
//                          with that page; else end
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
import { borderAfter, borderPut } from './borders';
import { doubtAdd, doubtsForget } from './doubts';
import { inboxCut, inboxOverlaps, inboxPage, inboxTaken, pageSizeAt, pageSystem } from './inbox';
import {
  PAGE_IN_FLIGHT,
  PAGE_MISSING,
  PAGE_PRESENT,
  pageProtected,
  pageState,
  pagesProtect,
  pagesProtectAny,
  pagesSet,
} from './pages';
import { rangeNear } from './ranges';
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
/** The next page is unmapped or not registered; its sleepers were woken. */
export const STEP_UNMAPPED: i32 = 4;
/** The process whose memory it is has exited or called exec. */
export const STEP_EXITED: i32 = 5;
export const STEP_FAILED: i32 = 6;
/** Nothing was begun: the handler is to be asked (see answers.ts). */
export const STEP_ASK: i32 = 7;
/** Say with `transferZeros` where a page of zeros lies. */
export const STEP_ZEROS: i32 = 8;

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
/** The WAKE behind a MOVE that failed, or of a range outside of any transfer. */
const PHASE_END: u32 = 2;
/** The WAKE of a page that is not mapped or not registered. */
const PHASE_GONE: u32 = 3;
/** WRITEPROTECT lifts a marker that is in POISON's way; or protects the page again that was there after all. */
const PHASE_LIFT: u32 = 4;
const PHASE_PROTECT: u32 = 5;

/** Reads in a row that may bring no mapping change before the transfer ends short. */
const FRUITLESS_READS: u32 = 2;

let operation: u32 = 0;
let options: u32 = 0;
let mode: u64 = 0;
let cursor: u64 = 0;
let source: u64 = 0;
let start: u64 = 0;
let end: u64 = 0;
/** End of the call under way. */
let stop: u64 = 0;
/** A call up to here has crossed the border of two mappings; 0: none has. */
let crossed: u64 = 0;
/** Where the call before that, being shorter, has ended: there the border is, if the next page is gone. */
let edge: u64 = 0;
/** Bytes that were passed over to come to the page that is asked for, and where it went on behind the last of them. */
let passed: u64 = 0;
let resumed: u64 = 0;
/** Bytes that the kernel has installed. */
let installed: u64 = 0;
/** Where a page of zeros lies, in the memory of this process; 0: that was not said. */
let zeros: u64 = 0;
/** The call under way copies zeros, since ZEROPAGE would lose the page's protection, or find a marker in its way. */
let substitutes: bool = false;
/** The call under way leaves its pages write-protected. */
let protects: bool = false;
/** Up to here the pages from the cursor on are alike in their protection. */
let alike: u64 = 0;
/** This page's marker was lifted for POISON. 0: none. */
let lifted: u64 = 0;
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
  crossed = 0;
  edge = 0;
  passed = 0;
  resumed = start;
  installed = 0;
  alike = 0;
  lifted = 0;
  errno = 0;
  fruitless = 0;
  mode =
    (chosen & OPTION_DONTWAKE ? row().dontWake : 0) |
    (chosen & OPTION_WP ? row().writeProtect : 0) |
    (chosen & OPTION_HOLES ? row().holes : 0);
  return overtaken() ? cut(STEP_SHORT) : fill();
}

/** Bytes resolved: installed, or said to be there already. */
export function transferDone(): f64 {
  return <f64>(cursor - start - passed);
}

/** Bytes that the kernel said it installed. */
export function transferInstalled(): f64 {
  return <f64>installed;
}

/** Where it began, or went on after it had passed over memory that is gone. */
export function transferStart(): u64 {
  return resumed;
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
  if (result == -EINTR) return again();
  // A WAKE cannot fail in a way that matters: it says EINVAL or EFAULT for a bad range only.
  if (phase == PHASE_STEP_OVER) return passOver();
  if (phase == PHASE_GONE) return passGone();
  if (phase == PHASE_END) return STEP_FAILED;
  const at = substitutes ? offsetof<uffdio_copy>('copy') : <usize>row().result;
  const done = at ? load<i64>(request + at) : 0;
  if (result == -EAGAIN) {
    if (phase == PHASE_FILL && done > 0 && <u64>done <= stop - cursor) return resolved(<u64>done);
    takenBefore = inboxTaken();
    return STEP_READ;
  }
  if (result == -ESRCH) return cut(STEP_EXITED);
  // If the marker could not be lifted, POISON says so once more, and the page is stepped over.
  if (phase == PHASE_LIFT) return fill();
  if (phase == PHASE_PROTECT) return stepOver();
  if (result >= 0) return resolved(stop - cursor);
  if (result == -EEXIST) return exists();
  if (result == -ENOENT) return missed();
  errno = -result;
  return STEP_FAILED;
}

/** Goes on after the events were read. */
export function transferResume(): i32 {
  if (overtaken()) return cut(STEP_SHORT);
  if (inboxTaken() != takenBefore) fruitless = 0;
  else if (++fruitless >= FRUITLESS_READS) return cut(STEP_SHORT);
  return again();
}

/** The same call once more. */
function again(): i32 {
  return phase == PHASE_FILL ? fillTo(stop) : STEP_CALL;
}

/** Takes the address of a page of zeros, and goes on. */
export function transferZeros(): i32 {
  zeros = argument(2);
  return fill();
}

/** Whether a mapping change that the handler has not heard of touches what is left. */
function overtaken(): bool {
  if (inboxOverlaps(cursor, end)) return true;
  return !!row().hasSource && operation == OP_MOVE && inboxOverlaps(source, source + (end - cursor));
}

/** EEXIST: the page at the cursor is there already, or a marker is in its place, or the kernel has no page to install. */
function exists(): i32 {
  notice();
  if (!row().stepsOver) {
    errno = EEXIST;
    return wake(cursor, cursor + pageSizeAt(cursor), PHASE_END);
  }
  // What was installed is a page for certain, and no marker.
  if (
    operation == OP_POISON &&
    lifted != cursor &&
    pageProtected(cursor) &&
    pageState(cursor) != PAGE_PRESENT
  ) {
    lifted = cursor;
    return writeProtect(false, PHASE_LIFT);
  }
  return lifted == cursor ? writeProtect(true, PHASE_PROTECT) : stepOver();
}

function stepOver(): i32 {
  return options & OPTION_DONTWAKE ? passOver() : wake(cursor, cursor + pageSizeAt(cursor), PHASE_STEP_OVER);
}

/** Notes nothing but that EEXIST was the answer; a claim of the page ends, since its fill was tried. */
function passOver(): i32 {
  const to = cursor + pageSizeAt(cursor);
  if (pageState(cursor) == PAGE_IN_FLIGHT) pagesSet(cursor, to, PAGE_MISSING);
  doubtAdd(cursor);
  return advance(to);
}

/** ENOENT: what the call was about does not lie in one mapping that is registered. */
function missed(): i32 {
  if (operation == OP_MOVE) {
    if (!(options & OPTION_HOLES)) {
      errno = ENOENT;
      return wake(cursor, end, PHASE_END);
    }
    return wake(cursor, end, PHASE_GONE);
  }
  const size = pageSizeAt(cursor);
  const pages = (stop - cursor) / size;
  if (pages > 1) {
    crossed = stop;
    return fillTo(cursor + (pages >> 1) * size);
  }
  if (edge == cursor) borderPut(cursor);
  // Who was left asleep in front of it is woken with it: what comes behind it is a run of its own.
  return wake(options & OPTION_DONTWAKE ? resumed : cursor, cursor + size, PHASE_GONE);
}

/** The page at the cursor is gone. That says nothing of those behind it: one of them may be asked for. */
function passGone(): i32 {
  const size = pageSizeAt(cursor);
  const next = operation == OP_MOVE ? end : inboxPage(cursor + size, end);
  if (next == end) return cut(STEP_UNMAPPED);
  // What comes behind the page that is asked for begins with it: finding this out is paid for once.
  borderPut(next);
  passed += next - cursor;
  source += next - cursor;
  cursor = resumed = next;
  crossed = 0;
  return fill();
}

/** The call under way lay in one mapping, whatever else came of it. If it is the rest of one that did not, it is behind the border. */
function notice(): void {
  if (crossed == 0 || stop != crossed) return;
  borderPut(cursor);
  crossed = 0;
}

/** The kernel did `bytes` more. */
function resolved(bytes: u64): i32 {
  const to = cursor + bytes;
  notice();
  if (operation != OP_WRITEPROTECT) {
    pagesSet(cursor, to, PAGE_PRESENT);
    doubtsForget(cursor, to);
  }
  if (operation == OP_MOVE) {
    pagesSet(source, source + bytes, PAGE_MISSING);
    pagesProtect(source, source + bytes, false);
  }
  pagesProtect(cursor, to, protects);
  installed += bytes;
  return advance(to);
}

/** Everything up to `to` lay in one mapping, and is done. */
function advance(to: u64): i32 {
  edge = crossed ? to : 0;
  source += to - cursor;
  cursor = min(to, end);
  return cursor == end ? STEP_DONE : fill();
}

/** Prepares a WAKE of [from, to), outside of any transfer. */
export function transferWake(from: u64, to: u64): void {
  wake(from, to, PHASE_END);
}

/** Prepares the call for what is left, as far as one call can do it: two ranges are never one mapping. */
function fill(): i32 {
  const range = rangeNear(cursor);
  const to = min(crossed ? crossed : end, borderAfter(cursor));
  return fillTo(range ? min(to, range.end) : to);
}

/**
 * Prepares the call from the cursor to `to`. A page that is write-protected stays so: COPY and CONTINUE are asked for that,
 * and zeros are copied there, since ZEROPAGE cannot be asked. (Huge pages have no ZEROPAGE, and no such zeros.)
 */
function fillTo(to: u64): i32 {
  phase = PHASE_FILL;
  protects = (mode & row().writeProtect) != 0;
  substitutes = false;
  stop = to;
  if (operation <= OP_CONTINUE && !protects && pagesProtectAny()) keepProtection();
  if (substitutes && zeros == 0) return STEP_ZEROS;
  requestIs(substitutes ? UFFDIO_COPY : row().request);
  if (row().hasSource || substitutes) {
    const it = changetype<uffdio_copy>(request);
    it.dst = cursor;
    it.src = substitutes ? zeros : source;
    it.len = stop - cursor;
    it.mode = callMode();
    it.copy = 0;
  } else {
    const it = changetype<uffdio_zeropage>(request);
    it.start = cursor;
    it.len = stop - cursor;
    it.mode = callMode();
    it.zeropage = 0;
  }
  return STEP_CALL;
}

/** Cuts the call to pages that are alike in their protection. */
function keepProtection(): void {
  const size = pageSizeAt(cursor);
  protects = pageProtected(cursor);
  if (protects && operation == OP_ZEROPAGE) {
    substitutes = size == pageSystem();
    if (substitutes) stop = cursor + size;
    return;
  }
  // What was looked at for the last call need not be again, however many calls there are.
  let to = max(alike, cursor + size);
  while (to < stop && pageProtected(to) == protects) to += size;
  alike = to;
  stop = min(stop, to);
}

function callMode(): u64 {
  if (!substitutes) return protects ? mode | row().writeProtect : mode;
  return UFFDIO_COPY_MODE_WP | (options & OPTION_DONTWAKE ? UFFDIO_COPY_MODE_DONTWAKE : 0);
}

/** Prepares a WAKE of [from, to). */
function wake(from: u64, to: u64, next: u32): i32 {
  phase = next;
  requestIs(UFFDIO_WAKE);
  const it = changetype<uffdio_range>(request);
  it.start = from;
  it.len = to - from;
  return STEP_CALL;
}

/** Prepares a WRITEPROTECT of the page at the cursor that wakes nobody. */
function writeProtect(on: bool, next: u32): i32 {
  phase = next;
  requestIs(UFFDIO_WRITEPROTECT);
  const it = changetype<uffdio_zeropage>(request);
  it.start = cursor;
  it.len = pageSizeAt(cursor);
  it.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  return STEP_CALL;
}

/** Ends before the end, and tells the inbox, which may have a fault out on that memory: not behind a page that is gone. */
function cut(step: i32): i32 {
  inboxCut(cursor, end, step != STEP_SHORT);
  return step;
}
