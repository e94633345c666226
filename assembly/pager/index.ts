// The pager's state machine: which blocks have memory, which are read ahead, evicted, written back, poisoned. It makes
// no call and reads no clock: the same inputs give the same actions, anywhere.
//
// Inputs are the exports; each queues actions (actions.ts), which the driver performs with `pagerNext` until DONE. One
// thread gives all inputs, and nothing else changes the page-table entries of the program's mapping.
//
//   a fault      GHOST or none ----> FETCHING --arrived--> RESIDENT --evicted--> GHOST
//                  | no room            | failed              |  ^
//                  v                    v                     v  | written
//                WANTED               FAILED (poison)        WRITING --written--> GHOST, to make room
//
// Rules:
//  - Reserved memory (FETCHING, RESIDENT and WRITING blocks) never exceeds the limit.
//  - A fault is answered only if its block's bytes are there: by MAP, by UNPROTECT, or by POISON. WAKE answers none: it
//    lets a thread touch a block again that is mapped already.
//  - Order of an eviction: take the mapping away, so that faults come and are held; write what is dirty; free the
//    memory when that is done; then answer the faults. A block that is touched before the write ends stays.
//  - What a fault says of its page is a hint. The block table (books.ts) decides.
//  - A clean block of a writable pager is mapped write-protected, so its first write comes here and makes it dirty.

import { actionsStart, Exchange, emit, exchange, PagerAction, takeAction } from './actions';
import {
  addDirty,
  at,
  booksStart,
  count,
  dirtyCount,
  Flag,
  find,
  forget,
  List,
  make,
  oldestDirty,
  push,
  remove,
  removeDirty,
  Slot,
  State,
  slotCount,
  slotsLeft,
  tail,
} from './books';
import { counts, PagerCounts } from './counts';
import {
  activeRequests,
  addRequest,
  delayRequest,
  highestRequest,
  leastRequest,
  nextRequest,
  Phase,
  REQUESTS,
  Request,
  request,
  requestBefore,
  requestsStart,
} from './requests';
import { streamAdvance, streamMiss, streamNext, streamsMost } from './streams';

/** Options of `pagerStart`. */
export enum PagerOption {
  /** The program may write, and what it writes goes to a target. */
  WRITABLE = 1,
  /** A block that cannot be read is tried again for ever, not poisoned. */
  RETRY_FOREVER = 2,
  /** Changes are written when memory is short, and not before. */
  WRITES_LATE = 4,
  /** A block is poisoned when it cannot be read for the first time. */
  POISONS_AT_ONCE = 8,
  /** The source answers later, or not at all: what it has not answered by the deadline is poisoned. */
  MAY_STALL = 16,
}

/** Outcomes of a request or a write. */
export enum PagerOutcome {
  OK,
  /** It may be tried again. */
  AGAIN,
  /** Trying again is pointless. */
  NEVER,
}

export { counts, exchange };

/** Slots beyond those of resident blocks and ghosts: for blocks that are wanted, or failed. */
const SPARE_SLOTS: u32 = 1024;
/** Most actions of one input: what evicting a window of read-ahead takes. */
const ACTIONS_MOST: u32 = 32768;
/** Blocks that are probed in a row until one is evicted although it may be in use. */
const PROBES_MOST: u32 = 16;
/** Blocks that are written at the same time, most. */
const WRITES_MOST: u32 = 64;
/** Blocks that are evicted for one input, most, when the limit has become lower. */
const SHED_MOST: u32 = 256;
/** Slots that are kept for blocks that a thread touches: what the program asks for has to wait. */
const TOUCH_SLOTS: u32 = SPARE_SLOTS / 2;
/** Blocks that `pagerEvict` evicts in one call, most. */
const EVICTED_MOST: u32 = 4096;
/**
 * A request whose time is up has this many milliseconds more: if the process was stopped, its answer may be there, and
 * only has to be read.
 */
const LATE_MS: f64 = 50;
/**
 * A fault of a block that was mapped up to this many milliseconds ago has usually been answered since it was read: several
 * threads wanted the block. Its thread touches the block again. Later, the kernel has taken the mapping away, as it
 * does to swap memory out, and the block is mapped again.
 */
const STALE_MS: u32 = 2;
/** If this many such faults come in a row, the block is mapped again too. */
const STALE_MOST: u32 = 8;
/** A block is tried again this many milliseconds after a failed write. */
const WRITE_DELAY_MS: f64 = 100;
const NEVER: f64 = Infinity;

let blocks: u32 = 0;
let limit: u32 = 0;
let options: u32 = 0;
let requestMost: u32 = 1;
let aheadMost: u32 = 1;
let parallel: u32 = 1;
let deadlineMs: f64 = 0;
let now: f64 = 0;
/** Blocks whose memory is reserved. */
let reserved: u32 = 0;
let pinnedBlocks: u32 = 0;
/** Blocks being written. */
let writing: u32 = 0;
/** When a write may be tried again after one failed. */
let writeDue: f64 = 0;
/** Blocks that a flush waits for. */
let flushing: u32 = 0;
/** Whether a failed block was forgotten: from then on, any block may be poisoned. */
let poisonForgotten: bool = false;

function out(): PagerCounts {
  return changetype<PagerCounts>(counts);
}

// ---- start -------------------------------------------------------------------------------------------------

/**
 * Prepares the pager of `blockCount` blocks, of which `residentMost` (16 or more) have memory at a time. `requestBlocks`:
 * most blocks of a request; `aheadBlocks`: most blocks of read-ahead; `requestsAtOnce`: requests under way at once;
 * `deadline`: milliseconds until a block that cannot be read is poisoned. False: there is no memory for the block
 * table.
 */
export function pagerStart(
  blockCount: u32,
  residentMost: u32,
  bits: u32,
  requestBlocks: u32,
  aheadBlocks: u32,
  requestsAtOnce: u32,
  deadline: f64,
  seed: u32,
): bool {
  blocks = blockCount;
  options = bits;
  requestMost = requestBlocks;
  aheadMost = aheadBlocks;
  parallel = min(requestsAtOnce, REQUESTS);
  deadlineMs = deadline;
  requestsStart(seed);
  setLimit(residentMost);
  return booksStart(2 * residentMost + SPARE_SLOTS) && actionsStart(ACTIONS_MOST);
}

function setLimit(most: u32): void {
  limit = most;
  streamsMost(max(<u32>1, min(aheadMost, most >> 3)));
}

/**
 * Sets how many blocks (16 or more) have memory at a time: at most as many as at the start. Lower it by at most 512 at a
 * time. Blocks beyond it are evicted as soon as they can be.
 */
export function pagerLimit(most: u32): void {
  setLimit(most);
  advance();
}

/** The next action for the driver. */
export function pagerNext(): PagerAction {
  const action = takeAction();
  if (action == PagerAction.DONE) report();
  return action;
}

function report(): void {
  const all = out();
  all.reserved = reserved;
  all.dirty = dirtyCount + writing;
  all.pinned = pinnedBlocks;
  all.limit = limit;
  all.waiting = count(List.WANTED);
  changetype<Exchange>(exchange).due = nextDue();
}

function nextDue(): f64 {
  let due = NEVER;
  for (let id: u32 = 1; id <= highestRequest; id++) {
    const one = request(id);
    if (one.phase == Phase.FAILED) due = min(due, one.due);
    else due = min(due, expiryOf(one));
  }
  if (writeDue > 0 && dirtyCount > 0) due = min(due, writeDue);
  return due;
}

/** When the time of a request that is under way is up; infinite: never. */
function expiryOf(one: Request): f64 {
  if (one.phase != Phase.ACTIVE) return NEVER;
  if (!(options & PagerOption.MAY_STALL) || options & PagerOption.RETRY_FOREVER) return NEVER;
  return one.late > 0 ? one.late + LATE_MS : one.since + deadlineMs;
}

/**
 * The source has not answered in time. Blocks that were read ahead are not wanted any more: their request would keep
 * others waiting.
 */
function expire(id: u32): void {
  const one = request(id);
  if (one.late == 0) {
    one.late = max(now, 0.001);
    return;
  }
  if (one.awaited != 0) out().failures++;
  const action = one.awaited != 0 ? PagerAction.EXPIRE : PagerAction.CANCEL;
  emit(action, one.block + one.done, one.count - one.done, id);
  for (; one.done < one.count; one.done++) {
    const index = find(one.block + one.done);
    if (isAwaited(index)) poison(index);
    else discard(index);
  }
  one.phase = Phase.FREE;
}

/** A thread or the program waits for a block that is being fetched. */
function awaitRequest(slot: Slot): void {
  const one = request(slot.request);
  if (one.awaited == 0 && one.phase == Phase.ACTIVE) one.since = now;
  one.awaited = 1;
}

/** Sets the time, in milliseconds, and does what is due. To call before each other input. */
export function pagerTime(milliseconds: f64): void {
  now = milliseconds;
  for (let id: u32 = 1; id <= highestRequest; id++) {
    const one = request(id);
    if (one.phase == Phase.FAILED && one.due <= now) one.phase = Phase.QUEUED;
    else if (expiryOf(one) <= now) expire(id);
  }
  if (writeDue > 0 && writeDue <= now) writeDue = 0;
  advance();
}

// ---- faults ------------------------------------------------------------------------------------------------

/** A thread waits for a block: to read it, or to write to it. False: no slot is free; give the fault again later. */
export function pagerFault(block: u32, write: bool): bool {
  const index = find(block);
  if (index == 0) {
    const wanted = want(block, Flag.AWAITED | (write ? Flag.WRITE_AWAITED : 0), 0);
    if (wanted) out().faults++;
    advance();
    return wanted;
  }
  out().faults++;
  const slot = at(index);
  switch (slot.state) {
    case State.RESIDENT:
      out().hits++;
      touch(index, write);
      break;
    case State.WRITING:
      out().hits++;
      if (write) slot.flags |= Flag.AWAITED | Flag.WRITE_AWAITED;
      else touch(index, false);
      break;
    case State.FETCHING:
      slot.flags |= Flag.AWAITED | (write ? Flag.WRITE_AWAITED : 0);
      request(slot.request).urgent = 1;
      awaitRequest(slot);
      break;
    case State.WANTED:
      slot.flags |= Flag.AWAITED | (write ? Flag.WRITE_AWAITED : 0);
      break;
    case State.FAILED:
      emit(PagerAction.POISON, block);
      break;
    default:
      want(block, Flag.AWAITED | (write ? Flag.WRITE_AWAITED : 0), index);
  }
  advance();
  return true;
}

/** A thread touches a block whose bytes are there. */
function touch(index: u32, write: bool): void {
  const slot = at(index);
  slot.flags &= ~(Flag.EVICT | Flag.ASKED);
  if (slot.flags & Flag.AHEAD) {
    slot.flags &= ~Flag.AHEAD;
    out().aheadUsed++;
  } else if (slot.flags & Flag.PROBED) {
    slot.flags |= Flag.HOT;
  }
  slot.flags = (slot.flags & ~Flag.PROBED) | Flag.USED;
  const marked = (slot.flags & Flag.MARKER) != 0;
  slot.flags &= ~Flag.MARKER;
  if (write && !(slot.flags & Flag.DIRTY)) {
    out().writeFaults++;
    addDirty(index);
    if (slot.flags & Flag.MAPPED) emit(PagerAction.UNPROTECT, slot.block);
    else mapOne(index);
  } else if (
    slot.flags & Flag.MAPPED &&
    milliseconds() - slot.mappedAt <= STALE_MS &&
    ++slot.stale % STALE_MOST != 0
  ) {
    emit(PagerAction.WAKE, slot.block);
  } else if (slot.flags & Flag.DIRTY) {
    mapOne(index);
  } else {
    mapRun(index);
  }
  if (marked) readAhead(slot.block);
}

function milliseconds(): u32 {
  return <u32>(<u64>now);
}

function isWritable(): bool {
  return (options & PagerOption.WRITABLE) != 0;
}

/** Maps one block: write-protected if it is clean, or must not change now. */
function mapOne(index: u32): void {
  const slot = at(index);
  slot.flags |= Flag.MAPPED;
  slot.mappedAt = milliseconds();
  slot.stale = 0;
  const open = !isWritable() || (slot.flags & Flag.DIRTY && slot.state != State.WRITING);
  emit(open ? PagerAction.MAP : PagerAction.MAP_PROTECTED, slot.block);
}

/** Maps a clean block, and the blocks after it that were read ahead, up to the next marker. */
function mapRun(index: u32): void {
  mapOne(index);
  const first = at(index).block;
  for (let step: u32 = 1; step < requestMost; step++) {
    const next = first + step < blocks ? find(first + step) : 0;
    if (next == 0) return;
    const slot = at(next);
    if (slot.state != State.RESIDENT || slot.flags & (Flag.MAPPED | Flag.MARKER | Flag.DIRTY)) return;
    if (!(slot.flags & Flag.AHEAD)) return;
    slot.flags &= ~Flag.AHEAD;
    out().aheadUsed++;
    mapOne(next);
  }
}

// ---- wanting blocks ----------------------------------------------------------------------------------------

/**
 * Wants a block that has no memory. `index`: its slot, if it has one: it was evicted, or has failed. False: it has none,
 * and no slot is free.
 */
function want(block: u32, flags: u32, index: u32): bool {
  const wasGhost = index != 0 && at(index).state == State.GHOST;
  if (index == 0) index = make(block);
  if (index == 0) index = steal(block);
  if (index == 0) return false;
  const slot = at(index);
  if (slot.state == State.FAILED) emit(PagerAction.DROP, block);
  // Making room may forget ghosts, but not this one.
  remove(index);
  slot.state = State.WANTED;
  slot.flags = flags | (wasGhost ? Flag.HOT : 0);
  if (!makeRoom((flags & Flag.AWAITED) != 0)) {
    out().roomWaits++;
    wait(index);
    return true;
  }
  const window = flags & Flag.AWAITED ? streamMiss(block) : 1;
  fetch(index, window, (flags & Flag.AWAITED) != 0);
  return true;
}

/** A slot for a block when no slot is free: that of the block that failed longest ago, and is not pinned; 0: none. */
function steal(block: u32): u32 {
  let failed = tail(List.FAILED);
  while (failed != 0 && at(failed).pins > 0) failed = at(failed).prev;
  if (failed == 0) return 0;
  poisonForgotten = true;
  forget(failed);
  return make(block);
}

function wait(index: u32): void {
  at(index).state = State.WANTED;
  push(index, List.WANTED);
}

/** Requests a block for which there is room, and what a sequential reader will want after it. */
function fetch(index: u32, window: u32, urgent: bool): void {
  const block = at(index).block;
  if (!urgent) {
    const before = requestBefore(block, requestMost);
    if (before != 0) {
      join(index, before);
      request(before).count++;
      awaitRequest(at(index));
      return;
    }
  }
  const id = addRequest(block, 1, urgent);
  if (id == 0) {
    wait(index);
    return;
  }
  join(index, id);
  const made = request(id);
  made.awaited = 1;
  const most = min(window, requestMost);
  while (made.count < most && extend(made.block + made.count, id)) made.count++;
  if (window > 1) {
    const marker = at(find(block + made.count / 2));
    if (made.count > 1) marker.flags |= Flag.MARKER;
    if (made.count == most && window > most) requestAhead(block + made.count, window - most);
  }
}

/** Reserves a block's memory, as a part of a request. */
function join(index: u32, id: u32): void {
  const slot = at(index);
  remove(index);
  if (poisonForgotten) emit(PagerAction.DROP, slot.block);
  slot.state = State.FETCHING;
  slot.request = id;
  reserved++;
}

/** Adds one more block to a request, read ahead. False: it has memory already, or there is no room. */
function extend(block: u32, id: u32): bool {
  if (block >= blocks) return false;
  let index = find(block);
  if (index != 0 && at(index).state != State.GHOST) return false;
  if (!makeRoom(false)) return false;
  // Evicting may have taken the slot of a ghost.
  index = find(block);
  const wasGhost = index != 0;
  if (!wasGhost) index = make(block);
  if (index == 0) return false;
  at(index).flags = Flag.AHEAD | (wasGhost ? Flag.HOT : 0);
  join(index, id);
  out().ahead++;
  return true;
}

/** Requests blocks that no thread waits for. */
function requestAhead(block: u32, blocksWanted: u32): void {
  for (let left = blocksWanted; left > 0 && block < blocks; ) {
    const first = find(block);
    if (first != 0 && at(first).state != State.GHOST) {
      block++;
      left--;
      continue;
    }
    const id = addRequest(block, 0, false);
    if (id == 0) return;
    const made = request(id);
    while (made.count < min(left, requestMost) && extend(block + made.count, id)) made.count++;
    if (made.count == 0) {
      made.phase = Phase.FREE;
      return;
    }
    block += made.count;
    left -= made.count;
  }
}

/** Requests the next window of the reader that has reached a marker. */
function readAhead(block: u32): void {
  const more = streamAdvance(block);
  if (more == 0) return;
  const from = streamNext;
  requestAhead(from, more);
  const first = from < blocks ? find(from) : 0;
  if (first != 0 && at(first).state == State.FETCHING) at(first).flags |= Flag.MARKER;
}

/** The block that waits for room for the longest time, those that a thread waits for first. */
function nextWanted(): u32 {
  for (let index = tail(List.WANTED); index != 0; index = at(index).prev) {
    if (at(index).flags & Flag.AWAITED) return index;
  }
  return tail(List.WANTED);
}

/** Makes requests, and gives room to blocks that wait for it. */
function advance(): void {
  for (let left = SHED_MOST; left > 0 && reserved > limit && (evict() || cancelAhead()); left--) {}
  while (count(List.WANTED) > 0) {
    const index = nextWanted();
    const urgent = (at(index).flags & Flag.AWAITED) != 0;
    if (!makeRoom(urgent)) break;
    remove(index);
    fetch(index, 1, urgent);
    if (at(index).state == State.WANTED) break;
  }
  for (let active = activeRequests(); ; active++) {
    const id = nextRequest(active >= parallel);
    // One more than the source takes at once, if a thread waits: the driver reads urgent ones first.
    if (id == 0 || active > parallel) break;
    const one = request(id);
    one.phase = Phase.ACTIVE;
    one.late = 0;
    if (one.attempts == 0) one.since = now;
    emit(PagerAction.FETCH, one.block + one.done, one.count - one.done, id, one.urgent != 0);
  }
  if (isWritable()) writeBack();
}

// ---- the source's answers ----------------------------------------------------------------------------------

/** The first `done` blocks of what FETCH has requested are in memory. */
export function pagerArrived(id: u32, done: u32): void {
  const one = request(id);
  one.since = now;
  one.late = 0;
  arrive(id, one.done + done);
  advance();
}

function arrive(id: u32, total: u32): void {
  const one = request(id);
  while (one.done < total) {
    const index = find(one.block + one.done++);
    out().fetched++;
    settle(index);
  }
}

/** A block's bytes are there. */
function settle(index: u32): void {
  const slot = at(index);
  slot.state = State.RESIDENT;
  slot.request = 0;
  const hot = (slot.flags & Flag.HOT) != 0;
  slot.flags &= ~Flag.HOT;
  push(index, hot ? List.MAIN : List.FRESH);
  if (slot.flags & Flag.ASKED && slot.pins > 0) mapPinned(index);
  if (!(slot.flags & Flag.AWAITED)) return;
  const write = (slot.flags & Flag.WRITE_AWAITED) != 0;
  slot.flags &= ~(Flag.AWAITED | Flag.WRITE_AWAITED);
  touch(index, write && isWritable());
}

/** A request has ended. Blocks that have not arrived by then have failed. */
export function pagerFetched(id: u32, outcome: PagerOutcome): void {
  const one = request(id);
  if (outcome == PagerOutcome.OK) {
    arrive(id, one.count);
    one.phase = Phase.FREE;
    advance();
    return;
  }
  out().failures++;
  shrink(id);
  if (one.count == 0) {
    one.phase = Phase.FREE;
  } else if (one.count > 1) {
    divide(id);
  } else if (
    outcome == PagerOutcome.AGAIN &&
    !(options & PagerOption.POISONS_AT_ONCE) &&
    (options & PagerOption.RETRY_FOREVER || now - one.since < deadlineMs)
  ) {
    delayRequest(one, now);
  } else {
    poison(find(one.block));
    one.phase = Phase.FREE;
  }
  advance();
}

/**
 * Requests the blocks of a failed request again, each by itself: it may be one of them that cannot be read. (An overlay
 * holds some of them, and the source has the others.)
 */
function divide(id: u32): void {
  const whole = request(id);
  const block = whole.block;
  const end = block + whole.count;
  const since = whole.since;
  whole.phase = Phase.FREE;
  for (let each = block; each < end; each++) {
    const index = find(each);
    if (!isAwaited(index)) {
      discard(index);
      continue;
    }
    const slot = at(index);
    const one = addRequest(each, 1, (slot.flags & Flag.AWAITED) != 0);
    if (one == 0) {
      reserved--;
      emit(PagerAction.PUNCH, each);
      wait(index);
      continue;
    }
    slot.request = one;
    request(one).since = since;
    request(one).awaited = 1;
    // Its time goes on.
    request(one).attempts = 1;
  }
}

/** Poisons a block whose request has failed, and is to be made again. */
export function pagerGiveUp(block: u32): void {
  const index = find(block);
  if (index == 0 || at(index).state != State.FETCHING) return;
  const one = request(at(index).request);
  if (one.phase != Phase.FAILED) return;
  poison(index);
  one.phase = Phase.FREE;
  advance();
}

/** Reduces a failed request to the blocks that a thread or the program waits for. */
function shrink(id: u32): void {
  const one = request(id);
  while (one.done < one.count && !isAwaited(find(one.block + one.count - 1))) {
    discard(find(one.block + --one.count));
  }
  while (one.done < one.count && !isAwaited(find(one.block + one.done))) {
    discard(find(one.block + one.done++));
  }
  one.block += one.done;
  one.count -= one.done;
  one.done = 0;
}

function isAwaited(index: u32): bool {
  return (at(index).flags & (Flag.AWAITED | Flag.ASKED)) != 0;
}

/** Gives up a block that was requested, and that neither a thread nor the program waits for. */
function discard(index: u32): void {
  const block = at(index).block;
  reserved--;
  emit(PagerAction.PUNCH, block);
  forget(index);
}

function poison(index: u32): void {
  const slot = at(index);
  out().poisoned++;
  reserved--;
  emit(PagerAction.PUNCH, slot.block);
  emit(PagerAction.POISON, slot.block);
  slot.flags = 0;
  slot.state = State.FAILED;
  push(index, List.FAILED);
}

// ---- eviction ----------------------------------------------------------------------------------------------

/** Makes sure that one more block can have memory. `urgent`: a thread waits for it. False: not now. */
function makeRoom(urgent: bool): bool {
  while (reserved >= limit) {
    if (!evict() && !(urgent && cancelAhead())) return false;
  }
  return true;
}

/** Cancels the request that is needed least. False: there is none. */
function cancelAhead(): bool {
  const id = leastRequest();
  if (id == 0) return false;
  const one = request(id);
  if (one.phase == Phase.ACTIVE) emit(PagerAction.CANCEL, one.block, one.count, id);
  for (; one.done < one.count; one.done++) {
    const index = find(one.block + one.done);
    // A block that the program has asked for waits for room.
    if (at(index).flags & Flag.ASKED) {
      reserved--;
      emit(PagerAction.PUNCH, at(index).block);
      wait(index);
    } else {
      discard(index);
    }
  }
  one.phase = Phase.FREE;
  return true;
}

/** Frees the memory of one block. False: no clean block may go now. */
function evict(): bool {
  let probes: u32 = 0;
  const freshMost = limit / 10;
  // All blocks of a list may be pinned or dirty: then those of the other list go.
  let freshLeft = 2 * count(List.FRESH);
  // A block may have to be seen three times: hot, in use, and then neither.
  let mainLeft = freshLeft + 3 * count(List.MAIN);
  while (freshLeft + mainLeft > 0) {
    const prefersFresh = count(List.MAIN) == 0 || count(List.FRESH) > freshMost;
    const list = mainLeft == 0 || (prefersFresh && freshLeft > 0) ? List.FRESH : List.MAIN;
    if (list == List.FRESH) freshLeft--;
    else mainLeft--;
    const index = tail(list);
    if (index == 0) continue;
    const slot = at(index);
    if (slot.pins > 0 || slot.state == State.WRITING) {
      push(index, list);
    } else if (slot.flags & Flag.HOT) {
      slot.flags &= ~Flag.HOT;
      push(index, List.MAIN);
    } else if (slot.flags & Flag.USED && slot.flags & Flag.MAPPED && probes < PROBES_MOST) {
      probes++;
      probe(index);
      push(index, list);
    } else if (slot.flags & Flag.DIRTY) {
      push(index, list);
      if (writing < WRITES_MOST && writeDue == 0) startWrite(index, Flag.EVICT);
    } else {
      free(index);
      return true;
    }
  }
  return false;
}

/** Drops a block's page-table entries: a touch will say that it is in use. */
function probe(index: u32): void {
  const slot = at(index);
  out().probed++;
  slot.flags = (slot.flags & ~(Flag.MAPPED | Flag.USED)) | Flag.PROBED;
  emit(PagerAction.DROP, slot.block);
}

/** Evicts a clean block. */
function free(index: u32): void {
  const slot = at(index);
  out().evicted++;
  reserved--;
  emit(PagerAction.PUNCH, slot.block);
  if (slot.list == List.MAIN || slot.flags & Flag.AHEAD) {
    forget(index);
    return;
  }
  slot.state = State.GHOST;
  slot.flags = 0;
  push(index, List.GHOSTS);
  if (count(List.GHOSTS) > limit) forget(tail(List.GHOSTS));
}

// ---- writing back ------------------------------------------------------------------------------------------

/** Writes dirty blocks when there are many, or a flush waits. */
function writeBack(): void {
  const dirtyMost = options & PagerOption.WRITES_LATE ? limit - limit / 8 : limit / 4;
  for (let index = oldestDirty(); index != 0 && writing < WRITES_MOST && writeDue == 0; ) {
    if (flushing == 0 && dirtyCount <= dirtyMost) return;
    const slot = at(index);
    const next = slot.nextDirty;
    if (slot.flags & Flag.FLUSH || (slot.pins == 0 && dirtyCount > dirtyMost)) startWrite(index, 0);
    index = next;
  }
}

/** Begins to write a dirty block; nothing may change it until `pagerWritten`. */
function startWrite(index: u32, flags: u32): void {
  const slot = at(index);
  removeDirty(index);
  writing++;
  slot.flags |= flags;
  if (slot.pins > 0) {
    // What is pinned must not fault, so it is written as it is, and stays dirty.
    slot.flags |= Flag.SNAPSHOT;
  } else if (slot.flags & Flag.MAPPED) {
    if (flags & Flag.EVICT) {
      slot.flags &= ~Flag.MAPPED;
      emit(PagerAction.DROP, slot.block);
    } else {
      emit(PagerAction.PROTECT, slot.block);
    }
  }
  slot.state = State.WRITING;
  emit(PagerAction.WRITE, slot.block);
}

/** A block was written, or could not be. */
export function pagerWritten(block: u32, outcome: PagerOutcome): void {
  const index = find(block);
  const slot = at(index);
  writing--;
  slot.state = State.RESIDENT;
  const waits = (slot.flags & Flag.WRITE_AWAITED) != 0;
  const evicts = (slot.flags & Flag.EVICT) != 0;
  const snapshot = (slot.flags & Flag.SNAPSHOT) != 0;
  const again = (slot.flags & Flag.REWRITE) != 0;
  slot.flags &= ~(Flag.AWAITED | Flag.WRITE_AWAITED | Flag.EVICT | Flag.SNAPSHOT | Flag.REWRITE);
  if (outcome == PagerOutcome.OK) {
    out().written++;
    if (slot.flags & Flag.FLUSH && !again) {
      flushing--;
      slot.flags &= ~Flag.FLUSH;
    }
    if (snapshot) addDirty(index);
    else if (evicts && !waits && slot.pins == 0) free(index);
  } else {
    addDirty(index);
    writeDue = now + WRITE_DELAY_MS;
    // It is dirty again, and may be mapped write-protected: the protection goes when a thread waits to write.
    if (!waits && slot.flags & Flag.MAPPED && !snapshot) emit(PagerAction.UNPROTECT, block);
  }
  if (waits) {
    if (slot.flags & Flag.DIRTY) {
      if (slot.flags & Flag.MAPPED) emit(PagerAction.UNPROTECT, block);
      else mapOne(index);
    } else {
      touch(index, true);
    }
  }
  if (slot.pins > 0 && !(slot.flags & Flag.MAPPED)) mapPinned(index);
  advance();
}

/** Writes all blocks that are dirty now. `pagerFlushing` says how many are left. */
export function pagerFlush(): void {
  for (let index = oldestDirty(); index != 0; index = at(index).nextDirty) mark(index);
  for (let list = List.FRESH; list <= List.MAIN; list++) {
    for (let index = tail(list); index != 0; index = at(index).prev) {
      if (at(index).state == State.WRITING) mark(index);
    }
  }
  advance();
}

function mark(index: u32): void {
  const slot = at(index);
  if (slot.state == State.WRITING && slot.flags & Flag.SNAPSHOT) slot.flags |= Flag.REWRITE;
  if (slot.flags & Flag.FLUSH) return;
  slot.flags |= Flag.FLUSH;
  flushing++;
}

/** How many blocks a flush waits for. */
export function pagerFlushing(): u32 {
  return flushing;
}

// ---- what the program asks for -----------------------------------------------------------------------------

/**
 * Asks for `blockCount` blocks ahead of any touch, and pins them if `pin` says so. `pagerIsThere` tells of each. Returns
 * how many it was asked for, from the first one on: no slot is free for more, and they are to be asked for later.
 */
export function pagerAsk(first: u32, blockCount: u32, pin: bool, write: bool): u32 {
  let asked: u32 = 0;
  while (asked < blockCount && ask(first + asked, pin, write)) asked++;
  advance();
  return asked;
}

function ask(block: u32, pin: bool, write: bool): bool {
  let index = find(block);
  // A failed block loses its slot if need be.
  if (index == 0 && slotsLeft() + count(List.FAILED) <= TOUCH_SLOTS) return false;
  if (index == 0 || at(index).state == State.GHOST || at(index).state == State.FAILED) {
    want(block, Flag.ASKED, index);
  }
  index = find(block);
  const slot = at(index);
  if (slot.state == State.FETCHING || slot.state == State.WANTED) slot.flags |= Flag.ASKED;
  if (slot.state == State.FETCHING) awaitRequest(slot);
  if (pin) {
    if (slot.pins++ == 0) pinnedBlocks++;
    if (write) slot.flags |= Flag.WRITE_AWAITED;
    if (slot.state == State.RESIDENT) mapPinned(index);
  }
  return true;
}

/** Whether a block that was asked for is there: 1 yes, 0 not yet, −1 it failed or was discarded. */
export function pagerIsThere(block: u32): i32 {
  const index = find(block);
  if (index == 0) return -1;
  const slot = at(index);
  if (slot.state == State.RESIDENT) return slot.pins == 0 || slot.flags & Flag.MAPPED ? 1 : 0;
  return slot.state == State.WRITING || slot.state == State.FETCHING || slot.state == State.WANTED ? 0 : -1;
}

/** Maps a pinned block, writable if the program will write to it. */
function mapPinned(index: u32): void {
  const slot = at(index);
  const write = isWritable() && (slot.flags & Flag.WRITE_AWAITED) != 0;
  slot.flags &= ~(Flag.AWAITED | Flag.WRITE_AWAITED | Flag.ASKED);
  touch(index, write);
}

/** Ends one pin of a block. */
export function pagerUnpin(block: u32): void {
  const index = find(block);
  if (index == 0 || at(index).pins == 0) return;
  const slot = at(index);
  if (--slot.pins == 0) {
    pinnedBlocks--;
    // The pin may have ended before the block was there, and no thread waits to write.
    if (!(slot.flags & Flag.AWAITED)) slot.flags &= ~Flag.WRITE_AWAITED;
  }
  advance();
}

/**
 * Evicts the blocks of a range as soon as possible, unless they are pinned. `from`: the slot to begin with; 1 at first.
 * Returns the slot to go on with in the next call; 0: all is done. It looks at slots, because a range may have millions
 * of blocks of which a few have memory.
 */
export function pagerEvict(first: u32, blockCount: u32, from: u32): u32 {
  let index = from;
  if (blockCount <= REQUESTS) {
    for (let block = first; block < first + blockCount; block++) {
      const found = find(block);
      if (found != 0) evictSlot(found);
    }
    index = slotCount + 1;
  }
  for (let evicted: u32 = 0; index <= slotCount && evicted < EVICTED_MOST; index++) {
    const slot = at(index);
    if (slot.state == State.FREE || slot.block < first || slot.block - first >= blockCount) continue;
    evictSlot(index);
    evicted++;
  }
  advance();
  return index <= slotCount ? index : 0;
}

function evictSlot(index: u32): void {
  const slot = at(index);
  if (slot.state == State.WRITING && slot.pins == 0) slot.flags |= Flag.EVICT;
  if (slot.state != State.RESIDENT || slot.pins > 0) return;
  if (slot.flags & Flag.DIRTY) startWrite(index, Flag.EVICT);
  else free(index);
}
