// Memory to watch, or to read from: anonymous or from a file, with its bytes as a Uint8Array.
//
// Rules:
//  - A view may outlive its mapping. `close` replaces the pages by fresh zero pages and keeps the address
//    space; it goes back when every view that was handed out, on any thread, is collected. A stale view reads
//    zeros and never crashes the process. (A worker that ends with a view leaves the address space taken, not
//    the memory.)
//  - The thread that serves a range must not touch it: `bytes` refuses there, with the reason.
//  - Unmapping memory that this thread watches would wait for this thread: `close` unregisters it first.

import { constants as bufferConstants } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { isMainThread, threadId } from 'node:worker_threads';
import * as memory from '../shim/memory.js';
import { checkInteger, checkPageAddress, invalidState, outOfRange, wrongType } from './arguments.js';
import { hex, UffdError } from './errors.js';
import { watchersOf } from './registry.js';

export interface MappingOptions {
  /** Whether the bytes may be written. Default true; writes to a file's mapping stay private. */
  writable?: boolean;
}

/** A mapping to be posted to another thread, for `Mapping.attach`. */
export interface SharedMapping {
  readonly address: bigint;
  readonly length: number;
  readonly users: SharedArrayBuffer;
}

/** Words of the memory that all users of one mapping share. */
const USERS = 0;
const CLOSED = 1;
/** The address space went back: who sets this does it. */
const RETURNED = 2;
const SHARED_BYTES = 12;

/** Address space that goes back when the last view of it is collected. */
interface Space {
  address: bigint;
  mapped: number;
  users: Int32Array;
}

/** Lets the address space go when a view's buffer, on this thread, is collected. */
const views = new FinalizationRegistry<Space>((space) => leave(space));

/** One user less; the last one out returns the address space, if the mapping is closed. */
function leave(space: Space): void {
  if (Atomics.sub(space.users, USERS, 1) !== 1 || !Atomics.load(space.users, CLOSED)) return;
  // Somebody who came too late to be a user may leave last as well.
  if (Atomics.compareExchange(space.users, RETURNED, 0, 1) === 0) memory.munmap(space.address, space.mapped);
}

export class Mapping implements Disposable {
  /** Where it lies; page-aligned. */
  readonly address: bigint;
  /** Bytes, as asked for. The last page is zero behind them. */
  readonly length: number;
  readonly #space: Space;
  readonly #owner: boolean;
  #buffer: WeakRef<ArrayBuffer> | undefined;
  #closed = false;

  private constructor(address: bigint, length: number, users: SharedArrayBuffer, owner: boolean) {
    this.address = address;
    this.length = length;
    this.#space = { address, mapped: wholePages(length), users: new Int32Array(users) };
    this.#owner = owner;
  }

  /**
   * `length` bytes of private memory, zero and not touched yet. Never backed by huge pages, so each page
   * faults by itself.
   *
   * @throws RangeError; UffdError ENOMEM
   */
  static anonymous(length: number, options: MappingOptions = {}): Mapping {
    checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
    const { MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE } = memory;
    const mapping = Mapping.#map(length, options, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    // EINVAL where the kernel was built without huge pages, which is as good.
    memory.madvise(mapping.address, mapping.#space.mapped, memory.MADV_NOHUGEPAGE);
    return mapping;
  }

  /**
   * A file's bytes, mapped privately: writes do not reach it. A file that shrinks while it is mapped makes
   * touching the lost pages SIGBUS, and copying from them EFAULT.
   *
   * @throws RangeError for an empty file; Node's errors of opening it; UffdError
   */
  static file(path: string, options: MappingOptions = {}): Mapping {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) throw invalidState(`${path} is no regular file, and cannot be mapped`);
      if (stat.size === 0) throw outOfRange(`the size of ${path}`, 'at least 1 byte', 0);
      return Mapping.#map(stat.size, options, memory.MAP_PRIVATE, fd);
    } finally {
      closeSync(fd);
    }
  }

  /** Joins a mapping of another thread: `shared` is what its `share()` gave. Closing it leaves the owner's alone. */
  static attach(shared: SharedMapping): Mapping {
    checkPageAddress(shared.address, 'shared.address', memory.pageSize());
    checkInteger(shared.length, 'shared.length', 1, Number.MAX_SAFE_INTEGER);
    if (!(shared.users instanceof SharedArrayBuffer) || shared.users.byteLength !== SHARED_BYTES) {
      throw wrongType('shared.users', "what a mapping's share() gave", shared.users);
    }
    return new Mapping(shared.address, shared.length, shared.users, false);
  }

  static #map(length: number, options: MappingOptions, flags: number, fd: number): Mapping {
    const protection = memory.PROT_READ | (options.writable === false ? 0 : memory.PROT_WRITE);
    const address = memory.mmap(0n, wholePages(length), protection, flags, fd);
    if (address < 0n)
      throw new UffdError(Number(address), 'mmap', { reason: `${length} bytes cannot be mapped` });
    return new Mapping(address, length, new SharedArrayBuffer(SHARED_BYTES), true);
  }

  /** Whether it was closed, here or by its owner on another thread. */
  get closed(): boolean {
    return this.#closed || Atomics.load(this.#space.users, CLOSED) !== 0;
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
    if (this.closed) throw closedError(this.address);
    const [server] = watchersOf(this.address, this.#space.mapped).filter((uffd) => uffd.waiting);
    if (server) {
      const thread = isMainThread ? 'the main thread' : `thread ${threadId}`;
      throw invalidState(
        `the memory at ${hex(this.address)} is served by a loop on this thread (${thread}): touching it here ` +
          'would wait for an answer that only this thread can give. Touch it from another thread (post ' +
          'mapping.share() there), or run the loop in a worker',
      );
    }
    const whole = this.#wholeBuffer();
    if (whole) return new Uint8Array(whole, start, end - start);
    return new Uint8Array(this.#view(this.address + BigInt(start), end - start));
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
    Atomics.add(this.#space.users, USERS, 1);
    if (this.closed) {
      leave(this.#space);
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
      users: this.#space.users.buffer as SharedArrayBuffer,
    };
  }

  /**
   * Gives the pages back. Views that are still about read zeros; the address space follows when they are
   * collected. Where a userfaultfd of another thread watches for unmap events, this waits until it has read.
   * Idempotent.
   */
  close(): void {
    if (this.#closed) return;
    if (!this.#owner) {
      this.#closed = true;
      return;
    }
    const { address, mapped, users } = this.#space;
    this.#unregister(address, address + BigInt(mapped));
    // Counted as a user meanwhile, so that the last view going now leaves the space to this.
    Atomics.add(users, USERS, 1);
    const { PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED } = memory;
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    const replaced = memory.mmap(address, mapped, PROT_READ | PROT_WRITE, flags);
    if (replaced < 0n) {
      Atomics.sub(users, USERS, 1);
      throw new UffdError(Number(replaced), 'mmap', { address, length: mapped });
    }
    this.#closed = true;
    Atomics.store(users, CLOSED, 1);
    leave(this.#space);
  }

  /** Takes [start, end) from the userfaultfds of this thread, each its own part. */
  #unregister(start: bigint, end: bigint): void {
    for (const uffd of watchersOf(start, Number(end - start))) {
      for (const range of uffd.ranges) {
        const from = range.start > start ? range.start : start;
        const rangeEnd = range.start + BigInt(range.length);
        const to = rangeEnd < end ? rangeEnd : end;
        if (from < to) uffd.unregister(from, Number(to - from));
      }
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function closedError(address: bigint): Error {
  return invalidState(`the mapping at ${hex(address)} is closed`);
}

function wholePages(length: number): number {
  const size = memory.pageSize();
  return Math.ceil(length / size) * size;
}
