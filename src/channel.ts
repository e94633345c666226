// One userfaultfd's core, port and descriptor put together: what the core asks for is done, and its answers
// become bytes or errors. No handler is known here, and nothing is decided that the core could decide.

import { type Core, MESSAGE_BYTES, Next, Op, Option, type RangeReport, Read, Step } from './core.js';
import { Errno, UffdError } from './errors.js';
import { modeNames, type Operation, operationNames } from './features.js';
import type { RegisteredRange } from './handler.js';
import { type KernelPort, Note } from './kernel.js';
import { PastRanges } from './past-ranges.js';
import { Sources } from './sources.js';

/** The kernel's names of the operations, by row of the transfer table. */
const OPERATIONS = [
  'UFFDIO_COPY',
  'UFFDIO_ZEROPAGE',
  'UFFDIO_CONTINUE',
  'UFFDIO_POISON',
  'UFFDIO_MOVE',
  'UFFDIO_WRITEPROTECT',
] as const;

const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0x800;

/** What `fillAhead` did, in bytes: passed over, installed behind that, and left out behind that. */
export interface Ahead {
  readonly passed: number;
  readonly installed: number;
  readonly leftOut: number;
}

export class Channel {
  readonly core: Core;
  readonly port: KernelPort;
  readonly fd: number;
  /** Set for good once reading failed: the descriptor is of no use any more. */
  broken: UffdError | undefined;
  /** A fill said that the process whose memory this is has exited or called exec. */
  exited = false;
  /** The last read met a fork for whose child this process has no descriptor left. */
  starved = false;
  /** Whose memory it is may end before this does: `present` is asked now and then. */
  watched = false;
  /** The watched process, as a descriptor that is readable once it has exited; −1: there is none. */
  pidfd = -1;
  /** The watched process; 0: this one. */
  pid = 0;

  /** Sources were named: the core may know the answer to a fault. */
  sourced = false;
  /** What they keep. */
  readonly sources: Sources;
  /** What was registered here once. */
  readonly past = new PastRanges();
  /** A fault came from memory that this object does not know: so it cannot say what it watches. */
  strange = false;
  /** Whether the ranges that are known here were all, to begin with. */
  knowsAll = true;

  /** Bytes of the system's pages. */
  readonly pageSize: number;
  /** A page of zeros, once one had to be copied. */
  #zeros: Uint8Array | undefined;

  constructor(core: Core, port: KernelPort, fd: number, pageSize: number) {
    this.core = core;
    this.sources = new Sources(core);
    this.port = port;
    this.fd = fd;
    this.pageSize = pageSize;
  }

  /** The kernel's name of an operation. */
  static nameOf(operation: Op): string {
    return OPERATIONS[operation];
  }

  /** Whether the descriptor is open still: nobody has closed it behind its owner's back. */
  isOpen(): boolean {
    return this.port.fcntl(this.fd, F_GETFL, 0) >= 0;
  }

  /** Turns O_NONBLOCK on: without it poll says error, and a read would hang. */
  unblock(): void {
    const flags = this.port.fcntl(this.fd, F_GETFL, 0);
    if (flags >= 0 && !(flags & O_NONBLOCK)) this.port.fcntl(this.fd, F_SETFL, flags | O_NONBLOCK);
  }

  /** A WAKE of nobody, which only a userfaultfd takes whose handshake is done; −errno: it is none. */
  probe(): number {
    // Older kernels refuse addresses below vm.mmap_min_addr.
    return this.wake(1n << 32n, this.pageSize);
  }

  /** Lets the sleepers of a range try again; that of an unmapped range is no failure. */
  wake(start: bigint, length: number): number {
    return this.ioctl(this.core.arguments(start, length).requestWake());
  }

  /** Notes whose memory it is, to see that process end. */
  watchProcess(pid: number): void {
    const pidfd = this.port.pidfd(pid);
    // Before Linux 5.3 there are none: there an exit is seen like an exec, a little later.
    if (pidfd < 0 && pidfd !== -(Errno.ENOSYS as number)) throw new UffdError(pidfd, 'pidfd_open', { pid });
    this.pidfd = Math.max(pidfd, -1);
    this.pid = pid;
    this.watched = true;
  }

  /**
   * Bytes of a page at an address that was just registered, of the range's operations.
   *
   * @throws UffdError where that cannot be told, and nothing is known of it from before
   */
  pageSizeAt(address: bigint, operations: ReadonlySet<Operation>): number {
    // Only huge pages have no zero page: any other range has the system's page size.
    if (operations.has('zero')) return this.pageSize;
    const size = this.port.pageSizeAt(this.pid, address);
    if (size > 0) return size;
    const known = this.rangeAt(address);
    if (known && !known.operations.has('zero')) return known.pageSize;
    throw new UffdError(size, '/proc/PID/smaps', { address });
  }

  /** The registered range that holds an address, as far as it is known here. */
  rangeAt(address: bigint): RegisteredRange | undefined {
    const { core } = this;
    return core.arguments(address).rangeAt() ? rangeOf(core.reported()) : undefined;
  }

  /** All registered ranges, in ascending order. */
  ranges(): RegisteredRange[] {
    const { core } = this;
    const ranges: RegisteredRange[] = [];
    for (let more = core.exports.rangeFirst(); more; more = core.exports.rangeNext()) {
      ranges.push(rangeOf(core.reported()));
    }
    return ranges;
  }

  /**
   * Stops watching, and lets every kind of waiter go.
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
    this.sources.letGo();
    this.past.add(start, start + BigInt(length));
  }

  /** Forgets what is known of pages. Recorded as a registration of no mode. */
  forget(start: bigint, length: number): void {
    const exports = this.core.arguments(start, length);
    if (!exports.rangeKept()) return;
    this.note(Note.REGISTER, start, length);
    exports.rangeFresh();
  }

  /** Closes the descriptor: every thread that waits goes on. */
  close(): void {
    this.leaveProcess();
    this.discard();
    this.evict();
    this.port.close(this.fd);
  }

  /** What is known of the pages, chunk by chunk, for another object that takes the memory over. */
  *savePages(): Generator<Uint8Array> {
    const { core } = this;
    for (let place = 0, places = core.exports.pagesPlaces(); place < places; place++) {
      if (core.exports.pagesSave(place)) yield core.snapshot;
    }
  }

  /** Takes over what another object knew of pages that are registered here. */
  loadPages(chunks: Iterable<Uint8Array>): void {
    const { core } = this;
    for (const chunk of chunks) {
      core.snapshot.set(chunk);
      core.exports.pagesLoad();
    }
  }

  /** Forgets the process. */
  leaveProcess(): void {
    if (this.pidfd >= 0) this.port.close(this.pidfd);
    this.pidfd = -1;
    this.watched = false;
  }

  /** Whether the memory is there still: the process has neither exited nor called exec. */
  present(): boolean {
    return this.ioctl(this.core.exports.requestPresence()) !== -(Errno.ESRCH as number);
  }

  /** Tells whoever records or replays what the program asks for, or how a callback ended. */
  note(code: number, first = 0n, second = 0, third = 0, fourth = 0n): void {
    this.port.note?.(code, first, second, third, fourth);
  }

  /** Hands an error over that no caller is there for: an uncaught exception, or what the port makes of it. */
  raise(error: unknown): void {
    if (this.port.raise) this.port.raise(error);
    else {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /** Issues the ioctl whose struct the core has prepared. */
  ioctl(request: number): number {
    for (;;) {
      const result = this.port.ioctl(this.fd, request >>> 0, this.core.request);
      if (result !== -(Errno.EINTR as number)) return result;
    }
  }

  /** Runs a transfer to its end. Bytes resolved; a failure of the kernel's throws with `transferred`. */
  transfer(operation: Op, options: number, start: bigint, length: number, source = 0n): number {
    const exports = this.core.arguments(start, length, source);
    const step = this.#carry(exports.transferBegin(operation, options));
    if (step === Step.failed)
      throw this.#failure(operation, options, start + BigInt(length), exports.transferErrno());
    if (step === Step.unmapped && !this.#isTold(BigInt.asUintN(64, exports.transferCursor())))
      throw this.#failure(operation, options, start + BigInt(length), Errno.ENOENT as number);
    return exports.transferDone();
  }

  /** A fault is offered: notes whether its memory is known here. */
  offers(page: bigint): void {
    if (!this.strange && !this.core.arguments(page, 1).rangeMeets()) this.strange = true;
  }

  /** Whether this object was ever told of an address. What is not there is gone then; else its memory was mistaken. */
  #isTold(address: bigint): boolean {
    return this.strange || this.rangeAt(address) !== undefined || this.past.has(address);
  }

  /** What the transfer that has failed was about, of what was asked for up to `end`. */
  #failure(operation: Op, options: number, end: bigint, errno: number): UffdError {
    const { exports } = this.core;
    const address = BigInt.asUintN(64, exports.transferCursor());
    return new UffdError(errno, OPERATIONS[operation], {
      ...(errno === Errno.EINVAL && { unfillable: this.port.unfillableAt?.(this.pid, address) }),
      transferred: exports.transferDone(),
      address,
      length: Number(end - address),
      source: BigInt.asUintN(64, exports.transferSource()),
      range: this.rangeAt(address) ?? null,
      writeProtect: (options & Option.writeProtect) !== 0,
    });
  }

  /** Installs the first run of missing pages of a range from its source. Undefined: the first has none. */
  ahead(start: bigint, length: number, options: number): Ahead | undefined {
    const { exports } = this.core;
    const begun = this.core.arguments(start, length).aheadBegin(options);
    const passed = exports.aheadPassed();
    if (begun === Step.ask) return passed < length ? undefined : { passed, installed: 0, leftOut: 0 };
    const step = this.#carry(begun);
    if (step === Step.failed)
      throw this.#failure(Op.copy, options, start + BigInt(length), exports.transferErrno());
    const installed = exports.transferInstalled();
    const gone = step === Step.unmapped ? this.#pageSizeOf(exports.transferCursor()) : 0;
    return { passed, installed, leftOut: exports.transferDone() - installed + gone };
  }

  #pageSizeOf(address: bigint): number {
    return this.rangeAt(BigInt.asUintN(64, address))?.pageSize ?? this.pageSize;
  }

  /** Gives the answers that the core has. How that ended: Next.answered, or Next.fault, which is the handler's. */
  answer(): number {
    const { exports } = this.core;
    let next: number = Next.call;
    while (next === Next.call || next === Next.reread) {
      if (next === Next.call) next = exports.roundResult(this.#call());
      else {
        this.drain();
        next = exports.roundResume();
      }
    }
    if (this.core.answered(3) !== 0) this.exited = true;
    return next;
  }

  /** Issues the call that a transfer has prepared; the core sees to EINTR. */
  #call(): number {
    return this.port.ioctl(this.fd, this.core.code >>> 0, this.core.request);
  }

  /** Carries a transfer from one step to its last. */
  #carry(begun: number): number {
    const { exports } = this.core;
    let step = begun;
    for (;;) {
      if (step === Step.call) step = exports.transferResult(this.#call());
      else if (step === Step.read) {
        this.drain();
        step = exports.transferResume();
      } else if (step === Step.zeros) {
        this.#zeros ??= new Uint8Array(this.pageSize);
        step = this.core.arguments(0n, 0, this.port.addressOf(this.#zeros)).transferZeros();
      } else break;
    }
    if (step === Step.exited) this.exited = true;
    return step;
  }

  /**
   * Reads until the queue is empty, the core wants to deliver first, or `starved`. False: nothing will come any
   * more.
   */
  drain(): boolean {
    const { exports, messages } = this.core;
    this.starved = false;
    for (;;) {
      const room = exports.inboxRoom();
      if (room === 0) return true;
      const result = this.port.read(this.fd, messages, room);
      const verdict = exports.inboxTake(result);
      if (verdict === Read.more) continue;
      if (verdict === Read.drained) return true;
      if (verdict === Read.ended) return false;
      if (verdict === Read.starved) {
        this.starved = true;
        return true;
      }
      this.broken = this.#readError(verdict, result);
      throw this.broken;
    }
  }

  /**
   * Reads what is there before a close, and gives up what it brings: a fork that waits for its reader would wait
   * for ever, and leak the child's descriptor.
   */
  discard(): void {
    do {
      try {
        this.drain();
      } catch {
        // It is being closed: what cannot be read is nobody's any more.
      }
    } while (this.giveUpChanges() > 0);
  }

  /** Applies the mapping changes that were read, closes the children's descriptors; how many they were. */
  giveUpChanges(): number {
    const { core, port } = this;
    let given = 0;
    for (let next = core.exports.inboxNextEvent(); next !== Next.none; next = core.exports.inboxNextEvent()) {
      if (next === Next.noMemory) break;
      if (next === Next.forked) port.close(Number(core.delivered(0)));
      given++;
    }
    this.sources.letGo();
    return given;
  }

  /** Wakes the threads whose faults were read and not answered. */
  evict(): void {
    const { core } = this;
    while (core.exports.inboxEvict()) this.wake(core.delivered(1), Number(core.delivered(2)));
  }

  #readError(verdict: number, result: number): UffdError {
    if (verdict === Read.failed) return new UffdError(result, 'read');
    const unknown = verdict === Read.unknown;
    const offset = unknown ? this.core.exports.inboxUnknown() : 0;
    const bytes = this.core.messageBytes(offset, unknown ? MESSAGE_BYTES : result);
    const raw = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return new UffdError(Errno.EIO as number, 'read', {
      reason: unknown
        ? `the kernel sent an event that this library does not know: ${raw}`
        : `the kernel sent ${result} bytes, which is no multiple of ${MESSAGE_BYTES}: ${raw}`,
    });
  }
}

function rangeOf(report: RangeReport): RegisteredRange {
  return {
    start: report.start,
    length: Number(report.end - report.start),
    modes: modeNames(report.modes),
    operations: operationNames(report.operations),
    pageSize: 2 ** report.pageShift,
  };
}
