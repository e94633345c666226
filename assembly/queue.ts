// Decodes the messages that read(2) returns, orders them, and applies mapping changes to ranges and pages.
//
// Rules:
//  - read(2) returns page faults before all other events, whatever came first. So no message is delivered to the
//    handler before the kernel's queue is drained, that is, before a read returned EAGAIN or left room in the buffer.
//    (A read also leaves room if it stops before a fork event because no descriptor is left for the child. Every fill
//    fails until that event is read, so no page can get wrong contents.)
//  - Every mapping change that was read is delivered before any fault. It is applied to ranges, pages and faults at the
//    moment of delivery, so the tables always match what was delivered to the handler.
//  - Memory for changes is bounded. If CHANGES changes are queued, there is no room for a read, and these changes are
//    delivered first.

import {
  EAGAIN,
  EBADF,
  EINTR,
  EMFILE,
  ENFILE,
  SIZEOF_UFFD_MSG,
  UFFD_EVENT_FORK,
  UFFD_EVENT_PAGEFAULT,
  UFFD_EVENT_REMAP,
  UFFD_EVENT_REMOVE,
  UFFD_EVENT_UNMAP,
  UFFD_FEATURE_EVENT_REMOVE,
  UFFD_FEATURE_EVENT_UNMAP,
  UFFD_PAGEFAULT_FLAG_MINOR,
  UFFD_PAGEFAULT_FLAG_WP,
  UFFD_PAGEFAULT_FLAG_WRITE,
  UFFDIO_REGISTER_MODE_WP,
  uffd_msg,
  uffd_msg_fork,
  uffd_msg_pagefault,
  uffd_msg_remap,
  uffd_msg_remove,
} from './abi';
import { bordersForget } from './borders';
import { doubtsForget } from './doubts';
import { shared } from './exchange';
import {
  currentCut,
  faultCount,
  faultDrop,
  faultPut,
  faultReserve,
  faultsDueNow,
  KIND_MINOR,
  KIND_MISSING,
  KIND_WRITE_PROTECT,
} from './faults';
import { PAGE_REMOVED, pagesForget, pagesMove, pagesSet, pagesWatch } from './pages';
import { pageSizeAt, Range, rangeHere, rangeInsert, rangeRemove, rangeSeek } from './ranges';
import { sourcesForget } from './sources';

/** Result of a read. */
export enum Verdict {
  /** The buffer was full: read again. */
  MORE,
  /** The kernel's queue is empty. */
  DRAINED,
  /** End of file, or the descriptor is closed: no message will come any more. */
  ENDED,
  /** An errno, or a malformed message: see `errno` and `badOffset` in the exchange. */
  FAILED,
  /**
   * No descriptor is left for a forked child. The fork event stays queued, and every fill returns EAGAIN until a later
   * read takes the event.
   */
  STARVED,
}

/** Kind of a message. */
export enum Message {
  UNKNOWN,
  FAULT,
  REMOVED,
  UNMAPPED,
  REMAPPED,
  FORKED,
  /** A change could not be applied, because linear memory has reached its maximum. */
  NO_MEMORY,
}

/** Most messages that a read returns. */
export const MESSAGES: u32 = 128;
export const messages: usize = memory.data(MESSAGES * SIZEOF_UFFD_MSG, 8);

const CHANGES: u32 = 512;
/** The changes that wait for delivery: a ring buffer of messages. */
const changes: usize = memory.data(CHANGES * SIZEOF_UFFD_MSG, 8);
let changeFirst: u32 = 0;
let changeCount: u32 = 0;

let reportsUnmap: bool = false;
let reportsRemove: bool = false;
let drained: bool = false;
/** Size of the buffer of the read under way, in bytes. */
let asked: u32 = 0;
let taken: u32 = 0;

export function queueStart(features: u64): void {
  reportsUnmap = (features & UFFD_FEATURE_EVENT_UNMAP) != 0;
  reportsRemove = (features & UFFD_FEATURE_EVENT_REMOVE) != 0;
}

/**
 * Whether the kernel reports removals. If it does, and a page is gone without a report, the program did not remove it.
 */
export function queueReportsRemovals(): bool {
  return reportsRemove;
}

/**
 * How many changes were read so far. The caller compares two results to find out whether a read returned a change.
 * Wraps around.
 */
export function queueTaken(): u32 {
  return taken;
}

/** Number of changes that were read and not delivered. */
export function queueChanges(): u32 {
  return changeCount;
}

/** Number of messages that wait for the handler: changes and faults, deferred faults included. */
export function queueWaiting(): u32 {
  return faultCount() + changeCount;
}

/** Notes that the kernel's queue may hold messages again. */
export function queueOpen(): void {
  drained = false;
}

export function queueDrained(): bool {
  return drained;
}

/** Whether the kernel's queue is drained and all changes are delivered. */
export function queueSettled(): bool {
  return drained && changeCount == 0;
}

/** Makes room for a read. False: changes have to be delivered first, or memory is exhausted. */
export function queueMakeRoom(): bool {
  const room = min(MESSAGES, CHANGES - changeCount);
  asked = faultReserve(room) ? room * SIZEOF_UFFD_MSG : 0;
  shared().room = asked;
  return asked > 0;
}

/** Processes a read to `messages`. `result`: the number of bytes read, or −errno. */
export function queueTake(result: i32): Verdict {
  if (result < 0) return refused(-result);
  if (result == 0) return Verdict.ENDED;
  if (result % SIZEOF_UFFD_MSG != 0) return nonsense(0, result);
  drained = false;
  const it = shared();
  for (let offset: u32 = 0; offset < <u32>result; offset += SIZEOF_UFFD_MSG) {
    const what = messageDecode(offset);
    if (what == Message.UNKNOWN) return nonsense(offset, SIZEOF_UFFD_MSG);
    if (what == Message.FAULT) faultPut(it.start, it.third, it.kind, it.write, it.tid);
    else takeChange(messages + offset);
  }
  // The kernel fills the buffer unless its queue runs empty.
  drained = <u32>result < asked;
  return drained ? Verdict.DRAINED : Verdict.MORE;
}

function refused(errno: i32): Verdict {
  if (errno == EAGAIN) {
    drained = true;
    return Verdict.DRAINED;
  }
  if (errno == EINTR) return Verdict.MORE;
  if (errno == EMFILE || errno == ENFILE) return Verdict.STARVED;
  if (errno == EBADF) return Verdict.ENDED;
  shared().errno = errno;
  return Verdict.FAILED;
}

function nonsense(offset: u32, bytes: u32): Verdict {
  const it = shared();
  it.errno = 0;
  it.badOffset = offset;
  it.badBytes = bytes;
  return Verdict.FAILED;
}

/** Decodes the message at an offset of `messages` into the exchange, without any other effect. */
export function messageDecode(offset: u32): Message {
  return decode(messages + offset);
}

function decode(at: usize): Message {
  const it = shared();
  switch (<u32>changetype<uffd_msg>(at).event) {
    case UFFD_EVENT_PAGEFAULT: {
      const message = changetype<uffd_msg_pagefault>(at);
      const flags = message.flags;
      it.third = message.address;
      it.start = message.address & ~(pageSizeAt(message.address) - 1);
      it.kind = KIND_MISSING;
      if (flags & UFFD_PAGEFAULT_FLAG_WP) it.kind = KIND_WRITE_PROTECT;
      else if (flags & UFFD_PAGEFAULT_FLAG_MINOR) it.kind = KIND_MINOR;
      it.write = <u32>(flags & UFFD_PAGEFAULT_FLAG_WRITE);
      it.tid = message.ptid;
      return Message.FAULT;
    }
    case UFFD_EVENT_FORK:
      it.start = changetype<uffd_msg_fork>(at).ufd;
      return Message.FORKED;
    case UFFD_EVENT_REMAP:
      it.start = changetype<uffd_msg_remap>(at).from;
      it.end = changetype<uffd_msg_remap>(at).to;
      it.third = changetype<uffd_msg_remap>(at).len;
      return Message.REMAPPED;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      it.start = changetype<uffd_msg_remove>(at).start;
      it.end = changetype<uffd_msg_remove>(at).end;
      return changetype<uffd_msg>(at).event == UFFD_EVENT_REMOVE ? Message.REMOVED : Message.UNMAPPED;
    default:
      return Message.UNKNOWN;
  }
}

function takeChange(message: usize): void {
  assert(changeCount < CHANGES, 'a change came in without room for it');
  memory.copy(changeAt(changeCount), message, SIZEOF_UFFD_MSG);
  changeCount++;
  taken++;
}

function changeAt(index: u32): usize {
  return changes + <usize>((changeFirst + index) % CHANGES) * SIZEOF_UFFD_MSG;
}

/** Dequeues the next change, applies it, and writes its arguments into the exchange. The queue must not be empty. */
export function queueNext(): Message {
  const it = shared();
  const change = decode(changeAt(0));
  if (change == Message.REMOVED) {
    pagesSet(it.start, it.end, PAGE_REMOVED);
    doubtsForget(it.start, it.end);
  } else if (change == Message.UNMAPPED) {
    if (!applyUnmap(it.start, it.end)) return Message.NO_MEMORY;
  } else if (change == Message.REMAPPED) {
    if (!applyRemap(it.start, it.end, it.third)) return Message.NO_MEMORY;
  }
  changeFirst = (changeFirst + 1) % CHANGES;
  changeCount--;
  faultsDueNow();
  return change;
}

function applyUnmap(start: u64, end: u64): bool {
  if (!forgetMemory(start, end)) return false;
  queueForget(start, end);
  return true;
}

/**
 * Forgets the memory that was mapped at [start, end). Queued faults stay, because they may be of the memory that is
 * mapped there now.
 */
function forgetMemory(start: u64, end: u64): bool {
  if (!rangeRemove(start, end)) return false;
  pagesForget(start, end);
  bordersForget(start, end);
  sourcesForget(start, end);
  doubtsForget(start, end);
  return true;
}

/** Drops the faults of [start, end), which is no longer registered. */
export function queueForget(start: u64, end: u64): void {
  faultDrop(start, end);
  sourcesForget(start, end);
  doubtsForget(start, end);
  currentCut(start, end, true);
}

/**
 * Registers the new addresses like the old ones, in place of ranges that were there. The UNMAP event that follows a
 * move removes the old range. If that event is off, the old range is removed now. (With MREMAP_DONTUNMAP the kernel
 * keeps the old range registered, and sends no UNMAP.)
 */
function applyRemap(from: u64, to: u64, length: u64): bool {
  const end = from + length;
  if (!forgetMemory(to, to + length)) return false;
  let cursor = from;
  while (cursor < end && rangeSeek(cursor) && rangeHere().start < end) {
    const here = rangeHere();
    const start = max(here.start, cursor);
    const stop = min(here.end, end);
    if (!registerLike(here, to + (start - from), to + (stop - from))) return false;
    cursor = stop;
  }
  pagesMove(from, to, length);
  queueForget(from, end);
  return reportsUnmap || applyUnmap(from, end);
}

function registerLike(range: Range, start: u64, end: u64): bool {
  const modes = range.modes;
  if (!pagesWatch(start, end, (modes & <u32>UFFDIO_REGISTER_MODE_WP) != 0)) return false;
  return rangeInsert(start, end, modes, range.operations, range.pageShift);
}

/** Whether a change that was read and is not delivered yet touches [start, end). */
export function queueOverlaps(start: u64, end: u64): bool {
  for (let i: u32 = 0; i < changeCount; i++) {
    const at = changeAt(i);
    const event = <u32>changetype<uffd_msg>(at).event;
    if (event == UFFD_EVENT_REMAP) {
      const remap = changetype<uffd_msg_remap>(at);
      if (meets(remap.from, remap.from + remap.len, start, end)) return true;
      if (meets(remap.to, remap.to + remap.len, start, end)) return true;
    } else if (event != UFFD_EVENT_FORK) {
      const remove = changetype<uffd_msg_remove>(at);
      if (meets(remove.start, remove.end, start, end)) return true;
    }
  }
  return false;
}

function meets(a: u64, aEnd: u64, b: u64, bEnd: u64): bool {
  return a < bEnd && b < aEnd;
}
