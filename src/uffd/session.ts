// One userfaultfd: its core, its port and its descriptor. `drive` performs the actions of the core. The other methods
// turn results into byte counts or errors. This file calls no handler, and leaves all decisions to the core.

import { Action, Operation, Option, SIZEOF_UFFD_MSG, Step } from '../bindings/core.js';
import { Errno, UffdError } from '../errors/errors.js';
import { modeNames, type Operation as OperationName, operationNames } from '../kernel/features.js';
import { type KernelPort, Note } from '../kernel/port.js';
import type { Core } from './core.js';
import { FormerRanges } from './former-ranges.js';
import type { RegisteredRange } from './registered-range.js';
import { Sources } from './source-data.js';

/** The kernel's names of the operations, by number. */
export const OPERATION_NAMES = Object.keys(Operation).map((name) => `UFFDIO_${name}`);

const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0x800;

/** Result of `fillAhead`: bytes skipped, then bytes installed, then bytes left out, in the order of addresses. */
export interface Ahead {
  readonly passed: number;
  readonly installed: number;
  readonly leftOut: number;
}

export class Session {
  readonly core: Core;
  readonly port: KernelPort;
  readonly fd: number;
  /** Bytes of a system page. */
  readonly pageSize: number;
  /** Returns the current time for the core. A batch replaces it to reuse a time that it has read already. */
  clock: () => number;
  /** Why reading failed. Once this is set, the descriptor is unusable. */
  broken: UffdError | undefined;
  /** Whether the watched process may end before this object does: `memoryExists` is then checked now and then. */
  watched = false;
  /** The pidfd of the watched process, readable once it has exited; −1: none. */
  pidfd = -1;
  /** The watched process; 0: this one. */
  pid = 0;
  /** The views that faults are answered from (`answerFrom`). */
  readonly sources: Sources;
  /** Ranges that were registered here before. */
  readonly formerRanges = new FormerRanges();
  /** Whether this object knew all registered ranges when it was made. */
  knowsAllRanges = true;
  /** A page of zeros, made when one has to be copied. */
  #zeros: Uint8Array | undefined;

  constructor(core: Core, port: KernelPort, fd: number, pageSize: number) {
    this.core = core;
    this.sources = new Sources(core);
    this.port = port;
    this.fd = fd;
    this.pageSize = pageSize;
    this.clock = () => port.now();
  }

  /**
   * Performs the core's actions, and returns the first one that is for the caller.
   *
   * @throws the UffdError in `broken`; or an error of the port's adapter, which should never throw
   */
  drive(first: number): Action {
    try {
      return this.#perform(first);
    } catch (error) {
      this.core.exports.abandon();
      throw error;
    }
  }

  #perform(first: number): Action {
    const { core, port } = this;
    const { exports } = core;
    for (let action = first; ; ) {
      switch (action) {
        case Action.READ:
          action = exports.handleRead(port.read(this.fd, core.messages, core.room));
          break;
        case Action.IOCTL:
          action = exports.handleResult(port.ioctl(this.fd, core.code, core.request));
          break;
        case Action.TIME:
          action = exports.handleTime(this.clock());
          break;
        case Action.ZEROS:
          this.#zeros ??= new Uint8Array(this.pageSize);
          core.argument2 = port.addressOf(this.#zeros);
          action = exports.handleZeros();
          break;
        case Action.BROKEN:
          this.broken = this.#brokenError();
          throw this.broken;
        default:
          return action as Action;
      }
    }
  }

  /** Why the descriptor, or the core, is unusable. */
  #brokenError(): UffdError {
    const { errno, badOffset, badBytes } = this.core;
    if (errno === (Errno.ENOMEM as number)) return new UffdError(errno, 'userfaultfd core');
    if (errno !== 0) return new UffdError(errno, 'read');
    const bytes = this.core.messageBytes(badOffset, badBytes);
    const raw = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return new UffdError(Errno.EIO as number, 'read', {
      reason:
        badBytes === SIZEOF_UFFD_MSG
          ? `the kernel sent an event that this library does not know: ${raw}`
          : `the kernel sent ${badBytes} bytes, which is no multiple of ${SIZEOF_UFFD_MSG}: ${raw}`,
    });
  }

  // ---- fills ---------------------------------------------------------------------------------------------

  /** Fills a range. Returns bytes resolved; if the kernel fails, the error has `transferred`. */
  fill(operation: Operation, options: number, start: bigint, length: number, source = 0n): number {
    const { core } = this;
    this.drive(core.arguments(start, length, source).beginFill(operation, options));
    const end = start + BigInt(length);
    if (core.outcome === Step.FAILED) throw this.#failure(options, end, core.errno);
    if (core.outcome === Step.UNMAPPED && !this.#wasRegistered(core.start))
      throw this.#failure(options, end, Errno.ENOENT as number);
    return core.resolved;
  }

  /** Installs the first run of missing pages of a range from its source. Undefined: the first missing page has no source. */
  fillAhead(start: bigint, length: number, options: number): Ahead | undefined {
    const { core } = this;
    this.drive(core.arguments(start, length).beginAhead(options));
    const { outcome, passed, installed, resolved } = core;
    if (outcome === Step.ASK) return passed < length ? undefined : { passed, installed: 0, leftOut: 0 };
    if (outcome === Step.FAILED) throw this.#failure(options, start + BigInt(length), core.errno);
    const unmappedBytes = outcome === Step.UNMAPPED ? this.pageSizeOf(core.start) : 0;
    return { passed, installed, leftOut: resolved - installed + unmappedBytes };
  }

  /**
   * Whether an address was ever registered here. If it was, a failed fill means that its memory is gone. If it was not,
   * the caller passed a wrong address.
   */
  #wasRegistered(address: bigint): boolean {
    return this.core.strange !== 0 || this.rangeAt(address) !== undefined || this.formerRanges.has(address);
  }

  /** The error of a failed fill. It describes the part of the request that was not done, up to `end`. */
  #failure(options: number, end: bigint, errno: number): UffdError {
    const { operation, start: address, third: source, resolved: transferred } = this.core;
    return new UffdError(errno, OPERATION_NAMES[operation] as string, {
      ...(errno === Errno.EINVAL && { unfillable: this.port.unfillableAt?.(this.pid, address) }),
      transferred,
      address,
      length: Number(end - address),
      source,
      range: this.rangeAt(address) ?? null,
      writeProtect: (options & Option.WRITE_PROTECT) !== 0,
    });
  }

  // ---- ranges and pages ----------------------------------------------------------------------------------

  /**
   * Returns the page size at an address that was just registered. `operations`: those that the range allows.
   *
   * @throws UffdError if the page size cannot be read, and no earlier registration has determined it
   */
  registeredPageSize(address: bigint, operations: ReadonlySet<OperationName>): number {
    // Only huge pages have no zero page: any range that allows 'zero' has the system's page size.
    if (operations.has('zero')) return this.pageSize;
    const size = this.port.pageSizeAt(this.pid, address);
    if (size > 0) return size;
    const known = this.rangeAt(address);
    if (known && !known.operations.has('zero')) return known.pageSize;
    throw new UffdError(size, '/proc/PID/smaps', { address });
  }

  /** Page size at an address, in bytes. */
  pageSizeOf(address: bigint): number {
    return this.core.arguments(address).rangeAt() ? 2 ** this.core.pageShift : this.pageSize;
  }

  /** The registered range that holds an address, if one is known. */
  rangeAt(address: bigint): RegisteredRange | undefined {
    return this.core.arguments(address).rangeAt() ? this.#range() : undefined;
  }

  /** All registered ranges, in ascending order. */
  ranges(): RegisteredRange[] {
    const { core } = this;
    const ranges: RegisteredRange[] = [];
    for (let from = 0n; core.arguments(from).rangeFrom(); from = core.end) ranges.push(this.#range());
    return ranges;
  }

  /** The range that the core has written into the exchange. */
  #range(): RegisteredRange {
    const { start, end, third, modes, pageShift } = this.core;
    return {
      start,
      length: Number(end - start),
      modes: modeNames(modes),
      operations: operationNames(third),
      pageSize: 2 ** pageShift,
    };
  }

  /**
   * Stops watching, and wakes waiters of every kind.
   *
   * @throws UffdError
   */
  unregister(start: bigint, length: number): void {
    const { core } = this;
    const result = this.ioctl(core.arguments(start, length).requestUnregister());
    if (result < 0) {
      const range = this.rangeAt(start) ?? null;
      throw new UffdError(result, 'UFFDIO_UNREGISTER', { address: start, length, range });
    }
    this.wake(start, length);
    if (!core.arguments(start, length).rangeTake())
      throw new UffdError(Errno.ENOMEM as number, 'userfaultfd core');
    this.unwatched(start, start + BigInt(length));
  }

  /** To call when [start, end) is no longer registered here. */
  unwatched(start: bigint, end: bigint): void {
    this.sources.releaseEnded();
    this.formerRanges.add(start, end);
  }

  /** Forgets the state of pages. Recorded as a registration without modes. */
  forget(start: bigint, length: number): void {
    const exports = this.core.arguments(start, length);
    if (!exports.rangeKept()) return;
    this.note(Note.REGISTER, start, length);
    exports.rangeFresh();
  }

  /** The states of the pages, chunk by chunk, for the next object that owns the descriptor. */
  *savePages(): Generator<Uint8Array> {
    const { core } = this;
    for (let place = 0, places = core.exports.pagesPlaces(); place < places; place++) {
      if (core.exports.pagesSave(place)) yield core.snapshot;
    }
  }

  /** Loads the page states that another object has saved, for pages that are registered here. */
  loadPages(chunks: Iterable<Uint8Array>): void {
    const { core } = this;
    for (const chunk of chunks) {
      core.snapshot.set(chunk);
      core.exports.pagesLoad();
    }
  }

  // ---- the descriptor and the process --------------------------------------------------------------------

  /** Issues an ioctl other than a fill, whose struct the core has prepared. */
  ioctl(request: number): number {
    for (;;) {
      const result = this.port.ioctl(this.fd, request >>> 0, this.core.request);
      if (result !== -(Errno.EINTR as number)) return result;
    }
  }

  /** Wakes the waiters of a range without installing anything. An unmapped range is not an error. */
  wake(start: bigint, length: number): number {
    return this.ioctl(this.core.arguments(start, length).requestWake());
  }

  /**
   * Checks with a WAKE that wakes no thread whether the descriptor is a userfaultfd whose handshake is done. Returns
   * −errno if it is not.
   */
  probe(): number {
    // Older kernels refuse addresses below vm.mmap_min_addr.
    return this.wake(1n << 32n, this.pageSize);
  }

  /** Whether the descriptor is open: other code may have closed it. */
  isOpen(): boolean {
    return this.port.fcntl(this.fd, F_GETFL, 0) >= 0;
  }

  /** Sets O_NONBLOCK: without it poll(2) reports an error, and a read would hang. */
  unblock(): void {
    const flags = this.port.fcntl(this.fd, F_GETFL, 0);
    if (flags >= 0 && !(flags & O_NONBLOCK)) this.port.fcntl(this.fd, F_SETFL, flags | O_NONBLOCK);
  }

  /** Sets the process whose memory is watched, so that its exit is noticed. */
  watchProcess(pid: number): void {
    const pidfd = this.port.pidfd(pid);
    // Before Linux 5.3 there are no pidfds. An exit is then noticed later, by the same check as an exec.
    if (pidfd < 0 && pidfd !== -(Errno.ENOSYS as number)) throw new UffdError(pidfd, 'pidfd_open', { pid });
    this.pidfd = Math.max(pidfd, -1);
    this.pid = pid;
    this.watched = true;
  }

  /** Forgets the process. */
  unwatchProcess(): void {
    if (this.pidfd >= 0) this.port.close(this.pidfd);
    this.pidfd = -1;
    this.watched = false;
  }

  /** Whether the memory still exists: the process has neither exited nor called exec. */
  memoryExists(): boolean {
    return this.ioctl(this.core.exports.requestPresence()) !== -(Errno.ESRCH as number);
  }

  /** Closes the descriptor, which wakes every waiting thread. */
  close(): void {
    this.unwatchProcess();
    this.end(true);
    this.port.close(this.fd);
  }

  /**
   * Ends the session: applies the mapping changes that were read, and wakes waiters whose faults were not answered.
   * `deliver` gets each change; without it, the descriptors of forked children are closed. `drains`: whether to drain
   * the queue first.
   */
  end(drains: boolean, deliver?: (change: Action) => void): void {
    const { core, port } = this;
    let action = this.drive(core.exports.beginEnd(drains));
    for (; action !== Action.DONE; action = this.drive(core.exports.next())) {
      if (deliver) deliver(action);
      else if (action === Action.FORKED) port.close(Number(core.start));
    }
    this.sources.releaseEnded();
  }

  /** Reports a call of the program, or the result of a callback, to a port that records or replays. */
  note(code: number, first = 0n, second = 0, third = 0, fourth = 0n): void {
    this.port.note?.(code, first, second, third, fourth);
  }

  /** Raises an error that no caller can catch: as an uncaught exception, unless the port handles it. */
  raise(error: unknown): void {
    if (this.port.raise) this.port.raise(error);
    else {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}
