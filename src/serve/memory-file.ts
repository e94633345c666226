// The memory file of a snapshot, mapped whole. Only the kernel reads its bytes, while it copies, so a file that
// shrinks or a disk that fails makes the copy return EFAULT and never raises SIGBUS.
//
// All sessions of a file share one mapping, so the kernel looks up the file's pages once, not again for each guest.
//
// Rules:
//  - A file that was replaced, grown, shrunk or written to after it was mapped is mapped again for the next guest.
//  - On hugetlbfs a hole is never read through the mapping: that would take a huge page from the pool, or fail if
//    there is none.

import { type BigIntStats, closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { endOf, nextData, nextHole, readAt } from '../../shim/descriptors.js';
import {
  hugeFilePageSize,
  MADV_POPULATE_READ,
  MADV_WILLNEED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  madvise,
  mmap,
  munmap,
  PROT_READ,
} from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import { wholePages } from '../memory/whole-pages.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { identifyOpen, type MemoryIdentity, sizeOf } from './memory-identity.js';

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

/**
 * Ranges that are read ahead in one turn of the event loop. The kernel only queues these reads, but that takes time.
 */
const READ_AHEAD_MOST = 256;

/** Bytes that are mapped ahead in one call, which may wait for the disk. */
const MAPPED_A_CALL = 2 ** 20;

/** The memory file cannot be used. */
export class MemoryFileError extends Error {
  override readonly name = 'MemoryFileError';
  readonly code = 'ERR_UFFD_MEMORY_FILE';
}

/** A file as it is mapped in this process. Can be posted to another thread. */
export interface MappedFile {
  readonly path: string;
  readonly bytes: number;
  /** The address of its first byte. */
  readonly address: bigint;
  readonly fd: number;
  /** Whether the file has holes: it has fewer blocks than bytes. */
  readonly sparse: boolean;
  /** Bytes of its pages if holes can only be found by reading; 0 if the file system reports them. */
  readonly readUnit: number;
}

/** The file at a path, mapped again only if it has changed. */
export class MemoryFile {
  readonly #path: string;
  #current: FileMapping;
  /** Why the file cannot be mapped as it is now. */
  #error: unknown;

  /**
   * @throws MemoryFileError if it is empty, or neither a regular file nor a block device; the errors of open(2) and
   * mmap(2)
   */
  constructor(path: string) {
    this.#path = path;
    this.#current = new FileMapping(path);
  }

  /** Bytes of the file at the last check. */
  get bytes(): number {
    return this.#current.file.bytes;
  }

  /**
   * Checks whether the file has changed, and maps it again if so. `take` throws the errors.
   *
   * @returns the bytes that a guest's regions may lie in. This includes the previous size: a guest whose file has
   *   shrunk meanwhile cannot be served, but its hand-off is valid
   */
  refresh(): number {
    const before = this.bytes;
    this.#error = undefined;
    try {
      if (!this.#current.isAt(this.#path)) {
        const next = new FileMapping(this.#path);
        this.#current.release();
        this.#current = next;
      }
    } catch (error) {
      this.#error = error;
    }
    return Math.max(before, this.bytes);
  }

  /**
   * The file's mapping as of the last `refresh`; give it back with `release`.
   *
   * @param least the bytes that it must have; its last page may be incomplete
   * @throws MemoryFileError if it is too short; what the constructor throws
   */
  take(least: number): FileMapping {
    if (this.#error !== undefined) throw this.#error;
    const { bytes } = this;
    if (wholePages(bytes, SYSTEM_PAGE) < least) {
      throw new MemoryFileError(
        `the memory file ${this.#path} has shrunk: ${bytes} bytes, of which ${least} are served`,
      );
    }
    return this.#current.hold();
  }

  /** Its identity at the last check. @throws the errors of read(2) */
  get identity(): MemoryIdentity {
    return this.#current.identity;
  }

  /** Reads ranges of it ahead from the disk. */
  readAhead(ranges: readonly FileRange[]): void {
    this.#current.readAhead(ranges);
  }

  /** Has a thread of a pool map ranges of it ahead. */
  mapAhead(
    threads: { mapAhead(mapping: FileMapping, ranges: SharedRanges): void },
    ranges: SharedRanges,
  ): void {
    threads.mapAhead(this.#current, ranges);
  }

  /** Releases the mapping: no session may take it any more. */
  close(): void {
    this.#current.release();
  }
}

/** A mapping, until its last holder has released it. */
export class FileMapping {
  readonly file: MappedFile;
  /** The state of the path before it was opened, so that later changes are noticed. */
  readonly #stat: BigIntStats;
  #identity: MemoryIdentity | undefined;
  #holders = 1;

  constructor(path: string) {
    this.#stat = statSync(path, { bigint: true });
    // Opening a FIFO would block.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const { bytes, sparse } = checked(path, fd);
      const address = mmap(0n, bytes, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd);
      if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: bytes });
      // hugetlbfs reports its holes as data.
      const readUnit = (sparse && hugeFilePageSize(fd)) || 0;
      this.file = { path, bytes, address, fd, sparse, readUnit };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Its identity, read once, on first use. @throws the errors of read(2) */
  get identity(): MemoryIdentity {
    this.#identity ??= identifyOpen(this.file.fd, this.file.bytes);
    return this.#identity;
  }

  /** Whether the file at a path is the mapped one, unchanged. */
  isAt(path: string): boolean {
    const now = statSync(path, { bigint: true });
    const known = this.#stat;
    const same = (['dev', 'ino', 'rdev', 'size', 'blocks', 'mtimeNs', 'ctimeNs'] as const).every(
      (field) => now[field] === known[field],
    );
    // The size of a block device is not in its inode.
    return same && (now.isFile() || endOf(this.file.fd) === this.file.bytes);
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  readAhead(ranges: readonly FileRange[]): void {
    if (this.#holders === 0) return;
    const { address } = this.file;
    for (const { offset, length } of ranges.slice(0, READ_AHEAD_MOST))
      madvise(address + BigInt(offset), length, MADV_WILLNEED);
    if (ranges.length > READ_AHEAD_MOST) setImmediate(() => this.readAhead(ranges.slice(READ_AHEAD_MOST)));
  }

  /** Releases the mapping once. After the last release, no copy may read from it any more. */
  release(): void {
    if (--this.#holders > 0) return;
    munmap(this.file.address, this.file.bytes);
    closeSync(this.file.fd);
  }
}

/**
 * Maps ranges of the file's data into this process before a guest comes: a copy from a page that is not mapped takes
 * several times as long. Waits for the disk. Stops when `wanted` returns true.
 */
export function mapAhead(file: MappedFile, ranges: SharedRanges, wanted: () => boolean): void {
  // On hugetlbfs every page of the file is in memory.
  if (file.readUnit > 0) return;
  const extents = new Extents(file);
  for (let index = 0; index < ranges.length; index += 2) {
    const offset = ranges[index] as number;
    const end = Math.min(offset + (ranges[index + 1] as number), file.bytes);
    for (let at = offset; at < end; ) {
      if (wanted()) return;
      const { to, data } = extents.at(at);
      const next = Math.min(to, end, at + MAPPED_A_CALL);
      // An error (an older kernel, a page that cannot be read) is met again by the copy, if it matters.
      if (data) madvise(file.address + BigInt(at), next - at, MADV_POPULATE_READ);
      at = next;
    }
  }
}

/** Bytes that are checked for zeros at a time. */
const ZERO_CHECK_BYTES = 65_536;
/** At most this many pages with data are checked ahead. A few bytes of such a page usually show that it has data. */
const ZERO_CHECK_PAGES = 512;

/** Where a mapped file has data, and where holes. */
export class Extents {
  readonly #file: Pick<MappedFile, 'fd' | 'bytes' | 'sparse' | 'readUnit'>;
  #last: Extent = { from: 0, to: 0, data: true };
  /** Extents that were found by reading pages. */
  readonly #read = new Map<number, Extent>();

  constructor(file: Pick<MappedFile, 'fd' | 'bytes' | 'sparse' | 'readUnit'>) {
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

function checked(path: string, fd: number): { bytes: number; sparse: boolean } {
  const stat = fstatSync(fd);
  if (!stat.isFile() && !stat.isBlockDevice()) {
    const kind = stat.isDirectory() ? 'a directory' : stat.isFIFO() ? 'a FIFO' : 'no regular file';
    throw new MemoryFileError(`the memory file ${path} is ${kind}`);
  }
  const bytes = sizeOf(fd, stat);
  if (bytes < 0) throw new UffdError(bytes, 'lseek');
  if (bytes === 0) throw new MemoryFileError(`the memory file ${path} is empty`);
  return { bytes, sparse: stat.isFile() && stat.blocks * 512 < bytes };
}
