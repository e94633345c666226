// One fill: a COPY, ZEROPAGE, CONTINUE, POISON, MOVE or WRITEPROTECT of a range, with all the calls that it takes. This
// file fills in the kernel's struct, takes in the result of each call, and returns the next step.
//
// The retry rule (the kernel's answer, with its result field `out` → what follows):
//
//   0                      done
//   EAGAIN, out > 0        continue after the part that is done: its waiters are awake
//   EAGAIN, out ≤ 0        a mapping change is under way, and its thread sleeps until the event is read:
//                          read, then repeat the call. If a change that was read touches the rest, end short. If two reads
//                          in a row brought no change, the changing thread needs time to run: end short, and the
//                          fault is offered again after its delay. Never spin, however many faults come in.
//   EEXIST                 the kernel woke no thread: wake the waiters of that page, and step over it. Usually the page
//                          is there, but not always (doubts.ts), so its state is not recorded.
//                          (MOVE: fail, because the source still holds its pages.
//                          POISON of a write-protected page: there may be a marker and no page, so lift the marker and
//                          repeat. ZEROPAGE avoids markers: it copies zeros to a protected page, still protected)
//   ENOENT, several pages  the range crosses the border of two mappings (borders.ts): fill fewer pages, and then the rest
//   ENOENT, one page       it is unmapped or not registered: wake its waiters. If the current fault is of a later page,
//                          continue with that page; else end
//                          (MOVE without ALLOW_HOLES: fail, because the source may have a hole)
//   ESRCH                  the process is gone: end
//   EINTR                  repeat the call
//   any other              fail; `errno` is the cause, `resolved` the bytes done before it
//
// The kernel's result field is signed: after a failure it holds −errno. The core zeroes it before every call, because
// older kernels do not write it on EAGAIN. After a partial success only the next call shows the cause.

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
  UFFDIO_WRITEPROTECT,
  UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
  UFFDIO_WRITEPROTECT_MODE_WP,
  UFFDIO_ZEROPAGE,
  UFFDIO_ZEROPAGE_MODE_DONTWAKE,
  uffdio_copy,
  uffdio_zeropage,
} from './abi';
import { borderAfter, borderPut } from './borders';
import { doubtAdd, doubtsForget } from './doubts';
import { argument, argumentEnd, prepareWake, request, shared } from './exchange';
import { currentCut, currentPage } from './faults';
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
import { queueOverlaps, queueTaken } from './queue';
import { pageSizeAt, pageSystem, rangeNear } from './ranges';

/** Operations: the rows of the table below. */
export enum Operation {
  COPY,
  ZEROPAGE,
  CONTINUE,
  POISON,
  MOVE,
  WRITEPROTECT,
}

/** Options, the same for all operations; the table has the kernel's bit for each. */
export enum Option {
  DONTWAKE = 1,
  WRITE_PROTECT = 2,
  ALLOW_HOLES = 4,
}

/** How a fill ended, or what it needs next. */
export enum Step {
  DONE,
  /** A mapping change cut the fill short. */
  SHORT,
  /** The next page is unmapped or not registered; its waiters were woken. */
  UNMAPPED,
  /** The process that has the memory has exited or called exec. */
  EXITED,
  FAILED,
  /** Nothing was begun: the handler has to answer. */
  ASK,
  /** Issue the ioctl that `request` holds, and pass its result to `transferResult`. */
  CALL,
  /** Read until the kernel's queue is empty, then call `transferResume`. */
  READ,
  /** Pass the address of a page of zeros to `transferZeros`. */
  ZEROS,
}

/** How one operation differs from the others. */
@unmanaged
class Row {
  request: u32;
  /** Fields of the struct. 1: dst, src, len, mode; 0: start, len, mode. */
  hasSource: u32;
  /** Offset of the signed result; 0: there is none. */
  result: u32;
  /** The kernel's mode bit for each option; 0: the operation has no such option. */
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

// The purpose of the pending call.
const PHASE_FILL: u32 = 0;
/** The WAKE after an EEXIST. */
const PHASE_STEP_OVER: u32 = 1;
/** The WAKE after a MOVE that failed. */
const PHASE_END: u32 = 2;
/** The WAKE of a page that is not mapped or not registered. */
const PHASE_GONE: u32 = 3;
/**
 * The WRITEPROTECT that lifts a marker that blocks POISON; and the WRITEPROTECT that protects the page again, if it was
 * a page and no marker.
 */
const PHASE_LIFT: u32 = 4;
const PHASE_PROTECT: u32 = 5;

/** After this many reads in a row without a mapping change the fill ends short. */
const FRUITLESS_READS: u32 = 2;

let operation: u32 = Operation.COPY;
let options: u32 = 0;
let mode: u64 = 0;
let cursor: u64 = 0;
let source: u64 = 0;
let start: u64 = 0;
let end: u64 = 0;
/** End of the current call. */
let stop: u64 = 0;
/** End of a call that crossed the border of two mappings; 0: no call has. */
let crossed: u64 = 0;
/**
 * Where the last call ended, if it was shortened because of a border; otherwise 0. If the page there is gone, this is
 * the border.
 */
let edge: u64 = 0;
/**
 * Bytes that were skipped to reach the page of the current fault; and the address at which the fill continued after the
 * last skip.
 */
let passed: u64 = 0;
let resumed: u64 = 0;
/** Bytes that the kernel has installed. */
let installed: u64 = 0;
/** Address of a page of zeros in this process; 0: not known yet. */
let zeros: u64 = 0;
/** Whether the current call copies zeros, because ZEROPAGE would lose the page's protection or fail on a marker. */
let substitutes: bool = false;
/** Whether the current call leaves its pages write-protected. */
let protects: bool = false;
/** The address up to which all pages from the cursor on have the same protection. */
let alike: u64 = 0;
/** The page whose marker was lifted for POISON; 0: none. */
let lifted: u64 = 0;
let phase: u32 = 0;
let errno: i32 = 0;
let fruitless: u32 = 0;
let takenBefore: u32 = 0;

function row(): Row {
  return changetype<Row>(rows + <usize>operation * ROW);
}

/** Begins an operation over arguments 0 (dst or start), 1 (length) and 2 (src). The caller has checked them. */
export function transferBegin(op: u32, chosen: u32): Step {
  return transferOver(op, chosen, argument(0), argumentEnd(), argument(2));
}

/** Begins an operation over [from, to). */
export function transferOver(op: u32, chosen: u32, from: u64, to: u64, src: u64): Step {
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
    (chosen & Option.DONTWAKE ? row().dontWake : 0) |
    (chosen & Option.WRITE_PROTECT ? row().writeProtect : 0) |
    (chosen & Option.ALLOW_HOLES ? row().holes : 0);
  return overtaken() ? cut(Step.SHORT) : fill();
}

/** Writes the progress of the fill into the exchange. */
export function transferReport(): void {
  const it = shared();
  it.operation = operation;
  it.start = cursor;
  it.third = source;
  it.resolved = <f64>(cursor - start - passed);
  it.installed = <f64>installed;
  it.errno = errno;
}

/** Bytes that the kernel reported installed. */
export function transferInstalled(): u64 {
  return installed;
}

/** The requested range. */
export function transferFrom(): u64 {
  return start;
}

export function transferTo(): u64 {
  return end;
}

/**
 * Whether the fill wakes the threads that wait for its pages. With DONTWAKE it does not, and protecting pages does not.
 */
export function transferWakes(): bool {
  if (options & Option.DONTWAKE) return false;
  return operation != Operation.WRITEPROTECT || !(options & Option.WRITE_PROTECT);
}

/** Where the fill began, or continued after it skipped memory that is gone. */
export function transferStart(): u64 {
  return resumed;
}

/** The cursor: all pages before this address are resolved or skipped. */
export function transferCursor(): u64 {
  return cursor;
}

/** Takes in the result of the call that `request` held: ≥ 0, or −errno. */
export function transferResult(result: i32): Step {
  if (result == -EINTR) return again();
  // Errors of a WAKE do no harm, because a WAKE fails only for an invalid range.
  if (phase == PHASE_STEP_OVER) return passOver();
  if (phase == PHASE_GONE) return passGone();
  if (phase == PHASE_END) return Step.FAILED;
  const at = substitutes ? offsetof<uffdio_copy>('copy') : <usize>row().result;
  const done = at ? load<i64>(request + at) : 0;
  if (result == -EAGAIN) {
    if (phase == PHASE_FILL && done > 0 && <u64>done <= stop - cursor) return resolved(<u64>done);
    takenBefore = queueTaken();
    return Step.READ;
  }
  if (result == -ESRCH) return cut(Step.EXITED);
  // If the marker could not be lifted, POISON fails again with EEXIST, and the page is stepped over.
  if (phase == PHASE_LIFT) return fill();
  if (phase == PHASE_PROTECT) return stepOver();
  if (result >= 0) return resolved(stop - cursor);
  if (result == -EEXIST) return exists();
  if (result == -ENOENT) return missed();
  errno = -result;
  return Step.FAILED;
}

/** Continues after the kernel's queue was read. */
export function transferResume(): Step {
  if (overtaken()) return cut(Step.SHORT);
  if (queueTaken() != takenBefore) fruitless = 0;
  else if (++fruitless >= FRUITLESS_READS) return cut(Step.SHORT);
  return again();
}

/** Repeats the current call. */
function again(): Step {
  return phase == PHASE_FILL ? fillTo(stop) : Step.CALL;
}

/** Takes in the address of a page of zeros, and continues. */
export function transferZeros(): Step {
  zeros = argument(2);
  return fill();
}

/** Whether a mapping change that is not delivered to the handler yet touches the rest of the fill. */
function overtaken(): bool {
  if (queueOverlaps(cursor, end)) return true;
  return !!row().hasSource && operation == Operation.MOVE && queueOverlaps(source, source + (end - cursor));
}

/**
 * Handles EEXIST: the page at the cursor is there, or a marker is in its place, or the kernel has no page to install.
 */
function exists(): Step {
  notice();
  if (!row().stepsOver) {
    errno = EEXIST;
    return wake(cursor, cursor + pageSizeAt(cursor), PHASE_END);
  }
  // A page that is recorded as present is certainly a page, and no marker.
  if (
    operation == Operation.POISON &&
    lifted != cursor &&
    pageProtected(cursor) &&
    pageState(cursor) != PAGE_PRESENT
  ) {
    lifted = cursor;
    return writeProtect(false, PHASE_LIFT);
  }
  return lifted == cursor ? writeProtect(true, PHASE_PROTECT) : stepOver();
}

function stepOver(): Step {
  return options & Option.DONTWAKE ? passOver() : wake(cursor, cursor + pageSizeAt(cursor), PHASE_STEP_OVER);
}

/**
 * Steps over the page, and records only that the kernel returned EEXIST. A claim of the page ends, because a fill of it
 * was tried.
 */
function passOver(): Step {
  const to = cursor + pageSizeAt(cursor);
  if (pageState(cursor) == PAGE_IN_FLIGHT) pagesSet(cursor, to, PAGE_MISSING);
  doubtAdd(cursor);
  return advance(to);
}

/** Handles ENOENT: the range of the call does not lie in one registered mapping. */
function missed(): Step {
  if (operation == Operation.MOVE) {
    if (!(options & Option.ALLOW_HOLES)) {
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
  // With DONTWAKE, the waiters of the pages before this one were left asleep. Wake them, too, because the fill may
  // continue elsewhere.
  return wake(options & Option.DONTWAKE ? resumed : cursor, cursor + size, PHASE_GONE);
}

/**
 * Skips the page at the cursor, which is gone. Later pages may still be mapped, and the current fault may be of one of
 * them.
 */
function passGone(): Step {
  const size = pageSizeAt(cursor);
  const next = operation == Operation.MOVE ? end : currentPage(cursor + size, end);
  if (next == end) return cut(Step.UNMAPPED);
  // Record a border at that page, so that the next fill does not have to find it again.
  borderPut(next);
  passed += next - cursor;
  source += next - cursor;
  cursor = resumed = next;
  crossed = 0;
  return fill();
}

/**
 * Records a border if the current call is the rest of a call that crossed one. The current call lay in one mapping, so
 * the border is at the cursor.
 */
function notice(): void {
  if (crossed == 0 || stop != crossed) return;
  borderPut(cursor);
  crossed = 0;
}

/** Continues after the kernel has resolved `bytes` more. */
function resolved(bytes: u64): Step {
  const to = cursor + bytes;
  notice();
  if (operation != Operation.WRITEPROTECT) {
    pagesSet(cursor, to, PAGE_PRESENT);
    doubtsForget(cursor, to);
  }
  if (operation == Operation.MOVE) {
    pagesSet(source, source + bytes, PAGE_MISSING);
    pagesProtect(source, source + bytes, false);
  }
  pagesProtect(cursor, to, protects);
  installed += bytes;
  return advance(to);
}

/** Continues after everything up to `to` is done. */
function advance(to: u64): Step {
  edge = crossed ? to : 0;
  source += to - cursor;
  cursor = min(to, end);
  return cursor == end ? Step.DONE : fill();
}

/**
 * Prepares a call for as much of the rest as one call can fill. It ends where the registered range ends at the latest,
 * because two ranges are never one mapping.
 */
function fill(): Step {
  const range = rangeNear(cursor);
  const to = min(crossed ? crossed : end, borderAfter(cursor));
  return fillTo(range ? min(to, range.end) : to);
}

/**
 * Prepares the call from the cursor to `to`. A write-protected page stays protected. COPY and CONTINUE have an option
 * for that. ZEROPAGE has none, so zeros are copied instead. (Huge pages have no ZEROPAGE, so no zeros are copied to
 * them.)
 */
function fillTo(to: u64): Step {
  phase = PHASE_FILL;
  protects = (mode & row().writeProtect) != 0;
  substitutes = false;
  stop = to;
  if (operation <= <u32>Operation.CONTINUE && !protects && pagesProtectAny()) keepProtection();
  if (substitutes && zeros == 0) return Step.ZEROS;
  shared().code = substitutes ? UFFDIO_COPY : row().request;
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
  return Step.CALL;
}

/** Limits the call to pages that have the same protection. */
function keepProtection(): void {
  const size = pageSizeAt(cursor);
  protects = pageProtected(cursor);
  if (protects && operation == Operation.ZEROPAGE) {
    substitutes = size == pageSystem();
    if (substitutes) stop = cursor + size;
    return;
  }
  // Continue where the last check ended, so that each page is checked only once in all calls together.
  let to = max(alike, cursor + size);
  while (to < stop && pageProtected(to) == protects) to += size;
  alike = to;
  stop = min(stop, to);
}

function callMode(): u64 {
  if (!substitutes) return protects ? mode | row().writeProtect : mode;
  return UFFDIO_COPY_MODE_WP | (options & Option.DONTWAKE ? UFFDIO_COPY_MODE_DONTWAKE : 0);
}

function wake(from: u64, to: u64, next: u32): Step {
  phase = next;
  prepareWake(from, to);
  return Step.CALL;
}

/** Prepares a WRITEPROTECT of the page at the cursor that wakes no thread. */
function writeProtect(on: bool, next: u32): Step {
  phase = next;
  shared().code = UFFDIO_WRITEPROTECT;
  const it = changetype<uffdio_zeropage>(request);
  it.start = cursor;
  it.len = pageSizeAt(cursor);
  it.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  return Step.CALL;
}

/** Ends the fill early; the current fault may be of a page after the cursor. */
function cut(step: i32): Step {
  currentCut(cursor, end, step != Step.SHORT);
  return step;
}
