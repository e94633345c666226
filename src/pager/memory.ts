// The memory of a pager on Linux: a memfd that is mapped twice. The program touches one mapping, which a userfaultfd
// watches. The pager fills the memfd through the other one, the alias, and maps what is complete with CONTINUE.
//
// Rules:
//  - A block's memory is allocated before it is written to (MADV_POPULATE_WRITE), because a write that finds none would
//    end the process with SIGBUS. What a source returns at once goes through a buffer and pwrite(2) instead, which is
//    faster: no page is zeroed first, and none is mapped in the alias.
//  - No transparent huge page: one write would make the whole of it present, and its other blocks would be zeros.
//  - A forked child does not get the memory (MADV_DONTFORK): it would read zeros, and its zeros would satisfy the
//    parent's CONTINUE. A child that touches it gets SIGSEGV.
//  - Once it is closed, the program's mapping cannot be read (SIGSEGV), until the last view of it is collected.

import { closeDescriptor, writeAt } from '../../shim/descriptors.js';
import * as memory from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import type { Feature, Mode } from '../kernel/features.js';
import { Mapping } from '../memory/mapping.js';
import { wholePages } from '../memory/whole-pages.js';
import type { TraceWriter } from '../trace/writer.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import type { BlockMemory } from './server.js';

/** Bytes of one window of the alias: a typed array cannot be larger than 4 GiB on Node 20. */
const WINDOW = 2 ** 30;

const EINTR = -4;

export interface PagedMemoryOptions {
  readonly writable: boolean;
  readonly userModeOnly: boolean | 'auto';
  /** Whether each `room` is filled before the next one is made. */
  readonly immediate?: boolean;
  readonly record?: TraceWriter;
}

export class PagedMemory implements BlockMemory {
  readonly address: bigint;
  /** Bytes, in whole pages. */
  readonly length: number;
  readonly uffd: Userfaultfd;
  readonly pageSize = memory.pageSize();
  readonly #fd: number;
  readonly #alias: bigint;
  readonly #canPoison: boolean;
  readonly #protection: number;
  readonly #writable: boolean;
  readonly #overlap: number;
  /** What the source writes to, before it is written to the memfd; undefined: it writes to the alias. */
  readonly #buffer: Mapping | undefined;
  readonly #writes: memory.SmallPageWrites;
  /** Whether the last room was the buffer. */
  #buffered = false;
  #bufferOffset = 0;
  readonly #windows = new Map<number, Uint8Array>();
  #closed = false;

  /**
   * @param size bytes of the data
   * @param windowOverlap most bytes that are read at once
   * @throws UffdError, UnsupportedError
   */
  constructor(
    size: number,
    windowOverlap: number,
    { writable, userModeOnly, immediate = false, record }: PagedMemoryOptions,
  ) {
    this.length = wholePages(size, this.pageSize);
    this.#overlap = windowOverlap;
    this.#writable = writable;
    this.#protection = writable ? memory.PROT_READ | memory.PROT_WRITE : memory.PROT_READ;
    const features: Feature[] = ['missing-shmem', 'minor-shmem'];
    const modes: Mode[] = ['missing', 'minor'];
    if (writable) {
      // 'wp-unpopulated' came with CONTINUE's option to write-protect (Linux 6.4).
      features.push('pagefault-flag-wp', 'wp-hugetlbfs-shmem', 'wp-unpopulated');
      modes.push('write-protect');
    }
    const uffd = Userfaultfd.open({
      features,
      optional: ['poison'],
      userModeOnly,
      ...(record && { record }),
    });
    this.#writes = new memory.SmallPageWrites();
    const fd = memory.memfdCreate('userfaultfd-pager', this.length);
    const mapped: bigint[] = [];
    try {
      if (fd < 0) throw new UffdError(fd, 'memfd_create', { length: this.length });
      const { PROT_READ, PROT_WRITE } = memory;
      for (const protection of [this.#protection, PROT_READ | PROT_WRITE]) {
        mapped.push(this.#map(fd, protection));
      }
      const [address, alias] = mapped as [bigint, bigint];
      this.address = address;
      this.#alias = alias;
      this.#fd = fd;
      this.uffd = uffd;
      this.#canPoison = uffd.features.has('poison');
      // Page-aligned, because copies to other addresses are slower.
      if (immediate) this.#buffer = Mapping.anonymous(windowOverlap);
      uffd.register(address, this.length, modes, { pageSize: this.pageSize });
    } catch (error) {
      uffd.close();
      for (const place of mapped) memory.munmap(place, this.length);
      if (fd >= 0) closeDescriptor(fd);
      this.#buffer?.close();
      this.#writes.close();
      throw error;
    }
  }

  #map(fd: number, protection: number): bigint {
    const address = memory.mmap(0n, this.length, protection, memory.MAP_SHARED | memory.MAP_NORESERVE, fd);
    if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: this.length });
    // EINVAL: the kernel was built without transparent huge pages.
    memory.madvise(address, this.length, memory.MADV_NOHUGEPAGE);
    const forked = memory.madvise(address, this.length, memory.MADV_DONTFORK);
    if (forked < 0) throw new UffdError(forked, 'madvise', { address, length: this.length });
    return address;
  }

  /** The bytes of a range, through the alias. Reading what has no memory would make memory. */
  bytes(offset: number, length: number): Uint8Array {
    const index = Math.floor(offset / WINDOW);
    let window = this.#windows.get(index);
    if (!window) {
      const start = index * WINDOW;
      const bytes = Math.min(WINDOW + this.#overlap, this.length - start);
      window = new Uint8Array(memory.view(this.#alias + BigInt(start), bytes));
      this.#windows.set(index, window);
    }
    return window.subarray(offset - index * WINDOW, offset - index * WINDOW + length);
  }

  room(offset: number, length: number): Uint8Array | number {
    this.#buffered = this.#buffer !== undefined && this.#writes.only;
    if (this.#buffer && this.#buffered) {
      this.#bufferOffset = offset;
      const room = this.#buffer.bytes.subarray(0, length);
      // The source may end before the last page does, whose other bytes are zero.
      room.fill(0, Math.max(0, length - this.pageSize));
      return room;
    }
    const made = memory.madvise(this.#alias + BigInt(offset), length, memory.MADV_POPULATE_WRITE);
    return made < 0 ? made : this.bytes(offset, length);
  }

  filled(offset: number, length: number): void {
    // Without a buffer, the source has written to the memory itself.
    if (!this.#buffer || !this.#buffered) return;
    const start = offset - this.#bufferOffset;
    for (let done = 0; done < length; ) {
      const written = writeAt(
        this.#fd,
        this.#buffer.bytes.subarray(start + done, start + length),
        offset + done,
      );
      if (written < 0 && written !== EINTR) throw new UffdError(written, 'pwrite', { length });
      done += Math.max(0, written);
    }
  }

  map(offset: number, length: number, writeProtect: boolean): boolean {
    // A protection of before outlives eviction, and would be kept.
    if (!writeProtect && this.#writable && !this.protect(offset, length, false)) return false;
    return this.uffd.continue(this.address + BigInt(offset), length, { writeProtect }) === length;
  }

  protect(offset: number, length: number, on: boolean): boolean {
    return this.uffd.writeProtect(this.address + BigInt(offset), length, on) === length;
  }

  drop(offset: number, length: number): void {
    const address = this.address + BigInt(offset);
    if (!this.#canPoison) memory.mprotect(address, length, this.#protection);
    const result = memory.madvise(address, length, memory.MADV_DONTNEED);
    if (result < 0) throw new UffdError(result, 'madvise', { address, length });
  }

  punch(offset: number, length: number): void {
    const result = memory.punchHole(this.#fd, offset, length);
    if (result < 0) throw new UffdError(result, 'fallocate', { length });
  }

  wake(offset: number, length: number): void {
    this.uffd.wake(this.address + BigInt(offset), length);
  }

  /** SIGBUS; before Linux 6.6 SIGSEGV. */
  poison(offset: number, length: number): boolean {
    const address = this.address + BigInt(offset);
    if (this.#canPoison) {
      return this.uffd.poison(address, length) === length;
    }
    const result = memory.mprotect(address, length, memory.PROT_NONE);
    if (result < 0) throw new UffdError(result, 'mprotect', { address, length });
    this.wake(offset, length);
    return true;
  }

  /**
   * Ends it: the program's mapping cannot be read any more, and threads that wait get SIGSEGV. Idempotent.
   * The address space stays, until `PagerMemory` frees it.
   *
   * @throws UffdError if the mapping can still be read: then its userfaultfd stays, because threads would read zeros
   */
  close(): void {
    if (this.#closed) return;
    const { PROT_NONE } = memory;
    const sealed = memory.mprotect(this.address, this.length, PROT_NONE);
    if (sealed < 0) throw new UffdError(sealed, 'mprotect', { address: this.address, length: this.length });
    this.#closed = true;
    this.uffd.close();
    const { MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED } = memory;
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    // If there is no memory for it, the pages of the mapping stay, which cannot be read.
    memory.mmap(this.address, this.length, PROT_NONE, flags);
    memory.munmap(this.#alias, this.length);
    closeDescriptor(this.#fd);
    this.#windows.clear();
    this.#buffer?.close();
    this.#writes.close();
  }
}
