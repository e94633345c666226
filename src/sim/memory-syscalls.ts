// The simulated system calls that change mappings. Each takes the same steps as on Linux (docs/kernel.md, "Changes,
// step by step"). Between two steps any other thread may run.
//
// Rules:
//  - A change sends a message to a userfaultfd, and the thread that makes the change sleeps until the message is read.
//    From before the change until the thread runs again, the userfaultfd is "changing".
//  - madvise first waits until its message is read, and then zaps the pages. munmap and mremap change the mappings
//    first, and wait afterwards.
//  - A thread does not wait for a userfaultfd that was closed meanwhile.

import { ADVICE, E, EVENT, FEATURE, MODE, MREMAP } from './abi.js';
import {
  type AddressSpace,
  BOUND,
  Context,
  clearProtection,
  type Entry,
  type EventMessage,
  isShared,
  LOCKED,
  NOT_DUMPED,
  NOT_FORKED,
  pageOfObject,
  type SharedPages,
  type Vma,
} from './memory.js';
import { zapShared } from './shared-memory.js';

/** What a thread waits for in the middle of a call. */
export interface Wait {
  readonly place: 'event' | 'fault' | 'read';
  over(): boolean;
  /** Called if the thread ends while it waits. */
  abandon?(): void;
}

export type SyscallSteps<T> = Generator<Wait | undefined, T, void>;

/**
 * Posts a message and sleeps until it is read. After that, the userfaultfd is no longer "changing" because of this
 * change.
 */
function* post(
  context: Context,
  event: number,
  words: EventMessage['words'],
  child?: Context,
): SyscallSteps<void> {
  if (!context.released) {
    const message = context.post(event, words, child);
    yield { place: 'event', over: () => message.read, abandon: () => context.withdraw(message) };
  } else child?.release();
  context.changing--;
}

function valid(space: AddressSpace, address: number, length: number): boolean {
  return address % space.pageSize === 0 && length >= 0;
}

function whole(space: AddressSpace, length: number): number {
  return Math.ceil(length / space.pageSize) * space.pageSize;
}

// ---- madvise -----------------------------------------------------------------------------------------------

export function* madvise(
  space: AddressSpace,
  address: number,
  bytes: number,
  advice: number,
): SyscallSteps<number> {
  const known: readonly number[] = Object.values(ADVICE);
  if (!valid(space, address, bytes) || !known.includes(advice)) return E.INVAL;
  const end = address + whole(space, bytes);
  let cursor = address;
  let result = 0;
  while (cursor < end) {
    const vma = space.within(cursor, end)[0];
    if (!vma || vma.start > cursor) result = E.NOMEM;
    if (!vma) break;
    const from = Math.max(cursor, vma.start);
    const to = Math.min(end, vma.end);
    const done = yield* advise(space, vma, from, to, advice);
    if (done < 0) return done;
    cursor = done;
  }
  return result;
}

/** Advice that sets a trait of the mapping, or removes it. */
const ADVISED_TRAITS: Readonly<Record<number, { bit: number; set: boolean }>> = {
  [ADVICE.DONTDUMP]: { bit: NOT_DUMPED, set: true },
  [ADVICE.DODUMP]: { bit: NOT_DUMPED, set: false },
  [ADVICE.DONTFORK]: { bit: NOT_FORKED, set: true },
  [ADVICE.DOFORK]: { bit: NOT_FORKED, set: false },
};

/** Applies an advice to a part of one mapping. Returns the address that it has reached, or −errno. */
function* advise(
  space: AddressSpace,
  vma: Vma,
  from: number,
  to: number,
  advice: number,
): SyscallSteps<number> {
  const trait = ADVISED_TRAITS[advice];
  if (trait) {
    space.change(from, to, (part) => {
      part.traits = trait.set ? part.traits | trait.bit : part.traits & ~trait.bit;
    });
    return to;
  }
  if (vma.pageSize > space.pageSize) {
    if (advice !== ADVICE.DONTNEED || from % vma.pageSize !== 0) return E.INVAL;
    // As on Linux, a partial huge page at the end is left out.
    const whole = to - (to % vma.pageSize);
    if (whole === from) return to;
    to = whole;
  }
  if (advice === ADVICE.GUARD_INSTALL) {
    space.populate(vma, true);
    for (let page = space.pageOf(from); page < space.pageOf(to); page++) space.set(page, { is: 'guard' });
    space.observer?.unmapped(space, from, to);
    return to;
  }
  if (advice === ADVICE.GUARD_REMOVE) {
    for (const page of space.pagesIn(from, to)) {
      if (space.entry(page)?.is === 'guard') space.set(page, undefined);
    }
    return to;
  }
  if (advice === ADVICE.COLD || advice === ADVICE.PAGEOUT) return to;
  if (advice === ADVICE.REMOVE) return yield* removeFromObject(space, vma, from, to);
  const { context } = vma;
  let end = to;
  let now: Vma | undefined = vma;
  if (context?.has(FEATURE.EVENT_REMOVE)) {
    context.changing++;
    if (!isShared(vma)) space.observer?.removing(space, from, to);
    yield* post(context, EVENT.REMOVE, [from, to, 0]);
    // Another mapping may be at this address by now. The caller repeats the part that it does not cover, with a new
    // message.
    yield undefined;
    now = space.at(from);
    if (!now) return E.NOMEM;
    end = Math.min(to, now.end);
  }
  // The pages of an object cannot be freed lazily. Linux finds that out after it has posted the message.
  if (advice === ADVICE.FREE && now.object) return E.INVAL;
  if (now.object) zapShared(space, now, from, end, 'drops all');
  else if (advice === ADVICE.DONTNEED) zap(space, from, end);
  else dropPoison(space, from, end);
  if (now.object && !isShared(now)) space.observer?.removed(space, from, end);
  return end;
}

/** MADV_REMOVE: punches a hole into the object behind a part of a mapping, when its message was read. */
function* removeFromObject(space: AddressSpace, vma: Vma, from: number, to: number): SyscallSteps<number> {
  const { context, object, traits } = vma;
  if (!object || traits & LOCKED) return E.INVAL;
  if (!isShared(vma)) return E.ACCES;
  const first = pageOfObject(space, vma, space.pageOf(from));
  if (context?.has(FEATURE.EVENT_REMOVE)) {
    context.changing++;
    space.observer?.removing(space, from, to);
    yield* post(context, EVENT.REMOVE, [from, to, 0]);
    yield undefined;
  }
  punch(object, first, first + (to - from) / space.pageSize);
  return to;
}

function punch(object: SharedPages, first: number, end: number): void {
  object.remove(first, end, (space, from, to) => space.observer?.removed(space, from, to));
}

/** Takes pages away, except guard pages. */
function zap(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    if (space.entry(page)?.is !== 'guard') space.set(page, undefined);
  }
  space.observer?.removed(space, start, end);
}

/** MADV_FREE keeps data where it is, but removes poison. */
function dropPoison(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    if (space.entry(page)?.is === 'poison') space.set(page, undefined);
  }
}

// ---- munmap, and mapping over what is there ----------------------------------------------------------------

/** Returns the userfaultfds that get a message of an unmapping, each of them once, and marks them as "changing". */
function prepareUnmap(space: AddressSpace, start: number, end: number): Context[] {
  const contexts = new Set<Context>();
  for (const { context } of space.within(start, end)) {
    if (context?.has(FEATURE.EVENT_UNMAP)) contexts.add(context);
  }
  for (const context of contexts) context.changing++;
  return [...contexts];
}

function* completeUnmap(contexts: readonly Context[], start: number, end: number): SyscallSteps<void> {
  for (const context of contexts) yield* post(context, EVENT.UNMAP, [start, end, 0]);
}

export function* munmap(space: AddressSpace, address: number, bytes: number): SyscallSteps<number> {
  const end = address + whole(space, bytes);
  if (!valid(space, address, bytes) || bytes === 0) return E.INVAL;
  const contexts = prepareUnmap(space, address, end);
  space.remove(address, end);
  yield* completeUnmap(contexts, address, end);
  return 0;
}

/** mmap with MAP_FIXED: private anonymous memory in place of the memory that is mapped there. */
export function* overlay(
  space: AddressSpace,
  address: number,
  bytes: number,
  protection: number,
): SyscallSteps<number> {
  const length = whole(space, bytes);
  if (!valid(space, address, bytes) || bytes === 0) return E.INVAL;
  const contexts = prepareUnmap(space, address, address + length);
  space.remove(address, address + length);
  space.map(address, length, protection);
  yield* completeUnmap(contexts, address, address + length);
  return address;
}

/** mbind: moves no page in the simulation, sends no message, and does not wait. */
export function mbind(space: AddressSpace, address: number, bytes: number, bound: boolean): number {
  const end = address + whole(space, bytes);
  if (!valid(space, address, bytes)) return E.INVAL;
  if (space.within(address, end).length === 0) return E.FAULT;
  space.change(address, end, (vma) => {
    vma.traits = bound ? vma.traits | BOUND : vma.traits & ~BOUND;
  });
  return 0;
}

/** mprotect: sends no message, and does not wait. Stops at the first hole. */
export function mprotect(space: AddressSpace, address: number, bytes: number, protection: number): number {
  if (!valid(space, address, bytes)) return E.INVAL;
  const end = address + whole(space, bytes);
  for (let cursor = address; cursor < end; ) {
    const vma = space.at(cursor);
    if (!vma) return E.NOMEM;
    const to = Math.min(end, vma.end);
    space.change(cursor, to, (part) => {
      part.protection = protection;
    });
    cursor = to;
  }
  return 0;
}

// ---- mremap ------------------------------------------------------------------------------------------------

export interface Remap {
  address: number;
  oldLength: number;
  newLength: number;
  flags: number;
  /** The target address, with MREMAP_FIXED. */
  target: number;
}

/** Messages of an unmapping, sent at the end of the call. */
interface Unmapped {
  contexts: readonly Context[];
  start: number;
  end: number;
}

/** Messages of a call, in the order in which they are sent. */
interface RemapEvents {
  early: Unmapped[];
  moved?: { context: Context; words: EventMessage['words'] };
  late: Unmapped[];
}

/** Unmaps a range, and queues the messages of the unmapping. */
function take(space: AddressSpace, start: number, end: number, list: Unmapped[]): void {
  list.push({ contexts: prepareUnmap(space, start, end), start, end });
  space.remove(start, end);
}

function* postAll({ early, moved, late }: RemapEvents): SyscallSteps<void> {
  for (const { contexts, start, end } of early) yield* completeUnmap(contexts, start, end);
  if (moved) yield* post(moved.context, EVENT.REMAP, moved.words);
  for (const { contexts, start, end } of late) yield* completeUnmap(contexts, start, end);
}

/** `place` finds a free address if the kernel has to choose it. */
export function* mremap(
  space: AddressSpace,
  wanted: Remap,
  place: (length: number) => number,
): SyscallSteps<number> {
  const { address, flags } = wanted;
  const oldLength = whole(space, wanted.oldLength);
  const newLength = whole(space, wanted.newLength);
  const fixed = (flags & MREMAP.FIXED) !== 0;
  const keeps = (flags & MREMAP.DONTUNMAP) !== 0;
  if (invalidRemap(space, { ...wanted, oldLength, newLength })) return E.INVAL;
  const events: RemapEvents = { early: [], late: [] };
  let result: number;
  if (fixed && oldLength === newLength) {
    result = moveMany(space, wanted, oldLength, events);
  } else {
    const vma = space.at(address);
    if (!vma) return E.FAULT;
    if (!fixed && !keeps && newLength <= oldLength) {
      if (newLength < oldLength) take(space, address + newLength, address + oldLength, events.late);
      result = address;
    } else if (address + Math.min(oldLength, newLength) > vma.end) {
      return E.FAULT;
    } else if (!fixed && !keeps && grow(space, vma, address, oldLength, newLength)) {
      result = address;
    } else if (!(flags & MREMAP.MAYMOVE)) {
      return E.NOMEM;
    } else {
      const target = fixed ? wanted.target : place(newLength);
      result = move(space, { ...wanted, oldLength, newLength, target }, events);
    }
  }
  yield* postAll(events);
  return result;
}

function invalidRemap(space: AddressSpace, { address, oldLength, newLength, flags, target }: Remap): boolean {
  const fixed = (flags & MREMAP.FIXED) !== 0;
  const keeps = (flags & MREMAP.DONTUNMAP) !== 0;
  if (address % space.pageSize !== 0 || oldLength === 0 || newLength === 0) return true;
  if ((fixed || keeps) && !(flags & MREMAP.MAYMOVE)) return true;
  if (keeps && oldLength !== newLength) return true;
  if (!fixed) return false;
  return target % space.pageSize !== 0 || (target < address + oldLength && address < target + newLength);
}

/** Extends a mapping in place, if the addresses that follow it are free. */
function grow(space: AddressSpace, vma: Vma, address: number, oldLength: number, newLength: number): boolean {
  if (address + oldLength !== vma.end) return false;
  const end = address + newLength;
  if (space.within(vma.end, end).length > 0) return false;
  vma.end = end;
  space.join(vma.start, end);
  return true;
}

/**
 * Moves all mappings of a range, with the gaps between them. A watched mapping moves only if it is the only mapping of
 * the range. If it is not, the call fails there, after it has moved the mappings before it.
 */
function moveMany(space: AddressSpace, wanted: Remap, length: number, events: RemapEvents): number {
  const start = wanted.address;
  const end = start + length;
  let result: number = E.FAULT;
  for (const vma of space.within(start, end)) {
    const first = result < 0;
    const from = Math.max(start, vma.start);
    const bytes = Math.min(end, vma.end) - from;
    if (first && from > start) return E.FAULT;
    if (vma.context && (!first || vma.end < end)) return E.FAULT;
    const target = wanted.target + (from - start);
    move(space, { ...wanted, address: from, oldLength: bytes, newLength: bytes, target }, events);
    if (first) result = target;
  }
  return result;
}

/** Moves a part of one mapping. */
function move(
  space: AddressSpace,
  { address, newLength, flags, target, ...wanted }: Remap,
  events: RemapEvents,
): number {
  if (flags & MREMAP.FIXED) take(space, target, target + newLength, events.early);
  const oldLength = Math.min(wanted.oldLength, newLength);
  if (oldLength < wanted.oldLength) take(space, address + newLength, address + wanted.oldLength, events.late);
  const vma = space.at(address) as Vma;
  const { context } = vma;
  const follows = context?.has(FEATURE.EVENT_REMAP) === true;
  if (follows) {
    const watching = context as Context;
    watching.changing++;
    events.moved = { context: watching, words: [address, target, oldLength] };
  }
  carry(space, vma, address, oldLength, target, newLength, follows);
  if (!(flags & MREMAP.DONTUNMAP)) take(space, address, address + oldLength, events.late);
  return target;
}

/**
 * Moves pages, with the bits of their entries, and their registration. If the userfaultfd does not follow the move, the
 * mapping at the new address is no longer watched. That mapping may be larger, if it was merged with its neighbours.
 */
function carry(
  space: AddressSpace,
  vma: Vma,
  from: number,
  oldLength: number,
  to: number,
  newLength: number,
  follows: boolean,
): void {
  const origin =
    vma.family || vma.object ? vma.origin + (from - vma.start) / space.pageSize : to / space.pageSize;
  const copy = { ...vma, start: to, end: to + newLength, origin };
  for (let offset = 0; offset < oldLength; offset += space.pageSize) {
    if (space.hasTable(from + offset)) space.makeTable(to + offset);
  }
  for (const page of space.pagesIn(from, from + oldLength)) {
    space.carry(page, page + (to - from) / space.pageSize);
  }
  space.observer?.moved(space, from, to, oldLength, follows);
  space.insert(copy);
  if (!copy.context || follows) return;
  clearProtection(space, to, to + oldLength);
  const grown = space.at(to) as Vma;
  grown.context = undefined;
  grown.modes = 0;
}

// ---- fork --------------------------------------------------------------------------------------------------

/**
 * Copies an address space. The function returns when every message is read. The child may run from then on. The child's
 * memory is watched if the userfaultfd has requested fork events.
 */
export function* fork(space: AddressSpace, child: AddressSpace): SyscallSteps<void> {
  const children = new Map<Context, Context>();
  const left: Vma[] = [];
  for (const vma of space.vmas) {
    if (vma.traits & NOT_FORKED) {
      left.push(vma);
      continue;
    }
    const { context } = vma;
    if (context?.has(FEATURE.EVENT_FORK) && !children.has(context)) {
      const heir = new Context(child, context.flags);
      heir.features = context.features;
      heir.initialised = true;
      children.set(context, heir);
      context.changing++;
    }
    const heir = context && children.get(context);
    const copy = { ...vma, context: heir, modes: heir ? vma.modes : 0 };
    child.pool = space.pool;
    child.add(copy);
    // Without installed pages there is nothing to copy, unless entries hold write-protection. The child finds the pages
    // of shared memory in the page cache.
    if (vma.family || copy.modes & MODE.WP) copyPages(space, child, vma, (copy.modes & MODE.WP) !== 0);
  }
  child.observer = space.observer;
  child.observer?.forked(space, child);
  for (const { start, end } of left) child.observer?.unmapped(child, start, end);
  for (const [context, heir] of children) yield* post(context, EVENT.FORK, [0, 0, 0], heir);
}

function copyPages(space: AddressSpace, child: AddressSpace, vma: Vma, protection: boolean): void {
  for (const page of space.pagesIn(vma.start, vma.end)) {
    const entry = space.entry(page) as Entry;
    if (entry.is === 'wp' && !protection) continue;
    if (entry.is === 'page') {
      entry.exclusive = false;
      entry.frame.mappers++;
    }
    child.set(page, 'wp' in entry ? { ...entry, wp: protection && entry.wp } : { ...entry });
  }
}
