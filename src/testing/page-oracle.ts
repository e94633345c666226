// The expected contents of each page. They are kept next to the simulated memory, and compared with it when a thread
// reads, when the handler fills, and at the end.
//
// Rules:
//  - A page holds its source's data, or zeros after it was removed. Bytes that threads wrote after that replace these.
//  - Between the event of a removal and the removal itself, the old contents and zeros are both right. The same holds
//    after MADV_FREE, which keeps the contents for a while.
//  - A removed page stays zero, even if it is not watched for a while.
//  - Pages that are no longer watched, or were never known, are not checked.
//  - No thread writes to a write-protected page before its protection is removed, or the page is taken away.

import { MODE } from '../sim/abi.js';
import type { AddressSpace, Entry, MemoryObserver } from '../sim/memory.js';
import type { Failure } from './failure.js';

/** Expected state of one page. */
interface ExpectedPage {
  /** Its index in the source. */
  readonly index: number;
  removed: boolean;
  /** Whether it is being removed. */
  removing: boolean;
  /** Whether a write to it has to fault. */
  protected: boolean;
  readonly written: Map<number, number>;
}

/** The expected contents of a page, by its index in the source. */
export type PageContents = (index: number) => Uint8Array;

type Fail = (failure: Failure) => void;

/** Pages are compared by words of this many bytes. */
const WORD_BYTES = 4;

export class PageOracle implements MemoryObserver {
  readonly #contents: PageContents;
  readonly #fail: Fail;
  readonly #pages = new Map<AddressSpace, Map<number, ExpectedPage>>();

  constructor(source: PageContents, fail: Fail) {
    this.#contents = source;
    this.#fail = fail;
  }

  /** Expects that `pages` pages of `pageSize` bytes at an address hold the pages of the source from `first` on. */
  watch(space: AddressSpace, address: number, pages: number, pageSize: number, first = 0): void {
    space.observer = this;
    const known = this.#of(space);
    for (let index = 0; index < pages; index++)
      known.set(space.pageOf(address + index * pageSize), expected(first + index));
  }

  /** What a missing page should get; undefined: that cannot be said, because it is unknown or being removed. */
  missing(space: AddressSpace, address: number): Uint8Array | undefined {
    const known = this.#of(space).get(space.keyOf(address));
    if (!known || known.removing || known.written.size > 0) return undefined;
    const contents = this.#contents(known.index);
    return known.removed ? new Uint8Array(contents.length) : contents;
  }

  #of(space: AddressSpace): Map<number, ExpectedPage> {
    const known = this.#pages.get(space) ?? new Map<number, ExpectedPage>();
    this.#pages.set(space, known);
    return known;
  }

  #forEachPage(
    space: AddressSpace,
    start: number,
    end: number,
    one: (page: number, expected: ExpectedPage) => void,
  ): void {
    const known = this.#of(space);
    const last = Math.ceil(end / space.pageSize);
    for (let page = space.pageOf(start); page < last; page++) {
      const found = known.get(page);
      if (found) one(page, found);
    }
  }

  // ---- what happens --------------------------------------------------------------------------------------

  wrote(space: AddressSpace, address: number, value: number): void {
    const expected = this.#of(space).get(space.keyOf(address));
    if (!expected) return;
    expected.written.set(address - space.startOf(address), value);
    const watched = ((space.at(address)?.modes ?? 0) & MODE.WP) !== 0;
    if (!expected.protected || !watched) return;
    this.#fail({
      invariant: 'protection',
      detail: `a thread has written to page ${expected.index}, which is write-protected, without a fault`,
    });
  }

  protecting(space: AddressSpace, address: number, on: boolean): void {
    const expected = this.#of(space).get(space.keyOf(address));
    if (expected) expected.protected = on;
  }

  removing(space: AddressSpace, start: number, end: number): void {
    this.#forEachPage(space, start, end, (_, expected) => {
      expected.removing = true;
      expected.protected = false;
    });
  }

  removed(space: AddressSpace, start: number, end: number): void {
    this.#forEachPage(space, start, end, (page, expected) => {
      // If its userfaultfd has no removal events, the handler does not get the removal, and may install the data again.
      if (!expected.removing && !expected.removed) this.#of(space).delete(page);
      expected.removed = true;
      expected.removing = false;
      expected.protected = false;
      expected.written.clear();
    });
  }

  unmapped(space: AddressSpace, start: number, end: number): void {
    this.#forEachPage(space, start, end, (page) => this.#of(space).delete(page));
  }

  moved(space: AddressSpace, from: number, to: number, length: number, followed: boolean): void {
    const by = (to - from) / space.pageSize;
    const moving: [number, ExpectedPage][] = [];
    this.#forEachPage(space, from, from + length, (page, expected) => moving.push([page, expected]));
    for (const [page] of moving) this.#of(space).delete(page);
    for (const [page, expected] of moving) {
      if (!followed) expected.protected = false;
      if (followed || isPresent(space.entry(page + by))) this.#of(space).set(page + by, expected);
    }
  }

  unwatched(space: AddressSpace, start: number, end: number): void {
    this.#forEachPage(space, start, end, (page, expected) => {
      expected.protected = false;
      if (!expected.removed && !isPresent(space.entry(page))) this.#of(space).delete(page);
    });
  }

  forked(space: AddressSpace, child: AddressSpace): void {
    const known = this.#of(child);
    for (const [page, expected] of this.#of(space)) {
      const watched = child.at(page * child.pageSize)?.context !== undefined;
      if (!watched && !expected.removed && !isPresent(child.entry(page))) continue;
      known.set(page, {
        ...expected,
        protected: watched && expected.protected,
        written: new Map(expected.written),
      });
    }
  }

  // ---- what is compared ----------------------------------------------------------------------------------

  read(space: AddressSpace, address: number, value: number): void {
    const expected = this.#of(space).get(space.keyOf(address));
    if (!expected) return;
    const offset = address - space.startOf(address);
    if (!this.#mayHold(expected, offset, value)) this.#differs(expected, offset, value, 'a thread read');
  }

  /** Compares those pages of [start, end) that are installed. To call after a fill, and at the end of the run. */
  compare(space: AddressSpace, start: number, end: number, what: string): void {
    this.#forEachPage(space, start, end, (page, expected) =>
      this.#comparePage(expected, space.entry(page), what),
    );
  }

  /** As `compare`, for all pages. */
  compareAll(what: string): void {
    for (const [space, known] of this.#pages) {
      for (const [page, expected] of known) this.#comparePage(expected, space.entry(page), what);
    }
  }

  #comparePage(expected: ExpectedPage, entry: Entry | undefined, what: string): void {
    if (entry?.is !== 'page' && entry?.is !== 'zero') return;
    const source = this.#contents(expected.index);
    const zeros = zerosOf(source.length);
    const bytes = entry.is === 'page' ? entry.frame.bytes : zeros;
    const { written } = expected;
    let offset = wrongByte(bytes, expected.removed ? zeros : source, written);
    if (offset >= 0 && expected.removing && !expected.removed) offset = wrongByte(bytes, zeros, written);
    if (offset >= 0) this.#differs(expected, offset, bytes[offset] as number, what);
  }

  /** Whether the page may have this value at this offset. */
  #mayHold(expected: ExpectedPage, offset: number, value: number): boolean {
    const written = expected.written.get(offset);
    if (written !== undefined) return value === written;
    if (expected.removed) return value === 0;
    return value === this.#contents(expected.index)[offset] || (expected.removing && value === 0);
  }

  #differs(expected: ExpectedPage, offset: number, value: number, what: string): void {
    const written = expected.written.get(offset);
    const stale =
      written === undefined && expected.removed && value === this.#contents(expected.index)[offset];
    const right =
      written !== undefined
        ? `${written}, which was written last`
        : expected.removed
          ? '0, because it was removed'
          : `${this.#contents(expected.index)[offset]}, as its source has it`;
    this.#fail({
      invariant: stale ? 'removed' : 'content',
      detail: `${what} ${value} at byte ${offset} of page ${expected.index}, which should be ${right}`,
    });
  }
}

/** The offset of the first byte that is neither what was written there nor, if nothing was, that of `base`; −1: none. */
function wrongByte(bytes: Uint8Array, base: Uint8Array, written: ReadonlyMap<number, number>): number {
  let first = bytes.length;
  for (const [offset, value] of written) if (bytes[offset] !== value && offset < first) first = offset;
  for (let at = differenceFrom(bytes, base, 0); at < first; at = differenceFrom(bytes, base, at + 1))
    if (!written.has(at)) return at;
  return first < bytes.length ? first : -1;
}

/** The first offset from `from` on at which two pages differ; their length: none. Words are compared while they are equal. */
function differenceFrom(a: Uint8Array, b: Uint8Array, from: number): number {
  let at = from;
  if (((a.byteOffset | b.byteOffset | a.length) & (WORD_BYTES - 1)) === 0) {
    const [x, y] = [wordsOf(a), wordsOf(b)];
    let word = Math.ceil(from / WORD_BYTES);
    while (at < word * WORD_BYTES) {
      if (a[at] !== b[at]) return at;
      at++;
    }
    while (word < x.length && x[word] === y[word]) word++;
    at = word * WORD_BYTES;
  }
  while (at < a.length && a[at] === b[at]) at++;
  return at;
}

function wordsOf({ buffer, byteOffset, length }: Uint8Array): Uint32Array {
  return new Uint32Array(buffer, byteOffset, length / WORD_BYTES);
}

let zeros = new Uint8Array();

/** A page of zeros. */
function zerosOf(length: number): Uint8Array {
  if (zeros.length < length) zeros = new Uint8Array(length);
  return zeros.subarray(0, length);
}

function expected(index: number): ExpectedPage {
  return { index, removed: false, removing: false, protected: false, written: new Map() };
}

function isPresent(entry: Entry | undefined): boolean {
  return entry?.is === 'page' || entry?.is === 'zero';
}
