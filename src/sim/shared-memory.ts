// Memory objects of the simulated kernel: what memfd_create(2) makes. An object has a page cache, and any number of
// mappings, shared and private, in any process.
//
// Rules:
//  - A page is in the page cache from its first write, touch or fill until a hole is punched there. Until then it stays
//    in the cache, even if no mapping refers to it.
//  - A frame's `mappers` counts the page table entries that refer to it. The page cache itself is not counted.
//  - A private mapping shows the pages of the page cache until it writes to them: then it has copies of its own, which a
//    punched hole leaves alone.
//  - If an entry of a write-protected page is removed, a write-protect marker takes its place. Only unmapping the memory
//    or removing the protection removes the marker.

import { checkInteger, outOfRange } from '../errors/arguments.js';
import { MODE } from './abi.js';
import {
  type AddressSpace,
  type Frame,
  isShared,
  pageOfObject,
  type SharedPages,
  type Vma,
} from './memory.js';

/** What an object needs from the kernel. */
export interface SharedMemoryHost {
  /** Every address space that may map the object. */
  spaces(): Iterable<AddressSpace>;
  /** Lets threads run before a call of the handler. */
  preempt(): void;
}

/**
 * A shared memory object: `SimulatedKernel.memfd` makes it, and `SimulatedKernel.mapShared` maps it. Its methods are the
 * system calls that a handler makes with the descriptor. Threads may run before each of them, as before a call of the
 * port. None of them posts a message or wakes a thread.
 */
export class SharedMemory implements SharedPages {
  readonly pageSize: number;
  /** Size of the object in pages. */
  readonly pages: number;
  readonly #host: SharedMemoryHost;
  readonly #cache = new Map<number, Frame>();

  /** @internal */
  constructor(pages: number, pageSize: number, host: SharedMemoryHost) {
    this.pages = pages;
    this.pageSize = pageSize;
    this.#host = host;
  }

  /** Size of the object in bytes. */
  get length(): number {
    return this.pages * this.pageSize;
  }

  /** The number of pages in the page cache. */
  get resident(): number {
    return this.#cache.size;
  }

  /** Whether a page of the object is in the page cache. */
  holds(page: number): boolean {
    return this.#cache.has(page);
  }

  /** pwrite(2): writes bytes. Pages that are not in the page cache are added to it. Every mapping sees the bytes. */
  write(offset: number, bytes: Uint8Array): void {
    this.#check(offset, bytes.length);
    this.#host.preempt();
    this.#eachPart(offset, bytes.length, (page, from, to, done) => {
      const frame = this.frame(page) ?? this.allocate(page);
      frame.bytes.set(bytes.subarray(done, done + to - from), from);
    });
  }

  /**
   * pread(2): reads bytes. A page that is not in the page cache reads as zeros and is not added to it. (On Linux a read
   * through an unwatched mapping adds it: use `read` of a thread for that.)
   */
  read(offset: number, length: number): Uint8Array {
    this.#check(offset, length);
    this.#host.preempt();
    return this.peek(offset, length);
  }

  /** As `read`, but no thread runs before it. For tests and observers. */
  peek(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#eachPart(offset, length, (page, from, to, done) => {
      const frame = this.frame(page);
      if (frame) bytes.set(frame.bytes.subarray(from, to), done);
    });
    return bytes;
  }

  /**
   * fallocate(2) with FALLOC_FL_PUNCH_HOLE: removes the pages of a range from the page cache and from every mapping.
   * Markers stay: a write-protected page leaves a write-protect marker, and poison stays. `offset` and `length` are
   * whole pages.
   */
  punchHole(offset: number, length: number): void {
    this.#check(offset, length);
    if (offset % this.pageSize !== 0) throw outOfRange('offset', 'whole pages', offset);
    if (length % this.pageSize !== 0) throw outOfRange('length', 'whole pages', length);
    this.#host.preempt();
    this.remove(offset / this.pageSize, (offset + length) / this.pageSize);
  }

  #check(offset: number, length: number): void {
    checkInteger(offset, 'offset', 0, this.length);
    checkInteger(length, 'length', 0, this.length - offset);
  }

  /** Divides a range of bytes at page borders. `from` and `to` are offsets in the page; `done`: bytes before them. */
  #eachPart(
    offset: number,
    length: number,
    part: (page: number, from: number, to: number, done: number) => void,
  ): void {
    for (let done = 0; done < length; ) {
      const from = (offset + done) % this.pageSize;
      const to = Math.min(this.pageSize, from + length - done);
      part((offset + done - from) / this.pageSize, from, to, done);
      done += to - from;
    }
  }

  // ---- for the simulated kernel --------------------------------------------------------------------------

  /**
   * A page of the page cache.
   *
   * @internal
   */
  frame(page: number): Frame | undefined {
    return this.#cache.get(page);
  }

  /**
   * Adds a page to the page cache: these bytes, or zeros.
   *
   * @internal
   */
  allocate(page: number, bytes?: Uint8Array): Frame {
    const frame = { bytes: bytes ? bytes.slice() : new Uint8Array(this.pageSize), mappers: 0 };
    this.#cache.set(page, frame);
    return frame;
  }

  /**
   * Removes the pages from `first` up to `end`, exclusive, from the page cache and from every mapping. Calls `removed`
   * for each part of a shared mapping.
   *
   * @internal
   */
  remove(
    first: number,
    end: number,
    removed?: (space: AddressSpace, from: number, to: number) => void,
  ): void {
    for (const space of this.#host.spaces()) {
      for (const vma of space.vmas) {
        if (vma.object !== this) continue;
        const base = vma.start - vma.origin * this.pageSize;
        const from = Math.max(vma.start, base + first * this.pageSize);
        const to = Math.min(vma.end, base + end * this.pageSize);
        if (from >= to) continue;
        zapShared(space, vma, from, to, 'keeps copies');
        if (isShared(vma)) removed?.(space, from, to);
      }
    }
    for (let page = first; page < Math.min(end, this.pages); page++) this.#cache.delete(page);
  }
}

/** Maps a page of the page cache. No entry may refer to a page yet, but a marker may be there. */
export function mapFrame(
  space: AddressSpace,
  page: number,
  frame: Frame,
  wp: boolean,
): { is: 'page'; frame: Frame; exclusive: boolean; wp: boolean } {
  frame.mappers++;
  const entry = { is: 'page', frame, exclusive: false, wp } as const;
  space.set(page, entry);
  return entry;
}

/** Whether an entry of a mapping shows a page of the page cache, and not a copy of it. */
export function isCached(space: AddressSpace, vma: Vma, page: number): boolean {
  const entry = space.entry(page);
  return entry?.is === 'page' && vma.object?.frame(pageOfObject(space, vma, page)) === entry.frame;
}

/**
 * Removes the entries of a part of a mapping of an object, and keeps the page cache. MADV_DONTNEED drops poison, and the
 * copies of a private mapping; a punched hole keeps them.
 */
export function zapShared(
  space: AddressSpace,
  vma: Vma,
  start: number,
  end: number,
  how: 'drops all' | 'keeps copies',
): void {
  for (const page of space.pagesIn(start, end)) {
    const entry = space.entry(page);
    const shown = entry?.is === 'page' || entry?.is === 'zero';
    if (shown && how === 'keeps copies' && entry.is === 'page' && !isCached(space, vma, page)) continue;
    if (shown) space.set(page, entry.wp && vma.modes & MODE.WP ? { is: 'wp' } : undefined);
    else if (entry?.is === 'poison' && how === 'drops all') space.set(page, undefined);
  }
}
