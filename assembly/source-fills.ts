// Fills from sources. One fill installs a missing page, the window around it, and neighbours that other threads wait
// for. It copies data, or installs zeros. The handler gets all other faults: of pages without a source, pages that were
// claimed or could not be installed, and pages for which a fill returned EEXIST. `aheadBegin` installs pages before
// they fault.

import { doubtTries } from './doubts';
import { argument, shared } from './exchange';
import { current, faultFilled, faultWaits, KIND_MISSING } from './faults';
import {
  PAGE_MISSING,
  PAGE_PRESENT,
  PAGE_REMOVED,
  pageState,
  pagesWindow,
  pagesWindowShift,
  pagesWindowStart,
} from './pages';
import { queueReportsRemovals } from './queue';
import { pageSizeAt, pageSystem, rangeFind } from './ranges';
import { ADAPTIVE } from './readahead';
import { Source, SourceKind, sourceOf, ZERO_RUNS } from './sources';
import { Operation, Step, transferCursor, transferOver, transferStart } from './transfer';

/** Most neighbours that are copied because threads wait for them. */
const NEIGHBOURS: u32 = 32;

/** Most bytes of a run of zeros: as many as one page table of the processor maps. */
const ZERO_RUN_MOST: u64 = 2 << 20;

/**
 * Number of pages of the last run of zeros. It doubles with each fault that is answered with such a run. So a guest
 * that reuses much removed memory needs few faults, and a guest that touches few pages does not wait for long runs.
 */
let zeroRun: u32 = 1;

/** Page size of the last answer. */
let pageBytes: u64 = 0;
/** The address from which to search for the next queued fault that the last answer has also resolved. */
let answered: u64 = 0;

/** The content that a fill installs: data, zeros for a hole, or zeros for removed pages. */
export enum Content {
  DATA,
  HOLE,
  REMOVED,
}

let content: Content = Content.DATA;

export function fillContent(): Content {
  return content;
}

/**
 * Begins to answer the current fault from its source. `chosen`: options of the fill. ASK: the handler has to answer.
 */
export function answerBegin(chosen: u32): Step {
  const page = current().page;
  if (current().kind != KIND_MISSING || doubtTries(page) > 0) return Step.ASK;
  const source = sourceOf(page);
  if (!source || !isAnswered(pageState(page), source)) return Step.ASK;
  const pages = <u64>pagesWindow(page, windowOf(source));
  const size = (<u64>1) << pagesWindowShift();
  // Huge pages have no zero page.
  if (content != Content.DATA && size > pageSystem()) return Step.ASK;
  const first = pagesWindowStart();
  // A source may begin or end inside a huge page.
  const least = (source.start + size - 1) & ~(size - 1);
  const most = source.end & ~(size - 1);
  let start = max(first, least);
  let end = min(first + pages * size, most);
  if (start > page || end <= page) return Step.ASK;
  const range = rangeFind(page);
  if (range && content != Content.REMOVED) {
    let left = NEIGHBOURS;
    for (; left > 0 && end < min(most, range.end) && isWanted(end); left--) end += size;
    for (; left > 0 && start > max(least, range.start) && isWanted(start - size); left--) start -= size;
  }
  answered = 0;
  pageBytes = size;
  return begin(chosen, start, end, source);
}

/**
 * Whether the source answers the fault of a page in this state. An installed page that faults again is filled from the
 * source if removals are reported and none was reported for it. If removals are not reported, the program may have
 * removed the page, so the handler decides what it holds.
 */
function isAnswered(state: u32, source: Source): bool {
  content = contentOf(source);
  if (state == PAGE_MISSING) return true;
  if (state == PAGE_PRESENT) return queueReportsRemovals();
  if (state != PAGE_REMOVED || source.kind == SourceKind.DATA) return false;
  content = Content.REMOVED;
  return true;
}

/** The window of an answer from this source. It depends on the content that is installed. */
function windowOf(source: Source): u32 {
  const window = source.window & ~ZERO_RUNS;
  if (content == Content.DATA || !(source.window & ZERO_RUNS)) return window;
  zeroRun = min(zeroRun * 2, <u32>(ZERO_RUN_MOST / pageSystem()));
  return window & ADAPTIVE ? zeroRun : max(window, zeroRun);
}

function contentOf(source: Source): Content {
  return source.kind == SourceKind.ZEROS ? Content.HOLE : Content.DATA;
}

function begin(chosen: u32, start: u64, end: u64, source: Source): Step {
  if (content == Content.DATA)
    return transferOver(Operation.COPY, chosen, start, end, source.data + (start - source.start));
  return transferOver(Operation.ZEROPAGE, chosen, start, end, 0);
}

/** Whether a fault of this page is queued, and the page is missing. */
function isWanted(page: u64): bool {
  return faultWaits(page) && pageState(page) == PAGE_MISSING;
}

/**
 * Removes the next queued fault whose page the last answer has installed. Returns 1 for a read, 2 for a write, and 0 if
 * there is no further fault.
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
 * Begins to install the first run of missing pages in the range of arguments 0 and 1 from the run's source. ASK: no
 * page is missing, or the run has no source. Writes the bytes before the run, which are not missing, to `passed` in the
 * exchange.
 */
export function aheadBegin(chosen: u32): Step {
  const start = argument(0);
  const end = start + argument(1);
  const size = pageSizeAt(start);
  let from = end;
  let to = start;
  for (; to < end; to += size) {
    if (pageState(to) == PAGE_MISSING) from = min(from, to);
    else if (from < end) break;
  }
  shared().passed = <f64>(from - start);
  const source = sourceOf(from);
  if (from >= end || !source) return Step.ASK;
  to = min(to, source.end & ~(size - 1));
  content = contentOf(source);
  if (to <= from || (content == Content.HOLE && size > pageSystem())) return Step.ASK;
  return begin(chosen, from, to, source);
}
