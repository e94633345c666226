// Finds which pages of one range were written, by scanning the page tables. The result is kept in bitmaps ("planes",
// with one bit per page), and reported as runs of pages. A scan sets bits in the planes. Each consumer clears its own
// plane.
//
// Rules:
//  - A scan only sets bits. So a page that was found stays recorded until it is reported, and a page that was found
//    twice is reported once.
//  - With PAGEMAP_SCAN, a round is two scans, and each scan protects the pages that it finds again. The first scan
//    finds pages that are gone, that is, neither present nor swapped (the marker of a protected page counts as
//    swapped). The second scan finds pages that were written. A page that was gone and came back before the first scan
//    counts as written.
//  - Without PAGEMAP_SCAN, the entries of /proc/PID/pagemap are read: a page whose entry does not say
//    "write-protected" was written, or is gone. The caller protects the page again.
//  - A guard page cannot be write-protected, so its entry never says so. It is reported once, when it becomes a guard
//    page. The plane GUARDS records which pages are guard pages.
//  - An answer of the kernel that lies outside the requested range is refused.
//  - Runs are maximal, ascending and disjoint, because they are read off the planes.

import {
  PAGE_IS_PRESENT,
  PAGE_IS_SWAPPED,
  PAGE_IS_WPALLOWED,
  PAGE_IS_WRITTEN,
  PAGEMAP_SCAN,
  PM_SCAN_CHECK_WPASYNC,
  PM_SCAN_WP_MATCHING,
  page_region,
  pm_scan_arg,
} from '../abi';
import { argument, shared } from '../exchange';
import { spanTake } from '../pool';

/** What a bit stands for. */
export enum Plane {
  /** Written since the last report. */
  UNTOLD,
  /** Written since the last save. */
  UNSAVED,
  /** Being saved now. */
  SAVING,
  /** The last entry of /proc/PID/pagemap said "guard". Optional. */
  GUARDS,
}

/** What a scan needs next. */
export enum Scan {
  /** The walk is not complete: scan again. */
  MORE,
  DONE,
  /** The kernel's answer makes no sense. */
  NONSENSE,
}

/** Bytes of the buffer that the kernel fills: 1365 regions, or 4096 entries. */
const BUFFER_BYTES: u32 = 32768;
const REGION_BYTES: u32 = 24;
const ENTRY_BYTES: u32 = 8;
/** "Write-protected by userfaultfd" in an entry of /proc/PID/pagemap (5.14). */
const ENTRY_PROTECTED: u64 = 1 << 57;
/** "Guard page" in such an entry (6.15). */
const ENTRY_GUARD: u64 = 1 << 58;
/** A page that is gone has neither of these categories. */
const GONE: u64 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
/** Most pages of a range: the planes must fit into the core's memory. */
const PAGES_MOST: u64 = 1 << 31;

/** The struct of the next PAGEMAP_SCAN. */
export const scan: usize = memory.data(96, 8);

/** Where the kernel writes regions or entries. */
let buffer: usize = 0;
let planes: usize = 0;
let planeBytes: usize = 0;
let remembersGuards: bool = false;
let first: u64 = 0;
let end: u64 = 0;
let pages: u32 = 0;
let shift: u32 = 0;

/** The address that the walk has reached. */
let position: u64 = 0;
/** Whether this scan looks for pages that are gone (first) or pages that were written (second). */
let seeksGone: bool = false;

/**
 * log2 of the bytes that a pagemap entry stands for; the next entry in the buffer to process; and how many entries the
 * buffer has.
 */
let entryShift: u32 = 0;
let entry: u32 = 0;
let entries: u32 = 0;

/**
 * Sets the range: arguments 0 (start) and 1 (length), in whole pages. To call once per core, before any other function
 * of this file. False: out of memory.
 */
export function dirtyOpen(pageShift: u32, systemShift: u32, planeCount: u32): bool {
  first = argument(0);
  end = first + argument(1);
  shift = pageShift;
  entryShift = systemShift;
  const count = argument(1) >> pageShift;
  if (count > PAGES_MOST) return false;
  pages = <u32>count;
  planeBytes = (<usize>((count + 63) >> 6)) << 3;
  if (<u64>planeBytes * planeCount >= 1 << 30) return false;
  remembersGuards = planeCount > <u32>Plane.GUARDS;
  buffer = spanTake(BUFFER_BYTES);
  planes = spanTake(planeBytes * planeCount);
  return buffer != 0 && planes != 0;
}

// ---- planes ---------------------------------------------------------------------------------------------

function wordAt(plane: u32, index: u32): usize {
  return planes + planeBytes * plane + ((<usize>(index >> 6)) << 3);
}

/** The page that holds an address, clamped to the range. */
function pageOf(address: u64): u32 {
  if (address <= first) return 0;
  return address >= end ? pages : <u32>((address - first) >> shift);
}

/** The first page that does not end before an address. */
function pageUp(address: u64): u32 {
  return address >= end ? pages : pageOf(address + ((<u64>1) << shift) - 1);
}

function setBits(plane: u32, from: u32, to: u32): void {
  while (from < to) {
    const next = min<u32>((from | 63) + 1, to);
    const at = wordAt(plane, from);
    const ones: u64 = (<u64>-1 >> (64 - (next - from))) << (from & 63);
    store<u64>(at, load<u64>(at) | ones);
    from = next;
  }
}

/** The first page of [from, to) whose bit is 1 (`flip` 0) or 0 (`flip` −1); `to` if there is none. */
function seek(plane: u32, from: u32, to: u32, flip: u64): u32 {
  while (from < to) {
    const word = (load<u64>(wordAt(plane, from)) ^ flip) >> (from & 63);
    if (word) return min<u32>(from + <u32>ctz(word), to);
    from = (from | 63) + 1;
  }
  return to;
}

/** Marks the pages of [from, to) as written. */
function mark(from: u64, to: u64): void {
  setBits(Plane.UNTOLD, pageOf(from), pageUp(to));
  setBits(Plane.UNSAVED, pageOf(from), pageUp(to));
}

/** Marks the pages of arguments 0 (start) and 1 (length) as written, for callers that know that without a scan. */
export function dirtyMark(): void {
  mark(argument(0), argument(0) + argument(1));
}

/** Sets the bits of the pages of arguments 0 (start) and 1 (length) in a plane. */
export function planeSet(plane: u32): void {
  setBits(plane, pageOf(argument(0)), pageUp(argument(0) + argument(1)));
}

export function planeClear(plane: u32): void {
  memory.fill(wordAt(plane, 0), 0, planeBytes);
}

/** Moves all pages of one plane into another. */
export function planeMove(source: u32, target: u32): void {
  for (let at: usize = 0; at < planeBytes; at += 8) {
    const to = wordAt(target, 0) + at;
    store<u64>(to, load<u64>(to) | load<u64>(wordAt(source, 0) + at));
  }
  planeClear(source);
}

/**
 * Writes the next run of pages between arguments 0 and 1 that are in a plane (or, if `inside` is false, are not in it)
 * into the exchange. False: there is none.
 */
export function planeNext(plane: u32, inside: bool): bool {
  const to = pageUp(argument(1));
  const flip: u64 = inside ? 0 : -1;
  const from = seek(plane, pageOf(argument(0)), to, flip);
  if (from >= to) return false;
  shared().start = first + ((<u64>from) << shift);
  shared().end = first + ((<u64>seek(plane, from, to, ~flip)) << shift);
  return true;
}

// ---- PAGEMAP_SCAN ---------------------------------------------------------------------------------------

/** Offset of the buffer for regions and entries. */
export function scanBuffer(): usize {
  return buffer;
}

/** Begins a round. */
export function scanBegin(): void {
  position = first;
  seeksGone = true;
}

/** Fills in `scan`, and returns the request number. Argument 0: the address of `scanBuffer`. */
export function scanRequest(): u32 {
  const it = scanOf(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC);
  it.start = position;
  it.category_inverted = seeksGone ? GONE : 0;
  it.category_mask = seeksGone ? GONE : PAGE_IS_WRITTEN;
  it.return_mask = it.category_mask;
  return PAGEMAP_SCAN;
}

/**
 * Prepares a scan that matches no page. It only checks the mappings: EPERM if one is not registered for asynchronous
 * write-protection. The kernel skips the registered mappings without looking at their pages.
 */
export function scanCheckRequest(): u32 {
  const it = scanOf(PM_SCAN_CHECK_WPASYNC);
  it.start = first;
  it.category_inverted = PAGE_IS_WPALLOWED;
  it.category_mask = PAGE_IS_WPALLOWED;
  it.return_mask = PAGE_IS_WPALLOWED;
  return PAGEMAP_SCAN;
}

/**
 * Fills in the struct of a scan up to the end of the range. The caller adds the start and the categories. Argument 0:
 * the address of `scanBuffer`.
 */
function scanOf(flags: u64): pm_scan_arg {
  const it = changetype<pm_scan_arg>(scan);
  it.size = offsetof<pm_scan_arg>();
  it.flags = flags;
  it.end = end;
  it.walk_end = 0;
  it.vec = argument(0);
  it.vec_len = BUFFER_BYTES / REGION_BYTES;
  it.max_pages = 0;
  it.category_anyof_mask = 0;
  return it;
}

/** Processes what the kernel found: `result` regions. */
export function scanTake(result: u32): Scan {
  if (result > BUFFER_BYTES / REGION_BYTES) return Scan.NONSENSE;
  for (let index: u32 = 0; index < result; index++) {
    const region = changetype<page_region>(buffer + index * REGION_BYTES);
    if (region.start < first || region.end > end || region.start >= region.end) return Scan.NONSENSE;
    mark(region.start, region.end);
  }
  const walked = changetype<pm_scan_arg>(scan).walk_end;
  // Without progress the same walk would be requested again forever.
  if (walked <= position || walked > end) return Scan.NONSENSE;
  position = walked;
  if (walked < end) return Scan.MORE;
  if (!seeksGone) return Scan.DONE;
  seeksGone = false;
  position = first;
  return Scan.MORE;
}

// ---- entries of pagemap ---------------------------------------------------------------------------------

/** Begins to read the entries of the range. */
export function entriesBegin(): void {
  position = first;
  entry = 0;
  entries = 0;
}

/** How many bytes of /proc/PID/pagemap to read to `scanBuffer` next, from offset `start` on; 0: the range is done. */
export function entriesRoom(): u32 {
  shared().start = (position >> entryShift) * ENTRY_BYTES;
  return <u32>min<u64>(((end - position) >> entryShift) * ENTRY_BYTES, BUFFER_BYTES);
}

/** Takes in `bytes` bytes that were read. */
export function entriesTake(bytes: u32): void {
  entry = 0;
  entries = bytes / ENTRY_BYTES;
}

/** Whether an entry needs no report: it is protected, or it is a guard page and was one when it was last read. */
function isSettled(index: u32): bool {
  const value = load<u64>(buffer + index * ENTRY_BYTES);
  return (value & ENTRY_PROTECTED) != 0 || (remembersGuards && wasGuard(index, (value & ENTRY_GUARD) != 0));
}

/** Whether the page is a guard page and was one when its entry was last read. Records the present state. */
function wasGuard(index: u32, isGuard: bool): bool {
  const page = pageOf(position + ((<u64>index) << entryShift));
  const at = wordAt(Plane.GUARDS, page);
  const word = load<u64>(at);
  const bit: u64 = (<u64>1) << (page & 63);
  store<u64>(at, isGuard ? word | bit : word & ~bit);
  return isGuard && (word & bit) != 0;
}

/** Writes the next run of whole pages that were written or are gone into the exchange. False: read the next entries. */
export function entriesNext(): bool {
  while (entry < entries && isSettled(entry)) entry++;
  if (entry >= entries) {
    position += (<u64>entries) << entryShift;
    entries = 0;
    return false;
  }
  const from = position + ((<u64>entry) << entryShift);
  // Each entry is checked once, because a second check would find its guard page already recorded.
  do entry++;
  while (entry < entries && !isSettled(entry));
  const to = position + ((<u64>entry) << entryShift);
  shared().start = first + ((<u64>pageOf(from)) << shift);
  shared().end = first + ((<u64>pageUp(to)) << shift);
  return true;
}
