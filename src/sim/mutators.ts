// Calls that change mappings, each as the sequence of steps it is in the kernel (kernel-semantics, section 4:
// mutators). Between two steps anybody else may run.
//
// Rules:
//  - A change tells a userfaultfd by a message, and its thread sleeps until that was read. From before the change
//    until the thread runs again, the userfaultfd is "changing".
//  - madvise waits first and zaps afterwards; munmap and mremap change first and wait afterwards.
//  - A userfaultfd that was closed meanwhile keeps nobody.

import { ADVICE, E, EVENT, FEATURE, MODE, MREMAP } from './abi.js';
import { Context, clearProtection, type Notice } from './context.js';
import { type AddressSpace, BOUND, type Entry, NOT_DUMPED, type Vma } from './memory.js';

/** What a thread waits for in the middle of a call. */
export interface Wait {
  readonly place: 'event' | 'fault' | 'read';
  over(): boolean;
  /** The thread ends while it waits. */
  abandon?(): void;
}

export type Steps<T> = Generator<Wait | undefined, T, void>;

/** Posts a message and sleeps until it was read; the change is over for this userfaultfd then. */
function* tell(context: Context, event: number, words: Notice['words'], child?: Context): Steps<void> {
  if (!context.released) {
    const notice = context.post(event, words, child);
    yield { place: 'event', over: () => notice.read, abandon: () => context.takeBack(notice) };
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

export function* madvise(space: AddressSpace, address: number, bytes: number, advice: number): Steps<number> {
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

/** Advises a part of one mapping: up to where, or an errno. */
function* advise(space: AddressSpace, vma: Vma, from: number, to: number, advice: number): Steps<number> {
  if (advice === ADVICE.DONTDUMP || advice === ADVICE.DODUMP) {
    space.change(from, to, (part) => {
      part.traits = advice === ADVICE.DONTDUMP ? part.traits | NOT_DUMPED : part.traits & ~NOT_DUMPED;
    });
    return to;
  }
  if (vma.pageSize > space.pageSize) {
    if (advice !== ADVICE.DONTNEED || from % vma.pageSize !== 0) return E.INVAL;
    // A part of a huge page at the end is left alone.
    const whole = to - (to % vma.pageSize);
    if (whole === from) return to;
    to = whole;
  }
  if (advice === ADVICE.GUARD_INSTALL) {
    space.populate(vma);
    for (let page = space.pageOf(from); page < space.pageOf(to); page++) space.set(page, { is: 'guard' });
    space.witness?.unmapped(space, from, to);
    return to;
  }
  if (advice === ADVICE.GUARD_REMOVE) {
    for (const page of space.pagesIn(from, to)) {
      if (space.entry(page)?.is === 'guard') space.set(page, undefined);
    }
    return to;
  }
  if (advice === ADVICE.COLD || advice === ADVICE.PAGEOUT) return to;
  const { context } = vma;
  let end = to;
  if (context?.has(FEATURE.EVENT_REMOVE)) {
    context.changing++;
    space.witness?.removing(space, from, to);
    yield* tell(context, EVENT.REMOVE, [from, to, 0]);
    // What is mapped there may be another by now; what it does not reach comes again, message and all.
    yield undefined;
    const now = space.at(from);
    if (!now) return E.NOMEM;
    end = Math.min(to, now.end);
  }
  if (advice === ADVICE.DONTNEED) zap(space, from, end);
  else dropPoison(space, from, end);
  return end;
}

/** Takes pages away; guards stay. */
function zap(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    if (space.entry(page)?.is !== 'guard') space.set(page, undefined);
  }
  space.witness?.removed(space, start, end);
}

/** MADV_FREE leaves data where it is, but no poison. */
function dropPoison(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    if (space.entry(page)?.is === 'poison') space.set(page, undefined);
  }
}

// ---- munmap, and mapping over what is there ----------------------------------------------------------------

/** The userfaultfds that are to hear of an unmapping, each once; the change begins for them. */
function prepareUnmap(space: AddressSpace, start: number, end: number): Context[] {
  const contexts = new Set<Context>();
  for (const { context } of space.within(start, end)) {
    if (context?.has(FEATURE.EVENT_UNMAP)) contexts.add(context);
  }
  for (const context of contexts) context.changing++;
  return [...contexts];
}

function* completeUnmap(contexts: readonly Context[], start: number, end: number): Steps<void> {
  for (const context of contexts) yield* tell(context, EVENT.UNMAP, [start, end, 0]);
}

export function* munmap(space: AddressSpace, address: number, bytes: number): Steps<number> {
  const end = address + whole(space, bytes);
  if (!valid(space, address, bytes) || bytes === 0) return E.INVAL;
  const told = prepareUnmap(space, address, end);
  space.remove(address, end);
  yield* completeUnmap(told, address, end);
  return 0;
}

/** mmap with MAP_FIXED: private anonymous memory in place of what is there. */
export function* overlay(
  space: AddressSpace,
  address: number,
  bytes: number,
  protection: number,
): Steps<number> {
  const length = whole(space, bytes);
  if (!valid(space, address, bytes) || bytes === 0) return E.INVAL;
  const told = prepareUnmap(space, address, address + length);
  space.remove(address, address + length);
  space.map(address, length, protection);
  yield* completeUnmap(told, address, address + length);
  return address;
}

/** mbind: where its pages are to lie; no message, no wait. */
export function mbind(space: AddressSpace, address: number, bytes: number, bound: boolean): number {
  const end = address + whole(space, bytes);
  if (!valid(space, address, bytes)) return E.INVAL;
  if (space.within(address, end).length === 0) return E.FAULT;
  space.change(address, end, (vma) => {
    vma.traits = bound ? vma.traits | BOUND : vma.traits & ~BOUND;
  });
  return 0;
}

/** mprotect: no message, no wait. Stops at the first hole. */
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
  /** Where to, with MREMAP_FIXED. */
  target: number;
}

/** What is to be told of an unmapping, when the call is through. */
interface Unmapped {
  contexts: readonly Context[];
  start: number;
  end: number;
}

/** What is to be told of a call, in this order. */
interface Told {
  early: Unmapped[];
  moved?: { context: Context; words: Notice['words'] };
  late: Unmapped[];
}

/** Unmaps, and notes whom to tell. */
function take(space: AddressSpace, start: number, end: number, list: Unmapped[]): void {
  list.push({ contexts: prepareUnmap(space, start, end), start, end });
  space.remove(start, end);
}

function* tellAll({ early, moved, late }: Told): Steps<void> {
  for (const { contexts, start, end } of early) yield* completeUnmap(contexts, start, end);
  if (moved) yield* tell(moved.context, EVENT.REMAP, moved.words);
  for (const { contexts, start, end } of late) yield* completeUnmap(contexts, start, end);
}

/** `place` finds room for a mapping that the kernel puts where it likes. */
export function* mremap(
  space: AddressSpace,
  wanted: Remap,
  place: (length: number) => number,
): Steps<number> {
  const { address, flags } = wanted;
  const oldLength = whole(space, wanted.oldLength);
  const newLength = whole(space, wanted.newLength);
  const fixed = (flags & MREMAP.FIXED) !== 0;
  const keeps = (flags & MREMAP.DONTUNMAP) !== 0;
  if (invalidRemap(space, { ...wanted, oldLength, newLength })) return E.INVAL;
  const told: Told = { early: [], late: [] };
  let result: number;
  if (fixed && oldLength === newLength) {
    result = moveMany(space, wanted, oldLength, told);
  } else {
    const vma = space.at(address);
    if (!vma) return E.FAULT;
    if (!fixed && !keeps && newLength <= oldLength) {
      if (newLength < oldLength) take(space, address + newLength, address + oldLength, told.late);
      result = address;
    } else if (address + Math.min(oldLength, newLength) > vma.end) {
      return E.FAULT;
    } else if (!fixed && !keeps && grow(space, vma, address, oldLength, newLength)) {
      result = address;
    } else if (!(flags & MREMAP.MAYMOVE)) {
      return E.NOMEM;
    } else {
      const target = fixed ? wanted.target : place(newLength);
      result = move(space, { ...wanted, oldLength, newLength, target }, told);
    }
  }
  yield* tellAll(told);
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

/** Makes a mapping longer in place, where nothing is behind it. */
function grow(space: AddressSpace, vma: Vma, address: number, oldLength: number, newLength: number): boolean {
  if (address + oldLength !== vma.end) return false;
  const end = address + newLength;
  if (space.within(vma.end, end).length > 0) return false;
  vma.end = end;
  space.join(vma.start, end);
  return true;
}

/**
 * Moves all mappings of a range, with the gaps between them. One that is watched moves alone or not at all: those
 * before it have moved by then.
 */
function moveMany(space: AddressSpace, wanted: Remap, length: number, told: Told): number {
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
    move(space, { ...wanted, address: from, oldLength: bytes, newLength: bytes, target }, told);
    if (first) result = target;
  }
  return result;
}

/** Moves a part of one mapping. */
function move(
  space: AddressSpace,
  { address, newLength, flags, target, ...wanted }: Remap,
  told: Told,
): number {
  if (flags & MREMAP.FIXED) take(space, target, target + newLength, told.early);
  const oldLength = Math.min(wanted.oldLength, newLength);
  if (oldLength < wanted.oldLength) take(space, address + newLength, address + wanted.oldLength, told.late);
  const vma = space.at(address) as Vma;
  const { context } = vma;
  const follows = context?.has(FEATURE.EVENT_REMAP) === true;
  if (follows) {
    const watching = context as Context;
    watching.changing++;
    told.moved = { context: watching, words: [address, target, oldLength] };
  }
  carry(space, vma, address, oldLength, target, newLength, follows);
  if (!(flags & MREMAP.DONTUNMAP)) take(space, address, address + oldLength, told.late);
  return target;
}

/**
 * Moves pages, with what is written in their entries, and what watches them. Where the userfaultfd is not to follow,
 * it loses the whole mapping that the new place has become a part of, which may be more.
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
  const origin = vma.family ? vma.origin + (from - vma.start) / space.pageSize : to / space.pageSize;
  const copy = { ...vma, start: to, end: to + newLength, origin };
  for (let offset = 0; offset < oldLength; offset += space.pageSize) {
    if (space.hasTable(from + offset)) space.makeTable(to + offset);
  }
  for (const page of space.pagesIn(from, from + oldLength)) {
    space.carry(page, page + (to - from) / space.pageSize);
  }
  space.witness?.moved(space, from, to, oldLength, follows);
  space.insert(copy);
  if (!copy.context || follows) return;
  clearProtection(space, to, to + oldLength);
  const grown = space.at(to) as Vma;
  grown.context = undefined;
  grown.modes = 0;
}

// ---- fork --------------------------------------------------------------------------------------------------

/**
 * Copies an address space. The child may run once every message was read: what this gives, it gives then. Its
 * memory is watched where the userfaultfd has asked for that.
 */
export function* fork(space: AddressSpace, child: AddressSpace): Steps<void> {
  const children = new Map<Context, Context>();
  for (const vma of space.vmas) {
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
    // Where no page was ever installed there is nothing to copy, unless write-protection is written there.
    if (vma.family || copy.modes & MODE.WP) copyPages(space, child, vma, (copy.modes & MODE.WP) !== 0);
  }
  child.witness = space.witness;
  child.witness?.forked(space, child);
  for (const [context, heir] of children) yield* tell(context, EVENT.FORK, [0, 0, 0], heir);
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
