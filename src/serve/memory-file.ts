// The memory file of a snapshot, mapped whole, with the diff snapshots on top of it. Only the kernel reads its bytes,
// while it copies, so a file that shrinks or a disk that fails makes the copy return EFAULT and never raises SIGBUS.
//
// All sessions of a file share one mapping, so the kernel looks up the file's pages once, not again for each guest.
//
// Rules:
//  - A file that was replaced, grown, shrunk or written to after it was mapped is mapped again for the next guest.
//  - On hugetlbfs a hole is never read through the mapping: that would take a huge page from the pool, or fail if
//    there is none.

import { type BigIntStats, closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { endOf } from '../../shim/descriptors.js';
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
import { type Extent, Extents, type FileRange, ListedExtents, type SharedRanges } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { LayeredMapping } from './layered-mapping.js';
import { identifyOpen, type MemoryIdentity, sizeOf } from './memory-identity.js';

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
  /** Where there is data, if diff snapshots lie on top of the file. */
  readonly data?: SharedRanges;
}

/** Where a mapped file has data, and where holes. */
export function extentsOf(file: MappedFile): { at(offset: number): Extent } {
  return file.data ? new ListedExtents(file.data, file.bytes) : new Extents(file);
}

/** The file at a path, mapped again only if it has changed. */
export class MemoryFile {
  readonly #path: string;
  readonly #layers: readonly string[];
  #current: FileMapping;
  /** Why the file cannot be mapped as it is now. */
  #error: unknown;

  /**
   * @param layers diff snapshots on top of it, the oldest first
   * @throws MemoryFileError if it is empty, or neither a regular file nor a block device; MemoryImageError about layers;
   * the errors of open(2) and mmap(2)
   */
  constructor(path: string, layers: readonly string[] = []) {
    this.#path = path;
    this.#layers = layers;
    this.#current = new FileMapping(path, layers);
  }

  /** What the operator should know about its layers. */
  get notes(): readonly string[] {
    return this.#current.notes;
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
      if (!this.#current.isUnchanged()) {
        const next = new FileMapping(this.#path, this.#layers);
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
  readonly notes: readonly string[] = [];
  readonly #paths: readonly string[];
  /** The state of each path before it was opened, so that later changes are noticed. */
  readonly #stats: readonly BigIntStats[];
  /** The file with its layers, if it has any. */
  readonly #layered: LayeredMapping | undefined;
  #identity: MemoryIdentity | undefined;
  #holders = 1;

  constructor(path: string, layers: readonly string[] = []) {
    this.#paths = [path, ...layers];
    this.#stats = this.#paths.map((one) => statSync(one, { bigint: true }));
    if (layers.length > 0) {
      const layered = new LayeredMapping(path, layers);
      const { bytes, address, fd, data } = layered;
      this.#layered = layered;
      this.notes = layered.notes;
      this.file = { ...{ path, bytes, address, fd, data }, sparse: true, readUnit: 0 };
      return;
    }
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
    this.#identity ??= this.#layered?.identity ?? identifyOpen(this.file.fd, this.file.bytes);
    return this.#identity;
  }

  /** Whether the files at its paths are the mapped ones, unchanged. */
  isUnchanged(): boolean {
    return this.#paths.every((path, index) => {
      const now = statSync(path, { bigint: true });
      const known = this.#stats[index] as BigIntStats;
      const same = (['dev', 'ino', 'rdev', 'size', 'blocks', 'mtimeNs', 'ctimeNs'] as const).every(
        (field) => now[field] === known[field],
      );
      // The size of a block device is not in its inode, and only the lowest layer may be one.
      return same && (now.isFile() || endOf(this.file.fd) === this.file.bytes);
    });
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
    if (this.#layered) {
      this.#layered.close();
      return;
    }
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
  const extents = extentsOf(file);
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
