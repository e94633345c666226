// Where a memory file has data, and where holes; and ranges of it.

import { nextData, nextHole, readAt } from '../../shim/descriptors.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';

/** An extent of the file that is all data or all hole. */
export interface Extent {
  readonly from: number;
  readonly to: number;
  readonly data: boolean;
}

/** A range of the file to install as a whole. */
export interface FileRange {
  readonly offset: number;
  readonly length: number;
}

/**
 * Ranges as offset, length, offset, length. They lie in shared memory, because copying thousands of them takes longer
 * than a guest should wait for its first page.
 */
export type SharedRanges = Float64Array;

export function shared(ranges: readonly FileRange[]): SharedRanges {
  const numbers = new Float64Array(new SharedArrayBuffer(ranges.length * 2 * Float64Array.BYTES_PER_ELEMENT));
  numbers.set(ranges.flatMap(({ offset, length }) => [offset, length]));
  return numbers;
}

/** What is known of a file before its extents are looked up. */
interface ExtentFile {
  readonly fd: number;
  readonly bytes: number;
  /** Whether the file has holes: it has fewer blocks than bytes. */
  readonly sparse: boolean;
  /** Bytes of its pages if holes can only be found by reading; 0 if the file system reports them. */
  readonly readUnit: number;
}

/** Bytes that are checked for zeros at a time. */
const ZERO_CHECK_BYTES = 65_536;
/** At most this many pages with data are checked ahead. A few bytes of such a page usually show that it has data. */
const ZERO_CHECK_PAGES = 512;

/** Where a mapped file has data, and where holes. */
export class Extents {
  readonly #file: ExtentFile;
  #last: Extent = { from: 0, to: 0, data: true };
  /** Extents that were found by reading pages. */
  readonly #read = new Map<number, Extent>();

  constructor(file: ExtentFile) {
    this.#file = file;
  }

  /** The extent at an offset. */
  at(offset: number): Extent {
    const { bytes, sparse, readUnit } = this.#file;
    if (!sparse) return { from: 0, to: bytes, data: true };
    if (offset < this.#last.from || offset >= this.#last.to) {
      this.#last = readUnit > 0 ? this.#readFrom(offset - (offset % readUnit), readUnit) : this.#seek(offset);
    }
    return this.#last;
  }

  #seek(offset: number): Extent {
    const { fd, bytes } = this.#file;
    const data = nextData(fd, offset, bytes);
    // A file system that cannot report holes has none.
    if (data >= 0 && data !== offset) return { from: offset, to: data, data: false };
    const hole = data < 0 ? bytes : nextHole(fd, offset);
    return { from: offset, to: hole < 0 ? bytes : hole, data: true };
  }

  #readFrom(from: number, unit: number): Extent {
    const known = this.#read.get(from);
    if (known) return known;
    const data = !this.#isZero(from, unit);
    let to = from + unit;
    const most = Math.min(this.#file.bytes, from + ZERO_CHECK_PAGES * unit);
    while (data && to < most && !this.#isZero(to, unit, SYSTEM_PAGE)) to += unit;
    const extent = { from, to, data };
    for (let at = from; at < to; at += unit) this.#read.set(at, extent);
    return extent;
  }

  /** Whether a page is a hole, or all zeros. `most`: how many bytes of it are checked. */
  #isZero(from: number, unit: number, most = unit): boolean {
    const some = Buffer.alloc(Math.min(ZERO_CHECK_BYTES, most));
    const zeros = Buffer.alloc(some.length);
    for (let at = 0; at < most; ) {
      // Check a few bytes first: most pages with data begin with some.
      const length = at === 0 ? SYSTEM_PAGE : Math.min(ZERO_CHECK_BYTES, most - at);
      const read = readAt(this.#file.fd, some.subarray(0, length), from + at);
      // An unreadable page counts as data; the copy then reports the error.
      if (read <= 0 || some.compare(zeros, 0, length, 0, length) !== 0) return false;
      at += length;
    }
    return true;
  }
}

/** Extents that are known: what lies between the ranges is holes. */
export class ListedExtents {
  readonly #ranges: SharedRanges;
  readonly #bytes: number;

  /** `ranges`: the data, in ascending order. */
  constructor(ranges: SharedRanges, bytes: number) {
    this.#ranges = ranges;
    this.#bytes = bytes;
  }

  /** The extent at an offset. */
  at(offset: number): Extent {
    const ranges = this.#ranges;
    // How many ranges begin at the offset or before it.
    let [low, high] = [0, ranges.length / 2];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((ranges[2 * middle] as number) <= offset) low = middle + 1;
      else high = middle;
    }
    const from = low === 0 ? 0 : (ranges[2 * low - 2] as number);
    const end = low === 0 ? 0 : from + (ranges[2 * low - 1] as number);
    if (offset < end) return { from, to: end, data: true };
    return {
      from: end,
      to: 2 * low < ranges.length ? (ranges[2 * low] as number) : this.#bytes,
      data: false,
    };
  }
}
