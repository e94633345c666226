// The memory file of a snapshot: mapped whole, and copied from by the kernel alone. Nothing here ever touches its
// bytes, so a file that shrinks, or a disk that fails, is an EFAULT of the copy and never a SIGBUS.

import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { nextData, nextHole } from '../../shim/descriptors.js';
import { MAP_NORESERVE, MAP_PRIVATE, mmap, munmap, PROT_READ } from '../../shim/memory.js';
import { UffdError } from '../errors.js';
import { wholePages } from '../whole-pages.js';
import { SYSTEM_PAGE } from './handoff.js';

/** A stretch of the file that is all data, or all hole. */
export interface Stretch {
  readonly from: number;
  readonly to: number;
  readonly data: boolean;
}

/** The memory file cannot be used. */
export class MemoryFileError extends Error {
  override readonly name = 'MemoryFileError';
  readonly code = 'ERR_UFFD_MEMORY_FILE';
}

export class MemoryFile implements Disposable {
  readonly path: string;
  readonly bytes: number;
  /** Where its first byte lies in this process. */
  readonly address: bigint;
  readonly #fd: number;
  /** Where the file has no holes at all, nobody needs to ask. */
  readonly #sparse: boolean;
  #last: Stretch = { from: 0, to: 0, data: true };
  #closed = false;

  /**
   * @param least bytes that it must have; its last page may be a part of one
   * @throws MemoryFileError where it is no regular file, or too short; the errors of open(2) and mmap(2)
   */
  constructor(path: string, least = 1) {
    this.path = path;
    // A FIFO would be waited for.
    this.#fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const { size, blocks } = checked(path, this.#fd, least);
      this.bytes = size;
      this.#sparse = blocks * 512 < size;
      const address = mmap(0n, size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, this.#fd);
      if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: size });
      this.address = address;
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  /** The stretch that an offset lies in. */
  stretchAt(offset: number): Stretch {
    if (!this.#sparse) return { from: 0, to: this.bytes, data: true };
    if (offset >= this.#last.from && offset < this.#last.to) return this.#last;
    const data = nextData(this.#fd, offset, this.bytes);
    // A file system that cannot tell has no holes.
    if (data < 0 || data === offset) {
      const hole = data < 0 ? this.bytes : nextHole(this.#fd, offset);
      this.#last = { from: offset, to: hole < 0 ? this.bytes : hole, data: true };
    } else {
      this.#last = { from: offset, to: data, data: false };
    }
    return this.#last;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Idempotent. Nobody may copy from it any more. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    munmap(this.address, this.bytes);
    closeSync(this.#fd);
  }
}

function checked(path: string, fd: number, least: number): { size: number; blocks: number } {
  const stat = fstatSync(fd);
  if (!stat.isFile()) {
    const kind = stat.isDirectory() ? 'a directory' : stat.isFIFO() ? 'a FIFO' : 'no regular file';
    throw new MemoryFileError(`the memory file ${path} is ${kind}`);
  }
  if (stat.size === 0) throw new MemoryFileError(`the memory file ${path} is empty`);
  if (wholePages(stat.size, SYSTEM_PAGE) < least) {
    throw new MemoryFileError(
      `the memory file ${path} has shrunk: ${stat.size} bytes, of which ${least} are served`,
    );
  }
  return stat;
}
