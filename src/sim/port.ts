// The port of a simulated kernel: reads the structs that the core has prepared, and writes the results into them.

import type { KernelPort, LinearMemory, Watch } from '../kernel/port.js';
import { E, EVENT, MESSAGE_BYTES, OPEN, POLL, REQUEST } from './abi.js';
import type { File, Files } from './files.js';
import type { Injector } from './injection.js';
import { Context, type EventMessage, type Waiter } from './memory.js';
import { handshake, register, wake, withdraw } from './register.js';
import { type Caller, type CallResult, type Fill, resolve } from './resolve.js';
import type { SimulatedProcess } from './thread.js';
import { OPERATIONS_SINCE } from './versions.js';

const F_GETFL = 3;
const F_SETFL = 4;
const POLLFD_BYTES = 8;

/** The first address of the views that COPY reads from. It lies outside of every simulated address space. */
const VIEWS_START = 0x2000_0000_0000;
/** How many views `addressOf` keeps before it removes those that were collected. */
const VIEWS_MOST = 1024;

/** The first Linux version in which a failed call writes −EAGAIN into its result field. */
const WRITES_EAGAIN_SINCE = '6.15';

/** Offset of the result field, by request. */
const RESULT_AT: Readonly<Record<number, number>> = {
  [REQUEST.COPY]: 32,
  [REQUEST.ZEROPAGE]: 24,
  [REQUEST.MOVE]: 32,
  [REQUEST.CONTINUE]: 24,
  [REQUEST.POISON]: 24,
};

/** The part of the simulated kernel that the port calls. */
export interface PortHost {
  readonly pageSize: number;
  readonly offered: bigint;
  readonly files: Files;
  readonly processes: readonly SimulatedProcess[];
  readonly injector: Injector | undefined;
  readonly now: number;
  isAtLeast(version: string | undefined): boolean;
  filled(installed: boolean): void;
  after(delayMs: number, due: () => void): Watch;
  watch(fd: number, ready: () => void): Watch;
  readable(fd: number): boolean;
  release(message: EventMessage): void;
  preempt(): void;
  sleep(over: () => boolean, limitMs: number): void;
}

export class SimulatedPort implements KernelPort {
  readonly #kernel: PortHost;
  readonly #memory: LinearMemory;
  /** The process that makes these calls. */
  readonly #process: SimulatedProcess;
  /** Reads the memory of the process, if it is a real one, which has no simulated memory. */
  readonly #readCaller: Caller['read'] | undefined;
  /**
   * Views by ascending address, until they are garbage-collected. A call may use an address that was requested long
   * ago.
   */
  #views: { address: number; offset: number; length: number; buffer: WeakRef<ArrayBufferLike> }[] = [];
  #mostViews = VIEWS_MOST;
  #nextView = VIEWS_START;

  constructor(
    kernel: PortHost,
    memory: LinearMemory,
    process: SimulatedProcess,
    readCaller?: Caller['read'],
  ) {
    this.#kernel = kernel;
    this.#process = process;
    this.#readCaller = readCaller;
    this.#memory = memory;
  }

  // ---- descriptors ---------------------------------------------------------------------------------------

  userfaultfd(flags: number): number {
    this.#kernel.preempt();
    const known = OPEN.CLOEXEC | OPEN.NONBLOCK | (this.#kernel.isAtLeast('5.11') ? OPEN.USER_MODE_ONLY : 0);
    if (flags & ~known) return E.INVAL;
    if (!this.#process.privileged && !(flags & OPEN.USER_MODE_ONLY)) return E.PERM;
    return this.#create(flags);
  }

  openDevice(): number {
    this.#kernel.preempt();
    return this.#kernel.isAtLeast('6.1') ? this.#kernel.files.add({ is: 'device', holders: 1 }) : E.NOENT;
  }

  ioctlValue(fd: number, request: number, value: number): number {
    this.#kernel.preempt();
    const file = this.#kernel.files.get(fd);
    if (!file) return E.BADF;
    if (file.is !== 'device' || request !== REQUEST.NEW) return E.NOTTY;
    return value & ~(OPEN.CLOEXEC | OPEN.NONBLOCK | OPEN.USER_MODE_ONLY) ? E.INVAL : this.#create(value);
  }

  #create(flags: number): number {
    return this.#add(new Context(this.#process.space, flags));
  }

  #add(context: Context): number {
    const nonBlocking = (context.flags & OPEN.NONBLOCK) !== 0;
    return this.#kernel.files.add({ is: 'userfaultfd', holders: 1, context, nonBlocking });
  }

  fcntl(fd: number, command: number, argument: number): number {
    const file = this.#kernel.files.get(fd);
    if (!file) return E.BADF;
    const settable = file.is === 'userfaultfd';
    if (command === F_GETFL) return settable && file.nonBlocking ? OPEN.NONBLOCK : 0;
    if (command !== F_SETFL) return E.INVAL;
    if (settable) file.nonBlocking = (argument & OPEN.NONBLOCK) !== 0;
    return 0;
  }

  close(fd: number): number {
    this.#kernel.preempt();
    return this.#kernel.files.close(fd);
  }

  eventfd(): number {
    return this.#kernel.files.add({ is: 'eventfd', holders: 1, count: 0 });
  }

  pidfd(pid: number): number {
    const process = this.#kernel.processes.find((one) => one.pid === pid);
    return process ? this.#kernel.files.add({ is: 'pidfd', holders: 1, process }) : E.SRCH;
  }

  openPagemap(): number {
    return E.NOENT;
  }

  pageSizeAt(pid: number, address: bigint): number {
    const process = this.#kernel.processes.find((one) => one.pid === pid) ?? this.#process;
    return process.space.sizeAt(Number(address));
  }

  // ---- ioctl ---------------------------------------------------------------------------------------------

  ioctl(fd: number, request: number, at: number): number {
    this.#kernel.preempt();
    const file = this.#kernel.files.get(fd);
    if (!file) return E.BADF;
    if (file.is !== 'userfaultfd') return E.NOTTY;
    const { context } = file;
    const operation = OPERATIONS_SINCE[request];
    const kind = operation !== undefined ? 'fill' : request === REQUEST.WAKE ? 'wake' : undefined;
    if (context.initialised && this.#kernel.injector?.interrupts(kind)) return E.INTR;
    if (request === REQUEST.API) return this.#handshake(context, at);
    if (!context.initialised) return E.INVAL;
    if (operation !== undefined && !this.#kernel.isAtLeast(operation)) return E.INVAL;
    if (operation !== undefined) return this.#resolve(context, request, at);
    switch (request) {
      case REQUEST.REGISTER:
        return this.#register(context, at);
      case REQUEST.UNREGISTER:
        return this.#fits(at, 16) ? withdraw(context, this.#word(at), this.#word(at + 8)) : E.FAULT;
      case REQUEST.WAKE:
        return this.#fits(at, 16) ? wake(context, this.#word(at), this.#word(at + 8)) : E.FAULT;
      default:
        return E.INVAL;
    }
  }

  #handshake(context: Context, at: number): number {
    if (!this.#fits(at, 24)) return E.FAULT;
    const view = this.#view();
    const { offered } = this.#kernel;
    const { privileged } = this.#process;
    const wanted = view.getBigUint64(at + 8, true);
    const answer = handshake(context, view.getBigUint64(at, true), wanted, offered, privileged);
    if (answer.result < 0) view.setBigUint64(at, 0n, true);
    view.setBigUint64(at + 8, answer.features, true);
    view.setBigUint64(at + 16, answer.operations, true);
    return answer.result;
  }

  #register(context: Context, at: number): number {
    if (!this.#fits(at, 24)) return E.FAULT;
    const { offered } = this.#kernel;
    const modes = this.#bits(at + 16);
    const answer = register(context, this.#word(at), this.#word(at + 8), modes, offered);
    if (answer.result < 0) return answer.result;
    // Linux registers the range even if it cannot write the result.
    if (!this.#fits(at + 24, 8)) return E.FAULT;
    this.#view().setBigUint64(at + 24, answer.operations, true);
    return 0;
  }

  #resolve(context: Context, request: number, at: number): number {
    const sourced = request === REQUEST.COPY || request === REQUEST.MOVE;
    const field = RESULT_AT[request];
    const argumentBytes = field ?? 24;
    const fill = (): Fill => ({
      request,
      start: this.#word(at),
      source: sourced ? this.#word(at + 8) : 0,
      length: this.#word(at + (sourced ? 16 : 8)),
      mode: this.#bits(at + (sourced ? 24 : 16)),
    });
    const writable = field !== undefined && this.#fits(at + field, 8);
    const unwritable = field !== undefined && !writable;
    const wanted = this.#fits(at, argumentBytes) ? fill() : undefined;
    const answer = this.#answer(context, wanted, request, unwritable);
    // Calls without a result field have no count of resolved bytes.
    if (field !== undefined) this.#kernel.filled((answer.out ?? 0) > 0);
    const untouched =
      answer.result === E.AGAIN && answer.out === E.AGAIN && !this.#kernel.isAtLeast(WRITES_EAGAIN_SINCE);
    if (answer.out === undefined || untouched) return answer.result;
    if (unwritable) return E.FAULT;
    if (writable) this.#view().setBigInt64(at + field, BigInt(answer.out), true);
    return answer.result;
  }

  /** The simulated kernel's regular answer, or an injected one. */
  #answer(context: Context, fill: Fill | undefined, request: number, unwritable: boolean): CallResult {
    const { injector, pageSize } = this.#kernel;
    const errno = injector?.failure(request);
    if (errno !== undefined) return { result: errno, out: errno };
    if (!injector || !fill || RESULT_AT[request] === undefined)
      return resolve(context, this.#caller(), fill, unwritable);
    const size = Math.max(pageSize, context.space.sizeAt(fill.start));
    const length = injector.partOf(Math.ceil(fill.length / size), 'partial') * size;
    if (length >= fill.length) return resolve(context, this.#caller(), fill, unwritable);
    const answer = resolve(context, this.#caller(), { ...fill, length }, unwritable);
    return answer.result === 0 ? { result: E.AGAIN, out: length } : answer;
  }

  #view(): DataView {
    return new DataView(this.#memory.buffer);
  }

  /** Whether a struct lies in the caller's memory. */
  #fits(at: number, bytes: number): boolean {
    return at + bytes <= this.#memory.buffer.byteLength;
  }

  /**
   * A word that is an address or a length. Above 2^53 it is rounded, and then refused like any other word above 2^47.
   */
  #word(at: number): number {
    return Number(this.#view().getBigUint64(at, true));
  }

  /**
   * A word of mode bits. All known bits lie in its lowest seven bits. Any higher bit is mapped to the unknown bit 0x80.
   */
  #bits(at: number): number {
    const bits = this.#view().getBigUint64(at, true);
    return Number(bits & 0x7fn) | (bits > 0x7fn ? 0x80 : 0);
  }

  #caller(): Caller {
    const { space } = this.#process;
    if (this.#readCaller) return { space, read: this.#readCaller };
    return {
      space,
      read: (address, length) => {
        const bytes = this.#viewed(address, length);
        if (bytes) return bytes;
        return this.#readable(address, length) ? space.peek(address, length) : undefined;
      },
    };
  }

  /** The bytes at an address that `addressOf` has returned. */
  #viewed(address: number, length: number): Uint8Array | undefined {
    // Search from the end: most calls use the address that was requested last.
    const view = this.#views.findLast((view) => view.address <= address);
    if (!view || address + length > view.address + view.length) return undefined;
    const buffer = view.buffer.deref();
    return buffer && new Uint8Array(buffer, view.offset + (address - view.address), length);
  }

  /**
   * Whether a call can read memory of the calling process: all of it is mapped, accessible, and has no poison or guard
   * page.
   */
  #readable(address: number, length: number): boolean {
    const { space } = this.#process;
    for (let page = space.pageOf(address); page <= space.pageOf(address + length - 1); page++) {
      const vma = space.at(page * space.pageSize);
      if (!vma || vma.protection === 0) return false;
      const entry = space.entry(page);
      if (entry?.is === 'poison' || entry?.is === 'guard') return false;
    }
    return true;
  }

  // ---- read and poll -------------------------------------------------------------------------------------

  read(fd: number, at: number, length: number): number {
    this.#kernel.preempt();
    const file = this.#kernel.files.get(fd);
    if (!file) return E.BADF;
    if (file.is === 'eventfd') return this.#readCounter(file, at, length);
    if (file.is !== 'userfaultfd' || !file.context.initialised || length < MESSAGE_BYTES) return E.INVAL;
    const { context } = file;
    const { injector } = this.#kernel;
    if (injector?.interrupts('read')) return E.INTR;
    if (!file.nonBlocking) this.#kernel.sleep(() => context.readable, -1);
    const there = context.pending.length + context.events.length;
    const most = Math.min(length, (injector?.partOf(there, 'short') ?? there) * MESSAGE_BYTES);
    const known = context.reading.length;
    let bytes = 0;
    while (bytes + MESSAGE_BYTES <= most && context.readable) {
      const errno = this.#message(context, at + bytes);
      if (errno < 0) return bytes > 0 ? bytes : errno;
      bytes += MESSAGE_BYTES;
    }
    // A repeated message comes in a later read, and takes no other message's place in this one.
    for (const sleeper of context.reading.slice(known)) {
      if (injector?.happens('repeat')) context.pending.push({ ...sleeper });
    }
    return bytes > 0 ? bytes : E.AGAIN;
  }

  #readCounter(file: File & { is: 'eventfd' }, at: number, length: number): number {
    if (length < 8) return E.INVAL;
    if (file.count === 0) return E.AGAIN;
    this.#view().setBigUint64(at, BigInt(file.count), true);
    file.count = 0;
    return 8;
  }

  /** Writes the next message: faults first. */
  #message(context: Context, at: number): number {
    // If the buffer cannot be written, the message is consumed and lost.
    const fits = this.#fits(at, MESSAGE_BYTES);
    const view = fits ? this.#view() : new DataView(new ArrayBuffer(at + MESSAGE_BYTES));
    new Uint8Array(view.buffer, at, MESSAGE_BYTES).fill(0);
    const words = (values: readonly number[]) =>
      values.forEach((value, index) => void view.setBigUint64(at + 8 + index * 8, BigInt(value), true));
    const sleeper = context.pending.shift() as Waiter | undefined;
    if (sleeper) {
      context.reading.push(sleeper);
      view.setUint8(at, EVENT.PAGEFAULT);
      words([sleeper.flags, sleeper.address]);
      view.setUint32(at + 24, sleeper.tid, true);
      return fits ? 0 : E.FAULT;
    }
    const message = context.events[0] as EventMessage;
    if (message.child) {
      const fd = this.#add(message.child);
      if (fd < 0) return fd;
      view.setUint32(at + 8, fd, true);
    } else {
      words(message.words);
    }
    view.setUint8(at, message.event);
    context.events.shift();
    this.#kernel.release(message);
    return fits ? 0 : E.FAULT;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    this.#kernel.preempt();
    if (this.#kernel.injector?.interrupts('poll')) return E.INTR;
    this.#kernel.sleep(() => this.#pollOnce(at, count) > 0, timeoutMs);
    return this.#pollOnce(at, count);
  }

  #pollOnce(at: number, count: number): number {
    const view = this.#view();
    let ready = 0;
    for (let index = 0; index < count; index++) {
      const entry = at + index * POLLFD_BYTES;
      const found = this.#events(view.getInt32(entry, true));
      view.setInt16(entry + 6, found, true);
      if (found !== 0) ready++;
    }
    return ready;
  }

  #events(fd: number): number {
    if (fd < 0) return 0;
    const file = this.#kernel.files.get(fd);
    if (!file) return POLL.NVAL;
    if (file.is === 'userfaultfd' && (!file.context.initialised || !file.nonBlocking)) return POLL.ERR;
    return this.#kernel.readable(fd) ? POLL.IN : 0;
  }

  // ---- the rest ------------------------------------------------------------------------------------------

  now(): number {
    return this.#kernel.now;
  }

  addressOf(view: ArrayBufferView): bigint {
    const { buffer, byteOffset: offset, byteLength: length } = view;
    const { pageSize } = this.#kernel;
    const address = this.#nextView + (offset % pageSize);
    this.#nextView += (Math.ceil(length / pageSize) + 2) * pageSize;
    if (this.#views.length >= this.#mostViews) {
      this.#views = this.#views.filter((one) => one.buffer.deref() !== undefined);
      this.#mostViews = Math.max(VIEWS_MOST, 2 * this.#views.length);
    }
    this.#views.push({ address, offset, length, buffer: new WeakRef(buffer) });
    return BigInt(address);
  }

  watch(fd: number, ready: () => void): Watch {
    return this.#kernel.watch(fd, ready);
  }

  after(delayMs: number, due: () => void): Watch {
    return this.#kernel.after(delayMs, due);
  }

  /** Makes the next step of the kernel throw the error. */
  raise(error: unknown): void {
    this.#kernel.after(0, () => {
      throw error;
    });
  }
}
