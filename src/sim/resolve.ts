// The calls that resolve faults, as Linux answers them (docs/kernel.md: "The order of checks", and for each page
// "Operations by state").
//
// Rules:
//  - The first check is whether a mapping change is under way. The arguments are checked after that.
//  - A fill stops at the first page that fails. If pages before it are done, the call answers EAGAIN with their bytes.
//    If no page is done, it answers the errno of that page.
//  - Only waiters of pages that are done are woken. A failure wakes no thread.

import { BIT, E, FEATURE, MODE, PROT, REQUEST } from './abi.js';
import {
  type AddressSpace,
  type Context,
  type Entry,
  isShared,
  LOCKED,
  pageOfObject,
  type SharedPages,
  type Vma,
} from './memory.js';
import { mapFrame } from './shared-memory.js';

/** The arguments of a call that resolves faults. `source`: 0 if the call has none. */
export interface Fill {
  request: number;
  start: number;
  length: number;
  mode: number;
  source: number;
}

/** The calling process. COPY reads its source from the memory of this process. */
export interface Caller {
  readonly space: AddressSpace;
  /** The bytes at an address of the caller; undefined if it cannot be read. */
  read(address: number, length: number): Uint8Array | undefined;
}

/** The result of a call, and what it writes into the result field. */
export interface CallResult {
  result: number;
  /** The value of the result field. Undefined: the field is not written. */
  out?: number;
}

const failed = (errno: number): CallResult => ({ result: errno, out: errno });

/** The end of user addresses. */
const SPACE_END = 2 ** 47 - 4096;
/** The lowest user address: vm.mmap_min_addr. */
const SPACE_START = 65536;

export function validRange(space: AddressSpace, start: number, length: number): boolean {
  return start % space.pageSize === 0 && validSource(space, start, length);
}

/** Checks a range that need not begin at a page boundary. */
function validSource(space: AddressSpace, start: number, length: number): boolean {
  return length > 0 && length % space.pageSize === 0 && start >= SPACE_START && start + length <= SPACE_END;
}

const MODES: Readonly<Record<number, number>> = {
  [REQUEST.COPY]: BIT.DONTWAKE | BIT.COPY_WP,
  [REQUEST.ZEROPAGE]: BIT.DONTWAKE,
  [REQUEST.CONTINUE]: BIT.DONTWAKE | BIT.COPY_WP,
  [REQUEST.POISON]: BIT.DONTWAKE,
  [REQUEST.MOVE]: BIT.DONTWAKE | BIT.MOVE_HOLES,
  [REQUEST.WRITEPROTECT]: BIT.WRITEPROTECT_WP | BIT.WRITEPROTECT_DONTWAKE,
};

/**
 * Answers a call. `fill` undefined: the struct cannot be read. `silent`: the result field cannot be written, so no
 * thread is woken.
 */
export function resolve(
  context: Context,
  caller: Caller,
  fill: Fill | undefined,
  silent = false,
): CallResult {
  const { space } = context;
  // If the process is gone, the threads that changed its mappings are gone, too.
  if (context.changing > 0 && space.alive) return failed(E.AGAIN);
  if (!fill) return { result: E.FAULT };
  const { request, start, length, mode } = fill;
  if (request === REQUEST.MOVE && caller.space !== space) return { result: E.INVAL };
  if (!validRange(space, start, length) || (mode & ~(MODES[request] as number)) !== 0)
    return { result: E.INVAL };
  if (request === REQUEST.COPY && !validSource(caller.space, fill.source, length)) return { result: E.INVAL };
  if (request === REQUEST.MOVE && !validRange(space, fill.source, length)) return { result: E.INVAL };
  if (request === REQUEST.WRITEPROTECT && mode === (BIT.WRITEPROTECT_WP | BIT.WRITEPROTECT_DONTWAKE))
    return { result: E.INVAL };
  if (!space.alive) return { result: E.SRCH };
  if (request === REQUEST.WRITEPROTECT) return writeProtect(context, fill);
  const result = request === REQUEST.MOVE ? move(context, fill) : install(context, caller, fill);
  if ((result.out as number) > 0 && !(mode & BIT.DONTWAKE) && !silent) {
    context.wake(start, start + (result.out as number));
  }
  return result;
}

/** Handles the pages of a range in order, until one of them fails. */
function eachPage(size: number, length: number, one: (offset: number) => number): CallResult {
  for (let offset = 0; offset < length; offset += size) {
    const errno = one(offset);
    if (errno === 0) continue;
    return offset > 0 ? { result: E.AGAIN, out: offset } : failed(errno);
  }
  return { result: 0, out: length };
}

// ---- COPY, ZEROPAGE, CONTINUE, POISON ----------------------------------------------------------------------

function install(
  context: Context,
  caller: Caller,
  { request, start, length, mode, source }: Fill,
): CallResult {
  const { space } = context;
  const vma = space.at(start);
  // Linux prepares the mapping (its anon_vma) as soon as it is found, even if it then refuses the call.
  if (vma) space.populate(vma);
  if (!vma?.context || start + length > vma.end) return failed(E.NOENT);
  const protect = (mode & BIT.COPY_WP) !== 0;
  if (protect && !(vma.modes & MODE.WP)) return failed(E.INVAL);
  const { object } = vma;
  // To fill a private mapping of an object never changes the object.
  const fills = request === REQUEST.COPY || request === REQUEST.ZEROPAGE;
  if (object && (isShared(vma) || !fills)) {
    return eachPage(space.pageSize, length, (offset) => {
      const page: SharedPage = { space, vma, object, address: start + offset };
      space.makeTable(page.address);
      return installShared(page, request, protect, () => caller.read(source + offset, space.pageSize));
    });
  }
  // Only mappings of objects support CONTINUE; huge pages have no zero page.
  if (request === REQUEST.CONTINUE) return failed(E.INVAL);
  const { pageSize } = vma;
  const huge = pageSize > space.pageSize;
  if (huge && (request === REQUEST.ZEROPAGE || start % pageSize !== 0 || length % pageSize !== 0))
    return failed(E.INVAL);
  return eachPage(pageSize, length, (offset) => {
    const page = space.pageOf(start + offset);
    space.makeTable(start + offset);
    const found = space.entry(page);
    if (object && pageOfObject(space, vma, page) >= object.pages) return E.FAULT;
    if (request === REQUEST.COPY) {
      if (found?.is === 'page' || found?.is === 'zero') return E.EXIST;
      const bytes = caller.read(source + offset, pageSize);
      // Linux answers EEXIST if no huge page is free: it finds the table that it has just made, and concludes that the
      // page was there before. This happens before it reads the source.
      if (huge && space.pool?.free === 0) return E.EXIST;
      if (!bytes) return E.FAULT;
      const fresh = space.take(pageSize, bytes) as Entry & { is: 'page' };
      space.set(page, { ...fresh, wp: protect });
      if (protect) space.observer?.protecting(space, start + offset, true);
      return 0;
    }
    if (found) return E.EXIST;
    space.set(page, request === REQUEST.POISON ? { is: 'poison' } : { is: 'zero', wp: false });
    return 0;
  });
}

/** A page of a mapping of an object. */
interface SharedPage {
  space: AddressSpace;
  vma: Vma;
  object: SharedPages;
  address: number;
}

/** Fills one page of a shared mapping, or maps one privately. Returns 0 or −errno. `bytes` reads the source of COPY. */
function installShared(
  { space, vma, object, address }: SharedPage,
  request: number,
  protect: boolean,
  bytes: () => Uint8Array | undefined,
): number {
  const page = space.pageOf(address);
  const found = space.entry(page);
  const index = pageOfObject(space, vma, page);
  const beyond = index >= object.pages;
  if (request === REQUEST.POISON) {
    if (beyond) return E.FAULT;
    if (found) return E.EXIST;
    space.set(page, { is: 'poison' });
    return 0;
  }
  let frame = object.frame(index);
  if (request === REQUEST.CONTINUE) {
    if (beyond) return E.INVAL;
    if (!frame) return E.FAULT;
    if (found?.is === 'page' || found?.is === 'zero') return E.EXIST;
  } else {
    // Linux reads the source before it looks into the page cache.
    const source = request === REQUEST.COPY ? bytes() : undefined;
    if (beyond || (request === REQUEST.COPY && !source)) return E.FAULT;
    if (frame) return E.EXIST;
    frame = object.allocate(index, source);
  }
  mapFrame(space, page, frame, protect);
  if (protect || found?.is === 'wp') space.observer?.protecting(space, address, protect);
  return 0;
}

// ---- WRITEPROTECT ------------------------------------------------------------------------------------------

function writeProtect(context: Context, { start, length, mode }: Fill): CallResult {
  const { space } = context;
  const on = (mode & BIT.WRITEPROTECT_WP) !== 0;
  const end = start + length;
  const vmas = space.within(start, end);
  if (vmas.length === 0) return { result: E.NOENT };
  for (const vma of vmas) {
    if (!(vma.modes & MODE.WP)) return { result: E.NOENT };
    protectIn(space, vma, Math.max(start, vma.start), Math.min(end, vma.end), on);
  }
  if (!on && !(mode & BIT.WRITEPROTECT_DONTWAKE)) context.wake(start, end);
  return { result: 0 };
}

function protectIn(space: AddressSpace, vma: Vma, start: number, end: number, on: boolean): void {
  // Mappings of objects always have markers.
  const unpopulated = vma.object !== undefined || vma.context?.has(FEATURE.WP_UNPOPULATED) === true;
  for (let address = start; address < end; address += vma.pageSize) {
    const page = space.pageOf(address);
    const entry = space.entry(page);
    if (entry?.is === 'page' || entry?.is === 'zero') entry.wp = on;
    else if (!entry && on && unpopulated) space.set(page, { is: 'wp' });
    else if (entry?.is === 'wp' && !on) space.set(page, undefined);
    if (isProtected(space.entry(page)) === on) space.observer?.protecting(space, address, on);
  }
}

function isProtected(entry: Entry | undefined): boolean {
  return entry?.is === 'wp' || ((entry?.is === 'page' || entry?.is === 'zero') && entry.wp);
}

// ---- MOVE --------------------------------------------------------------------------------------------------

function move(context: Context, { start, length, mode, source }: Fill): CallResult {
  const { space } = context;
  const from = space.at(source);
  const to = space.at(start);
  if (to) space.populate(to);
  if (!from || !to) return failed(E.NOENT);
  if (from.object || to.object) return failed(E.INVAL);
  if (source + length > from.end || start + length > to.end) return failed(E.INVAL);
  if (from.pageSize > space.pageSize || to.pageSize > space.pageSize) return failed(E.INVAL);
  if ((from.traits ^ to.traits) & LOCKED) return failed(E.INVAL);
  if (to.context !== context || from.protection !== to.protection || !(from.protection & PROT.WRITE))
    return failed(E.INVAL);
  return eachPage(space.pageSize, length, (offset) => {
    // Without a table there is no page at the source. Linux checks this before it checks the target.
    if (!space.hasTable(source + offset) && !(mode & BIT.MOVE_HOLES)) return E.NOENT;
    space.makeTable(source + offset);
    space.makeTable(start + offset);
    return movePage(
      space,
      space.pageOf(source + offset),
      space.pageOf(start + offset),
      (mode & BIT.MOVE_HOLES) !== 0,
    );
  });
}

function movePage(space: AddressSpace, from: number, to: number, holes: boolean): number {
  if (space.entry(to)) return E.EXIST;
  const entry = space.entry(from);
  if (!entry) return holes ? 0 : E.NOENT;
  if (entry.is !== 'page' && entry.is !== 'zero') return E.FAULT;
  if (entry.is === 'page' && !entry.exclusive) return E.BUSY;
  space.carry(from, to);
  (space.entry(to) as Entry & { wp: boolean }).wp = false;
  return 0;
}
