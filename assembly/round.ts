// What is next in a round. Faults whose data has a source (answers.ts) are answered here, several in a row, and the handler
// hears of all of them at once; everything else is the handler's.
//
// Rules:
//  - Where several wait, nobody is woken before all of them are answered: a thread that is woken takes the processor from
//    whoever has the others' answers, and a wake-up of one costs as much as that of many. Before that it is read again: who
//    has run meanwhile may wait as well. One WAKE then, from the first of these pages to the last; who waits there for
//    anything else faults anew.
//  - It ends: after a few reads, and after so many bytes that waking is nothing beside copying them.
//  - Nobody is left asleep by what comes in between: a mapping change that was read, and a fault for the handler, wait
//    until the others are awake.

import { EINTR } from './abi';
import { answerBegin, answerNext } from './answers';
import { current, Fault, faultDefer, faultReady, KIND_MISSING } from './faults';
import { inboxAnswer, inboxNext, inboxNextFault, inboxOpen, inboxSettled, NEXT_FAULT } from './inbox';
import { PAGE_PRESENT, pageState } from './pages';
import {
  OPTION_DONTWAKE,
  STEP_ASK,
  STEP_CALL,
  STEP_EXITED,
  STEP_FAILED,
  STEP_READ,
  transferCursor,
  transferInstalled,
  transferResult,
  transferResume,
  transferStart,
  transferWake,
} from './transfer';

// What is answered here besides NEXT_*.
/** Issue the ioctl that `request` holds, and pass its result to `roundResult`. */
export const NEXT_CALL: i32 = 8;
/** Read until the queue is empty, then `roundResume`. */
export const NEXT_REREAD: i32 = 9;
/** That was all: `tally` says what came of it. */
export const NEXT_ANSWERED: i32 = 10;

/** Times that it is read again before those who wait are woken. */
const READS: u32 = 3;
/** Bytes that are installed for sleepers, at most. */
const HELD: u64 = 1 << 20;

/** What was answered since the last `roundNext` that began with an answer. */
@unmanaged
class Tally {
  /** Faults whose page is installed, and those among them that were writes. */
  faults: u32;
  writes: u32;
  /** Faults that a mapping change came first to. */
  putOff: u32;
  /** 1: the process whose memory it is has exited or called exec. */
  exited: u32;
  /** Bytes installed. */
  bytes: u64;
}

export const tally: usize = memory.data(24, 8);

// What the next result, or read, belongs to.
const ANSWER: u32 = 0;
const LOOK: u32 = 1;
const WAKE: u32 = 2;

let phase: u32 = ANSWER;
let time: f64 = 0;
/** The answer under way was interrupted by a read. */
let interrupted: bool = false;
/** It is the handler's. */
let asked: bool = false;
/** Its threads are left asleep. */
let quiet: bool = false;
/** Where threads are left asleep: nowhere, where the end is 0. */
let heldStart: u64 = 0;
let heldEnd: u64 = 0;
let heldBytes: u64 = 0;
let reads: u32 = 0;

/** What is next, at this time: as `inboxNext` says, or NEXT_CALL. */
export function roundNext(now: f64): i32 {
  const next = inboxNext(now);
  if (next != NEXT_FAULT) return next;
  time = now;
  reads = 0;
  memory.fill(tally, 0, offsetof<Tally>());
  return begin() ? NEXT_CALL : NEXT_FAULT;
}

/**
 * Takes the result of the call that `request` held: ≥ 0, or −errno. NEXT_FAULT: that was all, and the fault that is out is
 * the handler's.
 */
export function roundResult(result: i32): i32 {
  if (phase != WAKE) return follow(transferResult(result));
  // Interrupted, it has woken nobody: the same again.
  if (result == -EINTR) return NEXT_CALL;
  heldEnd = 0;
  return next();
}

/** Goes on after a read, in the same way. */
export function roundResume(): i32 {
  if (phase == LOOK) return next();
  interrupted = true;
  return follow(transferResume());
}

/** Begins to answer the fault that is out. False: it is the handler's. */
function begin(): bool {
  phase = ANSWER;
  interrupted = false;
  quiet = heldEnd != 0 || faultReady();
  asked = answerBegin(quiet ? OPTION_DONTWAKE : 0) == STEP_ASK;
  return !asked;
}

function follow(step: i32): i32 {
  if (step == STEP_CALL) return NEXT_CALL;
  if (step == STEP_READ) return NEXT_REREAD;
  const it = changetype<Tally>(tally);
  const fault = changetype<Fault>(current);
  const done = transferCursor() > fault.page;
  it.bytes += <u64>transferInstalled();
  if (quiet) hold(transferCursor());
  for (let other = answerNext(); other != 0; other = answerNext()) count(other == 2);
  asked = step == STEP_FAILED && !done && !interrupted;
  if (step == STEP_EXITED) it.exited = 1;
  if (!asked && inboxAnswer(done)) {
    faultDefer(time);
    it.putOff++;
  } else if (done) {
    count(fault.write != 0);
  }
  return heldBytes < HELD ? next() : over();
}

/** Answers the next fault, if nothing else comes first. */
function next(): i32 {
  while (!asked && !changetype<Tally>(tally).exited && inboxSettled()) {
    if (!inboxNextFault(time)) return look();
    if (!isHeld()) return begin() ? NEXT_CALL : over();
    inboxAnswer(true);
    count(changetype<Fault>(current).write != 0);
  }
  return over();
}

/** Whether the fault that is out is of a page that was installed for others, and its thread will be woken with them. */
function isHeld(): bool {
  const it = changetype<Fault>(current);
  return (
    it.page >= heldStart && it.page < heldEnd && it.kind == KIND_MISSING && pageState(it.page) == PAGE_PRESENT
  );
}

/** Reads once more, where that is due. */
function look(): i32 {
  if (phase == LOOK || heldEnd == 0 || reads == READS) return over();
  reads++;
  phase = LOOK;
  inboxOpen();
  return NEXT_REREAD;
}

function count(write: bool): void {
  const it = changetype<Tally>(tally);
  it.faults++;
  if (write) it.writes++;
}

/** Notes who is left asleep: up to `end`. */
function hold(end: u64): void {
  const start = transferStart();
  if (end == start) return;
  heldBytes += end - start;
  heldStart = heldEnd ? min(heldStart, start) : start;
  heldEnd = max(heldEnd, end);
}

/** Wakes those who were left asleep. */
function over(): i32 {
  if (heldEnd == 0) return asked ? NEXT_FAULT : NEXT_ANSWERED;
  phase = WAKE;
  heldBytes = 0;
  transferWake(heldStart, heldEnd);
  return NEXT_CALL;
}
