// The port of a simulated kernel: reads the structs that the core has prepared, and writes the answers into them.

import type { KernelPort, LinearMemory, Watch } from '../kernel.js';
import { E, EVENT, MESSAGE_BYTES, OPEN, POLL, REQUEST } from './abi.js';
import { Context, type Notice, type Sleeper } from './context.js';
import type { File } from './files.js';
import type { Interrupted } from './injection.js';
import type { SimulatedKernel } from './kernel.js';
import { handshake, register, wake, withdraw } from './register.js';
import { type Answer, type Caller, type Fill, resolve } from './resolve.js';
import type { SimulatedProcess } from './thread.js';
import { OPERATIONS_SINCE } from './versions.js';

const F_GETFL = 3;
const F_SETFL = 4;
const POLLFD_BYTES = 8;

/** Where the source of a COPY may lie: outside of every simulated address space. */
const VIEWS_START = 0x2000_0000_0000;
/** Views that `addressOf` remembers before it looks which of them are gone. */
const VIEWS_MOST = 1024;

/** Since when a failed call writes −EAGAIN into its result field. */
const WRITES_EAGAIN_SINCE = '6.15';

/** Where the result field lies, by request. */
const RESULT_AT: Readonly<Record<number, number>> = {
  [REQUEST.COPY]: 32,
  [REQUEST.ZEROPAGE]: 24,
  [REQUEST.MOVE]: 32,
  [REQUEST.CONTINUE]: 24,
  [REQUEST.POISON]: 24,
};

export class SimulatedPort implements KernelPort {
  readonly #kernel: SimulatedKernel;
  readonly #memory: LinearMemory;
  /** Whose calls these are. */
  readonly #process: SimulatedProcess;
  /** Views by ascending address, for as long as somebody has them: a call may be about one that was named long ago. */
  #views: { address: number; offset: number; length: number; buffer: WeakRef<ArrayBufferLike> }[] = [];
  #mostViews = VIEWS_MOST;
  #nextView = VIEWS_START;

  constructor(kernel: SimulatedKernel, memory: LinearMemory, process: SimulatedProcess) {
    this.#kernel = kernel;
    this.#process = process;
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
    const context = new Context(this.#process.space, flags);
    const nonBlocking = (flags & OPEN.NONBLOCK) !== 0;
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
    if (context.initialised && this.#kernel.injector?.interrupts(kindOf(request, operation))) return E.INTR;
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
    // What cannot be written is registered all the same.
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
    // Others may not be resolved by it, so nothing is said of them: write-protection is lifted without a count.
    if (field !== undefined) this.#kernel.filled((answer.out ?? 0) > 0);
    const untouched =
      answer.result === E.AGAIN && answer.out === E.AGAIN && !this.#kernel.isAtLeast(WRITES_EAGAIN_SINCE);
    if (answer.out === undefined || untouched) return answer.result;
    if (unwritable) return E.FAULT;
    if (writable) this.#view().setBigInt64(at + field, BigInt(answer.out), true);
    return answer.result;
  }

  /** The kernel's own answer, or the one that is injected. */
  #answer(context: Context, fill: Fill | undefined, request: number, unwritable: boolean): Answer {
    const { injector, pageSize } = this.#kernel;
    const errno = injector?.failure(request);
    if (errno !== undefined) return { result: errno, out: errno };
    if (!injector || !fill || RESULT_AT[request] === undefined)
      return resolve(context, this.#caller(), fill, unwritable);
    const size = Math.max(pageSize, context.space.sizeAt(fill.start));
    const length = injector.partOf(Math.ceil(fill.length / size)) * size;
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

  /** A word that is an address or a length. What is above 2^53 is rounded, and refused as any other above 2^47. */
  #word(at: number): number {
    return Number(this.#view().getBigUint64(at, true));
  }

  /** A word of mode bits: all there are lie in its lowest byte, and any other stands for an unknown one. */
  #bits(at: number): number {
    const bits = this.#view().getBigUint64(at, true);
    return Number(bits & 0x7fn) | (bits > 0x7fn ? 0x80 : 0);
  }

  #caller(): Caller {
    const { space } = this.#process;
    return {
      space,
      read: (address, length) => {
        const bytes = this.#viewed(address, length);
        if (bytes) return bytes;
        return this.#readable(address, length) ? space.peek(address, length) : undefined;
      },
    };
  }

  /** The bytes at an address that `addressOf` has given. */
  #viewed(address: number, length: number): Uint8Array | undefined {
    let [low, high] = [0, this.#views.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#views[middle] as { address: number }).address <= address) low = middle + 1;
      else high = middle;
    }
    const view = this.#views[low - 1];
    if (!view || address + length > view.address + view.length) return undefined;
    const buffer = view.buffer.deref();
    return buffer && new Uint8Array(buffer, view.offset + (address - view.address), length);
  }

  /** Whether the kernel can read memory of the handler's own process without a fault that it would have to answer. */
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
    const there = context.pending.length + context.notices.length;
    const most = Math.min(length, (injector?.messagesOf(there) ?? there) * MESSAGE_BYTES);
    const known = context.reading.length;
    let bytes = 0;
    while (bytes + MESSAGE_BYTES <= most && context.readable) {
      const errno = this.#message(context, at + bytes);
      if (errno < 0) return bytes > 0 ? bytes : errno;
      bytes += MESSAGE_BYTES;
    }
    // Second messages come behind this read, and take no other's place in it.
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

  /** Writes the next message: a fault first. */
  #message(context: Context, at: number): number {
    // A buffer that cannot be written consumes the message, and loses it.
    const fits = this.#fits(at, MESSAGE_BYTES);
    const view = fits ? this.#view() : new DataView(new ArrayBuffer(at + MESSAGE_BYTES));
    new Uint8Array(view.buffer, at, MESSAGE_BYTES).fill(0);
    const words = (values: readonly number[]) =>
      values.forEach((value, index) => void view.setBigUint64(at + 8 + index * 8, BigInt(value), true));
    const sleeper = context.pending.shift() as Sleeper | undefined;
    if (sleeper) {
      context.reading.push(sleeper);
      view.setUint8(at, EVENT.PAGEFAULT);
      words([sleeper.flags, sleeper.address]);
      view.setUint32(at + 24, sleeper.tid, true);
      return fits ? 0 : E.FAULT;
    }
    const notice = context.notices[0] as Notice;
    if (notice.child) {
      const nonBlocking = (notice.child.flags & OPEN.NONBLOCK) !== 0;
      const fd = this.#kernel.files.add({
        is: 'userfaultfd',
        holders: 1,
        context: notice.child,
        nonBlocking,
      });
      if (fd < 0) return fd;
      view.setUint32(at + 8, fd, true);
    } else {
      words(notice.words);
    }
    view.setUint8(at, notice.event);
    context.notices.shift();
    this.#kernel.release(notice);
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

  /** A step of the kernel throws it. */
  raise(error: unknown): void {
    this.#kernel.after(0, () => {
      throw error;
    });
  }
}

/** Of what kind an ioctl is that may be interrupted; `operation`: since when it resolves faults, if it does. */
function kindOf(request: number, operation: string | undefined): Interrupted | undefined {
  if (operation !== undefined) return 'fill';
  return request === REQUEST.WAKE ? 'wake' : undefined;
}
