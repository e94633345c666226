// The block table of a pager: which blocks have memory, and the lists in which they wait to be evicted.
//
// Rules:
//  - A block is `1 << shift` bytes of the source. A slot holds what is known about one block. A block without a slot was
//    never used, or is long forgotten: it has no memory and is mapped nowhere.
//  - Slots are referred to by index; index 0 is no slot. All slots are allocated at the start, so nothing can run out later
//    except the slots themselves: then a ghost loses its slot, and if there is none, the block has to wait for one.
//  - A slot is in one list at most. Dirty blocks are also in the list of dirty blocks.

/** What a slot says of its block. */
export enum State {
  FREE,
  /** Evicted not long ago. It has no memory. */
  GHOST,
  /** Wanted, but there is no room for it yet. It has no memory. */
  WANTED,
  /** Its memory is reserved, and a request for it is queued or under way. */
  FETCHING,
  /** Its memory holds its bytes. */
  RESIDENT,
  /** As RESIDENT; its bytes are being written to the target. It must not change until that is done. */
  WRITING,
  /** It could not be read, and is poisoned. It has no memory. */
  FAILED,
}

/** The lists. FRESH and MAIN are those of S3-FIFO: what came in once, and what was used again. */
export enum List {
  NONE,
  FRESH,
  MAIN,
  GHOSTS,
  WANTED,
  FAILED,
}

/** Flags of a slot. */
export namespace Flag {
  /** Its pages are in the program's page table. */
  export const MAPPED: u32 = 1;
  /** Touched since its page-table entries were dropped, or since it came in. */
  export const USED: u32 = 2;
  /** A thread waits for it. */
  export const AWAITED: u32 = 4;
  /** A thread waits to write to it. */
  export const WRITE_AWAITED: u32 = 8;
  /** Its bytes differ from those of the target, and it is not write-protected. */
  export const DIRTY: u32 = 16;
  /** Read ahead, and not touched yet. */
  export const AHEAD: u32 = 32;
  /** The next touch starts more read-ahead. */
  export const MARKER: u32 = 64;
  /** Its page-table entries were dropped, to find out whether it is in use. */
  export const PROBED: u32 = 128;
  /** Was used again after it came in, or after it was evicted. */
  export const HOT: u32 = 256;
  /** To evict once it is written. */
  export const EVICT: u32 = 512;
  /** A flush waits until it is written. */
  export const FLUSH: u32 = 1024;
  /** Pinned, and being written as it is: it stays dirty. */
  export const SNAPSHOT: u32 = 2048;
  /** The program has asked for it: it is not discarded because no thread waits. */
  export const ASKED: u32 = 4096;
  /** A flush came while its SNAPSHOT was being written: it may have changed since that began, and is written again. */
  export const REWRITE: u32 = 8192;
}

@unmanaged
export class Slot {
  block: u32;
  state: u32;
  flags: u32;
  list: u32;
  next: u32;
  prev: u32;
  /** The next slot of the same hash value. */
  chain: u32;
  /** The neighbours in the list of dirty blocks. */
  nextDirty: u32;
  prevDirty: u32;
  /** How often it is pinned. */
  pins: u32;
  /** Number of the request that reads it, while it is FETCHING. */
  request: u32;
  /** When it was mapped last, in milliseconds, modulo 2^32. */
  mappedAt: u32;
  /** Faults in a row that came shortly after it was mapped. */
  stale: u32;
}
const SLOT_BYTES: usize = 52;

let slots: usize = 0;
/** The highest index of a slot. */
export let slotCount: u32 = 0;
/** Slots that no block has. */
let freeCount: u32 = 0;
let hashes: usize = 0;
let hashShift: u32 = 0;
let freeHead: u32 = 0;

const heads: usize = memory.data(4 * 6, 8);
const tails: usize = memory.data(4 * 6, 8);
const counts: usize = memory.data(4 * 6, 8);
let dirtyHead: u32 = 0;
let dirtyTail: u32 = 0;
export let dirtyCount: u32 = 0;

// ---- memory ------------------------------------------------------------------------------------------------

/** First byte that was never allocated. */
let top: usize = (__heap_base + 7) & ~7;

/** Takes `bytes` zeroed bytes, for good; 0: linear memory has reached its maximum. */
export function allocate(bytes: usize): usize {
  const place = top;
  const end = place + ((bytes + 7) & ~7);
  const have = (<usize>memory.size()) << 16;
  if (end > have && memory.grow(<i32>((end - have + 0xffff) >> 16)) < 0) return 0;
  top = end;
  return place;
}

/** Makes all slots. False: there is no memory for them. */
export function booksStart(capacity: u32): bool {
  let bits: u32 = 4;
  while ((<u32>1) << bits < capacity) bits++;
  hashShift = 32 - bits;
  hashes = allocate((<usize>4) << bits);
  slots = allocate(<usize>(capacity + 1) * SLOT_BYTES);
  if (!hashes || !slots) return false;
  for (let index = capacity; index > 0; index--) {
    at(index).next = freeHead;
    freeHead = index;
  }
  slotCount = freeCount = capacity;
  return true;
}

/** Slots for more blocks: those that no block has, and those of ghosts. */
export function slotsLeft(): u32 {
  return freeCount + count(List.GHOSTS);
}

export function at(index: u32): Slot {
  return changetype<Slot>(slots + <usize>index * SLOT_BYTES);
}

// ---- finding -----------------------------------------------------------------------------------------------

function hashOf(block: u32): usize {
  return hashes + ((<usize>((block * 0x9e3779b1) >> hashShift)) << 2);
}

/** The slot of a block; 0: it has none. */
export function find(block: u32): u32 {
  let index = load<u32>(hashOf(block));
  while (index != 0 && at(index).block != block) index = at(index).chain;
  return index;
}

/** A slot for a block that has none; 0: all slots are in use, and none of them is a ghost's. */
export function make(block: u32): u32 {
  if (freeHead == 0) {
    const ghost = tail(List.GHOSTS);
    if (ghost == 0) return 0;
    forget(ghost);
  }
  const index = freeHead;
  const slot = at(index);
  freeHead = slot.next;
  freeCount--;
  memory.fill(changetype<usize>(slot), 0, SLOT_BYTES);
  slot.block = block;
  const place = hashOf(block);
  slot.chain = load<u32>(place);
  store<u32>(place, index);
  return index;
}

/** Forgets a block. */
export function forget(index: u32): void {
  const slot = at(index);
  assert(!(slot.flags & Flag.DIRTY), 'a dirty block was forgotten');
  remove(index);
  let place = hashOf(slot.block);
  while (load<u32>(place) != index) place = changetype<usize>(at(load<u32>(place))) + offsetof<Slot>('chain');
  store<u32>(place, slot.chain);
  slot.state = State.FREE;
  slot.next = freeHead;
  freeHead = index;
  freeCount++;
}

// ---- lists -------------------------------------------------------------------------------------------------

export function tail(list: List): u32 {
  return load<u32>(tails + ((<usize>list) << 2));
}

export function count(list: List): u32 {
  return load<u32>(counts + ((<usize>list) << 2));
}

/** Moves a slot to the head of a list. */
export function push(index: u32, list: List): void {
  remove(index);
  const slot = at(index);
  const offset = (<usize>list) << 2;
  const head = load<u32>(heads + offset);
  slot.list = list;
  slot.next = head;
  slot.prev = 0;
  if (head == 0) store<u32>(tails + offset, index);
  else at(head).prev = index;
  store<u32>(heads + offset, index);
  store<u32>(counts + offset, count(list) + 1);
}

/** Takes a slot out of its list, if it is in one. */
export function remove(index: u32): void {
  const slot = at(index);
  if (slot.list == List.NONE) return;
  const offset = (<usize>slot.list) << 2;
  if (slot.prev == 0) store<u32>(heads + offset, slot.next);
  else at(slot.prev).next = slot.next;
  if (slot.next == 0) store<u32>(tails + offset, slot.prev);
  else at(slot.next).prev = slot.prev;
  store<u32>(counts + offset, load<u32>(counts + offset) - 1);
  slot.list = List.NONE;
}

// ---- dirty blocks ------------------------------------------------------------------------------------------

/** Adds a block to the dirty ones, as the youngest of them. */
export function addDirty(index: u32): void {
  const slot = at(index);
  if (slot.flags & Flag.DIRTY) return;
  slot.flags |= Flag.DIRTY;
  slot.nextDirty = 0;
  slot.prevDirty = dirtyTail;
  if (dirtyTail == 0) dirtyHead = index;
  else at(dirtyTail).nextDirty = index;
  dirtyTail = index;
  dirtyCount++;
}

export function removeDirty(index: u32): void {
  const slot = at(index);
  if (!(slot.flags & Flag.DIRTY)) return;
  slot.flags &= ~Flag.DIRTY;
  if (slot.prevDirty == 0) dirtyHead = slot.nextDirty;
  else at(slot.prevDirty).nextDirty = slot.nextDirty;
  if (slot.nextDirty == 0) dirtyTail = slot.prevDirty;
  else at(slot.nextDirty).prevDirty = slot.prevDirty;
  dirtyCount--;
}

/** The dirty block that is dirty for the longest time; 0: there is none. */
export function oldestDirty(): u32 {
  return dirtyHead;
}
