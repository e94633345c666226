// Answers faults without the handler: a missing page whose data lies in memory is copied from there, with the window
// around it, and with neighbours that others wait for: one call for all of them. Everything else is the handler's: what was
// removed or claimed, what could not be copied, and what a copy was answered with EEXIST for. In the same way pages are
// installed before they are asked for.

import { current, Fault, faultFilled, faultWaits, KIND_MISSING } from './faults';
import { inboxTellsRemovals, inboxTries, pageSizeAt } from './inbox';
import {
  PAGE_MISSING,
  PAGE_PRESENT,
  pageState,
  pagesWindow,
  pagesWindowSize,
  pagesWindowStart,
} from './pages';
import { rangeFind } from './ranges';
import { argument } from './request';
import { sourceOf } from './sources';
import { STEP_ASK, transferCopy, transferCursor, transferStart } from './transfer';

/** Neighbours that are copied because somebody waits for them, at most. */
const NEIGHBOURS: u32 = 32;

/** Bytes of a page of the last answer. */
let pageBytes: u64 = 0;
/** Where the next fault may be that it has answered as well. */
let answered: u64 = 0;
/** Bytes in front of what `aheadBegin` begins with. */
let passed: u64 = 0;

/** Begins to answer the fault that is out; `chosen`: options of the copy. */
export function answerBegin(chosen: u32): i32 {
  const fault = changetype<Fault>(current);
  const page = fault.page;
  if (fault.kind != KIND_MISSING || inboxTries() > 0) return STEP_ASK;
  // A page that was installed and faults again is filled from the source if removals are reported and none was reported for
  // it. If removals are not reported, it was removed: the handler decides what it holds.
  const state = pageState(page);
  if (state != PAGE_MISSING && (state != PAGE_PRESENT || !inboxTellsRemovals())) return STEP_ASK;
  const source = sourceOf(page);
  if (!source) return STEP_ASK;
  const pages = <u64>pagesWindow(page, source.window);
  const size = <u64>pagesWindowSize();
  const first = pagesWindowStart();
  // A source may begin or end in the middle of a huge page.
  const least = (source.start + size - 1) & ~(size - 1);
  const most = source.end & ~(size - 1);
  let start = max(first, least);
  let end = min(first + pages * size, most);
  if (start > page || end <= page) return STEP_ASK;
  const range = rangeFind(page);
  if (range) {
    let left = NEIGHBOURS;
    for (; left > 0 && end < min(most, range.end) && isWanted(end); left--) end += size;
    for (; left > 0 && start > max(least, range.start) && isWanted(start - size); left--) start -= size;
  }
  answered = 0;
  pageBytes = size;
  return transferCopy(chosen, start, end, source.data + (start - source.start));
}

/** Somebody waits for a page that is missing. */
function isWanted(page: u64): bool {
  return faultWaits(page) && pageState(page) == PAGE_MISSING;
}

/**
 * The next fault that waited for a page which the last answer has installed: 1 a read, 2 a write; 0: no more. It waits no
 * longer.
 */
export function answerNext(): u32 {
  answered = max(answered, transferStart());
  while (answered < transferCursor()) {
    const fault = faultFilled(answered);
    answered += pageBytes;
    if (fault) return fault;
  }
  return 0;
}

/**
 * Arguments 0 (start), 1 (length): begins to install the first run of missing pages there; `chosen`: options of the copy.
 * STEP_ASK: none is missing, or the first of them has no source; `aheadPassed` says which.
 */
export function aheadBegin(chosen: u32): i32 {
  const start = argument(0);
  const end = start + argument(1);
  const size = pageSizeAt(start);
  let from = end;
  let to = start;
  for (; to < end; to += size) {
    if (pageState(to) == PAGE_MISSING) from = min(from, to);
    else if (from < end) break;
  }
  passed = from - start;
  const source = sourceOf(from);
  if (from >= end || !source) return STEP_ASK;
  to = min(to, source.end & ~(size - 1));
  return to > from ? transferCopy(chosen, from, to, source.data + (from - source.start)) : STEP_ASK;
}

/** Bytes from the start on that are not missing; all of them: nothing is. */
export function aheadPassed(): f64 {
  return <f64>passed;
}
