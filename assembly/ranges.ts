// The registered ranges: disjoint, in ascending order, each with its modes, the operations that the kernel allows and
// its page size.
//
// Invariants: no two ranges overlap; no range is empty; adjacent ranges differ in modes, operations or page size. A
// lookup is two binary searches (in the directory, then inside one block), so it takes logarithmic time. An insertion
// moves at most the entries of one block and of the directory.

import { FRAME, poolGive, poolReserve, poolTake, spanGive, spanTake } from './pool';

/** One registered range. `end` is exclusive. */
@unmanaged
export class Range {
  start: u64;
  end: u64;
  /** The kernel's `ioctls` bits, unknown ones included. */
  operations: u64;
  /** UFFDIO_REGISTER_MODE_*. */
  modes: u32;
  /** log2 of the page size: the system's, or that of the huge pages. */
  pageShift: u32;
}

/**
 * An entry of the directory. The directory has one entry for each block, in ascending order. A block holds up to
 * PER_BLOCK ranges, in ascending order.
 */
@unmanaged
class Line {
  first: u64;
  block: usize;
  count: u32;
}

const RANGE: usize = offsetof<Range>();
const LINE: usize = 16;
const PER_BLOCK: u32 = <u32>(FRAME / RANGE);
const HALF: u32 = PER_BLOCK / 2;

/** log2 of the system's page size. */
let systemShift: u32 = 12;

let lines: usize = 0;
let lineCount: u32 = 0;
let lineCapacity: u32 = 0;
let total: u32 = 0;

// Position of the last `rangeSeek` or `rangeAdvance`.
let atLine: u32 = 0;
let atSlot: u32 = 0;

function line(index: u32): Line {
  return changetype<Line>(lines + <usize>index * LINE);
}

function slot(block: usize, index: u32): Range {
  return changetype<Range>(block + <usize>index * RANGE);
}

export function rangesStart(shift: u32): void {
  systemShift = shift;
}

/** Size in bytes of a page that is not huge. */
export function pageSystem(): u64 {
  return (<u64>1) << systemShift;
}

/** Size in bytes of the page that holds `address`, which is a huge page if the range there has huge pages. */
export function pageSizeAt(address: u64): u64 {
  const range = rangeNear(address);
  return (<u64>1) << (range ? range.pageShift : systemShift);
}

export function rangeCount(): u32 {
  return total;
}

/** The range at the current position. */
export function rangeHere(): Range {
  return slot(line(atLine).block, atSlot);
}

/** Moves to the range that holds `address`, or else to the next one above it. False: there is none. */
export function rangeSeek(address: u64): bool {
  let low: u32 = 0;
  let high = lineCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (line(middle).first <= address) low = middle + 1;
    else high = middle;
  }
  atSlot = 0;
  if (low == 0) {
    atLine = 0;
    return lineCount > 0;
  }
  atLine = low - 1;
  const block = line(atLine).block;
  low = 1;
  high = line(atLine).count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (slot(block, middle).start <= address) low = middle + 1;
    else high = middle;
  }
  atSlot = low - 1;
  return slot(block, atSlot).end > address || rangeAdvance();
}

/** Moves to the next range. False: there is none. */
export function rangeAdvance(): bool {
  atSlot++;
  if (atSlot == line(atLine).count) {
    atLine++;
    atSlot = 0;
  }
  return atLine < lineCount;
}

/** Whether any part of [start, end) is registered. */
export function rangeOverlaps(start: u64, end: u64): bool {
  return rangeSeek(start) && rangeHere().start < end;
}

/** The range that holds `address`, or null. */
export function rangeFind(address: u64): Range | null {
  return rangeSeek(address) && rangeHere().start <= address ? rangeHere() : null;
}

/**
 * As `rangeFind`, but faster if the range at the current position holds `address`, which is likely: faults come in
 * runs.
 */
export function rangeNear(address: u64): Range | null {
  if (atLine < lineCount && atSlot < line(atLine).count) {
    const here = rangeHere();
    if (here.start <= address && address < here.end) return here;
  }
  return rangeFind(address);
}

/**
 * Registers [start, end) by the kernel's rule. A part that already has all requested modes keeps the modes that it has.
 * Any other part gets the requested modes in place of its own. False: out of memory, and nothing changed.
 */
export function rangeInsert(start: u64, end: u64, modes: u32, operations: u64, pageShift: u32): bool {
  assert(start < end, 'an empty range');
  let pieces: u32 = 1;
  for (let more = rangeSeek(start); more && rangeHere().start < end; more = rangeAdvance()) pieces++;
  if (!reserve(pieces)) return false;
  let cursor = start;
  while (cursor < end) {
    const found = rangeSeek(cursor);
    if (!found || rangeHere().start >= end) {
      place(cursor, end, modes, operations, pageShift);
      break;
    }
    const here = rangeHere();
    if (here.start > cursor) {
      const gapEnd = here.start;
      place(cursor, gapEnd, modes, operations, pageShift);
      cursor = gapEnd;
      continue;
    }
    const pieceEnd = min(here.end, end);
    if ((here.modes & modes) != modes) {
      carve(cursor, pieceEnd);
      place(cursor, pieceEnd, modes, operations, pageShift);
    }
    cursor = pieceEnd;
  }
  merge(start, end);
  return true;
}

/** Forgets [start, end), splitting ranges that extend beyond it. False: out of memory, and nothing changed. */
export function rangeRemove(start: u64, end: u64): bool {
  if (!reserve(1)) return false;
  carve(start, end);
  return true;
}

/** Makes room for `pieces` more ranges at any position. Each new range splits at most one block. */
function reserve(pieces: u32): bool {
  const blocks = pieces / HALF + 3;
  if (lineCount + blocks > lineCapacity) {
    const capacity = max<u32>(64, (lineCount + blocks) * 2);
    const next = spanTake(<usize>capacity * LINE);
    if (!next) return false;
    memory.copy(next, lines, <usize>lineCount * LINE);
    if (lines) spanGive(lines, <usize>lineCapacity * LINE);
    lines = next;
    lineCapacity = capacity;
  }
  return poolReserve(blocks);
}

function carve(start: u64, end: u64): void {
  // An empty piece would split the range around it.
  while (start < end && rangeSeek(start) && rangeHere().start < end) {
    const here = rangeHere();
    const hereEnd = here.end;
    if (here.start < start) {
      here.end = start;
      if (hereEnd > end) {
        place(end, hereEnd, here.modes, here.operations, here.pageShift);
        return;
      }
    } else if (hereEnd > end) {
      here.start = end;
      if (atSlot == 0) line(atLine).first = end;
      return;
    } else {
      drop();
    }
  }
}

/** Inserts a range at addresses that no range covers. */
function place(start: u64, end: u64, modes: u32, operations: u64, pageShift: u32): void {
  let index: u32 = 0;
  let position: u32 = 0;
  if (lineCount == 0) {
    addLine(0);
  } else {
    rangeSeek(start);
    index = atLine;
    position = atSlot;
    if (position == 0 && index > 0) {
      index--;
      position = line(index).count;
    }
  }
  if (line(index).count == PER_BLOCK) {
    addLine(index + 1);
    // Insertions in ascending order fill blocks completely. Other insertions split a full block in half.
    if (position < PER_BLOCK) {
      const upper = line(index + 1);
      memory.copy(upper.block, line(index).block + <usize>HALF * RANGE, <usize>(PER_BLOCK - HALF) * RANGE);
      upper.count = PER_BLOCK - HALF;
      upper.first = slot(upper.block, 0).start;
      line(index).count = HALF;
    }
    if (line(index).count < position || position == PER_BLOCK) {
      position -= line(index).count;
      index++;
    }
  }
  const target = line(index);
  const entry = slot(target.block, position);
  const address = changetype<usize>(entry);
  memory.copy(address + RANGE, address, <usize>(target.count - position) * RANGE);
  entry.start = start;
  entry.end = end;
  entry.modes = modes;
  entry.operations = operations;
  entry.pageShift = pageShift;
  target.count++;
  if (position == 0) target.first = start;
  total++;
}

/** Deletes the range at the current position. */
function drop(): void {
  const here = line(atLine);
  const address = changetype<usize>(rangeHere());
  here.count--;
  total--;
  memory.copy(address, address + RANGE, <usize>(here.count - atSlot) * RANGE);
  if (here.count == 0) {
    dropLine(atLine);
    return;
  }
  if (atSlot == 0) here.first = slot(here.block, 0).start;
  join(atLine);
  if (atLine > 0) join(atLine - 1);
}

/** Merges a block with the next one if the ranges of both fill at most half a block. */
function join(index: u32): void {
  if (index + 1 == lineCount) return;
  const here = line(index);
  const next = line(index + 1);
  if (here.count + next.count > HALF) return;
  memory.copy(here.block + <usize>here.count * RANGE, next.block, <usize>next.count * RANGE);
  here.count += next.count;
  dropLine(index + 1);
}

function addLine(index: u32): void {
  assert(lineCount < lineCapacity, 'the directory is full');
  const address = lines + <usize>index * LINE;
  memory.copy(address + LINE, address, <usize>(lineCount - index) * LINE);
  const added = line(index);
  added.first = 0;
  added.block = poolTake();
  added.count = 0;
  lineCount++;
}

function dropLine(index: u32): void {
  poolGive(line(index).block);
  const address = lines + <usize>index * LINE;
  lineCount--;
  memory.copy(address, address + LINE, <usize>(lineCount - index) * LINE);
}

/** Merges adjacent ranges in and around [start, end] that are alike. */
function merge(start: u64, end: u64): void {
  let more = rangeSeek(start > 0 ? start - 1 : 0);
  while (more) {
    const lower = rangeHere();
    const lowerStart = lower.start;
    more = rangeAdvance();
    if (!more) return;
    const upper = rangeHere();
    if (upper.start > end) return;
    if (
      lower.end == upper.start &&
      lower.modes == upper.modes &&
      lower.operations == upper.operations &&
      lower.pageShift == upper.pageShift
    ) {
      lower.end = upper.end;
      drop();
      more = rangeSeek(lowerStart);
    }
  }
}
