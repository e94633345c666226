// What the pager's driver does next, in order. An input of the state machine queues actions; the driver performs all of
// them before it gives the next input.

import { allocate } from './books';

export enum PagerAction {
  /** Nothing is left: give the next input. */
  DONE,
  /** Read blocks from the source into memory: `id` is the number of the request. */
  FETCH,
  /** A request is not wanted any more. Its blocks have no memory: nothing may be written there. */
  CANCEL,
  /** Map blocks (CONTINUE), and wake the threads that wait for them. */
  MAP,
  /** As MAP, write-protected. */
  MAP_PROTECTED,
  /** Lift the write protection, and wake the threads that wait to write. */
  UNPROTECT,
  /** Write-protect blocks. */
  PROTECT,
  /** Drop page-table entries; the bytes stay. */
  DROP,
  /** Free the memory of blocks. */
  PUNCH,
  /** Write blocks to the target: `id` counts the writes. */
  WRITE,
  /** Poison blocks: a thread that touches them gets SIGBUS. */
  POISON,
  /** Let the threads that wait for blocks touch them again. */
  WAKE,
  /** As CANCEL: the source has not answered in time, so its blocks will be poisoned. */
  EXPIRE,
}

/** The action that `pagerNext` has returned, and what the driver asks for most. */
@unmanaged
export class Exchange {
  /** The first block of the action. */
  block: u32;
  /** How many blocks, from the first one on. */
  count: u32;
  /** The request's or the write's number. */
  id: u32;
  /** Whether a thread waits for a block of the request. */
  urgent: u32;
  /** When `pagerTime` is due, in milliseconds; infinite: never. */
  due: f64;
}
export const exchange: usize = memory.data(32, 8);

@unmanaged
class Entry {
  action: u32;
  block: u32;
  count: u32;
  id: u32;
  urgent: u32;
}
const ENTRY_BYTES: usize = 20;

let entries: usize = 0;
let capacity: u32 = 0;
let first: u32 = 0;
let length: u32 = 0;

export function actionsStart(most: u32): bool {
  capacity = most;
  entries = allocate(<usize>most * ENTRY_BYTES);
  return entries != 0;
}

function entry(position: u32): Entry {
  return changetype<Entry>(entries + <usize>((first + position) % capacity) * ENTRY_BYTES);
}

/** Queues an action. It joins the one before it if they are alike and about adjacent blocks. */
export function emit(
  action: PagerAction,
  block: u32,
  count: u32 = 1,
  id: u32 = 0,
  urgent: bool = false,
): void {
  if (length > 0 && id == 0) {
    const last = entry(length - 1);
    if (last.action == action && last.id == 0 && last.block + last.count == block) {
      last.count += count;
      return;
    }
  }
  // Also in the release build: what is lost here would be a thread asleep, or memory that is used twice.
  if (length >= capacity) unreachable();
  const one = entry(length++);
  one.action = action;
  one.block = block;
  one.count = count;
  one.id = id;
  one.urgent = urgent ? 1 : 0;
}

/** Takes the next action, and describes it in the exchange. */
export function takeAction(): PagerAction {
  if (length == 0) return PagerAction.DONE;
  const one = entry(0);
  const out = changetype<Exchange>(exchange);
  out.block = one.block;
  out.count = one.count;
  out.id = one.id;
  out.urgent = one.urgent;
  first = (first + 1) % capacity;
  length--;
  return one.action;
}
