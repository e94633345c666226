// Memory to watch, or to read from: anonymous, shared or from a file, in pages of any size, with its bytes as a
// Uint8Array.
//
// Rules:
//  - A view may outlive its mapping. `close` replaces the pages by fresh zero pages and keeps the address
//    space; it goes back when every view that was handed out, on any thread, is collected. A stale view reads
//    zeros and never crashes the process. (A worker that ends with a view leaves the address space taken, not
//    the memory.)
//  - A mapping that is dropped without a close is freed once no view of it can be reached and nothing watches it
//    (src/address-space.ts).
//  - The thread that serves a range must not touch it: `bytes` refuses there, with the reason.
//  - Unmapping memory that this thread watches would wait for this thread: `close` unregisters it first.

import { constants as bufferConstants } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { isMainThread, threadId } from 'node:worker_threads';
import { closeDescriptor } from '../shim/descriptors.js';
import * as memory from '../shim/memory.js';
import { mappings, SHARED_BYTES, Space, views } from './address-space.js';
import {
  checkInteger,
  checkOptions,
  checkPageAddress,
  invalidState,
  outOfRange,
  wrongType,
} from './arguments.js';
import { seeToEnd } from './ending.js';
import { UffdError } from './errors.js';
import type { Feature } from './features.js';
import {
  type AnonymousOptions,
  checkPageSize,
  type FileOptions,
  filePageSize,
  type MappingOptions,
  type MemoryOptions,
  type Plan,
  place,
  protectionOf,
  sizes,
  transparentHugeSize,
} from './mapping-plan.js';
import { hex } from './names.js';
import { forgetMemory, watchersOf } from './registry.js';
import { wholePages } from './whole-pages.js';

/** A mapping to be posted to another thread, for `Mapping.attach`. */
export interface SharedMapping {
  readonly address: bigint;
  readonly length: number;
  readonly pageSize: number;
  readonly users: SharedArrayBuffer;
}

/**
 * Memory of this process, which other threads can attach to. Its bytes may outlive it: they read zeros once it is closed.
 *
 * One that is dropped without `close` is freed when it is collected, with its contents; not while a view of it can be
 * reached, a userfaultfd watches it, or another thread may have it (`share` was called). `address` and `fd` alone keep
 * nothing: hold the mapping, or a view, for as long as they are in use.
 */
export class Mapping implements Disposable {
  /** Where it lies; page-aligned. */
  readonly address: bigint;
  /** Bytes, as asked for. The last page is zero behind them. */
  readonly length: number;
  /** Bytes of a page: the system's, or the huge page's. */
  readonly pageSize: number;
  readonly #space: Space;
  /** How it was made; undefined for one that was attached, which another thread owns. */
  readonly #plan: Plan | undefined;
  #buffer: WeakRef<ArrayBuffer> | undefined;
  #closed = false;

  private constructor(shared: SharedMapping, plan?: Plan) {
    const { address, length, pageSize, users } = shared;
    seeToEnd();
    this.address = address;
    this.length = length;
    this.pageSize = pageSize;
    this.#space = new Space(address, wholePages(length, pageSize), users);
    this.#plan = plan;
    if (plan) mappings.register(this, this.#space, this);
  }

  /**
   * `length` bytes of private memory, zero and not touched yet. Not backed by transparent huge pages unless asked
   * for, so each page faults by itself.
   *
   * @example
   * ```ts
   * import { Mapping } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(16 * 4096);
   * memory.bytes[5] = 1;
   * console.log(memory.address % 4096n, memory.bytes.length, memory.bytes[5]);
   * memory.close();
   * ```
   *
   * @throws RangeError; UffdError ENOMEM (huge pages: the pool is empty), EINVAL (no huge pages of that size)
   */
  static anonymous(length: number, options: AnonymousOptions = {}): Mapping {
    checkOptions(options, 'options');
    const { transparentHuge = false, pageSize = memory.pageSize() } = options;
    checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
    checkPageSize(pageSize);
    const { MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE } = memory;
    const reserve = pageSize === memory.pageSize() ? MAP_NORESERVE : 0;
    const mapping = Mapping.#map({
      length,
      pageSize,
      protection: protectionOf(options),
      flags: MAP_PRIVATE | MAP_ANONYMOUS | reserve | memory.hugeFlags(pageSize),
      fd: -1,
      alignment: transparentHuge ? transparentHugeSize() : pageSize,
    });
    // EINVAL where the kernel was built without huge pages, which is as good.
    const advice = transparentHuge ? memory.MADV_HUGEPAGE : memory.MADV_NOHUGEPAGE;
    memory.madvise(mapping.address, mapping.#space.mapped, advice);
    return mapping;
  }

  /**
   * `length` bytes of shared memory (a memfd): `alias` maps the same bytes a second time, to fill pages that are
   * watched for minor faults. Holds a descriptor until it is closed.
   *
   * @throws RangeError; UffdError ENOMEM, EINVAL as `anonymous`, EMFILE
   */
  static memfd(length: number, options: MemoryOptions = {}): Mapping {
    checkOptions(options, 'options');
    const { pageSize = memory.pageSize() } = options;
    checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
    checkPageSize(pageSize);
    const fd = memory.memfdCreate('userfaultfd', wholePages(length, pageSize), pageSize);
    if (fd < 0) throw new UffdError(fd, 'memfd_create', sizes(length, pageSize));
    return Mapping.#mapFile(fd, length, pageSize, memory.MAP_SHARED, options);
  }

  /**
   * A file's bytes. A file that shrinks while it is mapped makes touching the lost pages SIGBUS, and copying
   * from them EFAULT. A shared mapping holds a descriptor until it is closed.
   *
   * @throws RangeError for an empty file; Node's errors of opening it; UffdError
   */
  static file(path: string, options: FileOptions = {}): Mapping {
    checkOptions(options, 'options');
    const { shared = false, writable = true } = options;
    const access = shared && writable ? constants.O_RDWR : constants.O_RDONLY;
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    const fd = openSync(path, access | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) throw invalidState(`${path} is no regular file, and cannot be mapped`);
      if (stat.size === 0) throw outOfRange(`the size of ${path}`, 'at least 1 byte', 0);
      const flags = shared ? memory.MAP_SHARED : memory.MAP_PRIVATE;
      return Mapping.#mapFile(duplicate(fd), stat.size, filePageSize(fd), flags, options);
    } finally {
      closeSync(fd);
    }
  }

  /** Maps a descriptor that was made for it; only a shared mapping keeps it, for `alias`. */
  static #mapFile(
    fd: number,
    length: number,
    pageSize: number,
    flags: number,
    options: MappingOptions,
  ): Mapping {
    const keeps = flags === memory.MAP_SHARED;
    const plan = { length, pageSize, protection: protectionOf(options), flags, fd, alignment: pageSize };
    let mapping: Mapping | undefined;
    try {
      mapping = Mapping.#map(plan);
      return mapping;
    } finally {
      if (mapping && keeps) mapping.#space.fd = fd;
      else closeDescriptor(fd);
    }
  }

  /** Joins a mapping of another thread: `shared` is what its `share()` gave. Closing it leaves the owner's alone. */
  static attach(shared: SharedMapping): Mapping {
    checkOptions(shared, 'shared');
    checkPageAddress(shared.address, 'shared.address', memory.pageSize());
    checkInteger(shared.length, 'shared.length', 1, Number.MAX_SAFE_INTEGER);
    checkPageSize(shared.pageSize);
    if (!(shared.users instanceof SharedArrayBuffer) || shared.users.byteLength !== SHARED_BYTES) {
      throw wrongType('shared.users', "what a mapping's share() gave", shared.users);
    }
    return new Mapping(shared);
  }

  static #map(plan: Plan): Mapping {
    const { length, pageSize } = plan;
    const users = new SharedArrayBuffer(SHARED_BYTES);
    return new Mapping({ address: place(plan), length, pageSize, users }, plan);
  }

  /**
   * Maps the same bytes once more, at another address: what is written there is here, and no fault of this mapping
   * is involved. Closed by itself.
   *
   * @throws ERR_INVALID_STATE where the memory is not shared, or was attached; UffdError
   */
  alias(): Mapping {
    if (this.#closed) throw closedError(this.address);
    const { fd } = this.#space;
    if (!this.#plan || fd < 0) {
      throw invalidState(`the memory at ${hex(this.address)} is private or attached, and has no alias`);
    }
    const { length, pageSize, flags } = this.#plan;
    return Mapping.#mapFile(duplicate(fd), length, pageSize, flags, {
      writable: (this.#plan.protection & memory.PROT_WRITE) !== 0,
    });
  }

  /** The descriptor of shared memory, which belongs to this object; −1: private, attached or closed. */
  get fd(): number {
    return this.#space.fd;
  }

  /** Whether it was closed, here or by its owner on another thread. */
  get closed(): boolean {
    return this.#closed || this.#space.closed;
  }

  /**
   * The bytes. Touching one may wait for whoever serves the page.
   *
   * @throws on the thread whose loop serves a part of it, or more than one Uint8Array can hold: see `slice`
   */
  get bytes(): Uint8Array {
    return this.slice(0, this.length);
  }

  /** The bytes from `start` to `end`, for mappings larger than one Uint8Array can be. */
  slice(start: number, end: number): Uint8Array {
    checkInteger(start, 'start', 0, this.length);
    checkInteger(end, 'end', start, this.length);
    this.#mustBeTouchable();
    const whole = this.#wholeBuffer();
    if (whole) return new Uint8Array(whole, start, end - start);
    return new Uint8Array(this.#view(this.address + BigInt(start), end - start));
  }

  /**
   * Gives the pages from `start` to `end` back; all of them by default. They are zeros again on the next touch, or
   * what the file holds. Where a userfaultfd of another thread watches for removals, this waits until it has read.
   *
   * @throws RangeError where they are no whole pages; as `bytes` on the thread whose loop serves them; UffdError
   */
  discard(start = 0, end = this.#space.mapped): void {
    checkInteger(start, 'start', 0, this.#space.mapped);
    checkInteger(end, 'end', start, this.#space.mapped);
    for (const [name, offset] of Object.entries({ start, end })) {
      if (offset % this.pageSize) throw outOfRange(name, `a multiple of ${this.pageSize}`, offset);
    }
    this.#mustBeTouchable('event-remove');
    if (start === end) return;
    const address = this.address + BigInt(start);
    const result = memory.madvise(address, end - start, memory.MADV_DONTNEED);
    if (result < 0) throw new UffdError(result, 'madvise', { address, length: end - start });
  }

  /**
   * Moves the pages, without a copy, to an address of their own: the mapping returned. This one stays, empty. A
   * userfaultfd follows them there if it has 'event-remap' on; where it is of another thread, this waits until it
   * has read. Linux 5.7.
   *
   * @throws ERR_INVALID_STATE for memory that is not private and anonymous; as `bytes` on the thread whose loop
   *   serves it; UffdError
   */
  relocate(): Mapping {
    const plan = this.#plan;
    if (!plan || !(plan.flags & memory.MAP_ANONYMOUS)) {
      throw invalidState(
        `the memory at ${hex(this.address)} is a file's, or was attached, and cannot be relocated`,
      );
    }
    this.#mustBeTouchable('event-remap');
    const { length, pageSize } = this;
    const { mapped } = this.#space;
    const flags = memory.MREMAP_MAYMOVE | memory.MREMAP_DONTUNMAP;
    const address = memory.mremap(this.address, mapped, mapped, flags);
    if (address < 0n)
      throw new UffdError(Number(address), 'mremap', { address: this.address, length: mapped });
    return new Mapping({ address, length, pageSize, users: new SharedArrayBuffer(SHARED_BYTES) }, plan);
  }

  /** @throws where touching, or a change that is told as `event`, would wait for this very thread; once closed */
  #mustBeTouchable(event?: Feature): void {
    if (this.closed) throw closedError(this.address);
    const [server] = watchersOf(this.address, this.#space.mapped).filter(
      (uffd) => uffd.waiting || (event !== undefined && uffd.features.has(event)),
    );
    if (server) {
      const thread = isMainThread ? 'the main thread' : `thread ${threadId}`;
      throw invalidState(
        `the memory at ${hex(this.address)} is ${server.waiting ? 'served by a loop' : `watched for '${event}'`} ` +
          `on this thread (${thread}): touching it here ` +
          'would wait for an answer that only this thread can give. Touch it from another thread (post ' +
          'mapping.share() there), or run the loop in a worker',
      );
    }
  }

  /** One buffer serves all views while it lives, unless the mapping is larger than a buffer can be. */
  #wholeBuffer(): ArrayBuffer | undefined {
    if (this.length > bufferConstants.MAX_LENGTH) return undefined;
    const known = this.#buffer?.deref();
    if (known) return known;
    const buffer = this.#view(this.address, this.length);
    this.#buffer = new WeakRef(buffer);
    return buffer;
  }

  #view(address: bigint, length: number): ArrayBuffer {
    if (length > bufferConstants.MAX_LENGTH) {
      throw outOfRange('end − start', `at most ${bufferConstants.MAX_LENGTH}, the largest buffer`, length);
    }
    // Counted before looking, so that an owner that closes now leaves the address space to this view.
    this.#space.enter();
    if (this.closed) {
      this.#space.leave();
      throw closedError(this.address);
    }
    const buffer = memory.view(address, length);
    views.register(buffer, this.#space);
    return buffer;
  }

  /** To be posted to another thread of this process, for `Mapping.attach`. */
  share(): SharedMapping {
    return {
      address: this.address,
      length: this.length,
      pageSize: this.pageSize,
      users: this.#space.share(),
    };
  }

  /**
   * Gives the pages back. Views that are still about read zeros; the address space follows when they are
   * collected. Where a userfaultfd of another thread watches for unmap events, this waits until it has read.
   * Idempotent.
   */
  close(): void {
    if (this.#closed) return;
    if (!this.#plan) {
      this.#closed = true;
      return;
    }
    const space = this.#space;
    const { address, mapped } = space;
    const end = address + BigInt(mapped);
    for (const watcher of watchersOf(address, mapped)) watcher.unregister(address, end);
    // Counted as a user meanwhile, so that the last view going now leaves the space to this.
    space.enter();
    const { PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED } = memory;
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    const replaced = memory.mmap(address, mapped, PROT_READ | PROT_WRITE, flags);
    if (replaced < 0n) {
      space.leave();
      throw new UffdError(Number(replaced), 'mmap', { address, length: mapped });
    }
    this.#closed = true;
    forgetMemory(address, mapped);
    mappings.unregister(this);
    space.close();
    space.leave();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function duplicate(fd: number): number {
  const copy = memory.duplicate(fd);
  if (copy < 0) throw new UffdError(copy, 'fcntl');
  return copy;
}

function closedError(address: bigint): Error {
  return invalidState(`the mapping at ${hex(address)} is closed`);
}
