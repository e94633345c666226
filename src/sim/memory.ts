// An address space: what is mapped where, and what each page's table entry says. Private anonymous memory, in small
// pages or in huge ones of a pool (kernel-semantics, section 4).
//
// Rules:
//  - Addresses are numbers: user addresses end below 2^47. Pages are counted from address 0, in small pages; a huge
//    page has one entry, under the number of its first small page.
//  - Mappings do not overlap; neighbours that are alike in everything are one, as in the kernel. Alike includes
//    where their pages come from: what was faulted in apart, or moved, stays apart.
//  - An entry that is not in the table is empty.

import type { Context } from './context.js';
import type { HugePool } from './pool.js';
import type { Witness } from './witness.js';

/** A page's bytes, and how many page tables map them. */
export interface Frame {
  readonly bytes: Uint8Array;
  mappers: number;
}

/** A page table entry. */
export type Entry =
  | { is: 'zero'; wp: boolean }
  | { is: 'page'; frame: Frame; exclusive: boolean; wp: boolean }
  /** Empty, but for what it says: write-protected, poisoned, guarded. */
  | { is: 'wp' | 'poison' | 'guard' };

/** A part of an address space. `end` is exclusive. */
export interface Vma {
  start: number;
  end: number;
  /** PROT_* bits. */
  protection: number;
  /** The userfaultfd that has registered it, and in which modes (MODE_* bits). */
  context: Context | undefined;
  modes: number;
  /** Bytes of its pages: small ones, or huge ones. */
  pageSize: number;
  /** How it was mapped and advised: 0 is plain. Told apart, and but for LOCKED not looked into. */
  traits: number;
  /** Its first page's number where it was mapped first; mremap leaves it as it was. */
  origin: number;
  /** What the kernel calls anon_vma: who shares it may be one mapping. Undefined until a page was installed. */
  family: object | undefined;
}

/** The trait of memory that mlock keeps where it is. */
export const LOCKED = 2;
/** Traits of memory that core dumps leave out (MADV_DONTDUMP), and that was placed on a node (mbind). */
export const NOT_DUMPED = 4;
export const BOUND = 8;
/** Added for each object behind memory that is mapped side by side: two memfds, for one. */
export const NEXT_OBJECT = 256;

/** Bytes of an entry; a table of them fills a page. */
const ENTRY_BYTES = 8;

/** Bytes of memory that one table of entries is for. */
export function tableSpan(pageSize: number): number {
  return pageSize * (pageSize / ENTRY_BYTES);
}

export class AddressSpace {
  readonly pageSize: number;
  /** False once the process has exited or called exec. */
  alive = true;
  /** Looks on; inherited by children. */
  witness: Witness | undefined;
  /** Where huge pages come from; those of every process come from one pool. */
  pool: HugePool | undefined;
  readonly #pages = new Map<number, Entry>();
  /** Tables of entries that were made, by number: each is for `tableSpan` bytes. They stay when their entries go. */
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

  /** Those that [start, end) meets, in order. */
  within(start: number, end: number): Vma[] {
    return this.#vmas.filter((vma) => vma.start < end && start < vma.end);
  }

  /** Maps fresh memory, where nothing is mapped; `pageSize`: bytes of its pages. */
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
      family: undefined,
    });
  }

  /** Puts a mapping where nothing is mapped, and joins it with its neighbours. */
  insert(vma: Vma): void {
    this.add(vma);
    this.join(vma.start, vma.end);
  }

  /** The same, by itself. */
  add(vma: Vma): void {
    this.#vmas.push(vma);
    this.#vmas.sort((a, b) => a.start - b.start);
  }

  /** Takes out what is mapped in [start, end), pages included. */
  remove(start: number, end: number): void {
    this.cut(start);
    this.cut(end);
    this.#vmas = this.#vmas.filter((vma) => vma.end <= start || vma.start >= end);
    for (const page of this.pagesIn(start, end)) this.set(page, undefined);
    this.witness?.unmapped(this, start, end);
    const span = tableSpan(this.pageSize);
    for (let table = this.#tableOf(start); table <= this.#tableOf(end - 1); table++) {
      if (this.within(table * span, (table + 1) * span).length === 0) this.#tables.delete(table);
    }
  }

  /** Changes the parts of mappings that lie in [start, end), and joins neighbours that are alike then. */
  change(start: number, end: number, change: (vma: Vma) => void): void {
    this.cut(start);
    this.cut(end);
    for (const vma of this.within(start, end)) change(vma);
    this.join(start, end);
  }

  /** Makes `address` a border, if it lies inside of a mapping. */
  cut(address: number): void {
    const vma = this.at(address);
    if (!vma || vma.start === address) return;
    const upper = { ...vma, start: address, origin: vma.origin + (address - vma.start) / this.pageSize };
    vma.end = address;
    this.#vmas.splice(this.#vmas.indexOf(vma) + 1, 0, upper);
  }

  /** Joins neighbours in and around [start, end] that are alike. */
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
      lower.origin + (lower.end - lower.start) / this.pageSize === upper.origin &&
      (lower.family === upper.family || !lower.family || !upper.family)
    );
  }

  /** A page is about to be installed: the mapping belongs to a family from now on, a neighbour's if it can. */
  populate(vma: Vma): void {
    vma.family ??= this.#neighbour(vma) ?? {};
  }

  #neighbour(vma: Vma): object | undefined {
    const i = this.#vmas.indexOf(vma);
    // The one behind is asked first.
    for (const other of [this.#vmas[i + 1], this.#vmas[i - 1]]) {
      if (!other?.family || other.context !== vma.context || other.modes !== vma.modes) continue;
      if (other.traits !== vma.traits || other.pageSize !== vma.pageSize) continue;
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

  /** Where the page that holds an address begins. */
  startOf(address: number): number {
    return address - (address % this.sizeAt(address));
  }

  /** The number under which its entry is. */
  keyOf(address: number): number {
    return this.pageOf(this.startOf(address));
  }

  /** Whether a page is there at an address: the zero page, or one of its own. */
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

  /** Whether there is a table for an address: whether anybody has touched memory near it. */
  hasTable(address: number): boolean {
    return this.#tables.has(this.#tableOf(address));
  }

  makeTable(address: number): void {
    this.#tables.add(this.#tableOf(address));
  }

  /** Puts an entry in place of what was there; a page that nobody maps any more is gone. */
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

  /** Carries an entry, and its page, to another place, where none is. */
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

  /** A page of this process alone: with these bytes, or `size` zeros. Undefined: a huge one, and none is free. */
  take(size: number, bytes?: Uint8Array): (Entry & { is: 'page' }) | undefined {
    if (size > this.pageSize && this.pool?.take() === false) return undefined;
    const frame = { bytes: bytes ? bytes.slice() : new Uint8Array(size), mappers: 1 };
    return { is: 'page', frame, exclusive: true, wp: false };
  }

  /** The same, of a small page: there is always one. */
  fresh(bytes?: Uint8Array): Entry & { is: 'page' } {
    return this.take(this.pageSize, bytes) as Entry & { is: 'page' };
  }

  /** Forgets everything: the process is gone. */
  end(): void {
    this.alive = false;
    for (const page of [...this.#pages.keys()]) this.set(page, undefined);
    this.#vmas = [];
  }

  /** The bytes at an address as they are, without touching them: those of a page that is not there are zero. */
  peek(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const start = this.startOf(address + done);
      const offset = address + done - start;
      const some = Math.min(this.sizeAt(start) - offset, length - done);
      const entry = this.#pages.get(this.pageOf(start));
      if (entry?.is === 'page') bytes.set(entry.frame.bytes.subarray(offset, offset + some), done);
      done += some;
    }
    return bytes;
  }
}
