// Page faults that were read and not answered yet: first come, first served; one entry per page and kind;
// what a handler put off comes again by itself on a growing delay.
//
// Rules:
//  - A repeat of a waiting page merges into its entry, and a write upgrades a read: two threads on one page,
//    or one thread that a signal made fault twice, are one question to the handler.
//  - An entry leaves the table when it is handed out. A repeat read after that is a new question, because
//    the answer to the first may have been given before the repeat arose.
//  - A deferred fault blocks nobody. Delays are powers of two, so there is one queue per delay and each is
//    in order by itself. A mapping change makes all of them due, with the delay starting over.
//  - Time is an argument, in milliseconds of any monotonic clock.

import { spanGive, spanTake } from './pool';

export const KIND_MISSING: u32 = 0;
export const KIND_WRITE_PROTECT: u32 = 1;
export const KIND_MINOR: u32 = 2;

/** First delay 1 ms, then 2, 4, … and at last 64 ms for as long as it takes. */
const LEVELS: u32 = 7;

const FREE: u32 = 0;
const READY: u32 = 1;
const DEFERRED: u32 = 2;
const DROPPED: u32 = 3;

@unmanaged
export class Fault {
  page: u64;
  /** As the kernel said it: equal to `page` unless EXACT_ADDRESS is on. */
  address: u64;
  due: f64;
  tid: u32;
  kind: u32;
  write: u32;
  /** How often it was put off, up to LEVELS. */
  level: u32;
  state: u32;
  /** The next in its queue, or in the list of free entries. */
  next: u32;
  /** The next with the same hash. */
  chain: u32;
  /** 1: it was delayed, because an earlier fill of its page was answered with EEXIST. */
  waited: u32;
}

const FAULT: usize = offsetof<Fault>();
const FIRST_CAPACITY: u32 = 256;
/** Entries are numbered from 1; 0 is none. */
const NONE: u32 = 0;

let entries: usize = 0;
let buckets: usize = 0;
let capacity: u32 = 0;
let used: u32 = 0;
let freeHead: u32 = NONE;
let freeCount: u32 = 0;
let waiting: u32 = 0;
let putOff: u32 = 0;

// The ready queue is queue 0; deferred faults of level n are in queue n.
const heads: usize = memory.data((LEVELS + 1) * 4, 4);
const tails: usize = memory.data((LEVELS + 1) * 4, 4);

/** The fault that was handed out last: a copy, so that the table may change under the handler. */
export const current: usize = memory.data(64, 8);

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

/** Faults waiting for a handler, deferred ones included. */
export function faultCount(): u32 {
  return waiting;
}

/** Whether there may be one that was not put off. */
export function faultReady(): bool {
  return head(0) != NONE;
}

/** Entries in the queues of deferred faults, those included that were dropped since. */
export function faultPutOff(): u32 {
  return putOff;
}

/** Makes room for `count` more, and for the one that is out to come back. False: no memory left. */
export function faultReserve(count: u32): bool {
  count++;
  if (freeCount + (capacity - used) >= count) return true;
  // A power of two: the hash is cut down with a mask.
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

/** Takes in a fault, or merges it into the entry of its page. */
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

/** Hands out the next fault that is ready or due at `now`, into `current`. False: there is none. */
export function faultTake(now: f64): bool {
  for (let level: u32 = 1; putOff > 0 && level <= LEVELS; level++) {
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
    memory.copy(current, changetype<usize>(entry(index)), FAULT);
    release(index);
    waiting--;
    return true;
  }
  return false;
}

/** Puts the fault in `current` off: it comes again after its delay, or when its page faults anew before that. */
export function faultDefer(now: f64): void {
  const fault = changetype<Fault>(current);
  const at = bucket(fault.page, fault.kind);
  const known = search(at, fault.page, fault.kind);
  if (known != NONE) {
    entry(known).write |= fault.write;
    entry(known).waited |= fault.waited;
    return;
  }
  const index = obtain();
  memory.copy(changetype<usize>(entry(index)), current, FAULT);
  const deferred = entry(index);
  deferred.level = min<u32>(deferred.level + 1, LEVELS);
  deferred.due = now + <f64>((<u32>1) << (deferred.level - 1));
  deferred.state = DEFERRED;
  link(at, index);
  append(deferred.level, index);
  waiting++;
}

/** Delays the fault in `current`, because `tries` fills of its page in a row were answered with EEXIST. */
export function faultWait(now: f64, tries: u32): void {
  const fault = changetype<Fault>(current);
  fault.waited = 1;
  fault.level = max(fault.level, min(tries, LEVELS) - 1);
  faultDefer(now);
}

/** A mapping change came: whatever was put off is due now, and its delay starts over. */
export function faultHurry(): void {
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

/** Forgets the faults of [start, end): the memory is gone, and its sleepers are woken by the caller. */
export function faultDrop(start: u64, end: u64): void {
  if (waiting == 0) return;
  for (let i: u32 = 1; i <= used; i++) {
    const fault = entry(i);
    if (fault.state != READY && fault.state != DEFERRED) continue;
    if (fault.page < start || fault.page >= end) continue;
    unlink(i);
    // It stays in its queue until that queue reaches it.
    fault.state = DROPPED;
    waiting--;
  }
}

/** Whether a fault of this page waits, that is missing. */
export function faultWaits(page: u64): bool {
  return waiting > 0 && search(bucket(page, KIND_MISSING), page, KIND_MISSING) != NONE;
}

/** Forgets the fault of a missing page that was filled, its sleepers woken: 0 where there is none, 1 a read, 2 a write. */
export function faultFilled(page: u64): u32 {
  if (waiting == 0) return 0;
  const index = search(bucket(page, KIND_MISSING), page, KIND_MISSING);
  if (index == NONE) return 0;
  unlink(index);
  entry(index).state = DROPPED;
  waiting--;
  return entry(index).write ? 2 : 1;
}

/** Milliseconds until a fault is due: 0 at once, −1 never. */
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
  if (queue > 0) putOff++;
  entry(index).next = NONE;
  const tail = tails + <usize>(queue << 2);
  if (head(queue) == NONE) store<u32>(heads + <usize>(queue << 2), index);
  else entry(load<u32>(tail)).next = index;
  store<u32>(tail, index);
}

function shift(queue: u32): void {
  if (queue > 0) putOff--;
  store<u32>(heads + <usize>(queue << 2), entry(head(queue)).next);
}
