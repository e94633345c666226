// Memory that guests share: a memfd with the pages of an image that any guest has wanted. Monitors map it privately, and
// CONTINUE then maps one copy of a page for all guests; a page that a guest writes becomes the guest's own.
//
// Rules:
//  - Only the server writes to the memfd, through a mapping that is older than its seals.
//  - A page holds the image's bytes before it is marked, and never changes afterwards. Only marked pages are continued: a
//    monitor can make the kernel allocate a page of zeros by reading the memfd past its userfaultfd.
//  - A page is never taken out of the memfd. It is freed as a whole, when no connection, no session and no monitor has it.
//  - The kernel writes, so that a lack of memory, or a file that shrinks, is an error and no signal.

import { fstatSync } from 'node:fs';
import { constants } from 'node:os';
import { copyMemory, writeMemory } from '../../shim/access.js';
import { closeDescriptor } from '../../shim/descriptors.js';
import {
  MADV_NOHUGEPAGE,
  MADV_POPULATE_WRITE,
  MAP_NORESERVE,
  MAP_SHARED,
  madvise,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
  sealableMemfd,
  sealMemfd,
} from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import { wholePages } from '../memory/whole-pages.js';
import { HandOffError, type Region, SYSTEM_PAGE } from './handoff-protocol.js';
import type { SharedSource, Source } from './snapshot-handler.js';
import { featuresOf } from './uffd-features.js';

/** Bytes of the blocks that stat(2) counts. */
const BLOCK_BYTES = 512;

/** The memory, as a session's thread gets it. Can be posted. */
export interface SharedMemory {
  /** Where the server's mapping of the memfd begins. */
  readonly address: bigint;
  /** A bit for each page: whether it has its bytes. */
  readonly marks: Int32Array;
}

export class SharedPages {
  readonly fd: number;
  /** Bytes, in whole pages. */
  readonly bytes: number;
  readonly memory: SharedMemory;
  #holders = 1;

  /** @throws UffdError */
  constructor(bytes: number) {
    this.bytes = wholePages(bytes, SYSTEM_PAGE);
    const length = this.bytes;
    this.fd = sealableMemfd('uffd-shared', length);
    if (this.fd < 0) throw new UffdError(this.fd, 'memfd_create', { length });
    const address = mmap(0n, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, this.fd);
    const sealed = address < 0n ? 0 : sealMemfd(this.fd);
    if (address < 0n || sealed < 0) {
      if (address >= 0n) munmap(address, length);
      closeDescriptor(this.fd);
      throw new UffdError(address < 0n ? Number(address) : sealed, address < 0n ? 'mmap' : 'fcntl', {
        length,
      });
    }
    madvise(address, length, MADV_NOHUGEPAGE);
    const words = Math.ceil(length / SYSTEM_PAGE / 32);
    this.memory = { address, marks: new Int32Array(new SharedArrayBuffer(4 * words)) };
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  /** Returns whether that was the last holder; no thread may use the memory any more. */
  release(): boolean {
    if (--this.#holders > 0) return false;
    munmap(this.memory.address, this.bytes);
    closeDescriptor(this.fd);
    return true;
  }
}

/** What the guests of a server share now. */
export interface SharingCounts {
  /** Guests whose regions are shared memory. */
  readonly guests: number;
  /** Bytes of memory that the shared pages of all images take, each counted once. */
  readonly memoryBytes: number;
}

/** The shared memory of each image that a connection or a session has. */
export class SharedImages {
  readonly #pages = new Map<object, SharedPages>();

  /** Bytes of memory that all of it takes. */
  get memoryBytes(): number {
    return [...this.#pages.values()].reduce((sum, { fd }) => sum + fstatSync(fd).blocks * BLOCK_BYTES, 0);
  }

  /** The memory of an image; give it back with `release`. @throws UffdError */
  hold(image: object, bytes: number): SharedPages {
    const known = this.#pages.get(image);
    if (known) return known.hold();
    const pages = new SharedPages(bytes);
    this.#pages.set(image, pages);
    return pages;
  }

  release(image: object): void {
    if (this.#pages.get(image)?.release()) this.#pages.delete(image);
  }
}

/** The features of a userfaultfd whose guest shares pages. */
const FEATURES = ['event-remove', 'minor-shmem'] as const;

/**
 * Whether the regions of a hand-off map shared memory.
 *
 * @param fd the userfaultfd
 * @param lent whether its connection has asked for the memory
 * @throws HandOffError if such a guest cannot be served
 */
export function sharesPages(regions: readonly Region[], fd: number, lent: boolean): boolean {
  const shared = regions.filter((region) => region.shared).length;
  if (shared === 0) return false;
  const refuse = (why: string): never => {
    throw new HandOffError(why, { ofGuest: true });
  };
  if (shared < regions.length)
    refuse(`${shared} of ${regions.length} regions are shared; all must be, or none`);
  if (!lent) refuse('regions are shared, and no memory was asked for on this connection');
  // Without reports of removals, a page that the kernel has reclaimed would look like a removed one.
  const features = featuresOf(fd) ?? [];
  for (const feature of FEATURES) {
    if (!features.includes(feature)) refuse(`guests share pages only if '${feature}' is on`);
  }
  return true;
}

/** Writes whole pages of an image into the shared memory. */
type WritePages = (offset: number, length: number) => void;

/**
 * The shared memory as a guest's handler uses it. Its `put` writes the pages that are not marked yet, and marks them.
 * Threads of several guests may do so for the same page: both write the same bytes. It throws what `write` throws.
 */
export function sharedSource(marks: Int32Array, write: WritePages): SharedSource {
  return {
    put(offset, length) {
      const end = (offset + length) / SYSTEM_PAGE;
      for (let page = offset / SYSTEM_PAGE; page < end; ) {
        let next = page;
        while (next < end && !isMarked(marks, next)) next++;
        if (next === page) {
          page++;
          continue;
        }
        write(page * SYSTEM_PAGE, (next - page) * SYSTEM_PAGE);
        for (; page < next; page++) Atomics.or(marks, page >> 5, 1 << (page & 31));
      }
    },
    presentFrom(offset, most) {
      let length = 0;
      while (length < most && isMarked(marks, (offset + length) / SYSTEM_PAGE)) length += SYSTEM_PAGE;
      return length;
    },
  };
}

function isMarked(marks: Int32Array, page: number): boolean {
  return (Atomics.load(marks, page >> 5) & (1 << (page & 31))) !== 0;
}

/**
 * Writes pages of an image into the memfd that is mapped at an address. The function throws UffdError: ENOMEM; EFAULT if
 * the image cannot be read.
 */
export function memfdWriter(address: bigint, source: Pick<Source, 'bytesAt'>): WritePages {
  return (offset, length) => {
    const to = address + BigInt(offset);
    const from = source.bytesAt(offset, length);
    const copy = (): number =>
      typeof from === 'bigint' ? copyMemory(from, to, length) : writeMemory(to, from);
    let done = copy();
    if (done >= 0 && done < length) {
      // The call does not say which side stopped it.
      const populated = madvise(to, length, MADV_POPULATE_WRITE);
      if (populated < 0) throw new UffdError(populated, 'madvise', { length });
      done = copy();
    }
    if (done < length)
      throw new UffdError(done < 0 ? done : -constants.errno.EFAULT, 'process_vm_readv', { length });
  };
}
