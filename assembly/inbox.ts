// Raw uffd_msg bytes in, ordered decisions out.
//
// Rules:
//  - The kernel's read hands out page faults before all other events, whatever their order of arrival, so
//    nothing is offered before the queue was read to its end (EAGAIN, or a read that left room in the buffer,
//    which the kernel ends only there): `inboxNext` asks for a read until then. (It ends one also before a fork for
//    whose child there is no descriptor; but nothing can be filled then, so no answer can be wrong.)
//  - Every mapping change that was read is delivered before any fault. It is applied to ranges, pages and
//    waiting faults at the moment it is delivered, so the tables say what the handler has been told.
//  - Memory per event is bounded: when EVENTS of them wait, `inboxRoom` is 0 and they are delivered first.
//  - munmap and mremap wake nobody in the kernel: delivering one names the range whose sleepers to wake.
//  - A page is removed because an event said so, and for no other reason. A page that was filled and is missing again is
//    removed if it ever was: it was filled between the event and the removal. Otherwise it is asked for once more.
//  - A fault of a page of which a fill said EEXIST waits before it is offered again (doubts.ts).
//  - An unknown event and a byte count that is no multiple of 32 are answers, not crashes.

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
import { doubtCount, doubtsForget, doubtTries } from './doubts';
import {
  current,
  Fault,
  faultCount,
  faultDefer,
  faultDelay,
  faultDrop,
  faultHurry,
  faultPut,
  faultPutOff,
  faultReserve,
  faultTake,
  faultWait,
  KIND_MINOR,
  KIND_MISSING,
  KIND_WRITE_PROTECT,
} from './faults';
import {
  PAGE_PRESENT,
  PAGE_REMOVED,
  pageState,
  pagesForget,
  pagesMove,
  pagesSet,
  pagesWatch,
  pageWasRemoved,
} from './pages';
import { Range, rangeHere, rangeInsert, rangeNear, rangeRemove, rangeSeek } from './ranges';
import { sourcesForget } from './sources';

// What `inboxTake` answers.
/** Taken in; read again. */
export const READ_MORE: i32 = 0;
/** The queue is empty. */
export const READ_DRAINED: i32 = 1;
/** End of file, or the descriptor is closed: nothing will come any more. */
export const READ_ENDED: i32 = 2;
/** read failed; the errno is what was passed in. */
export const READ_FAILED: i32 = 3;
/** The byte count is no multiple of 32; nothing was taken in. */
export const READ_RAGGED: i32 = 4;
/** An event this library does not know: `inboxUnknown` is its offset; those before it were taken in. */
export const READ_UNKNOWN: i32 = 5;
/**
 * There is no descriptor left for a forked child: its event stays queued, and so does every fill wait. Read again
 * later.
 */
export const READ_STARVED: i32 = 6;

// What `inboxNext` answers; the particulars are in `delivery`.
export const NEXT_NONE: i32 = 0;
export const NEXT_FAULT: i32 = 1;
export const NEXT_REMOVED: i32 = 2;
export const NEXT_UNMAPPED: i32 = 3;
export const NEXT_REMAPPED: i32 = 4;
export const NEXT_FORKED: i32 = 5;
/** Read first: what was not read yet may overtake what is here. */
export const NEXT_READ: i32 = 6;
/** The tables cannot grow: the memory's maximum is reached. */
export const NEXT_NO_MEMORY: i32 = 7;

const MESSAGES: u32 = 128;
export const messages: usize = memory.data(MESSAGES * SIZEOF_UFFD_MSG, 8);

const EVENTS: u32 = 512;
const events: usize = memory.data(EVENTS * SIZEOF_UFFD_MSG, 8);
let eventFirst: u32 = 0;
let eventCount: u32 = 0;

/**
 * The last thing handed out. Fault: address, page. Removed, unmapped: start, end. Remapped: from, to, length.
 * Forked: the child's descriptor. `tries`: how often in a row a fill of a fault's page was
 * answered with EEXIST.
 */
@unmanaged
class Delivery {
  a: u64;
  b: u64;
  c: u64;
  kind: u32;
  write: u32;
  tid: u32;
  tries: u32;
}

export const delivery: usize = memory.data(40, 8);

let pageShift: u32 = 12;
let tellsUnmap: bool = false;
let tellsRemove: bool = false;
let drained: bool = false;
/** Bytes that the read under way may bring. */
let asked: u32 = 0;
let taken: u32 = 0;
let unknown: u32 = 0;

// The fault that is out: what its transfers met decides whether a handler's "answered" can be believed.
let out: bool = false;
let cutShort: bool = false;
let gone: bool = false;

export function inboxStart(shift: u32, features: u64): void {
  pageShift = shift;
  tellsUnmap = (features & UFFD_FEATURE_EVENT_UNMAP) != 0;
  tellsRemove = (features & UFFD_FEATURE_EVENT_REMOVE) != 0;
}

/** How many mapping changes came in so far, to see whether a read brought one. Wraps around. */
export function inboxTaken(): u32 {
  return taken;
}

/** Messages that wait for a handler: faults, deferred ones included, and mapping changes. */
export function inboxWaiting(): u32 {
  return faultCount() + eventCount;
}

/** Whether faults are deferred, or may have to be: only then the current time is needed. */
export function inboxPutOff(): bool {
  return faultPutOff() > 0 || doubtCount() > 0;
}

/** Forgets that the queue was empty: called when a round begins. */
export function inboxOpen(): void {
  drained = false;
}

/** How many bytes the next read may bring; 0: deliver first. */
export function inboxRoom(): u32 {
  const room = min(MESSAGES, EVENTS - eventCount);
  asked = faultReserve(room) ? room * SIZEOF_UFFD_MSG : 0;
  return asked;
}

/** Takes in the result of a read into `messages`: bytes, or −errno. */
export function inboxTake(result: i32): i32 {
  if (result < 0) {
    if (result == -EAGAIN) {
      drained = true;
      return READ_DRAINED;
    }
    if (result == -EINTR) return READ_MORE;
    if (result == -EMFILE || result == -ENFILE) return READ_STARVED;
    return result == -EBADF ? READ_ENDED : READ_FAILED;
  }
  if (result == 0) return READ_ENDED;
  if (result % SIZEOF_UFFD_MSG != 0) return READ_RAGGED;
  drained = false;
  const it = changetype<Delivery>(delivery);
  for (let offset: u32 = 0; offset < <u32>result; offset += SIZEOF_UFFD_MSG) {
    const what = decode(messages + offset);
    if (what == NEXT_FAULT) {
      faultPut(it.b, it.a, it.kind, it.write, it.tid);
    } else if (what != NEXT_NONE) {
      takeEvent(messages + offset);
    } else {
      unknown = offset;
      return READ_UNKNOWN;
    }
  }
  // The kernel goes on until the buffer is full or the queue is empty: a short read is a drained queue.
  drained = <u32>result < asked;
  return drained ? READ_DRAINED : READ_MORE;
}

/** Offset in `messages` of the event that `inboxTake` did not know. */
export function inboxUnknown(): u32 {
  return unknown;
}

/**
 * Decodes the message at an offset of `messages` into `delivery`, and does nothing else. What it is: NEXT_FAULT
 * to NEXT_FORKED, or NEXT_NONE where the event is not known.
 */
export function messageDecode(offset: u32): i32 {
  return decode(messages + offset);
}

function decode(at: usize): i32 {
  const it = changetype<Delivery>(delivery);
  switch (<u32>changetype<uffd_msg>(at).event) {
    case UFFD_EVENT_PAGEFAULT: {
      const message = changetype<uffd_msg_pagefault>(at);
      const flags = message.flags;
      it.a = message.address;
      it.b = pageOf(message.address);
      it.kind = KIND_MISSING;
      if (flags & UFFD_PAGEFAULT_FLAG_WP) it.kind = KIND_WRITE_PROTECT;
      else if (flags & UFFD_PAGEFAULT_FLAG_MINOR) it.kind = KIND_MINOR;
      it.write = <u32>(flags & UFFD_PAGEFAULT_FLAG_WRITE);
      it.tid = message.ptid;
      return NEXT_FAULT;
    }
    case UFFD_EVENT_FORK:
      it.a = changetype<uffd_msg_fork>(at).ufd;
      return NEXT_FORKED;
    case UFFD_EVENT_REMAP:
      it.a = changetype<uffd_msg_remap>(at).from;
      it.b = changetype<uffd_msg_remap>(at).to;
      it.c = changetype<uffd_msg_remap>(at).len;
      return NEXT_REMAPPED;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      it.a = changetype<uffd_msg_remove>(at).start;
      it.b = changetype<uffd_msg_remove>(at).end;
      return changetype<uffd_msg>(at).event == UFFD_EVENT_REMOVE ? NEXT_REMOVED : NEXT_UNMAPPED;
    default:
      return NEXT_NONE;
  }
}

function takeEvent(message: usize): void {
  assert(eventCount < EVENTS, 'an event came in without room for it');
  memory.copy(eventAt(eventCount), message, SIZEOF_UFFD_MSG);
  eventCount++;
  taken++;
}

function eventAt(index: u32): usize {
  return events + <usize>((eventFirst + index) % EVENTS) * SIZEOF_UFFD_MSG;
}

/** Bytes of a page that is not huge. */
export function pageSystem(): u64 {
  return (<u64>1) << pageShift;
}

/** Bytes of the page that holds `address`: a huge page in a range that has them. */
export function pageSizeAt(address: u64): u64 {
  const range = rangeNear(address);
  return (<u64>1) << (range ? range.pageShift : pageShift);
}

function pageOf(address: u64): u64 {
  return address & ~(pageSizeAt(address) - 1);
}

/** Hands out the next mapping change alone, or NEXT_NONE. */
export function inboxNextEvent(): i32 {
  return eventCount > 0 ? deliverEvent() : NEXT_NONE;
}

/** The queue was read to its end, and no mapping change waits. */
export function inboxSettled(): bool {
  return drained && eventCount == 0;
}

/** Hands out what the handler should hear next. */
export function inboxNext(now: f64): i32 {
  if (eventCount > 0) return deliverEvent();
  if (!drained) return inboxRoom() > 0 ? NEXT_READ : NEXT_NO_MEMORY;
  return inboxNextFault(now) ? NEXT_FAULT : NEXT_NONE;
}

/** The same, where the inbox is settled. False: there is none. */
export function inboxNextFault(now: f64): bool {
  const fault = changetype<Fault>(current);
  let tries: u32 = 0;
  for (;;) {
    if (!faultTake(now)) return false;
    tries = fault.kind == KIND_MISSING ? doubtTries(fault.page) : 0;
    if (tries == 0 || fault.waited) break;
    faultWait(now, tries);
  }
  const it = changetype<Delivery>(delivery);
  it.a = fault.address;
  it.b = fault.page;
  it.kind = fault.kind;
  it.write = fault.write;
  it.tid = fault.tid;
  it.tries = tries;
  out = true;
  cutShort = false;
  gone = false;
  // The kernel takes pages away after their removal was read: one that was filled in between is gone as well.
  if (fault.kind == KIND_MISSING && pageState(fault.page) == PAGE_PRESENT && pageWasRemoved(fault.page)) {
    pagesSet(fault.page, fault.page + pageSizeAt(fault.page), PAGE_REMOVED);
  }
  return true;
}

/** Whether removals are told: a page that is gone without one was not removed. */
export function inboxTellsRemovals(): bool {
  return tellsRemove;
}

/** How often in a row a fill of the page of the fault that is out was answered with EEXIST. */
export function inboxTries(): u32 {
  return changetype<Delivery>(delivery).tries;
}

/** The page of the fault that is out, if it lies in [start, end); else `end`. */
export function inboxPage(start: u64, end: u64): u64 {
  if (!out) return end;
  const page = changetype<Fault>(current).page;
  return page >= start && page < end ? page : end;
}

/**
 * Ends the fault that is out. True: it comes again, so `inboxDefer` is next: the handler could not answer, or a
 * transfer over its page was cut short by a mapping change, whatever the handler believes; not if its memory or
 * process is gone.
 */
export function inboxAnswer(answered: bool): bool {
  if (!out) return false;
  out = false;
  return !gone && (!answered || cutShort);
}

/** Puts the fault that was out back, to be offered again. */
export function inboxDefer(now: f64): void {
  faultDefer(now);
}

/** Milliseconds until `inboxNext` has something without a new message: 0 now, −1 never. */
export function inboxDelay(now: f64): f64 {
  return eventCount > 0 ? 0 : faultDelay(now);
}

/** Whether a mapping change that was read and not delivered yet touches [start, end). */
export function inboxOverlaps(start: u64, end: u64): bool {
  for (let i: u32 = 0; i < eventCount; i++) {
    const at = eventAt(i);
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

/** A transfer over [start, end) ended short (or its memory is gone): what does that mean for the fault that is out? */
export function inboxCut(start: u64, end: u64, forEver: bool): void {
  if (!out) return;
  const page = changetype<Fault>(current).page;
  if (page < start || page >= end) return;
  if (forEver) gone = true;
  else cutShort = true;
}

/**
 * Takes out the waiting faults one by one, the one that is with the handler first: their pages (in
 * `delivery`, with their sizes) are to be woken, because the descriptor leaves this object and the next owner must
 * hear of them.
 */
export function inboxEvict(): bool {
  if (!out && !faultTake(f64.POSITIVE_INFINITY)) return false;
  out = false;
  const page = changetype<Fault>(current).page;
  changetype<Delivery>(delivery).b = page;
  changetype<Delivery>(delivery).c = pageSizeAt(page);
  return true;
}

function deliverEvent(): i32 {
  const it = changetype<Delivery>(delivery);
  const next = decode(eventAt(0));
  if (next == NEXT_REMAPPED && !applyRemap(it.a, it.b, it.c)) return NEXT_NO_MEMORY;
  if (next == NEXT_REMOVED) {
    pagesSet(it.a, it.b, PAGE_REMOVED);
    doubtsForget(it.a, it.b);
  }
  if (next == NEXT_UNMAPPED && !applyUnmap(it.a, it.b)) return NEXT_NO_MEMORY;
  eventFirst = (eventFirst + 1) % EVENTS;
  eventCount--;
  faultHurry();
  return next;
}

function applyUnmap(start: u64, end: u64): bool {
  if (!forgetMemory(start, end)) return false;
  inboxForget(start, end);
  return true;
}

/** What was mapped at [start, end) is not there any more; who waits there may wait for what came in its place. */
function forgetMemory(start: u64, end: u64): bool {
  if (!rangeRemove(start, end)) return false;
  pagesForget(start, end);
  bordersForget(start, end);
  sourcesForget(start, end);
  doubtsForget(start, end);
  return true;
}

/** [start, end) is not registered any more: its faults are nobody's, also the one that is out. */
export function inboxForget(start: u64, end: u64): void {
  faultDrop(start, end);
  sourcesForget(start, end);
  doubtsForget(start, end);
  inboxCut(start, end, true);
}

/**
 * Registers the new place like the old one, in place of what was there. The old one goes with the UNMAP that follows a move;
 * where that event is off it goes now. (MREMAP_DONTUNMAP keeps it registered, and sends no UNMAP.)
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
  inboxForget(from, end);
  return tellsUnmap || applyUnmap(from, end);
}

function registerLike(range: Range, start: u64, end: u64): bool {
  const modes = range.modes;
  if (!pagesWatch(start, end, (modes & <u32>UFFDIO_REGISTER_MODE_WP) != 0)) return false;
  return rangeInsert(start, end, modes, range.operations, range.pageShift);
}
