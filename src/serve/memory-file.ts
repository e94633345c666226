// The memory file of a snapshot: mapped whole, and copied from by the kernel alone. Nothing here ever touches its
// bytes, so a file that shrinks, or a disk that fails, is an EFAULT of the copy and never a SIGBUS.
//
// All sessions of a file share one mapping: what the kernel has looked up for one guest it need not look up for the next.

import { closeSync, constants, fstatSync, openSync, type Stats, statSync } from 'node:fs';
import { nextData, nextHole } from '../../shim/descriptors.js';
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
}

/** The file at a path, mapped again only where it has become another one. */
export class MemoryFile {
  readonly #path: string;
  #current: Mapping;

  /** @throws MemoryFileError where it is no regular file, or empty; the errors of open(2) and mmap(2) */
  constructor(path: string) {
    this.#path = path;
    this.#current = new Mapping(path);
  }

  /** Bytes of the file, when it was looked at last. */
  get bytes(): number {
    return this.#current.file.bytes;
  }

  /**
   * Its mapping as it is now, to be given back with `release`.
   *
   * @param least bytes that it must have; its last page may be a part of one
   * @throws MemoryFileError where it is too short; what the constructor throws
   */
  take(least: number): Mapping {
    if (!this.#current.isAt(this.#path)) {
      const next = new Mapping(this.#path);
      this.#current.release();
      this.#current = next;
    }
    const { bytes } = this;
    if (wholePages(bytes, SYSTEM_PAGE) < least) {
      throw new MemoryFileError(
        `the memory file ${this.#path} has shrunk: ${bytes} bytes, of which ${least} are served`,
      );
    }
    return this.#current.hold();
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

/** A mapping, until the last who holds it has released it. */
export class Mapping {
  readonly file: MappedFile;
  readonly #stat: Stats;
  #holders = 1;

  constructor(path: string) {
    // A FIFO would be waited for.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      this.#stat = checked(path, fd);
      const { size, blocks } = this.#stat;
      const address = mmap(0n, size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd);
      if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: size });
      this.file = { path, bytes: size, address, fd, sparse: blocks * 512 < size };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Whether the file at a path is the one that is mapped, as it was. */
  isAt(path: string): boolean {
    const { dev, ino, size, blocks } = statSync(path);
    const known = this.#stat;
    return dev === known.dev && ino === known.ino && size === known.size && blocks === known.blocks;
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

/** Where a mapped file has data, and where holes. */
export class Stretches {
  readonly #file: MappedFile;
  #last: Stretch = { from: 0, to: 0, data: true };

  constructor(file: MappedFile) {
    this.#file = file;
  }

  /** The stretch that an offset lies in. */
  at(offset: number): Stretch {
    const { fd, bytes, sparse } = this.#file;
    if (!sparse) return { from: 0, to: bytes, data: true };
    if (offset >= this.#last.from && offset < this.#last.to) return this.#last;
    const data = nextData(fd, offset, bytes);
    // A file system that cannot tell has no holes.
    if (data < 0 || data === offset) {
      const hole = data < 0 ? bytes : nextHole(fd, offset);
      this.#last = { from: offset, to: hole < 0 ? bytes : hole, data: true };
    } else {
      this.#last = { from: offset, to: data, data: false };
    }
    return this.#last;
  }
}

function checked(path: string, fd: number): Stats {
  const stat = fstatSync(fd);
  if (!stat.isFile()) {
    const kind = stat.isDirectory() ? 'a directory' : stat.isFIFO() ? 'a FIFO' : 'no regular file';
    throw new MemoryFileError(`the memory file ${path} is ${kind}`);
  }
  if (stat.size === 0) throw new MemoryFileError(`the memory file ${path} is empty`);
  return stat;
}
