// The state of each registered page, in three bits. `present`: a fill has installed it. `claimed`: a caller fetches its
// data. `removed`: the kernel reported its removal. With write-protect mode a fourth bit says whether the page is
// write-protected.
//
// Rules:
//  - A page is recorded as present only after a fill of it succeeded, and as removed only after an event reported that.
//    EEXIST proves neither.
//  - The record of a removal is kept when the page is filled later. The kernel takes pages away a moment after the
//    event was read, so it also takes a page that was filled in between. If such a page faults again, it counts as
//    removed, and is never filled with its source's data.
//  - The record of a removal is also kept when the memory is unregistered, in case it is registered again. It ends when
//    the memory is unmapped.
//  - A frame holds one of these bits for 8192 pages (32 MiB of 4 KiB pages). It is reserved when the range is
//    registered, and allocated when one of its bits is first set. So memory does not grow while faults are served, and
//    64 GiB take at most three times 2 MiB, or four times with write-protect mode.
//  - Outside all registered ranges the only state is "removed". For any other page there, a query returns `missing`.
//  - A missing page is `in flight` if the caller that fetches its data has claimed it. A removal ends the claim, so
//    data that was fetched before the removal is never installed after it.
//  - Changes by another userfaultfd or another process are not recorded. The kernel's answer to a call is
//    authoritative. The bits are only a hint before the call.

import { borderAfter, borderBefore } from './borders';
import { FRAME, poolForgive, poolGive, poolPromise, poolTakePromised, spanGive, spanTake } from './pool';
import { rangeAdvance, rangeFind, rangeHere, rangeOverlaps, rangeSeek } from './ranges';
import { ADAPTIVE, streamNext, streamWindow } from './readahead';

export const PAGE_MISSING: u32 = 0;
export const PAGE_PRESENT: u32 = 1;
export const PAGE_REMOVED: u32 = 2;
export const PAGE_IN_FLIGHT: u32 = 3;

/** log2 of the number of pages in a chunk. Each plane of the chunk has one bit for each of these pages. */
export const CHUNK_SHIFT: u32 = 13;
const CHUNK_PAGES: u64 = 1 << CHUNK_SHIFT;

/** The state of 8192 pages. The address of a plane is 0 until one of its bits is set. */
@unmanaged
class Chunk {
  /** Page number >> CHUNK_SHIFT, plus one; 0 marks a free slot. */
  key: u64;
  removed: usize;
  present: usize;
  claimed: usize;
  protect: usize;
  /**
   * How many planes, in this order, are reserved or allocated: 1 if none of the pages is registered; otherwise 3, or 4
   * with write-protect mode.
   */
  planes: u32;
  padding: u32;
}

const CHUNK: usize = 32;

// Offset of each plane in a chunk.
const PLANE_REMOVED: usize = offsetof<Chunk>('removed');
const PLANE_PRESENT: usize = offsetof<Chunk>('present');
const PLANE_CLAIMED: usize = offsetof<Chunk>('claimed');
const PLANE_PROTECT: usize = offsetof<Chunk>('protect');

let chunks: usize = 0;
let chunkCapacity: u32 = 0;
let chunkCount: u32 = 0;
let pageShift: u32 = 12;

/** Number of allocated planes. */
let planesTaken: u32 = 0;
/** Whether any page was ever write-protected. */
let protectAny: bool = false;

export function pagesStart(shift: u32): void {
  pageShift = shift;
}

/** Bytes that the planes and their directory take now. */
export function pagesBytes(): u32 {
  return planesTaken * <u32>FRAME + chunkCapacity * <u32>CHUNK;
}

// ---- the directory: open addressing, linear probing, at most half full -----------------------------------

function place(index: u32): Chunk {
  return changetype<Chunk>(chunks + <usize>index * CHUNK);
}

function home(key: u64): u32 {
  return <u32>((key * 0x9e3779b97f4a7c15) >> 32) & (chunkCapacity - 1);
}

function find(page: u64): Chunk | null {
  if (chunkCapacity == 0) return null;
  const key = (page >> CHUNK_SHIFT) + 1;
  let i = home(key);
  while (place(i).key != 0) {
    if (place(i).key == key) return place(i);
    i = (i + 1) & (chunkCapacity - 1);
  }
  return null;
}

function add(page: u64): Chunk {
  const key = (page >> CHUNK_SHIFT) + 1;
  let i = home(key);
  while (place(i).key != 0) i = (i + 1) & (chunkCapacity - 1);
  const chunk = place(i);
  chunk.key = key;
  chunkCount++;
  return chunk;
}

function reserveChunks(count: u32): bool {
  if ((chunkCount + count) * 2 <= chunkCapacity) return true;
  const old = chunks;
  const oldCapacity = chunkCapacity;
  let capacity = max<u32>(64, oldCapacity);
  while (capacity < (chunkCount + count) * 2) capacity *= 2;
  const next = spanTake(<usize>capacity * CHUNK);
  if (!next) return false;
  chunks = next;
  chunkCapacity = capacity;
  chunkCount = 0;
  for (let i: u32 = 0; i < oldCapacity; i++) {
    const from = changetype<Chunk>(old + <usize>i * CHUNK);
    if (from.key == 0) continue;
    memory.copy(changetype<usize>(add((from.key - 1) << CHUNK_SHIFT)), changetype<usize>(from), CHUNK);
  }
  if (old) spanGive(old, <usize>oldCapacity * CHUNK);
  return true;
}

/** Deletes a chunk and closes the gap in its probe sequence. */
function remove(chunk: Chunk): void {
  let gap = <u32>((changetype<usize>(chunk) - chunks) / CHUNK);
  const mask = chunkCapacity - 1;
  for (let i = (gap + 1) & mask; place(i).key != 0; i = (i + 1) & mask) {
    const wanted = home(place(i).key);
    if (((i - wanted) & mask) >= ((i - gap) & mask)) {
      memory.copy(changetype<usize>(place(gap)), changetype<usize>(place(i)), CHUNK);
      gap = i;
    }
  }
  memory.fill(changetype<usize>(place(gap)), 0, CHUNK);
  chunkCount--;
}

// ---- watching --------------------------------------------------------------------------------------------

/** Reserves the memory that the state of [start, end) can need. False: out of memory, and nothing changed. */
export function pagesWatch(start: u64, end: u64, writeProtect: bool): bool {
  const first = start >> pageShift;
  const last = (end - 1) >> pageShift;
  const planes: u32 = writeProtect ? 4 : 3;
  let fresh: u32 = 0;
  let frames: u32 = 0;
  for (let page = first & ~(CHUNK_PAGES - 1); page <= last; page += CHUNK_PAGES) {
    const found = find(page);
    const have = found ? found.planes : 0;
    if (!found) fresh++;
    if (have < planes) frames += planes - have;
  }
  if (!poolPromise(frames)) return false;
  if (!reserveChunks(fresh)) {
    poolForgive(frames);
    return false;
  }
  for (let page = first & ~(CHUNK_PAGES - 1); page <= last; page += CHUNK_PAGES) {
    const found = find(page);
    const chunk = found ? found : add(page);
    chunk.planes = max(chunk.planes, planes);
  }
  return true;
}

/** Forgets [start, end), which is no longer mapped, and frees chunks in which no range is registered. */
export function pagesForget(start: u64, end: u64): void {
  paint(start, end, PAGE_MISSING);
  leave(start, end);
}

/** Whether any state is kept for [start, end). */
export function pagesKept(start: u64, end: u64): bool {
  const last = (end - 1) >> pageShift;
  for (let page = (start >> pageShift) & ~(CHUNK_PAGES - 1); page <= last; page += CHUNK_PAGES) {
    if (find(page)) return true;
  }
  return false;
}

/** Forgets the state of [start, end), which is no longer registered. Only the record of removed pages is kept. */
export function pagesLeave(start: u64, end: u64): void {
  paintPlane(start, end, PLANE_PRESENT, 0);
  paintPlane(start, end, PLANE_CLAIMED, 0);
  leave(start, end);
}

function leave(start: u64, end: u64): void {
  paintPlane(start, end, PLANE_PROTECT, 0);
  const last = (end - 1) >> pageShift;
  for (let page = (start >> pageShift) & ~(CHUNK_PAGES - 1); page <= last; page += CHUNK_PAGES) {
    const chunk = find(page);
    if (!chunk || rangeOverlaps(page << pageShift, (page + CHUNK_PAGES) << pageShift)) continue;
    if (chunk.planes > 1) {
      release(chunk.present);
      release(chunk.claimed);
      if (chunk.planes == 4) release(chunk.protect);
      chunk.present = chunk.claimed = chunk.protect = 0;
      chunk.planes = 1;
    }
    if (chunk.removed && !isBlank(chunk.removed)) continue;
    release(chunk.removed);
    remove(chunk);
  }
}

function isBlank(plane: usize): bool {
  for (let at: usize = 0; at < FRAME; at += 8) if (load<u64>(plane + at) != 0) return false;
  return true;
}

function release(plane: usize): void {
  if (plane) {
    poolGive(plane);
    planesTaken--;
  } else {
    poolForgive(1);
  }
}

// ---- setting and asking ----------------------------------------------------------------------------------

/** Sets the state of every registered page of [start, end). */
export function pagesSet(start: u64, end: u64, state: u32): void {
  for (let more = rangeSeek(start); more && rangeHere().start < end; more = rangeAdvance()) {
    paint(max(start, rangeHere().start), min(end, rangeHere().end), state);
  }
}

/** Records whether the registered pages of [start, end) are write-protected, if their range has that mode. */
export function pagesProtect(start: u64, end: u64, on: bool): void {
  if (on) protectAny = true;
  else if (!protectAny) return;
  for (let more = rangeSeek(start); more && rangeHere().start < end; more = rangeAdvance()) {
    paintPlane(max(start, rangeHere().start), min(end, rangeHere().end), PLANE_PROTECT, on ? 1 : 0);
  }
}

/** Records that the pages of [start, end), which lie in one range, are no longer protected. */
export function pagesUnprotect(start: u64, end: u64): void {
  if (protectAny) paintPlane(start, end, PLANE_PROTECT, 0);
}

// A chunk may hold unregistered pages next to registered ones. `paint` does not check that; its callers do.

function paint(start: u64, end: u64, state: u32): void {
  const last = end >> pageShift;
  let page = start >> pageShift;
  while (page < last) {
    const chunkEnd = min((page | (CHUNK_PAGES - 1)) + 1, last);
    const chunk = find(page);
    if (chunk) {
      const from = <u32>(page & (CHUNK_PAGES - 1));
      const count = <u32>(chunkEnd - page);
      if (chunk.planes > 1) {
        chunk.present = setBits(chunk.present, from, count, state == PAGE_PRESENT ? 1 : 0);
        chunk.claimed = setBits(chunk.claimed, from, count, state == PAGE_IN_FLIGHT ? 1 : 0);
      }
      if (state == PAGE_REMOVED) chunk.removed = setBits(chunk.removed, from, count, 1);
      if (state == PAGE_MISSING) chunk.removed = setBits(chunk.removed, from, count, 0);
    }
    page = chunkEnd;
  }
}

function paintPlane(start: u64, end: u64, offset: usize, value: u32): void {
  const last = end >> pageShift;
  let page = start >> pageShift;
  while (page < last) {
    const chunkEnd = min((page | (CHUNK_PAGES - 1)) + 1, last);
    const chunk = find(page);
    // The protect plane exists only with write-protect mode. The present and claimed planes exist only if a page is
    // registered.
    if (chunk && (offset == PLANE_REMOVED || chunk.planes > (offset == PLANE_PROTECT ? <u32>3 : <u32>1))) {
      const at = changetype<usize>(chunk) + offset;
      const plane = setBits(load<usize>(at), <u32>(page & (CHUNK_PAGES - 1)), <u32>(chunkEnd - page), value);
      store<usize>(at, plane);
    }
    page = chunkEnd;
  }
}

function setBits(plane: usize, from: u32, count: u32, value: u32): usize {
  if (!plane) {
    if (!value) return 0;
    plane = poolTakePromised();
    planesTaken++;
  }
  while (count > 0) {
    const bit = from & 63;
    const width = min<u32>(64 - bit, count);
    const mask = (width == 64 ? u64.MAX_VALUE : ((<u64>1) << width) - 1) << bit;
    const at = plane + <usize>((from >> 6) << 3);
    store<u64>(at, value ? load<u64>(at) | mask : load<u64>(at) & ~mask);
    from += width;
    count -= width;
  }
  return plane;
}

function bitOf(plane: usize, index: u32): u32 {
  return plane ? <u32>(load<u64>(plane + <usize>((index >> 6) << 3)) >> (index & 63)) & 1 : 0;
}

/** The state of the page that holds `address`. */
export function pageState(address: u64): u32 {
  const chunk = find(address >> pageShift);
  if (!chunk) return PAGE_MISSING;
  const index = <u32>((address >> pageShift) & (CHUNK_PAGES - 1));
  if (bitOf(chunk.present, index)) return PAGE_PRESENT;
  if (bitOf(chunk.claimed, index)) return PAGE_IN_FLIGHT;
  return bitOf(chunk.removed, index) ? PAGE_REMOVED : PAGE_MISSING;
}

/** Whether a removal of the page that holds `address` was reported, even if the page was filled since. */
export function pageWasRemoved(address: u64): bool {
  const chunk = find(address >> pageShift);
  return !!chunk && !!bitOf(chunk.removed, <u32>((address >> pageShift) & (CHUNK_PAGES - 1)));
}

/** Whether any page may be write-protected. */
export function pagesProtectAny(): bool {
  return protectAny;
}

export function pageProtected(address: u64): bool {
  const chunk = find(address >> pageShift);
  return !!chunk && !!bitOf(chunk.protect, <u32>((address >> pageShift) & (CHUNK_PAGES - 1)));
}

/**
 * Claims the missing pages of [start, end) for a caller that fetches their data. Other pages keep their state. A huge
 * page is claimed whole if any part of it is in the range.
 */
export function pagesClaim(start: u64, end: u64): u32 {
  let claimed: u32 = 0;
  for (let more = rangeSeek(start); more && rangeHere().start < end; more = rangeAdvance()) {
    const stop = min(end, rangeHere().end);
    const size = (<u64>1) << rangeHere().pageShift;
    for (let address = max(start, rangeHere().start) & ~(size - 1); address < stop; address += size) {
      if (pageState(address) != PAGE_MISSING) continue;
      paint(address, address + size, PAGE_IN_FLIGHT);
      claimed++;
    }
  }
  return claimed;
}

/**
 * Moves the page states of a range that mremap moved, and forgets the states of the pages that were at the target. If
 * the old addresses stay mapped (MREMAP_DONTUNMAP), they read as zeros, so the pages there count as removed.
 */
export function pagesMove(from: u64, to: u64, length: u64): void {
  const size = (<u64>1) << pageShift;
  pagesSet(to, to + length, PAGE_MISSING);
  pagesProtect(to, to + length, false);
  for (let offset: u64 = 0; offset < length; ) {
    const page = (from + offset) >> pageShift;
    const chunk = find(page);
    if (!chunk || !(chunk.removed | chunk.present | chunk.claimed | chunk.protect)) {
      offset += (((page | (CHUNK_PAGES - 1)) + 1) << pageShift) - (from + offset);
      continue;
    }
    const target = to + offset;
    if (pageWasRemoved(from + offset)) pagesSet(target, target + size, PAGE_REMOVED);
    const state = pageState(from + offset);
    if (state == PAGE_PRESENT || state == PAGE_IN_FLIGHT) pagesSet(target, target + size, state);
    pagesProtect(target, target + size, pageProtected(from + offset));
    offset += size;
  }
  pagesSet(from, from + length, PAGE_REMOVED);
  pagesProtect(from, from + length, false);
}

// ---- to another object --------------------------------------------------------------------------------------

/** One chunk in transfer format: its key, then the planes removed, present and protect. */
export const SNAPSHOT_BYTES: u32 = 8 + 3 * 1024;
export const snapshot: usize = memory.data(8 + 3 * 1024, 8);

/** Number of slots. `pagesSave` takes the index of a slot. */
export function pagesPlaces(): u32 {
  return chunkCapacity;
}

/** Writes the chunk in a slot into `snapshot`. False: there is no state to transfer. Claims are not transferred. */
export function pagesSave(index: u32): bool {
  const chunk = place(index);
  if (chunk.key == 0 || !(chunk.removed | chunk.present | chunk.protect)) return false;
  store<u64>(snapshot, chunk.key);
  savePlane(8, chunk.removed);
  savePlane(8 + FRAME, chunk.present);
  savePlane(8 + 2 * FRAME, chunk.protect);
  return true;
}

function savePlane(offset: usize, plane: usize): void {
  if (plane) memory.copy(snapshot + offset, plane, FRAME);
  else memory.fill(snapshot + offset, 0, FRAME);
}

/**
 * Adds the states in `snapshot` to the pages that are registered here. For other pages, adds only whether they were
 * removed.
 */
export function pagesLoad(): void {
  const key = load<u64>(snapshot);
  if (key == 0) return;
  const chunk = find((key - 1) << CHUNK_SHIFT);
  if (!chunk) return;
  chunk.removed = loadPlane(8, chunk.removed);
  if (chunk.planes == 1) return;
  chunk.present = loadPlane(8 + FRAME, chunk.present);
  if (chunk.planes == 4) {
    chunk.protect = loadPlane(8 + 2 * FRAME, chunk.protect);
    if (chunk.protect) protectAny = true;
  }
  let from = ((key - 1) << CHUNK_SHIFT) << pageShift;
  const end = from + (CHUNK_PAGES << pageShift);
  for (let more = rangeSeek(from); more && rangeHere().start < end; more = rangeAdvance()) {
    blank(from, max(from, rangeHere().start));
    from = min(end, rangeHere().end);
  }
  blank(from, end);
}

/** Clears the state of [start, end), which is not registered. */
function blank(start: u64, end: u64): void {
  paintPlane(start, end, PLANE_PRESENT, 0);
  paintPlane(start, end, PLANE_PROTECT, 0);
}

function loadPlane(offset: usize, plane: usize): usize {
  if (isBlank(snapshot + offset)) return plane;
  if (!plane) {
    plane = poolTakePromised();
    planesTaken++;
  }
  for (let at: usize = 0; at < FRAME; at += 8) {
    store<u64>(plane + at, load<u64>(plane + at) | load<u64>(snapshot + offset + at));
  }
  return plane;
}

// The result of `pagesWindow`.
let windowFirst: u64 = 0;
let windowPages: u32 = 0;
let windowShift: u32 = 0;

/**
 * Finds the pages to fill for a fault at `address`: the run of pages around it that have the same state (missing pages
 * get the source's data, removed pages get zeros). The run stays inside the registered range, inside the mapping as far
 * as its borders are known, and inside the aligned window of `size` pages of the range's page size. An adaptive window
 * begins with the page itself, and grows with the length of the sequential run. A page that is recorded as present is
 * returned alone, because its fault shows that the record is out of date. Returns the number of pages; 0: the page is
 * claimed.
 */
export function pagesWindow(address: u64, size: u32): u32 {
  const range = rangeFind(address);
  const shift = range ? range.pageShift : pageShift;
  const page = address >> shift;
  windowShift = shift;
  windowFirst = page << shift;
  const state = pageState(windowFirst);
  windowPages = state == PAGE_IN_FLIGHT ? 0 : 1;
  if (state == PAGE_IN_FLIGHT || state == PAGE_PRESENT) return windowPages;
  const adaptive = (size & ADAPTIVE) != 0;
  // `size` counts pages of 4 KiB. With larger pages, the window has the same number of bytes.
  if (adaptive) size = streamWindow(windowFirst, max<u32>(1, ((size & ~ADAPTIVE) << 12) >> shift));
  const base = adaptive ? page : page - (page % size);
  let first = page;
  let end = page + 1;
  if (range) {
    const lowest = max(base, max(range.start, borderBefore(windowFirst)) >> shift);
    const highest = min(base + size, min(range.end, borderAfter(windowFirst)) >> shift);
    while (first > lowest && pageState((first - 1) << shift) == state) first--;
    while (end < highest && pageState(end << shift) == state) end++;
  }
  windowFirst = first << shift;
  windowPages = <u32>(end - first);
  if (adaptive) streamNext(end << shift);
  return windowPages;
}

export function pagesWindowStart(): u64 {
  return windowFirst;
}

/** log2 of the page size of the window. */
export function pagesWindowShift(): u32 {
  return windowShift;
}
