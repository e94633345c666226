// What happens when memory is touched (kernel-semantics, section 4: touch). A touch runs to its end at once, or
// says where it went to sleep; after a wake it begins anew.

import { FAULT, FEATURE, MODE, PROT } from './abi.js';
import type { Context, Sleeper } from './context.js';
import type { AddressSpace, Entry, Vma } from './memory.js';

export interface Toucher {
  readonly tid: number;
  readonly space: AddressSpace;
}

/** Who touches: the program itself, or the kernel for it, in a system call. */
export type By = 'user' | 'kernel';

/** What came of a touch: the page, a signal or an errno, or a sleep. */
export type Touched =
  | { is: 'page'; entry: Entry & { is: 'zero' | 'page' } }
  | { is: 'refused'; outcome: 'SIGSEGV' | 'SIGBUS' | 'EFAULT' }
  | { is: 'asleep'; context: Context; sleeper: Sleeper };

export function touch(who: Toucher, address: number, write: boolean, by: By): Touched {
  const { space } = who;
  const refused = (signal: 'SIGSEGV' | 'SIGBUS'): Touched => ({
    is: 'refused',
    outcome: by === 'user' ? signal : 'EFAULT',
  });
  const vma = space.at(address);
  if (!vma || !allows(vma, write)) return refused('SIGSEGV');
  const page = space.keyOf(address);
  space.makeTable(address);
  let found = space.entry(page);
  if (found?.is === 'wp' && !(vma.modes & MODE.WP)) {
    // Left from when the mode was on.
    space.set(page, undefined);
    found = undefined;
  }
  if (found?.is === 'guard') return refused('SIGSEGV');
  if (found?.is === 'poison') return refused('SIGBUS');
  const userfault = (flags: number): Touched => {
    const context = vma.context as Context;
    if (context.has(FEATURE.SIGBUS)) return refused('SIGBUS');
    if (context.userModeOnly && by === 'kernel') return { is: 'refused', outcome: 'EFAULT' };
    return { is: 'asleep', context, sleeper: context.sleep(address, flags, who.tid) };
  };
  if (!found || found.is === 'wp') {
    // A page to write to is prepared before anybody is asked for it.
    if (write) space.populate(vma);
    if (vma.modes & MODE.MISSING) return userfault(write ? FAULT.WRITE : 0);
  }
  const entry = present(space, vma, page, found, write);
  if (!entry) return refused('SIGBUS');
  if (!write) return { is: 'page', entry };
  if (entry.wp && vma.modes & MODE.WP) {
    if (!vma.context?.has(FEATURE.WP_ASYNC)) return userfault(FAULT.WRITE | FAULT.WP);
    entry.wp = false;
    space.witness?.protecting(space, address, false);
  }
  const owned = own(space, vma, page, entry);
  return owned ? { is: 'page', entry: owned } : refused('SIGBUS');
}

function allows(vma: Vma, write: boolean): boolean {
  return write ? (vma.protection & PROT.WRITE) !== 0 : vma.protection !== 0;
}

/**
 * The page's entry; where there is none, the kernel's own: the zero page for a read, a page of zeros for a write, or
 * for any touch of huge pages, which have no zero page. Undefined: no huge page is free.
 */
function present(
  space: AddressSpace,
  { pageSize }: Vma,
  page: number,
  found: Entry | undefined,
  write: boolean,
): (Entry & { is: 'zero' | 'page' }) | undefined {
  if (found?.is === 'zero' || found?.is === 'page') return found;
  const wp = found?.is === 'wp';
  let entry: Entry & { is: 'zero' | 'page' } = { is: 'zero', wp };
  if (write || pageSize > space.pageSize) {
    const fresh = space.take(pageSize);
    if (!fresh) return undefined;
    entry = { ...fresh, wp };
  }
  space.set(page, entry);
  return entry;
}

/** A page to write to: the zero page, and one that others share, are replaced by a copy. Undefined: there is no room. */
function own(
  space: AddressSpace,
  vma: Vma,
  page: number,
  entry: Entry & { is: 'zero' | 'page' },
): (Entry & { is: 'page' }) | undefined {
  if (entry.is === 'page' && (entry.exclusive || entry.frame.mappers === 1)) {
    entry.exclusive = true;
    return entry;
  }
  space.populate(vma);
  const copy = space.take(vma.pageSize, entry.is === 'page' ? entry.frame.bytes : undefined);
  if (copy) space.set(page, copy);
  return copy;
}
