// What each page should hold, kept beside the simulated memory, and compared with it: when a thread reads, when the
// handler fills, and at the end.
//
// Rules:
//  - A page holds what its source has, or zeros once it was removed; over that, what was written since.
//  - Between the news of a removal and the removal itself both are right, and so they are after MADV_FREE, which leaves
//    what is there.
//  - What was removed stays zero, also where it is not watched for a while.
//  - What is not watched any more, or was never known, is not judged.
//  - A page that was write-protected is not written before that was lifted, or the page was taken away.

import { MODE } from '../sim/abi.js';
import type { AddressSpace, Entry } from '../sim/memory.js';
import type { Witness } from '../sim/witness.js';
import type { Failure } from './failure.js';

/** One page. */
interface Due {
  /** Which page of the source it is. */
  readonly index: number;
  removed: boolean;
  /** It is being removed. */
  removing: boolean;
  /** Writes to it are to be asked for. */
  protected: boolean;
  readonly written: Map<number, number>;
}

/** The page of the source, by index. */
export type Source = (index: number) => Uint8Array;

type Fail = (failure: Failure) => void;

export class Ledger implements Witness {
  readonly #source: Source;
  readonly #fail: Fail;
  readonly #pages = new Map<AddressSpace, Map<number, Due>>();

  constructor(source: Source, fail: Fail) {
    this.#source = source;
    this.#fail = fail;
  }

  /** `pages` pages at an address, of so many bytes, hold what the source has from its beginning. */
  watch(space: AddressSpace, address: number, pages: number, pageSize: number): void {
    space.witness = this;
    const known = this.#of(space);
    for (let index = 0; index < pages; index++)
      known.set(space.pageOf(address + index * pageSize), due(index));
  }

  #of(space: AddressSpace): Map<number, Due> {
    const known = this.#pages.get(space) ?? new Map<number, Due>();
    this.#pages.set(space, known);
    return known;
  }

  #each(space: AddressSpace, start: number, end: number, one: (page: number, due: Due) => void): void {
    const known = this.#of(space);
    const last = Math.ceil(end / space.pageSize);
    for (let page = space.pageOf(start); page < last; page++) {
      const found = known.get(page);
      if (found) one(page, found);
    }
  }

  // ---- what happens --------------------------------------------------------------------------------------

  wrote(space: AddressSpace, address: number, value: number): void {
    const due = this.#of(space).get(space.keyOf(address));
    if (!due) return;
    due.written.set(address - space.startOf(address), value);
    const watched = ((space.at(address)?.modes ?? 0) & MODE.WP) !== 0;
    if (!due.protected || !watched) return;
    this.#fail({
      invariant: 'protection',
      detail: `a thread has written to page ${due.index}, which is write-protected, and nobody was asked`,
    });
  }

  protecting(space: AddressSpace, address: number, on: boolean): void {
    const due = this.#of(space).get(space.keyOf(address));
    if (due) due.protected = on;
  }

  removing(space: AddressSpace, start: number, end: number): void {
    this.#each(space, start, end, (_, due) => {
      due.removing = true;
      due.protected = false;
    });
  }

  removed(space: AddressSpace, start: number, end: number): void {
    this.#each(space, start, end, (page, due) => {
      // Nobody is told where no userfaultfd asks for it: there the source has it still.
      if (!due.removing && !due.removed) this.#of(space).delete(page);
      due.removed = true;
      due.removing = false;
      due.protected = false;
      due.written.clear();
    });
  }

  unmapped(space: AddressSpace, start: number, end: number): void {
    this.#each(space, start, end, (page) => this.#of(space).delete(page));
  }

  moved(space: AddressSpace, from: number, to: number, length: number, followed: boolean): void {
    const by = (to - from) / space.pageSize;
    const moving: [number, Due][] = [];
    this.#each(space, from, from + length, (page, due) => moving.push([page, due]));
    for (const [page] of moving) this.#of(space).delete(page);
    for (const [page, due] of moving) {
      if (!followed) due.protected = false;
      if (followed || isPresent(space.entry(page + by))) this.#of(space).set(page + by, due);
    }
  }

  unwatched(space: AddressSpace, start: number, end: number): void {
    this.#each(space, start, end, (page, due) => {
      due.protected = false;
      if (!due.removed && !isPresent(space.entry(page))) this.#of(space).delete(page);
    });
  }

  forked(space: AddressSpace, child: AddressSpace): void {
    const known = this.#of(child);
    for (const [page, due] of this.#of(space)) {
      const watched = child.at(page * child.pageSize)?.context !== undefined;
      if (!watched && !due.removed && !isPresent(child.entry(page))) continue;
      known.set(page, { ...due, protected: watched && due.protected, written: new Map(due.written) });
    }
  }

  // ---- what is compared ----------------------------------------------------------------------------------

  read(space: AddressSpace, address: number, value: number): void {
    const due = this.#of(space).get(space.keyOf(address));
    if (!due) return;
    const offset = address - space.startOf(address);
    if (!this.#mayHold(due, offset, value)) this.#differs(due, offset, value, 'a thread read');
  }

  /** Pages of [start, end) were installed, or it is over: those that are there hold what they should. */
  compare(space: AddressSpace, start: number, end: number, what: string): void {
    this.#each(space, start, end, (page, due) => this.#comparePage(due, space.entry(page), what));
  }

  /** The same of all pages. */
  compareAll(what: string): void {
    for (const [space, known] of this.#pages) {
      for (const [page, due] of known) this.#comparePage(due, space.entry(page), what);
    }
  }

  #comparePage(due: Due, entry: Entry | undefined, what: string): void {
    if (entry?.is !== 'page' && entry?.is !== 'zero') return;
    const source = this.#source(due.index);
    const bytes = entry.is === 'page' ? entry.frame.bytes : undefined;
    const { written } = due;
    const differing = (expected: Uint8Array | undefined): number => {
      if (!bytes && !expected && written.size === 0) return -1;
      for (let offset = 0; offset < source.length; offset++) {
        const base = expected ? (expected[offset] as number) : 0;
        const right = written.size > 0 ? (written.get(offset) ?? base) : base;
        if ((bytes ? (bytes[offset] as number) : 0) !== right) return offset;
      }
      return -1;
    };
    let offset = due.removed ? differing(undefined) : differing(source);
    if (offset >= 0 && due.removing && !due.removed) offset = differing(undefined);
    if (offset >= 0) this.#differs(due, offset, bytes?.[offset] ?? 0, what);
  }

  /** Whether a byte is right. */
  #mayHold(due: Due, offset: number, value: number): boolean {
    const written = due.written.get(offset);
    if (written !== undefined) return value === written;
    if (due.removed) return value === 0;
    return value === this.#source(due.index)[offset] || (due.removing && value === 0);
  }

  #differs(due: Due, offset: number, value: number, what: string): void {
    const written = due.written.get(offset);
    const stale = written === undefined && due.removed && value === this.#source(due.index)[offset];
    const right =
      written !== undefined
        ? `${written}, which was written last`
        : due.removed
          ? '0, because it was removed'
          : `${this.#source(due.index)[offset]}, as its source has it`;
    this.#fail({
      invariant: stale ? 'removed' : 'content',
      detail: `${what} ${value} at byte ${offset} of page ${due.index}, which should be ${right}`,
    });
  }
}

function due(index: number): Due {
  return { index, removed: false, removing: false, protected: false, written: new Map() };
}

function isPresent(entry: Entry | undefined): boolean {
  return entry?.is === 'page' || entry?.is === 'zero';
}
