// The core's exports: verbs with their noun in front. One instance serves one userfaultfd; addresses travel
// through `parameters` and `report` in linear memory, counts and answers as small integers.

import { UFFDIO_REGISTER_MODE_WP } from './abi';
import { inboxForget, inboxStart } from './inbox';
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
} from './pages';
import {
  Range,
  rangeAdvance,
  rangeFind,
  rangeHere,
  rangeInsert,
  rangeOverlaps,
  rangeRemove,
  rangeSeek,
} from './ranges';
import { argument } from './request';

export { aheadBegin, aheadPassed } from './answers';
export {
  delivery,
  inboxAnswer,
  inboxDefer,
  inboxDelay,
  inboxEvict,
  inboxNextEvent,
  inboxOpen,
  inboxPutOff,
  inboxRoom,
  inboxTake,
  inboxUnknown,
  inboxWaiting,
  messageDecode,
  messages,
} from './inbox';
export {
  dirtyMark,
  dirtyOpen,
  entriesBegin,
  entriesNext,
  entriesOffset,
  entriesRoom,
  entriesTake,
  planeClear,
  planeMove,
  planeNext,
  planeSet,
  runEnd,
  runStart,
  scan,
  scanBegin,
  scanBuffer,
  scanCheckRequest,
  scanRequest,
  scanTake,
} from './pagemap';
export {
  pagesBytes,
  pagesLoad,
  pagesPlaces,
  pagesSave,
  pagesWindowSize,
  pagesWindowStart,
  snapshot,
} from './pages';
export { rangeCount } from './ranges';
export {
  apiFeatures,
  apiOperations,
  code,
  openFlags,
  openRequest,
  parameters,
  pollExited,
  polled,
  pollWatch,
  registerOperations,
  request,
  requestApi,
  requestPresence,
  requestRegister,
  requestUnregister,
  requestWake,
} from './request';
export { roundNext, roundResult, roundResume, tally } from './round';
export { sourceEnded, sourcePut, sourcesClear } from './sources';
export {
  transferBegin,
  transferCursor,
  transferDone,
  transferErrno,
  transferInstalled,
  transferResult,
  transferResume,
  transferSource,
  transferZeros,
} from './transfer';

/** The range or window that the last question found: a `Range`. */
export const report: usize = memory.data(32, 8);

/** Called once, before anything else. `shift` is log2 of the system's page size. */
export function start(shift: u32, features: u64): void {
  pagesStart(shift);
  inboxStart(shift, features);
}

/** Arguments 0 (start), 1 (length), 2 (operations): the kernel registered this. False: no memory left. */
export function rangePut(modes: u32, pageShift: u32): bool {
  const from = argument(0);
  const to = from + argument(1);
  if (!pagesWatch(from, to, (modes & <u32>UFFDIO_REGISTER_MODE_WP) != 0)) return false;
  if (!rangeInsert(from, to, modes, argument(2), pageShift)) return false;
  // Registering again with other modes ends the protection where write-protect mode was one of them.
  for (let more = rangeSeek(from); more && rangeHere().start < to; more = rangeAdvance()) {
    if (!(rangeHere().modes & <u32>UFFDIO_REGISTER_MODE_WP))
      pagesUnprotect(max(from, rangeHere().start), min(to, rangeHere().end));
  }
  return true;
}

/** Arguments 0 (start), 1 (length): the kernel unregistered this. False: no memory left. */
export function rangeTake(): bool {
  const from = argument(0);
  const to = from + argument(1);
  if (!rangeRemove(from, to)) return false;
  pagesLeave(from, to);
  inboxForget(from, to);
  return true;
}

/** Arguments 0 (start), 1 (length): whether there is anything to forget. */
export function rangeKept(): bool {
  return pagesKept(argument(0), argument(0) + argument(1));
}

/** Arguments 0 (start), 1 (length): other memory is mapped there now than before; nothing is known of its pages. */
export function rangeFresh(): void {
  pagesForget(argument(0), argument(0) + argument(1));
}

function tell(range: Range): void {
  memory.copy(report, changetype<usize>(range), offsetof<Range>());
}

/** Argument 0: the range that holds this address, into `report`. */
export function rangeAt(): bool {
  const range = rangeFind(argument(0));
  if (!range) return false;
  tell(range);
  return true;
}

/** Arguments 0 (start), 1 (length): whether any part of it is registered. */
export function rangeMeets(): bool {
  return rangeOverlaps(argument(0), argument(0) + argument(1));
}

/** The lowest range, into `report`. */
export function rangeFirst(): bool {
  const found = rangeSeek(0);
  if (found) tell(rangeHere());
  return found;
}

/** The range behind the one reported last, into `report`. */
export function rangeNext(): bool {
  const found = rangeSeek(changetype<Range>(report).end);
  if (found) tell(rangeHere());
  return found;
}

/** Argument 0: the state of the page that holds this address; +4 where it is write-protected. */
export function pageAt(): u32 {
  return pageState(argument(0)) | (pageProtected(argument(0)) ? 4 : 0);
}

/** Arguments 0 (start), 1 (length): claims the missing pages there; how many they were. */
export function pageClaim(): u32 {
  return pagesClaim(argument(0), argument(0) + argument(1));
}

/** Argument 0: how many pages around this address to fill at once, at most `size`; see pagesWindowStart. */
export function pageWindow(size: u32): u32 {
  return pagesWindow(argument(0), size);
}
