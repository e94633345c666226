// What the module exports: the inputs of the session (session.ts), and queries about ranges and pages. One instance of
// the module serves one userfaultfd. Functions take and return small integers. Addresses and byte counts are passed in
// the exchange (exchange.ts).

import { UFFDIO_REGISTER_MODE_WP } from './abi';
import { argument, argumentEnd, prepareWake, shared } from './exchange';
import {
  pageProtected,
  pageState,
  pagesClaim,
  pagesForget,
  pagesKept,
  pagesLeave,
  pagesStart,
  pagesUnprotect,
  pagesWatch,
  pagesWindow,
  pagesWindowShift,
  pagesWindowStart,
} from './pages';
import { queueForget, queueStart } from './queue';
import {
  Range,
  rangeAdvance,
  rangeFind,
  rangeHere,
  rangeInsert,
  rangeOverlaps,
  rangeRemove,
  rangeSeek,
  rangesStart,
} from './ranges';
import { settled } from './session';

export {
  dirtyMark,
  dirtyOpen,
  entriesBegin,
  entriesNext,
  entriesRoom,
  entriesTake,
  planeClear,
  planeMove,
  planeNext,
  planeSet,
  scan,
  scanBegin,
  scanBuffer,
  scanCheckRequest,
  scanRequest,
  scanTake,
} from './dirty/pagemap';
export {
  apiGranted,
  exchange,
  openFlags,
  openRequest,
  pollExited,
  polled,
  pollWatch,
  registerGranted,
  request,
  requestApi,
  requestPresence,
  requestRegister,
  requestUnregister,
} from './exchange';
export { pagesBytes, pagesLoad, pagesPlaces, pagesSave, snapshot } from './pages';
export { messageDecode, messages } from './queue';
export { rangeCount } from './ranges';
export {
  abandon,
  begin,
  beginAhead,
  beginEnd,
  beginFill,
  delay,
  handleAnswer,
  handleExit,
  handleRead,
  handleResult,
  handleTime,
  handleZeros,
  next,
} from './session';
export { sourceEnded, sourcePut, sourcesClear } from './sources';

/**
 * To call once, before any other function. `shift`: log2 of the system's page size. Argument 2: the features that are
 * on.
 */
export function start(shift: u32): void {
  rangesStart(shift);
  pagesStart(shift);
  queueStart(argument(2));
}

/**
 * Adds the range of arguments 0 (start) and 1 (length), which the kernel has registered. Argument 2: its operations.
 * False: out of memory.
 */
export function rangePut(modes: u32, pageShift: u32): bool {
  const from = argument(0);
  const to = argumentEnd();
  if (!pagesWatch(from, to, (modes & <u32>UFFDIO_REGISTER_MODE_WP) != 0)) return false;
  if (!rangeInsert(from, to, modes, argument(2), pageShift)) return false;
  // If a range with write-protect mode is registered again without that mode, its protection ends.
  for (let more = rangeSeek(from); more && rangeHere().start < to; more = rangeAdvance()) {
    if (!(rangeHere().modes & <u32>UFFDIO_REGISTER_MODE_WP))
      pagesUnprotect(max(from, rangeHere().start), min(to, rangeHere().end));
  }
  return true;
}

/** Removes the range of arguments 0 (start) and 1 (length), which the kernel has unregistered. False: out of memory. */
export function rangeTake(): bool {
  const from = argument(0);
  const to = argumentEnd();
  if (!rangeRemove(from, to)) return false;
  pagesLeave(from, to);
  queueForget(from, to);
  settled();
  return true;
}

/** Whether any page state is kept for the range of arguments 0 (start) and 1 (length). */
export function rangeKept(): bool {
  return pagesKept(argument(0), argumentEnd());
}

/** Forgets the state of the pages of arguments 0 (start) and 1 (length), because other memory is mapped there now. */
export function rangeFresh(): void {
  pagesForget(argument(0), argumentEnd());
}

/** Writes the range that holds the address in argument 0 into the exchange. False: there is none. */
export function rangeAt(): bool {
  const range = rangeFind(argument(0));
  if (!range) return false;
  report(range);
  return true;
}

/** Whether any part of the range of arguments 0 (start) and 1 (length) is registered. */
export function rangeMeets(): bool {
  return rangeOverlaps(argument(0), argumentEnd());
}

/** Writes the first range that ends above the address in argument 0 into the exchange. False: there is none. */
export function rangeFrom(): bool {
  const found = rangeSeek(argument(0));
  if (found) report(rangeHere());
  return found;
}

function report(range: Range): void {
  const it = shared();
  it.start = range.start;
  it.end = range.end;
  it.third = range.operations;
  it.modes = range.modes;
  it.pageShift = range.pageShift;
}

/**
 * Prepares a WAKE of arguments 0 (start) and 1 (length). If the handler's current fault lies there, it counts as
 * resolved.
 */
export function requestWake(): u32 {
  prepareWake(argument(0), argumentEnd());
  settled();
  return shared().code;
}

/** The state of the page that holds the address in argument 0, plus 4 if the page is write-protected. */
export function pageAt(): u32 {
  return pageState(argument(0)) | (pageProtected(argument(0)) ? 4 : 0);
}

/** Claims the missing pages of the range of arguments 0 (start) and 1 (length). Returns how many pages were claimed. */
export function pageClaim(): u32 {
  return pagesClaim(argument(0), argumentEnd());
}

/**
 * How many pages around the address in argument 0 to fill together, at most `size` (see pagesWindow). Writes the start
 * of these pages, and log2 of their page size, into the exchange.
 */
export function pageWindow(size: u32): u32 {
  const pages = pagesWindow(argument(0), size);
  shared().start = pagesWindowStart();
  shared().pageShift = pagesWindowShift();
  return pages;
}
