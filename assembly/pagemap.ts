// Which pages of one range were written: found by scanning the page tables, kept in planes of one bit a page, and
// told as runs. Each scan adds to the planes; a plane is emptied by whoever it is for.
//
// Rules:
//  - Marking is all a scan does: what was found and not yet told is never lost, and a page found twice is one.
//  - Two scans with PAGEMAP_SCAN make a round, each of which protects what it finds again. First the pages that
//    are gone: neither present nor swapped (a marker of a protected page counts as swapped). Then those written. A
//    page that was gone and came back before the first scan is written in the second.
//  - Without PAGEMAP_SCAN the entries of /proc/PID/pagemap are read: a page whose entry does not say
//    "write-protected" was written, or is gone. Who reads them protects the page again.
//  - A guard page has no protection to lose, so its entry never says "write-protected". It is told once, when it
//    became one; a plane of its own remembers which those are.
//  - Answers of the kernel outside of what it was asked are refused.
//  - Runs are as long as can be, ascending and disjoint: they are read off the planes.

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
} from './abi';
import { spanTake } from './pool';
import { argument } from './request';

/** Pages written since they were last told. */
export const PLANE_UNTOLD: u32 = 0;
/** Pages written since they were last saved. */
export const PLANE_UNSAVED: u32 = 1;
/** Pages that are being saved now. */
export const PLANE_SAVING: u32 = 2;
/** Pages whose last entry of /proc/PID/pagemap said "guard". Optional. */
const GUARDS_PLANE: u32 = 3;

/** The walk is not complete: ask again. */
export const SCAN_MORE: u32 = 0;
export const SCAN_DONE: u32 = 1;
/** The kernel's answer makes no sense. */
export const SCAN_NONSENSE: u32 = 2;

/** Bytes of the buffer for what the kernel says: 1365 regions, or 4096 entries. */
const BUFFER_BYTES: u32 = 32768;
const REGION_BYTES: u32 = 24;
const ENTRY_BYTES: u32 = 8;
/** "Write-protected by userfaultfd" in an entry of /proc/PID/pagemap (5.14). */
const ENTRY_PROTECTED: u64 = 1 << 57;
/** "Guard page" there (6.15). */
const ENTRY_GUARD: u64 = 1 << 58;
/** Neither present nor swapped. */
const GONE: u64 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
/** Pages of a range, at most: the planes must fit into the memory. */
const PAGES_MOST: u64 = 1 << 31;

/** The struct of the next PAGEMAP_SCAN. */
export const scan: usize = memory.data(96, 8);

/** Where the kernel is to write regions or entries. */
let buffer: usize = 0;
let planes: usize = 0;
let planeBytes: usize = 0;
let remembersGuards: bool = false;
let first: u64 = 0;
let end: u64 = 0;
let pages: u32 = 0;
let shift: u32 = 0;

/** Where the walk is. */
let position: u64 = 0;
/** The pages that are gone are looked for first, then those written. */
let seeksGone: bool = false;

/** log2 of the bytes that an entry of pagemap stands for, and the entries in the buffer that were not looked at. */
let entryShift: u32 = 0;
let entry: u32 = 0;
let entries: u32 = 0;

/** The run found last. */
let foundStart: u64 = 0;
let foundEnd: u64 = 0;

/**
 * Arguments 0 (start), 1 (length): the range, in whole pages. Once a core, before anything else here. False: no
 * memory left.
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
  remembersGuards = planeCount > GUARDS_PLANE;
  buffer = spanTake(BUFFER_BYTES);
  planes = spanTake(planeBytes * planeCount);
  return buffer != 0 && planes != 0;
}

// ---- planes ---------------------------------------------------------------------------------------------

function wordAt(plane: u32, index: u32): usize {
  return planes + planeBytes * plane + ((<usize>(index >> 6)) << 3);
}

/** The page that holds an address, or the nearest of the range. */
function pageOf(address: u64): u32 {
  if (address <= first) return 0;
  return address >= end ? pages : <u32>((address - first) >> shift);
}

/** The first page whose end is not before an address. */
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

/** The first page from `from` on, before `to`, whose bit is 1 (`flip` 0) or 0 (`flip` −1); `to` if there is none. */
function seek(plane: u32, from: u32, to: u32, flip: u64): u32 {
  while (from < to) {
    const word = (load<u64>(wordAt(plane, from)) ^ flip) >> (from & 63);
    if (word) return min<u32>(from + <u32>ctz(word), to);
    from = (from | 63) + 1;
  }
  return to;
}

/** A page of [from, to) was written. */
function mark(from: u64, to: u64): void {
  setBits(PLANE_UNTOLD, pageOf(from), pageUp(to));
  setBits(PLANE_UNSAVED, pageOf(from), pageUp(to));
}

/** Arguments 0 (start), 1 (length): these pages were written, whoever says so. */
export function dirtyMark(): void {
  mark(argument(0), argument(0) + argument(1));
}

/** Arguments 0 (start), 1 (length): puts these pages into a plane. */
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
 * Arguments 0 (from), 1 (to): the next run of pages between these addresses that are in a plane, or are not. See
 * `runStart` and `runEnd`.
 */
export function planeNext(plane: u32, inside: bool): bool {
  const to = pageUp(argument(1));
  const flip: u64 = inside ? 0 : -1;
  const from = seek(plane, pageOf(argument(0)), to, flip);
  if (from >= to) return false;
  foundStart = first + ((<u64>from) << shift);
  foundEnd = first + ((<u64>seek(plane, from, to, ~flip)) << shift);
  return true;
}

export function runStart(): u64 {
  return foundStart;
}

export function runEnd(): u64 {
  return foundEnd;
}

// ---- PAGEMAP_SCAN ---------------------------------------------------------------------------------------

/** Where regions and entries go, as an offset. */
export function scanBuffer(): usize {
  return buffer;
}

/** Begins a round. */
export function scanBegin(): void {
  position = first;
  seeksGone = true;
}

/** Argument 0: the address of `scanBuffer`. Fills in `scan`; the request's number. */
export function scanRequest(): u32 {
  const it = scanOf(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC);
  it.start = position;
  it.category_inverted = seeksGone ? GONE : 0;
  it.category_mask = seeksGone ? GONE : PAGE_IS_WRITTEN;
  it.return_mask = it.category_mask;
  return PAGEMAP_SCAN;
}

/**
 * The same for a scan that protects and finds nothing: all it does is to answer EPERM where a mapping is not registered
 * for asynchronous write-protection. The kernel passes over those that are without a look at their pages.
 */
export function scanCheckRequest(): u32 {
  const it = scanOf(PM_SCAN_CHECK_WPASYNC);
  it.start = first;
  it.category_inverted = PAGE_IS_WPALLOWED;
  it.category_mask = PAGE_IS_WPALLOWED;
  it.return_mask = PAGE_IS_WPALLOWED;
  return PAGEMAP_SCAN;
}

/** Argument 0: the address of `scanBuffer`. The struct of a scan up to the end of the range. */
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

/** Takes what the kernel has found: `result` regions. */
export function scanTake(result: u32): u32 {
  if (result > BUFFER_BYTES / REGION_BYTES) return SCAN_NONSENSE;
  for (let index: u32 = 0; index < result; index++) {
    const region = changetype<page_region>(buffer + index * REGION_BYTES);
    if (region.start < first || region.end > end || region.start >= region.end) return SCAN_NONSENSE;
    mark(region.start, region.end);
  }
  const walked = changetype<pm_scan_arg>(scan).walk_end;
  // A walk that goes nowhere would be asked for again for ever.
  if (walked <= position || walked > end) return SCAN_NONSENSE;
  position = walked;
  if (walked < end) return SCAN_MORE;
  if (!seeksGone) return SCAN_DONE;
  seeksGone = false;
  position = first;
  return SCAN_MORE;
}

// ---- entries of pagemap ---------------------------------------------------------------------------------

/** Begins to read the range's entries. */
export function entriesBegin(): void {
  position = first;
  entry = 0;
  entries = 0;
}

/** Where the next entries are in /proc/PID/pagemap, in bytes. */
export function entriesOffset(): u64 {
  return (position >> entryShift) * ENTRY_BYTES;
}

/** Bytes of the entries to read next to `scanBuffer`; 0: the range is through. */
export function entriesRoom(): u32 {
  return <u32>min<u64>(((end - position) >> entryShift) * ENTRY_BYTES, BUFFER_BYTES);
}

/** Takes `bytes` bytes that were read. */
export function entriesTake(bytes: u32): void {
  entry = 0;
  entries = bytes / ENTRY_BYTES;
}

/** Whether there is nothing to tell of an entry: it is protected, or a guard page as it was when last looked at. */
function isSettled(index: u32): bool {
  const value = load<u64>(buffer + index * ENTRY_BYTES);
  return (value & ENTRY_PROTECTED) != 0 || (remembersGuards && wasGuard(index, (value & ENTRY_GUARD) != 0));
}

/** Whether the page of an entry was a guard page when last looked at, and is one now; remembers the latter. */
function wasGuard(index: u32, isGuard: bool): bool {
  const page = pageOf(position + ((<u64>index) << entryShift));
  const at = wordAt(GUARDS_PLANE, page);
  const word = load<u64>(at);
  const bit: u64 = (<u64>1) << (page & 63);
  store<u64>(at, isGuard ? word | bit : word & ~bit);
  return isGuard && (word & bit) != 0;
}

/** The next run of whole pages among them that were written or went; false: the next entries are due. */
export function entriesNext(): bool {
  while (entry < entries && isSettled(entry)) entry++;
  if (entry >= entries) {
    position += (<u64>entries) << entryShift;
    entries = 0;
    return false;
  }
  const from = position + ((<u64>entry) << entryShift);
  // Looking at an entry twice would say that its guard is known.
  do entry++;
  while (entry < entries && !isSettled(entry));
  const to = position + ((<u64>entry) << entryShift);
  foundStart = first + ((<u64>pageOf(from)) << shift);
  foundEnd = first + ((<u64>pageUp(to)) << shift);
  return true;
}
