// The queue of page faults that were read and not answered yet, in order of arrival, with one entry per page and kind.
// A fault that the handler deferred is offered to it again after a growing delay.
//
// Rules:
//  - A repeated fault of a queued page merges into the entry of that page, and a write turns the entry into a write. So
//    the handler is called once if two threads fault on one page, or if one thread faults twice because of a signal.
//  - An entry leaves the table when the handler gets the fault. If the page is reported again after that, this is a new
//    fault, because the thread may have faulted again after the answer to the first one.
//  - A deferred fault delays no other fault. Delays are powers of two. Each delay has a queue of its own, in which
//    faults become due in the order in which they were deferred. A mapping change makes all deferred faults due, and
//    resets their delays.
//  - The caller passes the time, in milliseconds of any monotonic clock.

import { spanGive, spanTake } from './pool';

export const KIND_MISSING: u32 = 0;
export const KIND_WRITE_PROTECT: u32 = 1;
export const KIND_MINOR: u32 = 2;

/** Number of delays: 1, 2, 4, … 64 ms. All further delays are 64 ms. */
const LEVELS: u32 = 7;

const FREE: u32 = 0;
const READY: u32 = 1;
const DEFERRED: u32 = 2;
const DROPPED: u32 = 3;

@unmanaged
export class Fault {
  page: u64;
  /** The address as the kernel reported it. It equals `page` unless EXACT_ADDRESS is on. */
  address: u64;
  due: f64;
  tid: u32;
  kind: u32;
  write: u32;
  /** How often the fault was deferred, counted up to LEVELS. */
  level: u32;
  state: u32;
  /** The next entry in its queue, or in the list of free entries. */
  next: u32;
  /** The next entry with the same hash. */
  chain: u32;
  /** 1: the fault was delayed because an earlier fill of its page was answered with EEXIST. */
  waited: u32;
}

const FAULT: usize = offsetof<Fault>();
const FIRST_CAPACITY: u32 = 256;
/** Entries are numbered from 1. 0 means no entry. */
const NONE: u32 = 0;

let entries: usize = 0;
let buckets: usize = 0;
let capacity: u32 = 0;
let used: u32 = 0;
let freeHead: u32 = NONE;
let freeCount: u32 = 0;
let waiting: u32 = 0;
let deferredCount: u32 = 0;

// The ready queue is queue 0; deferred faults of level n are in queue n.
const heads: usize = memory.data((LEVELS + 1) * 4, 4);
const tails: usize = memory.data((LEVELS + 1) * 4, 4);

/** A copy of the current fault, because the table may change while the handler runs. */
const taken: usize = memory.data(64, 8);
/**
 * Whether the current fault is being answered; whether a mapping change cut a fill of its page short; and whether its
 * memory or process is gone.
 */
let open: bool = false;
let cutShort: bool = false;
let gone: bool = false;

export function current(): Fault {
  return changetype<Fault>(taken);
}

function entry(index: u32): Fault {
  return changetype<Fault>(entries + <usize>(index - 1) * FAULT);
}

function head(queue: u32): u32 {
  return load<u32>(heads + <usize>(queue << 2));
}

function bucket(page: u64, kind: u32): usize {
  const hash = <u32>(((page + kind) * 0x9e3779b97f4a7c15) >> 32);
  return buckets + <usize>((hash & (capacity - 1)) << 2);
}

/** Number of queued faults, deferred ones included. */
export function faultCount(): u32 {
  return waiting;
}

/** Whether a fault may be ready: the ready queue has an entry, which may be a dropped one. */
export function faultReady(): bool {
  return head(0) != NONE;
}

/** Number of entries in the queues of deferred faults, dropped entries included. */
export function faultDeferred(): u32 {
  return deferredCount;
}

/**
 * Makes room for `count` more entries, and for the current fault, which the handler may defer. False: out of memory.
 */
export function faultReserve(count: u32): bool {
  count++;
  if (freeCount + (capacity - used) >= count) return true;
  // A power of two, because the hash is reduced with a mask.
  let next = max<u32>(FIRST_CAPACITY, capacity);
  while (next - used + freeCount < count) next *= 2;
  const nextEntries = spanTake(<usize>next * FAULT);
  if (!nextEntries) return false;
  const nextBuckets = spanTake((<usize>next) << 2);
  if (!nextBuckets) {
    spanGive(nextEntries, <usize>next * FAULT);
    return false;
  }
  memory.copy(nextEntries, entries, <usize>used * FAULT);
  if (entries) {
    spanGive(entries, <usize>capacity * FAULT);
    spanGive(buckets, (<usize>capacity) << 2);
  }
  entries = nextEntries;
  buckets = nextBuckets;
  capacity = next;
  for (let i: u32 = 1; i <= used; i++) {
    const state = entry(i).state;
    if (state == READY || state == DEFERRED) link(bucket(entry(i).page, entry(i).kind), i);
  }
  return true;
}

/** Adds a fault, or merges it into the entry of its page and kind. */
export function faultPut(page: u64, address: u64, kind: u32, write: u32, tid: u32): void {
  const at = bucket(page, kind);
  const known = search(at, page, kind);
  if (known != NONE) {
    entry(known).write |= write;
    return;
  }
  const index = obtain();
  const fault = entry(index);
  fault.page = page;
  fault.address = address;
  fault.kind = kind;
  fault.write = write;
  fault.tid = tid;
  fault.level = 0;
  fault.waited = 0;
  fault.state = READY;
  link(at, index);
  append(0, index);
  waiting++;
}

/** Makes the next fault that is ready, or due at `now`, the current one. False: there is none. */
export function faultTake(now: f64): bool {
  for (let level: u32 = 1; deferredCount > 0 && level <= LEVELS; level++) {
    for (let index = head(level); index != NONE && entry(index).due <= now; index = head(level)) {
      shift(level);
      if (entry(index).state == DROPPED) {
        release(index);
      } else {
        entry(index).state = READY;
        append(0, index);
      }
    }
  }
  for (let index = head(0); index != NONE; index = head(0)) {
    shift(0);
    if (entry(index).state == DROPPED) {
      release(index);
      continue;
    }
    unlink(index);
    memory.copy(taken, changetype<usize>(entry(index)), FAULT);
    release(index);
    waiting--;
    open = true;
    cutShort = gone = false;
    return true;
  }
  return false;
}

/**
 * Defers the current fault until its delay has passed. If its page has faulted again meanwhile, merges it into that
 * entry.
 */
export function faultDefer(now: f64): void {
  const fault = current();
  const at = bucket(fault.page, fault.kind);
  const known = search(at, fault.page, fault.kind);
  if (known != NONE) {
    entry(known).write |= fault.write;
    entry(known).waited |= fault.waited;
    return;
  }
  const index = obtain();
  memory.copy(changetype<usize>(entry(index)), taken, FAULT);
  const again = entry(index);
  again.level = min<u32>(again.level + 1, LEVELS);
  again.due = now + <f64>((<u32>1) << (again.level - 1));
  again.state = DEFERRED;
  link(at, index);
  append(again.level, index);
  waiting++;
}

/** Delays the current fault, because the last `tries` fills of its page were answered with EEXIST. */
export function faultWait(now: f64, tries: u32): void {
  const fault = current();
  fault.waited = 1;
  fault.level = max(fault.level, min(tries, LEVELS) - 1);
  faultDefer(now);
}

/** To call when a mapping change is delivered. All deferred faults become due, and their delays start at 1 ms again. */
export function faultsDueNow(): void {
  for (let level: u32 = 1; level <= LEVELS; level++) {
    for (let index = head(level); index != NONE; index = head(level)) {
      shift(level);
      if (entry(index).state == DROPPED) {
        release(index);
        continue;
      }
      entry(index).level = 0;
      entry(index).state = READY;
      append(0, index);
    }
  }
}

/** Drops the faults of [start, end), whose memory is gone. The caller wakes the waiters. */
export function faultDrop(start: u64, end: u64): void {
  if (waiting == 0) return;
  for (let i: u32 = 1; i <= used; i++) {
    const fault = entry(i);
    if (fault.state != READY && fault.state != DEFERRED) continue;
    if (fault.page < start || fault.page >= end) continue;
    unlink(i);
    // The entry stays in its queue until that queue reaches it.
    fault.state = DROPPED;
    waiting--;
  }
}

/** Whether a missing-page fault of this page is queued. */
export function faultWaits(page: u64): bool {
  return waiting > 0 && search(bucket(page, KIND_MISSING), page, KIND_MISSING) != NONE;
}

/** Drops the missing-page fault of a page that was filled. Returns 0 if there is none, 1 for a read, 2 for a write. */
export function faultFilled(page: u64): u32 {
  if (waiting == 0) return 0;
  const index = search(bucket(page, KIND_MISSING), page, KIND_MISSING);
  if (index == NONE) return 0;
  unlink(index);
  entry(index).state = DROPPED;
  waiting--;
  return entry(index).write ? 2 : 1;
}

/** Milliseconds until the next fault is due. 0: a fault is due now; −1: no fault is queued. */
export function faultDelay(now: f64): f64 {
  if (waiting == 0) return -1;
  if (head(0) != NONE) return 0;
  let soonest = f64.POSITIVE_INFINITY;
  for (let level: u32 = 1; level <= LEVELS; level++) {
    const index = head(level);
    if (index != NONE) soonest = min(soonest, entry(index).due);
  }
  return max<f64>(soonest - now, 0);
}

// ---- the current fault ----------------------------------------------------------------------------------

/**
 * The page of the current fault, if this fault is being answered and its page lies in [start, end); otherwise `end`.
 */
export function currentPage(start: u64, end: u64): u64 {
  const page = current().page;
  return open && page >= start && page < end ? page : end;
}

/**
 * Records, for a current fault in [start, end), that a mapping change cut a fill of this range short; or, with
 * `forEver`, that the memory or its process is gone.
 */
export function currentCut(start: u64, end: u64, forEver: bool): void {
  if (currentPage(start, end) == end) return;
  if (forEver) gone = true;
  else cutShort = true;
}

export function currentOpen(): bool {
  return open;
}

/**
 * Ends the current fault, and returns whether to defer it. It is deferred if it was not resolved, or if a mapping
 * change cut a fill of its page short, whatever the handler returned. It is not deferred if its memory or process is
 * gone.
 */
export function currentEnd(resolved: bool): bool {
  if (!open) return false;
  open = false;
  return !gone && (!resolved || cutShort);
}

// ---- the hash --------------------------------------------------------------------------------------------

function search(at: usize, page: u64, kind: u32): u32 {
  let index = load<u32>(at);
  while (index != NONE) {
    const fault = entry(index);
    if (fault.page == page && fault.kind == kind) return index;
    index = fault.chain;
  }
  return NONE;
}

function link(at: usize, index: u32): void {
  entry(index).chain = load<u32>(at);
  store<u32>(at, index);
}

function unlink(index: u32): void {
  let at = bucket(entry(index).page, entry(index).kind);
  while (load<u32>(at) != index) at = changetype<usize>(entry(load<u32>(at))) + offsetof<Fault>('chain');
  store<u32>(at, entry(index).chain);
}

// ---- free entries and queues -----------------------------------------------------------------------------

function obtain(): u32 {
  if (freeHead == NONE) {
    assert(used < capacity, 'a fault came in without room for it');
    return ++used;
  }
  const index = freeHead;
  freeHead = entry(index).next;
  freeCount--;
  return index;
}

function release(index: u32): void {
  entry(index).state = FREE;
  entry(index).next = freeHead;
  freeHead = index;
  freeCount++;
}

function append(queue: u32, index: u32): void {
  if (queue > 0) deferredCount++;
  entry(index).next = NONE;
  const tail = tails + <usize>(queue << 2);
  if (head(queue) == NONE) store<u32>(heads + <usize>(queue << 2), index);
  else entry(load<u32>(tail)).next = index;
  store<u32>(tail, index);
}

function shift(queue: u32): void {
  if (queue > 0) deferredCount--;
  store<u32>(heads + <usize>(queue << 2), entry(head(queue)).next);
}
