// A simulated address space: its mappings, and the page table entry of each page. Memory is private and anonymous, in
// small pages or in huge pages of a pool, or it is a mapping of a memory object in small pages, shared or private
// (docs/kernel.md).
//
// Rules:
//  - Addresses are numbers, because user addresses end below 2^47. A page is numbered by its distance from address 0,
//    in small pages. A huge page has one entry, under the number of its first small page.
//  - Mappings do not overlap. Neighbours with equal properties are merged, as on Linux. The properties include the
//    origin of the pages, so mappings that were populated separately, or moved, are not merged.
//  - A page that has no entry in the table is missing, and without a marker.
//
// This file also has the userfaultfds (contexts) that watch an address space, because the two refer to each other, as
// mm_struct and userfaultfd_ctx do on Linux.
//
// Rules:
//  - A read returns page faults before all other events, whatever came first. Both are in order of arrival.
//  - A thread whose fault was read still sleeps. A wake releases a thread whether its fault was read or not. If it was
//    not read, the fault is dropped.
//  - `changing` counts mapping changes under way. The changing threads decrement it, after their events were read.

import { EVENT, FEATURE, MODE, OPEN } from './abi.js';
import type { HugePool } from './pool.js';

/** A page's bytes, and how many page tables map them. */
export interface Frame {
  readonly bytes: Uint8Array;
  mappers: number;
}

/** A shared memory object, as its mappings see it. */
export interface SharedPages {
  /** Size of the object in pages. */
  readonly pages: number;
  /** Whether a page is in the page cache. */
  holds(page: number): boolean;
  /** A page of the page cache. */
  frame(page: number): Frame | undefined;
  /** Adds a page to the page cache: these bytes, or zeros. */
  allocate(page: number, bytes?: Uint8Array): Frame;
  /**
   * Removes the pages from `first` up to `end`, exclusive, from the page cache and from every mapping. Calls `removed`
   * for each part of a mapping.
   */
  remove(first: number, end: number, removed?: (space: AddressSpace, from: number, to: number) => void): void;
}

/** A page table entry. */
export type Entry =
  | { is: 'zero'; wp: boolean }
  | { is: 'page'; frame: Frame; exclusive: boolean; wp: boolean }
  /** Empty except for a marker: write-protected, poisoned, guarded. */
  | { is: 'wp' | 'poison' | 'guard' };

/** A part of an address space. `end` is exclusive. */
export interface Vma {
  start: number;
  end: number;
  /** Bits of PROT. */
  protection: number;
  /** The userfaultfd with which it is registered, and in which modes (bits of MODE). */
  context: Context | undefined;
  modes: number;
  /** Bytes of its pages: small ones, or huge ones. */
  pageSize: number;
  /**
   * How it was mapped and advised; 0: nothing special. Mappings with different traits are not merged. Only LOCKED,
   * NOT_FORKED and PRIVATE have another effect in the simulation.
   */
  traits: number;
  /**
   * The number that its first page had where the memory was first mapped. mremap keeps it, unless no page was installed
   * yet. If an object is mapped: the page of the object that is mapped first.
   */
  origin: number;
  /** The object that it maps. Undefined: the memory is anonymous. */
  object: SharedPages | undefined;
  /** Stands for Linux's anon_vma: mappings that share it may be merged. Undefined until a page was installed. */
  family: object | undefined;
}

/** Trait: mlock keeps the memory resident. */
export const LOCKED = 2;
/** Traits: core dumps leave the memory out (MADV_DONTDUMP); mbind placed it on a node. */
export const NOT_DUMPED = 4;
export const BOUND = 8;
/** Trait: a forked process does not get the mapping (MADV_DONTFORK). */
export const NOT_FORKED = 16;
/** Trait: a private mapping of an object (MAP_PRIVATE): a page that is written becomes the mapping's own. */
export const PRIVATE = 32;
/**
 * Added to the traits once for each further memory object, so that the mappings of adjacent memfds, for example, are
 * not merged.
 */
export const NEXT_OBJECT = 256;

/** Bytes of an entry; a table of them fills a page. */
const ENTRY_BYTES = 8;

/** Bytes of memory that one table of entries covers. */
export function tableSpan(pageSize: number): number {
  return pageSize * (pageSize / ENTRY_BYTES);
}

export class AddressSpace {
  readonly pageSize: number;
  /** False once the process has exited or called exec. */
  alive = true;
  /** Observer of changes; inherited by children. */
  observer: MemoryObserver | undefined;
  /** The pool of huge pages, which all processes share. */
  pool: HugePool | undefined;
  readonly #pages = new Map<number, Entry>();
  /** Numbers of the page tables that exist. Each covers `tableSpan` bytes, and stays when its entries are removed. */
  readonly #tables = new Set<number>();
  #vmas: Vma[] = [];

  constructor(pageSize: number) {
    this.pageSize = pageSize;
  }

  get vmas(): readonly Vma[] {
    return this.#vmas;
  }

  // ---- mappings ------------------------------------------------------------------------------------------

  /** The mapping that holds `address`. */
  at(address: number): Vma | undefined {
    return this.#vmas.find((vma) => address >= vma.start && address < vma.end);
  }

  /** The mappings that overlap [start, end), in order. */
  within(start: number, end: number): Vma[] {
    return this.#vmas.filter((vma) => vma.start < end && start < vma.end);
  }

  /** Maps fresh memory at a free address; `pageSize`: bytes of its pages. */
  map(start: number, length: number, protection: number, traits = 0, pageSize = this.pageSize): void {
    this.insert({
      start,
      end: start + length,
      protection,
      context: undefined,
      modes: 0,
      pageSize,
      traits,
      origin: start / this.pageSize,
      object: undefined,
      family: undefined,
    });
  }

  /** Maps an object at a free address. `origin`: the page of the object that is mapped first. `traits`: 0 or PRIVATE. */
  mapObject(
    start: number,
    length: number,
    protection: number,
    object: SharedPages,
    origin: number,
    traits: number,
  ): void {
    this.insert({
      start,
      end: start + length,
      protection,
      context: undefined,
      modes: 0,
      pageSize: this.pageSize,
      traits,
      origin,
      object,
      family: undefined,
    });
  }

  /** Inserts a mapping at a free address, and merges it with its neighbours. */
  insert(vma: Vma): void {
    this.add(vma);
    this.join(vma.start, vma.end);
  }

  /** As `insert`, without merging. */
  add(vma: Vma): void {
    this.#vmas.push(vma);
    this.#vmas.sort((a, b) => a.start - b.start);
  }

  /** Removes the mappings of [start, end), with their pages. */
  remove(start: number, end: number): void {
    this.cut(start);
    this.cut(end);
    this.#vmas = this.#vmas.filter((vma) => vma.end <= start || vma.start >= end);
    for (const page of this.pagesIn(start, end)) this.set(page, undefined);
    this.observer?.unmapped(this, start, end);
    const span = tableSpan(this.pageSize);
    for (let table = this.#tableOf(start); table <= this.#tableOf(end - 1); table++) {
      if (this.within(table * span, (table + 1) * span).length === 0) this.#tables.delete(table);
    }
  }

  /** Changes the parts of mappings that lie in [start, end), then merges equal neighbours. */
  change(start: number, end: number, change: (vma: Vma) => void): void {
    this.cut(start);
    this.cut(end);
    for (const vma of this.within(start, end)) change(vma);
    this.join(start, end);
  }

  /** Splits the mapping around `address`, if there is one. */
  cut(address: number): void {
    const vma = this.at(address);
    if (!vma || vma.start === address) return;
    const upper = { ...vma, start: address, origin: vma.origin + (address - vma.start) / this.pageSize };
    vma.end = address;
    this.#vmas.splice(this.#vmas.indexOf(vma) + 1, 0, upper);
  }

  /** Merges equal neighbours in and around [start, end]. */
  join(start: number, end: number): void {
    for (let i = 1; i < this.#vmas.length; ) {
      const lower = this.#vmas[i - 1] as Vma;
      const upper = this.#vmas[i] as Vma;
      if (lower.end < start || upper.start > end || !this.#alike(lower, upper)) {
        i++;
        continue;
      }
      lower.end = upper.end;
      lower.family ??= upper.family;
      this.#vmas.splice(i, 1);
    }
  }

  #alike(lower: Vma, upper: Vma): boolean {
    return (
      lower.end === upper.start &&
      lower.protection === upper.protection &&
      lower.context === upper.context &&
      lower.modes === upper.modes &&
      lower.pageSize === upper.pageSize &&
      lower.traits === upper.traits &&
      lower.object === upper.object &&
      lower.origin + (lower.end - lower.start) / this.pageSize === upper.origin &&
      (lower.family === upper.family || !lower.family || !upper.family)
    );
  }

  /**
   * To call before a page is installed. Gives the mapping a family: that of a neighbour, if possible. Shared memory has
   * no family, unless it has guards.
   */
  populate(vma: Vma, guards = false): void {
    if (isShared(vma) && !guards) return;
    vma.family ??= this.#neighbour(vma) ?? {};
  }

  #neighbour(vma: Vma): object | undefined {
    const i = this.#vmas.indexOf(vma);
    // As on Linux, try the next mapping first.
    for (const other of [this.#vmas[i + 1], this.#vmas[i - 1]]) {
      if (!other?.family || other.context !== vma.context || other.modes !== vma.modes) continue;
      if (other.traits !== vma.traits || other.pageSize !== vma.pageSize || other.object !== vma.object)
        continue;
      const [lower, upper] = other.start > vma.start ? [vma, other] : [other, vma];
      const pages = (lower.end - lower.start) / this.pageSize;
      if (lower.end === upper.start && lower.origin + pages === upper.origin) return other.family;
    }
    return undefined;
  }

  // ---- pages ---------------------------------------------------------------------------------------------

  pageOf(address: number): number {
    return Math.floor(address / this.pageSize);
  }

  /** Bytes of the page that holds an address. */
  sizeAt(address: number): number {
    return this.at(address)?.pageSize ?? this.pageSize;
  }

  /** The start of the page that holds an address. */
  startOf(address: number): number {
    return address - (address % this.sizeAt(address));
  }

  /** The number of the entry of the page that holds an address. */
  keyOf(address: number): number {
    return this.pageOf(this.startOf(address));
  }

  /** Whether a page is installed at an address. The zero page counts. */
  holds(address: number): boolean {
    const entry = this.entry(this.keyOf(address));
    return entry?.is === 'page' || entry?.is === 'zero';
  }

  entry(page: number): Entry | undefined {
    return this.#pages.get(page);
  }

  #tableOf(address: number): number {
    return Math.floor(address / tableSpan(this.pageSize));
  }

  /** Whether there is a table for an address, that is, whether memory near it was ever touched. */
  hasTable(address: number): boolean {
    return this.#tables.has(this.#tableOf(address));
  }

  makeTable(address: number): void {
    this.#tables.add(this.#tableOf(address));
  }

  /** Replaces an entry. A huge page that no entry refers to any more returns to the pool. */
  set(page: number, entry: Entry | undefined): void {
    const old = this.#pages.get(page);
    if (old?.is === 'page' && !(entry?.is === 'page' && entry.frame === old.frame)) {
      old.frame.mappers--;
      if (old.frame.mappers === 0 && old.frame.bytes.length > this.pageSize) this.pool?.give();
    }
    if (!entry) {
      this.#pages.delete(page);
      return;
    }
    this.#pages.set(page, entry);
    this.makeTable(page * this.pageSize);
  }

  /** Moves an entry, with its page, to a page number without an entry. */
  carry(from: number, to: number): void {
    const entry = this.#pages.get(from);
    this.#pages.delete(from);
    if (!entry) return;
    this.#pages.set(to, entry);
    this.makeTable(to * this.pageSize);
  }

  /** The pages of [start, end) that have an entry, in order. */
  pagesIn(start: number, end: number): number[] {
    const first = this.pageOf(start);
    const last = Math.ceil(end / this.pageSize);
    if (last - first > this.#pages.size) {
      return [...this.#pages.keys()].filter((page) => page >= first && page < last).sort((a, b) => a - b);
    }
    const found: number[] = [];
    for (let page = first; page < last; page++) if (this.#pages.has(page)) found.push(page);
    return found;
  }

  /** Makes a page of `size` bytes: these bytes, or zeros. Undefined: no huge page is free. */
  take(size: number, bytes?: Uint8Array): (Entry & { is: 'page' }) | undefined {
    if (size > this.pageSize && this.pool?.take() === false) return undefined;
    const frame = { bytes: bytes ? bytes.slice() : new Uint8Array(size), mappers: 1 };
    return { is: 'page', frame, exclusive: true, wp: false };
  }

  /** Frees everything: the process is gone. */
  end(): void {
    this.alive = false;
    for (const page of [...this.#pages.keys()]) this.set(page, undefined);
    this.#vmas = [];
  }

  /**
   * The bytes at an address, without a page fault. The bytes of a missing page are zero, or those in the page cache of an
   * object.
   */
  peek(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const start = this.startOf(address + done);
      const offset = address + done - start;
      const some = Math.min(this.sizeAt(start) - offset, length - done);
      const entry = this.#pages.get(this.pageOf(start));
      const frame = entry?.is === 'page' ? entry.frame : this.#cached(start);
      if (frame && entry?.is !== 'zero') bytes.set(frame.bytes.subarray(offset, offset + some), done);
      done += some;
    }
    return bytes;
  }

  /** The page of the page cache that a touch of an address would find. Undefined: none, or the memory is anonymous. */
  #cached(address: number): Frame | undefined {
    const vma = this.at(address);
    return vma?.object?.frame(pageOfObject(this, vma, this.pageOf(address)));
  }
}

/** Whether a mapping shows what others write to its object, and they see what is written here. */
export function isShared(vma: Vma): boolean {
  return vma.object !== undefined && (vma.traits & PRIVATE) === 0;
}

/** The page of its object that a page of a mapping shows. */
export function pageOfObject(space: AddressSpace, vma: Vma, page: number): number {
  return vma.origin + page - vma.start / space.pageSize;
}

/**
 * Observer of events that affect expected page contents. It changes nothing. It is not called for the handler's own
 * changes of shared memory (bytes written to the object, MADV_DONTNEED, punched holes), because the handler has to keep
 * the contents that the program expects. Nor is it called when a thread drops the entries of shared memory by
 * MADV_DONTNEED, because the object keeps its contents.
 */
export interface MemoryObserver {
  /** Called when a thread has read a byte. */
  read(space: AddressSpace, address: number, value: number): void;
  wrote(space: AddressSpace, address: number, value: number): void;
  /** Called when the handler has write-protected the page at an address, or has removed the protection. */
  protecting(space: AddressSpace, address: number, on: boolean): void;
  /** Called before madvise posts the removal of [start, end). `removed` follows when the pages are gone. */
  removing(space: AddressSpace, start: number, end: number): void;
  /** Called when madvise has removed [start, end). */
  removed(space: AddressSpace, start: number, end: number): void;
  /** Called when [start, end) was unmapped, so that it has no expected contents any more. */
  unmapped(space: AddressSpace, start: number, end: number): void;
  /** Called when mremap has moved pages. `followed`: their userfaultfd watches the new addresses. */
  moved(space: AddressSpace, from: number, to: number, length: number, followed: boolean): void;
  /** Called when no userfaultfd watches [start, end) any more. Its missing pages read as zeros from then on. */
  unwatched(space: AddressSpace, start: number, end: number): void;
  /**
   * Called when fork has copied the address space `space` to `child`. The child's mappings show which memory is
   * watched, and its entries show which pages were copied.
   */
  forked(space: AddressSpace, child: AddressSpace): void;
}

// ---- userfaultfds ------------------------------------------------------------------------------------------

/** A thread asleep in a page fault. */
export interface Waiter {
  readonly address: number;
  readonly flags: number;
  readonly tid: number;
  woken: boolean;
}

/** A message that is not a page fault, and whether it was read. */
export interface EventMessage {
  readonly event: number;
  readonly words: readonly [number, number, number];
  /** FORK: the child's userfaultfd, which gets its descriptor when the message is read. */
  readonly child?: Context;
  read: boolean;
}

export class Context {
  readonly space: AddressSpace;
  /** The flags with which it was created. */
  readonly flags: number;
  features = 0;
  initialised = false;
  /** Whether it is closed: no thread waits for it any more. */
  released = false;
  /** Mapping changes under way. */
  changing = 0;
  pending: Waiter[] = [];
  reading: Waiter[] = [];
  events: EventMessage[] = [];

  constructor(space: AddressSpace, flags: number) {
    this.space = space;
    this.flags = flags;
  }

  has(feature: number): boolean {
    return (this.features & feature) !== 0;
  }

  get userModeOnly(): boolean {
    return (this.flags & OPEN.USER_MODE_ONLY) !== 0;
  }

  get readable(): boolean {
    return this.pending.length > 0 || this.events.length > 0;
  }

  /** Puts a thread to sleep at an address. The address is aligned to its page unless EXACT_ADDRESS is on. */
  sleep(address: number, flags: number, tid: number): Waiter {
    const waiter = {
      address: this.has(FEATURE.EXACT_ADDRESS) ? address : this.space.startOf(address),
      flags,
      tid: this.has(FEATURE.THREAD_ID) ? tid : 0,
      woken: false,
    };
    this.pending.push(waiter);
    return waiter;
  }

  /** Removes a waiter that ends or is interrupted. */
  removeWaiter(waiter: Waiter): void {
    this.pending = this.pending.filter((one) => one !== waiter);
    this.reading = this.reading.filter((one) => one !== waiter);
  }

  /** Wakes the waiters of [start, end). */
  wake(start: number, end: number): void {
    for (const queue of [this.pending, this.reading]) {
      for (const waiter of queue) {
        if (waiter.address >= start && waiter.address < end) waiter.woken = true;
      }
    }
    this.pending = this.pending.filter((waiter) => !waiter.woken);
    this.reading = this.reading.filter((waiter) => !waiter.woken);
  }

  post(event: number, words: EventMessage['words'], child?: Context): EventMessage {
    const message: EventMessage = { event, words, read: false, ...(child ? { child } : {}) };
    this.events.push(message);
    return message;
  }

  /** Removes a message that was not read, because its sender was killed. */
  withdraw(message: EventMessage): void {
    if (message.read || !this.events.includes(message)) return;
    this.events = this.events.filter((one) => one !== message);
    message.child?.release();
  }

  /** To call when the last descriptor is closed: unregisters all memory, and wakes all threads. */
  release(): void {
    this.released = true;
    const { space } = this;
    for (const vma of [...space.vmas]) {
      if (vma.context === this) unregister(space, vma.start, vma.end);
    }
    this.wake(0, Number.MAX_SAFE_INTEGER);
    for (const message of this.events) {
      message.read = true;
      if (message.event === EVENT.FORK) message.child?.release();
    }
    this.events = [];
  }
}

/**
 * Unregisters memory from its userfaultfd. If write-protect mode is on, the protection is removed. If that mode was on
 * earlier and is off now, the bits stay in the entries.
 */
export function unregister(space: AddressSpace, start: number, end: number): void {
  for (const vma of space.within(start, end)) {
    if (vma.modes & MODE.WP) clearProtection(space, Math.max(start, vma.start), Math.min(end, vma.end));
  }
  space.observer?.unwatched(space, start, end);
  space.change(start, end, (vma) => {
    vma.context = undefined;
    vma.modes = 0;
  });
}

/** Removes write-protection, from pages and from markers. */
export function clearProtection(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    const entry = space.entry(page);
    if (entry?.is === 'wp') space.set(page, undefined);
    else if (entry?.is === 'zero' || entry?.is === 'page') entry.wp = false;
  }
}
