// The state machine of one userfaultfd. The caller performs the action that the core returns, passes the result to the
// input (a function) that the action names, and gets the next action. This file alone decides in which order messages
// are delivered, when faults are retried, and when which threads are woken. transfer.ts decides the calls of one fill.
//
//   state       waits for                                                      input                   goes on with
//   IDLE        the caller: no batch of messages is under way                  begin                   READING TIMING CHANGED
//   READING     READ: the queue is drained before anything is delivered        handleRead              CHANGED FAULT ANSWERING
//   TIMING      TIME: deferred faults may be due                               handleTime              as READING
//   WAKING_GONE IOCTL: the WAKE of waiters whose memory is gone                handleResult            CHANGED
//   CHANGED     the handler: it gets a mapping change                          next                    as READING
//   ANSWERING   a fill of the current fault from its source (see below)        those of the fill       LOOKING WAKING_HELD ANSWERED
//   RETRYING    TIME: the source's fill was cut short; it is tried later       handleTime              as ANSWERING
//   LOOKING     READ: more faults may come while threads are left asleep       handleRead              ANSWERING WAKING_HELD
//   WAKING_HELD IOCTL: the WAKE of the threads left asleep                     handleResult            ANSWERED FAULT IDLE
//   ANSWERED    the handler: it gets a report of what was answered             next                    as READING
//   FAULT       the handler: it gets the current fault                         handleAnswer            as READING, DEFERRING
//   DEFERRING   TIME: the current fault is deferred                            handleTime              as READING
//   EMPTYING    READ: the queue is drained before the end                      handleRead              ENDING
//   ENDING      the owner: it gets one of the last changes                     next                    EMPTYING RELEASING
//   RELEASING   IOCTL: the WAKE of a waiter whose fault was not answered       handleResult            OVER
//   OVER        nothing: the descriptor belongs to another owner, or is closed
//
// A fill (transfer.ts) begins in IDLE, CHANGED, ANSWERED, FAULT or ANSWERING, and ends in the same state. Its inputs
// are handleResult, handleRead and handleZeros.
//
// Rules:
//  - Everything that was read is delivered. Changes come first, even before faults that were read earlier.
//  - Only an event makes a page removed. If a page that was filled is missing again, and its removal was ever reported,
//    it counts as removed, because it was filled between the event and the removal itself. If no removal was reported,
//    its fault is resolved once more.
//  - In the kernel, neither munmap nor mremap wakes threads that wait for the memory. So the core wakes them before it
//    delivers the change.
//  - The end of the watched process is reported after the last change.

import { EINTR, ENOMEM } from './abi';
import {
  batchBegin,
  batchCount,
  batchEnd,
  batchHas,
  batchHold,
  batchHolds,
  batchIsFull,
  batchLooks,
  batchReported,
  batchStart,
  batchWoken,
} from './batch';
import { doubtCount, doubtTries } from './doubts';
import { argument, argumentEnd, prepareWake, shared, starve } from './exchange';
import {
  current,
  currentEnd,
  currentOpen,
  currentPage,
  faultCount,
  faultDefer,
  faultDeferred,
  faultDelay,
  faultReady,
  faultTake,
  faultWait,
  KIND_MISSING,
  KIND_WRITE_PROTECT,
} from './faults';
import { PAGE_PRESENT, PAGE_REMOVED, pageState, pagesSet, pageWasRemoved } from './pages';
import {
  Message,
  queueChanges,
  queueDrained,
  queueMakeRoom,
  queueNext,
  queueOpen,
  queueSettled,
  queueTake,
  queueWaiting,
  Verdict,
} from './queue';
import { pageSizeAt, rangeOverlaps } from './ranges';
import { aheadBegin, answerBegin, answerNext, Content, fillContent } from './source-fills';
import {
  Option,
  Step,
  transferBegin,
  transferCursor,
  transferFrom,
  transferInstalled,
  transferReport,
  transferResult,
  transferResume,
  transferTo,
  transferWakes,
  transferZeros,
} from './transfer';

/** What the caller has to do next. The arguments are in the exchange. */
export enum Action {
  /** No action: everything that was read is delivered, and the kernel's queue was empty. */
  DONE,
  // The next five: pass the fault or the change to the handler, then call `handleAnswer` for a fault or `next` for a
  // change. The numbers are those of `Message`.
  FAULT,
  REMOVED,
  UNMAPPED,
  REMAPPED,
  FORKED,
  /** Read at most `room` bytes to `messages`, then call `handleRead`. */
  READ,
  /** Issue the ioctl `code` with `request`, then call `handleResult`. */
  IOCTL,
  /** Pass the current time to `handleTime`. */
  TIME,
  /** Pass the address of a page of zeros, in argument 2, to `handleZeros`. */
  ZEROS,
  /** The fill has ended: see `outcome`. */
  FILLED,
  /** Faults were answered from sources: report them, then call `next`. */
  ANSWERED,
  /** No descriptor is left for a forked child: call `begin` again later. */
  STARVED,
  /** The watched process has exited or called exec, and all its changes that were read are delivered. */
  GONE,
  /** The descriptor is closed. */
  ENDED,
  /** The descriptor, or this module's memory, is unusable: see `errno`. */
  BROKEN,
}

enum State {
  IDLE,
  READING,
  TIMING,
  WAKING_GONE,
  CHANGED,
  ANSWERING,
  RETRYING,
  LOOKING,
  WAKING_HELD,
  ANSWERED,
  FAULT,
  DEFERRING,
  EMPTYING,
  ENDING,
  RELEASING,
  OVER,
}

let state: State = State.IDLE;
/** Whether a fill is under way. */
let filling: bool = false;
/** The time that this batch took in last, 0 if it took in none; and whether it took one in. */
let now: f64 = 0;
let timed: bool = false;

/** The change to deliver after the WAKEs for its addresses; and how many of these WAKEs are left. */
let change: Message = Message.UNKNOWN;
let wakes: u32 = 0;

/**
 * While a source answers the current fault: whether the fill leaves its threads asleep; and whether the fill had to
 * read the queue.
 */
let quiet: bool = false;
let interrupted: bool = false;
/**
 * Whether the handler gets the current fault, because no source can answer it. The sleeping threads are woken first.
 */
let asked: bool = false;

/** Whether the batch continues after the current fault was deferred. */
let onward: bool = false;

/**
 * Whether the session is ending; whether it drains the queue first; and whether a change was delivered since the last
 * read.
 */
let ending: bool = false;
let empties: bool = false;
let changed: bool = false;

/** Whether a fill may begin, that is, no action of the core is pending. */
function atRest(): bool {
  if (filling) return false;
  return state == State.IDLE || state == State.CHANGED || state == State.ANSWERED || state == State.FAULT;
}

function give(next: State, action: Action): Action {
  state = next;
  shared().waiting = queueWaiting();
  return action;
}

// ---- a batch --------------------------------------------------------------------------------------------

/** Begins a batch: drains the kernel's queue, then delivers. */
export function begin(): Action {
  assert(atRest() && state != State.FAULT, 'begin');
  queueOpen();
  batchReported();
  now = 0;
  timed = false;
  // Only deferred faults, and faults that may be delayed, need the time.
  if (faultDeferred() > 0 || doubtCount() > 0) return give(State.TIMING, Action.TIME);
  return deliver();
}

/**
 * Continues after the handler got a change or a report of answered faults. If the watched process is gone, delivers the
 * changes that are left.
 */
export function next(): Action {
  if (state == State.ENDING) return lastChange();
  if (state == State.OVER) return Action.DONE;
  assert(atRest() && state != State.FAULT, 'next');
  batchReported();
  return deliver();
}

/** Takes in the time, in milliseconds of a monotonic clock. */
export function handleTime(ms: f64): Action {
  assert(
    !filling && (state == State.TIMING || state == State.DEFERRING || state == State.RETRYING),
    'handleTime',
  );
  if (state == State.DEFERRING) {
    faultDefer(ms);
    return onward ? deliver() : give(State.IDLE, Action.DONE);
  }
  now = ms;
  timed = true;
  return state == State.RETRYING ? retry() : deliver();
}

/** Takes in the result of a read: bytes, or −errno. */
export function handleRead(result: i32): Action {
  assert(
    filling || state == State.READING || state == State.LOOKING || state == State.EMPTYING,
    'handleRead',
  );
  starve(false);
  switch (queueTake(result)) {
    case Verdict.MORE:
      return queueMakeRoom() ? Action.READ : afterRead();
    case Verdict.STARVED:
      starve(true);
      break;
    case Verdict.ENDED:
      if (state == State.READING) return give(State.IDLE, Action.ENDED);
      break;
    case Verdict.FAILED:
      if (state == State.EMPTYING) break;
      return broken();
    default:
      break;
  }
  return afterRead();
}

/** Takes in the result of an ioctl: ≥ 0, or −errno. */
export function handleResult(result: i32): Action {
  if (filling) return follow(transferResult(result));
  assert(
    state == State.WAKING_GONE || state == State.WAKING_HELD || state == State.RELEASING,
    'handleResult',
  );
  // An interrupted WAKE has woken no thread: repeat it. Any other error of a WAKE means that its range is invalid,
  // which does no harm.
  if (result == -EINTR) return Action.IOCTL;
  if (state == State.WAKING_GONE) return wakeGone();
  if (state == State.RELEASING) return releaseNext();
  batchWoken();
  return answeredAll();
}

/** Takes in the handler's answer: whether the current fault is resolved. `goesOn`: whether the batch continues. */
export function handleAnswer(resolved: bool, goesOn: bool): Action {
  // The handler has closed or released the descriptor.
  if (state == State.OVER) return Action.DONE;
  assert(state == State.FAULT && !filling, 'handleAnswer');
  onward = goesOn;
  batchReported();
  if (currentEnd(resolved)) return give(State.DEFERRING, Action.TIME);
  return goesOn ? deliver() : give(State.IDLE, Action.DONE);
}

/** To call when the watched process is gone. The changes that were read are delivered, then GONE follows. */
export function handleExit(): void {
  shared().exited = 1;
}

function deliver(): Action {
  if (queueChanges() > 0) return deliverChange();
  if (shared().exited) return give(State.IDLE, Action.GONE);
  if (!queueDrained()) return read(State.READING);
  if (!timed && doubtCount() > 0 && faultReady()) return give(State.TIMING, Action.TIME);
  if (!takeFault()) return give(State.IDLE, Action.DONE);
  batchBegin();
  return answer();
}

function deliverChange(): Action {
  change = queueNext();
  if (change == Message.NO_MEMORY) return noMemory();
  wakes = wakesOf(change);
  return wakeGone();
}

/** How many WAKEs a change needs: two for a move (old and new addresses), one for an unmapping, otherwise none. */
function wakesOf(it: Message): u32 {
  if (it == Message.REMAPPED) return 2;
  return it == Message.UNMAPPED ? 1 : 0;
}

/** Wakes the threads that wait for pages that the change has taken away, then delivers the change. */
function wakeGone(): Action {
  if (wakes == 0) return give(ending ? State.ENDING : State.CHANGED, <Action>(<i32>change));
  const it = shared();
  const from = wakes == 2 || change == Message.UNMAPPED ? it.start : it.end;
  prepareWake(from, change == Message.UNMAPPED ? it.end : from + it.third);
  wakes--;
  return give(State.WAKING_GONE, Action.IOCTL);
}

/** Requests a read. `afterRead` continues when the queue is drained. */
function read(reading: State): Action {
  state = reading;
  if (queueMakeRoom()) return Action.READ;
  return reading == State.READING ? noMemory() : afterRead();
}

/** Continues when the kernel's queue is drained, or when there is no room for more messages. */
function afterRead(): Action {
  if (filling) return follow(transferResume());
  if (state == State.LOOKING) return answerMore();
  if (state == State.EMPTYING) return lastChange();
  return shared().starved ? give(State.IDLE, Action.STARVED) : deliver();
}

function noMemory(): Action {
  shared().errno = ENOMEM;
  return broken();
}

function broken(): Action {
  // If the read was for a fill that began in a callback, the state stays, because the callback has to return first.
  if (!filling || state == State.ANSWERING) state = State.IDLE;
  filling = false;
  return Action.BROKEN;
}

/** Makes the next due fault the current one. False: none is due. */
function takeFault(): bool {
  const fault = current();
  for (;;) {
    if (!faultTake(now)) return false;
    const tries = triesOf();
    if (tries == 0 || fault.waited) break;
    currentEnd(false);
    faultWait(now, tries);
  }
  // The kernel takes pages away after the event of their removal was read. It also takes a page that was filled in
  // between. In a private mapping of shared memory the next fault is then a minor one, if the page cache has the page.
  const page = fault.page;
  if (fault.kind != KIND_WRITE_PROTECT && pageState(page) == PAGE_PRESENT && pageWasRemoved(page)) {
    pagesSet(page, page + pageSizeAt(page), PAGE_REMOVED);
  }
  return true;
}

/** How many fills of the current fault's page in a row were answered with EEXIST. */
function triesOf(): u32 {
  return current().kind == KIND_MISSING ? doubtTries(current().page) : 0;
}

/**
 * To call if an action could not be performed, because an adapter of the port has thrown. The fill or batch under way
 * is given up.
 */
export function abandon(): void {
  filling = false;
  if (!atRest() && state != State.OVER) state = State.IDLE;
}

// ---- answers from sources -------------------------------------------------------------------------------

/** Answers the current fault from its source. If the fault has no source, the handler gets it. */
function answer(): Action {
  interrupted = false;
  quiet = batchHolds() || faultReady();
  const begun = answerBegin(quiet ? Option.DONTWAKE : 0);
  if (begun == Step.ASK) {
    asked = true;
    return wakeHeld();
  }
  state = State.ANSWERING;
  filling = true;
  return follow(begun);
}

/** Ends the queued faults of pages that the fill from a source has installed so far. */
function countNeighbours(): void {
  for (let other = answerNext(); other != 0; other = answerNext()) batchCount(other == 2);
}

/** Continues when the fill from a source has ended. */
function answered(step: Step): Action {
  const fault = current();
  const resolved = transferCursor() > fault.page;
  const it = shared();
  const bytes = <f64>transferInstalled();
  it.answeredBytes += bytes;
  if (fillContent() == Content.HOLE) it.holeBytes += bytes;
  else if (fillContent() == Content.REMOVED) it.removedBytes += bytes;
  if (quiet) batchHold();
  countNeighbours();
  if (step == Step.FAILED && !resolved && !interrupted) {
    asked = true;
    return wakeHeld();
  }
  if (currentEnd(resolved)) return timed ? retry() : give(State.RETRYING, Action.TIME);
  if (resolved) batchCount(fault.write != 0);
  return answerOn();
}

/** Defers the current fault, which its source could not answer yet. */
function retry(): Action {
  faultDefer(now);
  shared().deferred++;
  return answerOn();
}

function answerOn(): Action {
  return batchIsFull() ? wakeHeld() : answerMore();
}

/** Answers the next fault from its source, unless a change has to be delivered first. */
function answerMore(): Action {
  while (!shared().exited && queueSettled()) {
    if (!takeFault()) {
      if (state == State.LOOKING || !batchLooks()) break;
      queueOpen();
      return read(State.LOOKING);
    }
    if (!batchHas(current())) return answer();
    currentEnd(true);
    batchCount(current().write != 0);
  }
  return wakeHeld();
}

/** Wakes the threads that were left asleep. */
function wakeHeld(): Action {
  if (!batchHolds()) return answeredAll();
  prepareWake(batchStart(), batchEnd());
  return give(State.WAKING_HELD, Action.IOCTL);
}

function answeredAll(): Action {
  if (asked) return offer();
  const over = queueSettled() && faultCount() == 0 && !shared().exited;
  return over ? give(State.IDLE, Action.DONE) : give(State.ANSWERED, Action.ANSWERED);
}

/** Passes the current fault to the handler. */
function offer(): Action {
  asked = false;
  const fault = current();
  const it = shared();
  it.start = fault.page;
  it.third = fault.address;
  it.kind = fault.kind;
  it.write = fault.write;
  it.tid = fault.tid;
  it.tries = triesOf();
  it.settled = 0;
  if (!rangeOverlaps(fault.page, fault.page + 1)) it.strange = 1;
  return give(State.FAULT, Action.FAULT);
}

// ---- fills ----------------------------------------------------------------------------------------------

/** Begins a fill with arguments 0 (destination or start), 1 (length) and 2 (source), in whole pages. */
export function beginFill(operation: u32, options: u32): Action {
  assert(atRest(), 'beginFill');
  filling = true;
  return follow(transferBegin(operation, options));
}

/**
 * Begins to install the first run of missing pages in the range of arguments 0 (start) and 1 (length) from the run's
 * source.
 */
export function beginAhead(options: u32): Action {
  assert(atRest(), 'beginAhead');
  const it = shared();
  it.resolved = it.installed = 0;
  filling = true;
  return follow(aheadBegin(options));
}

/** Takes in the address of a page of zeros: argument 2. */
export function handleZeros(): Action {
  assert(filling, 'handleZeros');
  return follow(transferZeros());
}

function follow(step: Step): Action {
  switch (step) {
    case Step.CALL:
      return Action.IOCTL;
    case Step.ZEROS:
      return Action.ZEROS;
    case Step.READ:
      // A page that was installed may be gone again, because its removal was read before; its next fault is a new one.
      if (state == State.ANSWERING) countNeighbours();
      interrupted = true;
      starve(false);
      return queueMakeRoom() ? Action.READ : follow(transferResume());
    default:
      break;
  }
  filling = false;
  if (step == Step.EXITED) shared().exited = 1;
  if (state == State.ANSWERING) return answered(step);
  if (step != Step.ASK) {
    transferReport();
    if (step != Step.FAILED && transferWakes()) settle(transferFrom(), transferTo());
  }
  shared().outcome = step;
  return give(state, Action.FILLED);
}

/** Records that a call has resolved the faults in [start, end), or has found their memory gone. */
function settle(start: u64, end: u64): void {
  if (currentPage(start, end) != end) shared().settled = 1;
}

/** To call when a WAKE, or unregistering, has woken the threads that wait in the range of arguments 0 and 1. */
export function settled(): void {
  settle(argument(0), argumentEnd());
  shared().waiting = queueWaiting();
}

/** Milliseconds from `ms` until a change or fault that was read already is due. 0: now; −1: there is none. */
export function delay(ms: f64): f64 {
  return queueChanges() > 0 ? 0 : faultDelay(ms);
}

// ---- the end --------------------------------------------------------------------------------------------

/**
 * Ends this owner's session: delivers the changes that were read, then wakes the waiters whose faults were read and not
 * answered. `drains`: whether to drain the queue first, because the descriptor will be closed. Otherwise a fork whose
 * event was not read would wait forever, and its child's descriptor would leak.
 */
export function beginEnd(drains: bool): Action {
  assert(!filling, 'beginEnd');
  ending = true;
  empties = drains;
  changed = true;
  return empties ? empty() : lastChange();
}

function empty(): Action {
  changed = false;
  queueOpen();
  return read(State.EMPTYING);
}

function lastChange(): Action {
  if (queueChanges() > 0) {
    changed = true;
    const last = queueNext();
    if (last != Message.NO_MEMORY) {
      change = last;
      // Closing the descriptor wakes all waiters.
      wakes = empties ? 0 : wakesOf(last);
      return wakeGone();
    }
  } else if (empties && changed) {
    return empty();
  }
  return releaseNext();
}

/** Wakes the waiters of the next fault that was not answered. They fault again, so the next owner reads the fault. */
function releaseNext(): Action {
  if (!currentOpen() && !faultTake(f64.POSITIVE_INFINITY)) return give(State.OVER, Action.DONE);
  const page = current().page;
  currentEnd(true);
  prepareWake(page, page + pageSizeAt(page));
  return give(State.RELEASING, Action.IOCTL);
}
