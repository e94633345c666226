// The memory file of a snapshot: mapped whole, and copied from by the kernel alone. Nothing here ever touches its
// bytes, so a file that shrinks, or a disk that fails, is an EFAULT of the copy and never a SIGBUS.
//
// All sessions of a file share one mapping: what the kernel has looked up for one guest it need not look up for the next.
//
// Rules:
//  - A file that was replaced, grown, shrunk or written to since it was mapped is mapped again for the next guest.
//  - A hole is never read through the mapping if its file system is hugetlbfs: that would take a huge page from the pool, and
//    fail if there is none.

import { type BigIntStats, closeSync, constants, fstatSync, openSync, statfsSync, statSync } from 'node:fs';
import { endOf, nextData, nextHole, readAt } from '../../shim/descriptors.js';
import {
  MADV_WILLNEED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  madvise,
  mmap,
  munmap,
  PROT_READ,
} from '../../shim/memory.js';
import { UffdError } from '../errors.js';
import { wholePages } from '../whole-pages.js';
import { SYSTEM_PAGE } from './handoff.js';
import { identifyOpen, type MemoryIdentity, sizeOf } from './memory-identity.js';

/** A stretch of the file that is all data, or all hole. */
export interface Stretch {
  readonly from: number;
  readonly to: number;
  readonly data: boolean;
}

/** A part of the file that is wanted as a whole. */
export interface Run {
  readonly offset: number;
  readonly length: number;
}

/**
 * Parts as offset, length, offset, length. In memory that threads share: to copy thousands of them takes longer than a guest
 * should wait for its first page.
 */
export type SharedRuns = Float64Array;

export function shared(runs: readonly Run[]): SharedRuns {
  const numbers = new Float64Array(new SharedArrayBuffer(runs.length * 2 * Float64Array.BYTES_PER_ELEMENT));
  numbers.set(runs.flatMap(({ offset, length }) => [offset, length]));
  return numbers;
}

/** Parts that are read ahead in a turn of the event loop: the kernel only takes them down, but that takes time. */
const ADVISED = 256;

/** The memory file cannot be used. */
export class MemoryFileError extends Error {
  override readonly name = 'MemoryFileError';
  readonly code = 'ERR_UFFD_MEMORY_FILE';
}

/** A file as it is mapped in this process. Can be posted to another thread. */
export interface MappedFile {
  readonly path: string;
  readonly bytes: number;
  /** Where its first byte lies. */
  readonly address: bigint;
  readonly fd: number;
  /** Where the file has no holes at all, nobody needs to ask. */
  readonly sparse: boolean;
  /** Bytes of its pages where only reading them tells which are holes; 0: the file system tells. */
  readonly readUnit: number;
}

/** The file at a path, mapped again only where it has become another one. */
export class MemoryFile {
  readonly #path: string;
  #current: Mapping;
  /** Why it cannot be mapped as it is now. */
  #trouble: unknown;

  /** @throws MemoryFileError where it is neither a regular file nor a block device, or empty; the errors of open(2) and mmap(2) */
  constructor(path: string) {
    this.#path = path;
    this.#current = new Mapping(path);
  }

  /** Bytes of the file, when it was looked at last. */
  get bytes(): number {
    return this.#current.file.bytes;
  }

  /**
   * Looks whether it has changed, and maps it again if so. What goes wrong is thrown by `take`.
   *
   * @returns the bytes that a guest's regions may lie in: those of before, too, since a guest whose file has shrunk meanwhile
   * cannot be served, but has handed over what is right
   */
  refresh(): number {
    const before = this.bytes;
    this.#trouble = undefined;
    try {
      if (!this.#current.isAt(this.#path)) {
        const next = new Mapping(this.#path);
        this.#current.release();
        this.#current = next;
      }
    } catch (error) {
      this.#trouble = error;
    }
    return Math.max(before, this.bytes);
  }

  /**
   * Its mapping, as it was at the last `refresh`, to be given back with `release`.
   *
   * @param least bytes that it must have; its last page may be a part of one
   * @throws MemoryFileError where it is too short; what the constructor throws
   */
  take(least: number): Mapping {
    if (this.#trouble !== undefined) throw this.#trouble;
    const { bytes } = this;
    if (wholePages(bytes, SYSTEM_PAGE) < least) {
      throw new MemoryFileError(
        `the memory file ${this.#path} has shrunk: ${bytes} bytes, of which ${least} are served`,
      );
    }
    return this.#current.hold();
  }

  /** What it was known by when it was looked at last. @throws the errors of read(2) */
  get identity(): MemoryIdentity {
    return this.#current.identity;
  }

  /** Has parts of it read from the disk before anybody waits for them. */
  readAhead(runs: readonly Run[]): void {
    this.#current.readAhead(runs);
  }

  /** Nobody takes it any more. */
  close(): void {
    this.#current.release();
  }
}

/** statfs(2)'s number of hugetlbfs. */
const HUGETLBFS = 0x958458f6;

/** A mapping, until the last who holds it has released it. */
export class Mapping {
  readonly file: MappedFile;
  /** Of the path, before it was opened: what changes after that is seen. */
  readonly #stat: BigIntStats;
  #identity: MemoryIdentity | undefined;
  #holders = 1;

  constructor(path: string) {
    this.#stat = statSync(path, { bigint: true });
    // A FIFO would be waited for.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const { bytes, sparse } = checked(path, fd);
      const address = mmap(0n, bytes, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd);
      if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: bytes });
      this.file = { path, bytes, address, fd, sparse, readUnit: sparse ? readUnitOf(fd) : 0 };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** What it is known by. Read once, when it is asked for first. @throws the errors of read(2) */
  get identity(): MemoryIdentity {
    this.#identity ??= identifyOpen(this.file.fd, this.file.bytes);
    return this.#identity;
  }

  /** Whether the file at a path is the one that is mapped, as it was. */
  isAt(path: string): boolean {
    const now = statSync(path, { bigint: true });
    const known = this.#stat;
    const same = (['dev', 'ino', 'rdev', 'size', 'blocks', 'mtimeNs', 'ctimeNs'] as const).every(
      (fact) => now[fact] === known[fact],
    );
    // A block device grows without a trace in its file.
    return same && (now.isFile() || endOf(this.file.fd) === this.file.bytes);
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  readAhead(runs: readonly Run[]): void {
    if (this.#holders === 0) return;
    const { address } = this.file;
    for (const { offset, length } of runs.slice(0, ADVISED))
      madvise(address + BigInt(offset), length, MADV_WILLNEED);
    if (runs.length > ADVISED) setImmediate(() => this.readAhead(runs.slice(ADVISED)));
  }

  /** Nobody may copy from it any more where this was the last. */
  release(): void {
    if (--this.#holders > 0) return;
    munmap(this.file.address, this.file.bytes);
    closeSync(this.file.fd);
  }
}

/** Bytes that are looked at, at a time, for whether they are all zero. */
const LOOKED_AT = 65_536;
/** Pages that are looked at ahead, at most, while they have data: to see that takes next to nothing. */
const LOOKED_AHEAD = 512;

/** Where a mapped file has data, and where holes. */
export class Stretches {
  readonly #file: MappedFile;
  #last: Stretch = { from: 0, to: 0, data: true };
  /** What is known of pages that have to be read. */
  readonly #read = new Map<number, Stretch>();

  constructor(file: MappedFile) {
    this.#file = file;
  }

  /** The stretch that an offset lies in. */
  at(offset: number): Stretch {
    const { bytes, sparse, readUnit } = this.#file;
    if (!sparse) return { from: 0, to: bytes, data: true };
    if (offset < this.#last.from || offset >= this.#last.to) {
      this.#last = readUnit > 0 ? this.#lookFrom(offset - (offset % readUnit), readUnit) : this.#seek(offset);
    }
    return this.#last;
  }

  #seek(offset: number): Stretch {
    const { fd, bytes } = this.#file;
    const data = nextData(fd, offset, bytes);
    // A file system that cannot tell has no holes.
    if (data >= 0 && data !== offset) return { from: offset, to: data, data: false };
    const hole = data < 0 ? bytes : nextHole(fd, offset);
    return { from: offset, to: hole < 0 ? bytes : hole, data: true };
  }

  #lookFrom(from: number, unit: number): Stretch {
    const known = this.#read.get(from);
    if (known) return known;
    const data = !this.#isZero(from, unit);
    let to = from + unit;
    const most = Math.min(this.#file.bytes, from + LOOKED_AHEAD * unit);
    while (data && to < most && !this.#isZero(to, unit, SYSTEM_PAGE)) to += unit;
    const stretch = { from, to, data };
    for (let at = from; at < to; at += unit) this.#read.set(at, stretch);
    return stretch;
  }

  /** Whether a page is a hole, or as good as one. `most`: bytes of it that are looked at, if they are all zero. */
  #isZero(from: number, unit: number, most = unit): boolean {
    const some = Buffer.alloc(Math.min(LOOKED_AT, most));
    const zeros = Buffer.alloc(some.length);
    for (let at = 0; at < most; ) {
      // Less to begin with: most pages that are no holes begin with something.
      const length = at === 0 ? SYSTEM_PAGE : Math.min(LOOKED_AT, most - at);
      const read = readAt(this.#file.fd, some.subarray(0, length), from + at);
      // What cannot be read is for the copy to say.
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

/** hugetlbfs says of its holes that they are data. */
function readUnitOf(fd: number): number {
  const { type, bsize } = statfsSync(`/proc/self/fd/${fd}`);
  return type === HUGETLBFS ? bsize : 0;
}
