// `Mapping`: memory to watch, or to read from. It is anonymous, shared or from a file, in pages of any size, and its
// bytes are a Uint8Array.
//
// Rules:
//  - A view may outlive its mapping. `close` replaces the pages by fresh zero pages, and keeps the address space. The
//    address space is freed when all views, on all threads, are collected. So a stale view reads zeros, and never
//    crashes the process. (A worker that ends with a view leaks the address space, not the memory.)
//  - A mapping that is dropped without a close is freed as soon as no view of it can be reached and no userfaultfd
//    watches it (src/memory/address-space.ts).
//  - The thread that serves a range must not touch it: `bytes` throws there, with the reason.
//  - If this thread watches memory and unmaps it, it would wait for itself. So `close` unregisters the memory first.

import { constants as bufferConstants } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { isMainThread, threadId } from 'node:worker_threads';
import { closeDescriptor } from '../../shim/descriptors.js';
import * as memory from '../../shim/memory.js';
import {
  checkInteger,
  checkOptions,
  checkPageAddress,
  invalidState,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { UffdError } from '../errors/errors.js';
import { hex } from '../errors/format.js';
import type { Feature } from '../kernel/features.js';
import { forgetMemory, uffdsWatching } from '../uffd/open-uffds.js';
import { installExitHandling } from '../uffd/process-exit.js';
import { mappings, SHARED_BYTES, Space, views } from './address-space.js';
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
import { wholePages } from './whole-pages.js';

/** A mapping to post to another thread, for `Mapping.attach`. */
export interface SharedMapping {
  readonly address: bigint;
  readonly length: number;
  readonly pageSize: number;
  readonly users: SharedArrayBuffer;
}

/**
 * Memory of this process, which other threads can attach to. Its bytes may outlive it: they read zeros once it is closed.
 *
 * A mapping that is dropped without `close` is freed, with its contents, when it is collected. But it stays while a
 * view of it can be reached, while a userfaultfd watches it, and if another thread may have it (`share` was called).
 * `address` and `fd` alone keep nothing alive: hold the mapping, or a view, for as long as they are in use.
 */
export class Mapping implements Disposable {
  /** Its address; page-aligned. */
  readonly address: bigint;
  /** Bytes, as requested. The rest of the last page is zero. */
  readonly length: number;
  /** Bytes of a page: the system's, or the huge page's. */
  readonly pageSize: number;
  readonly #space: Space;
  /** How it was made. Undefined if it was attached, because then another thread owns the memory. */
  readonly #plan: Plan | undefined;
  #buffer: WeakRef<ArrayBuffer> | undefined;
  #closed = false;

  private constructor(shared: SharedMapping, plan?: Plan) {
    const { address, length, pageSize, users } = shared;
    installExitHandling();
    this.address = address;
    this.length = length;
    this.pageSize = pageSize;
    this.#space = new Space(address, wholePages(length, pageSize), users);
    this.#plan = plan;
    if (plan) mappings.register(this, this.#space, this);
  }

  /**
   * `length` bytes of private memory, zero and not touched yet. It has no transparent huge pages unless they are
   * requested, so each page faults by itself.
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
    // The result is ignored: EINVAL means that the kernel was built without transparent huge pages, so no page is one.
    const advice = transparentHuge ? memory.MADV_HUGEPAGE : memory.MADV_NOHUGEPAGE;
    memory.madvise(mapping.address, mapping.#space.mapped, advice);
    return mapping;
  }

  /**
   * `length` bytes of shared memory (a memfd). `alias` maps the same bytes a second time, so that the handler can fill
   * pages that are watched for minor faults. The mapping holds a descriptor until it is closed.
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
   * A file's bytes. If the file shrinks while it is mapped, touching the pages beyond its new end raises SIGBUS, and
   * copying from them fails with EFAULT. A shared mapping holds a descriptor until it is closed.
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

  /**
   * Maps the file of a descriptor that was opened for it. A shared mapping keeps the descriptor for `alias`; any other
   * closes it.
   */
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

  /**
   * Attaches to a mapping of another thread: `shared` is the result of its `share()`. Closing the attached mapping does
   * not close the owner's.
   */
  static attach(shared: SharedMapping): Mapping {
    checkOptions(shared, 'shared');
    checkPageAddress(shared.address, 'shared.address', memory.pageSize());
    checkInteger(shared.length, 'shared.length', 1, Number.MAX_SAFE_INTEGER);
    checkPageSize(shared.pageSize);
    if (!(shared.users instanceof SharedArrayBuffer) || shared.users.byteLength !== SHARED_BYTES) {
      throw wrongType('shared.users', "the result of a mapping's share()", shared.users);
    }
    return new Mapping(shared);
  }

  static #map(plan: Plan): Mapping {
    const { length, pageSize } = plan;
    const users = new SharedArrayBuffer(SHARED_BYTES);
    return new Mapping({ address: place(plan), length, pageSize, users }, plan);
  }

  /**
   * Maps the same bytes once more, at another address. Bytes that are written to the alias appear in this mapping
   * without a fault there. Close the alias separately.
   *
   * @throws ERR_INVALID_STATE if the memory is not shared, or was attached; UffdError
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

  /** The descriptor of shared memory, which this object owns; −1: private, attached or closed. */
  get fd(): number {
    return this.#space.fd;
  }

  /** Whether it was closed, here or by its owner on another thread. */
  get closed(): boolean {
    return this.#closed || this.#space.closed;
  }

  /**
   * The bytes. Touching a page may wait until the handler that serves it has answered.
   *
   * @throws on the thread whose loop serves a part of it, or if it is larger than a Uint8Array can be: see `slice`
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
   * Gives the pages from `start` to `end` back to the system; by default all. On the next touch they are zeros again,
   * or the bytes of the file. If a userfaultfd of another thread watches for removals, this call waits until that
   * thread has read the event.
   *
   * @throws RangeError if they are not whole pages; as `bytes` on the thread whose loop serves them; UffdError
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
   * Moves the pages, without a copy, to a new mapping at another address, and returns the new mapping. This one stays,
   * empty. A userfaultfd follows the pages if its feature 'event-remap' is on. If it belongs to another thread, this
   * call then waits until that thread has read the event. Linux 5.7.
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

  /**
   * @throws if it is closed, or if touching it, or a change that is reported as `event`, would wait for this very
   * thread
   */
  #mustBeTouchable(event?: Feature): void {
    if (this.closed) throw closedError(this.address);
    const [server] = uffdsWatching(this.address, this.#space.mapped).filter(
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
    // Count this user before the check, so that an owner that closes now leaves the address space to this view.
    this.#space.enter();
    if (this.closed) {
      this.#space.leave();
      throw closedError(this.address);
    }
    const buffer = memory.view(address, length);
    views.register(buffer, this.#space);
    return buffer;
  }

  /** The value to post to another thread of this process, for `Mapping.attach`. */
  share(): SharedMapping {
    return {
      address: this.address,
      length: this.length,
      pageSize: this.pageSize,
      users: this.#space.share(),
    };
  }

  /**
   * Gives the pages back to the system. Remaining views read zeros. The address space is freed when these views are
   * collected. If a userfaultfd of another thread watches for unmap events, this call waits until that thread has read
   * the event. Idempotent.
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
    for (const watcher of uffdsWatching(address, mapped)) watcher.unregister(address, end);
    // Count this call as a user. If the last view is collected now, it leaves the address space to this call.
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
