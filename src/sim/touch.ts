// Simulated touches of memory (docs/kernel.md, "Touches by state"). A touch either completes at once, or puts the
// thread to sleep. After the thread was woken, its touch starts again.

import { FAULT, FEATURE, MODE, PROT } from './abi.js';
import {
  type AddressSpace,
  type Context,
  type Entry,
  isShared,
  pageOfObject,
  type SharedPages,
  tableSpan,
  type Vma,
  type Waiter,
} from './memory.js';
import { isCached, mapFrame } from './shared-memory.js';

export interface FaultingThread {
  readonly tid: number;
  readonly space: AddressSpace;
}

/** The mode of a touch: by the program (user mode), or by the kernel in a system call of the program. */
export type AccessMode = 'user' | 'kernel';

/** The outcome of a touch: the page, a signal or an errno, or a sleep. */
export type TouchResult =
  | { is: 'page'; entry: Entry & { is: 'zero' | 'page' } }
  | { is: 'refused'; outcome: 'SIGSEGV' | 'SIGBUS' | 'EFAULT' }
  | { is: 'asleep'; context: Context; waiter: Waiter };

export function touch(thread: FaultingThread, address: number, write: boolean, by: AccessMode): TouchResult {
  const { space } = thread;
  const refused = (signal: 'SIGSEGV' | 'SIGBUS'): TouchResult => ({
    is: 'refused',
    outcome: by === 'user' ? signal : 'EFAULT',
  });
  const vma = space.at(address);
  if (!vma || !allows(vma, write)) return refused('SIGSEGV');
  const page = space.keyOf(address);
  space.makeTable(address);
  let found = space.entry(page);
  if (found?.is === 'wp' && !(vma.modes & MODE.WP)) {
    // The marker is left from the time when write-protect mode was on.
    space.set(page, undefined);
    found = undefined;
  }
  if (found?.is === 'guard') return refused('SIGSEGV');
  if (found?.is === 'poison') return refused('SIGBUS');
  const userfault = (flags: number): TouchResult => {
    const context = vma.context as Context;
    if (context.has(FEATURE.SIGBUS)) return refused('SIGBUS');
    if (context.userModeOnly && by === 'kernel') return { is: 'refused', outcome: 'EFAULT' };
    return { is: 'asleep', context, waiter: context.sleep(address, flags, thread.tid) };
  };
  if (!found || found.is === 'wp') {
    // Linux prepares the mapping for a write before it reports the fault.
    if (write) space.populate(vma);
    if (vma.object && !write) mapAround(space, vma, vma.object, page);
    found = space.entry(page);
    const kind = vma.object ? kindOfShared(space, vma, vma.object, page) : MODE.MISSING;
    if (kind === undefined) return refused('SIGBUS');
    if (vma.modes & kind)
      return userfault((write ? FAULT.WRITE : 0) | (kind === MODE.MINOR ? FAULT.MINOR : 0));
  }
  const entry = present(space, vma, page, found, write);
  if (!entry) return refused('SIGBUS');
  if (!write) return { is: 'page', entry };
  if (entry.wp && vma.modes & MODE.WP) {
    if (!vma.context?.has(FEATURE.WP_ASYNC)) return userfault(FAULT.WRITE | FAULT.WP);
    entry.wp = false;
    space.observer?.protecting(space, address, false);
  }
  const owned = own(space, vma, page, entry);
  return owned ? { is: 'page', entry: owned } : refused('SIGBUS');
}

function allows(vma: Vma, write: boolean): boolean {
  return write ? (vma.protection & PROT.WRITE) !== 0 : vma.protection !== 0;
}

/**
 * The mode that reports a touch of a page of an object that is not mapped here: minor if it is in the page cache,
 * else missing. Undefined: it lies beyond the end of the object.
 */
function kindOfShared(space: AddressSpace, vma: Vma, object: SharedPages, page: number): number | undefined {
  const index = pageOfObject(space, vma, page);
  if (index >= object.pages) return undefined;
  return object.holds(index) ? MODE.MINOR : MODE.MISSING;
}

/** Bytes of the area in which a read fault maps pages. */
const AROUND_BYTES = 65536;

/**
 * A read fault of an object's page also maps the pages around it that are in the page cache (Linux: fault-around), unless
 * the mapping is registered for minor faults or write-protection.
 */
function mapAround(space: AddressSpace, vma: Vma, object: SharedPages, page: number): void {
  const area = AROUND_BYTES / space.pageSize;
  if (area <= 1 || vma.modes & (MODE.WP | MODE.MINOR)) return;
  const tablePages = tableSpan(space.pageSize) / space.pageSize;
  const first = Math.max(page - (page % area), vma.start / space.pageSize);
  const tableEnd = page - (page % tablePages) + tablePages;
  const end = Math.min(first + area, tableEnd, vma.end / space.pageSize);
  for (let near = Math.max(first, tableEnd - tablePages); near < end; near++) {
    const frame = space.entry(near) ? undefined : object.frame(pageOfObject(space, vma, near));
    if (frame) mapFrame(space, near, frame, false);
  }
}

/**
 * The page's entry. If there is none, one is made: the zero page for a read; a page of zeros for a write, or for any
 * touch of huge pages, which have no zero page; the page of the page cache for an object, or a copy of it for a write to a
 * private mapping. Undefined: no huge page is free.
 */
function present(
  space: AddressSpace,
  vma: Vma,
  page: number,
  found: Entry | undefined,
  write: boolean,
): (Entry & { is: 'zero' | 'page' }) | undefined {
  if (found?.is === 'zero' || found?.is === 'page') return found;
  const wp = found?.is === 'wp';
  const { object, pageSize } = vma;
  if (object) {
    const index = pageOfObject(space, vma, page);
    const frame = object.frame(index) ?? object.allocate(index);
    if (!write || isShared(vma)) return mapFrame(space, page, frame, wp);
    const copy = { ...(space.take(pageSize, frame.bytes) as Entry & { is: 'page' }), wp };
    space.set(page, copy);
    return copy;
  }
  let entry: Entry & { is: 'zero' | 'page' } = { is: 'zero', wp };
  if (write || pageSize > space.pageSize) {
    const fresh = space.take(pageSize);
    if (!fresh) return undefined;
    entry = { ...fresh, wp };
  }
  space.set(page, entry);
  return entry;
}

/**
 * The page to write to. It is a copy if the installed page is the zero page, or, in a private mapping, of the page cache
 * or shared with a forked process.
 * Undefined: no huge page is free.
 */
function own(
  space: AddressSpace,
  vma: Vma,
  page: number,
  entry: Entry & { is: 'zero' | 'page' },
): (Entry & { is: 'page' }) | undefined {
  if (entry.is === 'page' && isShared(vma)) return entry;
  const copied = isCached(space, vma, page);
  if (entry.is === 'page' && !copied && (entry.exclusive || entry.frame.mappers === 1)) {
    entry.exclusive = true;
    return entry;
  }
  space.populate(vma);
  const copy = space.take(vma.pageSize, entry.is === 'page' ? entry.frame.bytes : undefined);
  if (copy) space.set(page, copy);
  return copy;
}
