// The calls that resolve faults, as the kernel answers them (kernel-semantics, section 2, in its order of
// evaluation; the table of section 4 for each page).
//
// Rules:
//  - A mapping change under way comes before the arguments are looked at.
//  - Fills stop at the first page that fails: with bytes done before it, EAGAIN and their number; without, its errno.
//  - What was done is woken, and nothing else; a failure wakes nobody.

import { BIT, E, FEATURE, MODE, PROT, REQUEST } from './abi.js';
import type { Context } from './context.js';
import { type AddressSpace, type Entry, LOCKED, type Vma } from './memory.js';

/** The arguments of one of these calls; `source` where it has one. */
export interface Fill {
  request: number;
  start: number;
  length: number;
  mode: number;
  source: number;
}

/** Where the call comes from: its own memory, for sources. */
export interface Caller {
  readonly space: AddressSpace;
  /** The bytes at an address of the caller's; undefined where it cannot be read. */
  read(address: number, length: number): Uint8Array | undefined;
}

/** What a call gives: its result, and what it writes into the result field. */
export interface Answer {
  result: number;
  /** Undefined: the field is left as it was. */
  out?: number;
}

const failed = (errno: number): Answer => ({ result: errno, out: errno });

/** End of user addresses. */
const SPACE_END = 2 ** 47 - 4096;
/** vm.mmap_min_addr. */
const SPACE_START = 65536;

export function validRange(space: AddressSpace, start: number, length: number): boolean {
  return start % space.pageSize === 0 && validSource(space, start, length);
}

/** A range that need not begin at a page. */
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

/** `fill` undefined: the struct cannot be read. `silent`: its result field cannot be written, so nobody is woken. */
export function resolve(context: Context, caller: Caller, fill: Fill | undefined, silent = false): Answer {
  const { space } = context;
  // Whoever changed a mapping is gone with the process.
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
  const answer = request === REQUEST.MOVE ? move(context, fill) : install(context, caller, fill);
  if ((answer.out as number) > 0 && !(mode & BIT.DONTWAKE) && !silent) {
    context.wake(start, start + (answer.out as number));
  }
  return answer;
}

/** Pages of a size one after another, until one fails. */
function eachPage(size: number, length: number, one: (offset: number) => number): Answer {
  for (let offset = 0; offset < length; offset += size) {
    const errno = one(offset);
    if (errno === 0) continue;
    return offset > 0 ? { result: E.AGAIN, out: offset } : failed(errno);
  }
  return { result: 0, out: length };
}

// ---- COPY, ZEROPAGE, CONTINUE, POISON ----------------------------------------------------------------------

function install(context: Context, caller: Caller, { request, start, length, mode, source }: Fill): Answer {
  const { space } = context;
  const vma = space.at(start);
  // Prepared to hold pages as soon as it is found, also where it is refused.
  if (vma) space.populate(vma);
  if (!vma?.context || start + length > vma.end) return failed(E.NOENT);
  const protect = (mode & BIT.COPY_WP) !== 0;
  if (protect && !(vma.modes & MODE.WP)) return failed(E.INVAL);
  // Only shared memory has pages to go on with; huge pages have no zero page.
  if (request === REQUEST.CONTINUE) return failed(E.INVAL);
  const { pageSize } = vma;
  const huge = pageSize > space.pageSize;
  if (huge && (request === REQUEST.ZEROPAGE || start % pageSize !== 0 || length % pageSize !== 0))
    return failed(E.INVAL);
  return eachPage(pageSize, length, (offset) => {
    const page = space.pageOf(start + offset);
    space.makeTable(start + offset);
    const found = space.entry(page);
    if (request === REQUEST.COPY) {
      if (found?.is === 'page' || found?.is === 'zero') return E.EXIST;
      const bytes = caller.read(source + offset, pageSize);
      // What the kernel says where no huge page is free: it finds the table that it has just made, and takes the page to
      // have been there before. It looks before it reads.
      if (huge && space.pool?.free === 0) return E.EXIST;
      if (!bytes) return E.FAULT;
      const fresh = space.take(pageSize, bytes) as Entry & { is: 'page' };
      space.set(page, { ...fresh, wp: protect });
      if (protect) space.witness?.protecting(space, start + offset, true);
      return 0;
    }
    if (found) return E.EXIST;
    space.set(page, request === REQUEST.POISON ? { is: 'poison' } : { is: 'zero', wp: false });
    return 0;
  });
}

// ---- WRITEPROTECT ------------------------------------------------------------------------------------------

function writeProtect(context: Context, { start, length, mode }: Fill): Answer {
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
  const unpopulated = vma.context?.has(FEATURE.WP_UNPOPULATED) === true;
  for (let address = start; address < end; address += vma.pageSize) {
    const page = space.pageOf(address);
    const entry = space.entry(page);
    if (entry?.is === 'page' || entry?.is === 'zero') entry.wp = on;
    else if (!entry && on && unpopulated) space.set(page, { is: 'wp' });
    else if (entry?.is === 'wp' && !on) space.set(page, undefined);
    if (isProtected(space.entry(page)) === on) space.witness?.protecting(space, address, on);
  }
}

function isProtected(entry: Entry | undefined): boolean {
  return entry?.is === 'wp' || ((entry?.is === 'page' || entry?.is === 'zero') && entry.wp);
}

// ---- MOVE --------------------------------------------------------------------------------------------------

function move(context: Context, { start, length, mode, source }: Fill): Answer {
  const { space } = context;
  const from = space.at(source);
  const to = space.at(start);
  if (to) space.populate(to);
  if (!from || !to) return failed(E.NOENT);
  if (source + length > from.end || start + length > to.end) return failed(E.INVAL);
  if (from.pageSize > space.pageSize || to.pageSize > space.pageSize) return failed(E.INVAL);
  if ((from.traits ^ to.traits) & LOCKED) return failed(E.INVAL);
  if (to.context !== context || from.protection !== to.protection || !(from.protection & PROT.WRITE))
    return failed(E.INVAL);
  return eachPage(space.pageSize, length, (offset) => {
    // Without a table there is certainly no page: that is seen before the target is looked at.
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
