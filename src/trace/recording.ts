// A kernel whose calls are written down: everything that crosses the port, in its order, with its answers and the
// time. What is written down is all that a replay needs.
//
// Rules:
//  - Nothing is changed on the way, but for the time: it is cut to whole microseconds, so that a replay sees the same.
//  - Only the first userfaultfd that is attached is recorded; a child that forks off has a trace of its own or none.

import {
  type Kernel,
  type KernelPort,
  type LinearMemory,
  Note,
  type Processors,
  type Watch,
} from '../kernel.js';
import { Kind, PAYLOAD_MOST } from './codec.js';
import type { TraceWriter } from './writer.js';

const EAGAIN = -11;
const POLLFDS_MOST = 3;
const STRUCT_WORDS_MOST = 12;
const NOTE_FIELDS = 4;
/** Where an ioctl's struct begins in a record, in halves of words. */
const GIVEN_AT = 4 + 3 * 2;

export function recordingKernel(inner: Kernel, writer: TraceWriter, meta: Record<string, unknown>): Kernel {
  let attached = false;
  return {
    pageSize: inner.pageSize,
    ...(inner.elsewhere ? { elsewhere: true } : {}),
    attach(memory) {
      const port = inner.attach(memory);
      if (attached) return port;
      attached = true;
      writer.start({ ...meta, pageSize: inner.pageSize });
      return new RecordingPort(port, memory, writer);
    },
  };
}

class RecordingPort implements KernelPort {
  /** Where threads run is no part of a trace. */
  readonly processors?: Processors;
  readonly unrecorded: KernelPort;
  raise?: (error: unknown) => void;
  readonly #inner: KernelPort;
  readonly #memory: LinearMemory;
  readonly #writer: TraceWriter;
  readonly #begunUs: number;
  #halves = new Uint32Array();
  /** Structs as they were given, by depth: in a simulated kernel the program may go on while a call is under way. */
  readonly #given: Uint32Array[] = [];
  #depth = 0;
  /** The last read found nothing, and no poll came behind it. */
  #empty = true;
  #timeUs = 0;
  #lastId = 0;

  constructor(inner: KernelPort, memory: LinearMemory, writer: TraceWriter) {
    this.#inner = inner;
    if (inner.processors) this.processors = inner.processors;
    this.unrecorded = inner;
    if (inner.raise) this.raise = (error) => inner.raise?.(error);
    this.#memory = memory;
    this.#writer = writer;
    this.#begunUs = Math.floor(inner.now() * 1000);
  }

  /** Whole microseconds since the recording began. */
  #clock(): number {
    this.#timeUs = Math.max(this.#timeUs, Math.floor(this.#inner.now() * 1000) - this.#begunUs);
    return this.#timeUs;
  }

  /** The core's memory in halves of words; taken again after it grew. */
  get #view(): Uint32Array {
    if (this.#halves.length === 0) this.#halves = new Uint32Array(this.#memory.buffer);
    return this.#halves;
  }

  /** A record of numbers alone. */
  #record(kind: number, ...fields: readonly number[]): void {
    const timeUs = this.#clock();
    const writer = this.#writer;
    writer.begin(kind, timeUs);
    for (let index = 0; index < fields.length; index++) writer.set(index, fields[index] as number);
    writer.end(timeUs);
  }

  // ---- the hot path --------------------------------------------------------------------------------------

  ioctl(fd: number, request: number, at: number): number {
    const halves = 2 * Math.min((request >>> 19) & 0x7ff, STRUCT_WORDS_MOST);
    const from = at >>> 2;
    let view = this.#view;
    this.#given[this.#depth] ??= new Uint32Array(2 * STRUCT_WORDS_MOST);
    const given = this.#given[this.#depth] as Uint32Array;
    for (let half = 0; half < halves; half++) given[half] = view[from + half] as number;
    this.#depth++;
    const result = this.#inner.ioctl(fd, request, at);
    this.#depth--;
    const timeUs = this.#clock();
    const writer = this.#writer;
    const target = writer.halves;
    view = this.#view;
    writer.begin(writer.ioctlKind(request), timeUs);
    for (let half = 0; half < halves; half++) {
      target[GIVEN_AT + half] = given[half] as number;
      target[GIVEN_AT + halves + half] = view[from + half] as number;
    }
    writer.set(0, fd);
    writer.set(1, request);
    writer.set(2, result);
    writer.end(timeUs);
    return result;
  }

  read(fd: number, at: number, length: number): number {
    const result = this.#inner.read(fd, at, length);
    // Behind an answer, or a poll, a read takes no time worth telling; behind one that found nothing it may have waited.
    const timeUs = this.#empty ? this.#clock() : this.#timeUs;
    this.#empty = result === EAGAIN;
    const writer = this.#writer;
    writer.begin(result === EAGAIN ? Kind.READ_EMPTY : Kind.READ, timeUs);
    writer.set(0, fd);
    writer.set(1, length);
    if (result !== EAGAIN) writer.set(2, result);
    if (result > 0) writer.payloadFrom(this.#view, at, result);
    writer.end(timeUs);
    return result;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    const result = this.#inner.poll(at, count, timeoutMs);
    const timeUs = this.#clock();
    this.#empty = false;
    const writer = this.#writer;
    const view = this.#view;
    writer.begin(Kind.POLL, timeUs);
    writer.set(0, count);
    writer.set(1, timeoutMs);
    writer.set(2, result);
    for (let index = 0; index < POLLFDS_MOST; index++) {
      const entry = (at >>> 2) + index * 2;
      const there = index < count;
      writer.set(3 + index * 2, there ? (view[entry] as number) | 0 : 0);
      writer.set(4 + index * 2, there ? (view[entry + 1] as number) | 0 : 0);
    }
    writer.end(timeUs);
    return result;
  }

  note(code: Note, first: bigint, second: number, third: number, fourth: bigint): void {
    const writer = this.#writer;
    // What a handler does is told the time of the call before it; what a program does may come after a long while.
    const timeUs = code < Note.WAKE || code === Note.ANSWER ? this.#timeUs : this.#clock();
    writer.begin(Kind.NOTE + code, timeUs);
    writer.setWord(0, first);
    writer.set(1, second);
    writer.set(2, third);
    writer.setWord(NOTE_FIELDS - 1, fourth);
    writer.end(timeUs);
  }

  sense(stopRequested: boolean): boolean {
    if (stopRequested) this.note(Note.STOP, 1n, 0, 0, 0n);
    return stopRequested;
  }

  // ---- the rest ------------------------------------------------------------------------------------------

  userfaultfd(flags: number): number {
    const result = this.#inner.userfaultfd(flags);
    this.#record(Kind.USERFAULTFD, flags, result);
    return result;
  }

  openDevice(): number {
    const result = this.#inner.openDevice();
    this.#record(Kind.OPEN_DEVICE, result);
    return result;
  }

  ioctlValue(fd: number, request: number, value: number): number {
    const result = this.#inner.ioctlValue(fd, request, value);
    this.#record(Kind.IOCTL_VALUE, fd, request, value, result);
    return result;
  }

  fcntl(fd: number, command: number, argument: number): number {
    const result = this.#inner.fcntl(fd, command, argument);
    this.#record(Kind.FCNTL, fd, command, argument, result);
    return result;
  }

  close(fd: number): number {
    const result = this.#inner.close(fd);
    this.#record(Kind.CLOSE, fd, result);
    return result;
  }

  eventfd(): number {
    const result = this.#inner.eventfd();
    this.#record(Kind.EVENTFD, result);
    return result;
  }

  pidfd(pid: number): number {
    const result = this.#inner.pidfd(pid);
    this.#record(Kind.PIDFD, pid, result);
    return result;
  }

  openPagemap(pid: number): number {
    const result = this.#inner.openPagemap(pid);
    this.#record(Kind.OPEN_PAGEMAP, pid, result);
    return result;
  }

  pageSizeAt(pid: number, address: bigint): number {
    const result = this.#inner.pageSizeAt(pid, address);
    const timeUs = this.#clock();
    this.#writer.begin(Kind.PAGE_SIZE_AT, timeUs);
    this.#writer.set(0, pid);
    this.#writer.setWord(1, address);
    this.#writer.setWord(2, BigInt(result));
    this.#writer.end(timeUs);
    return result;
  }

  unfillableAt(pid: number, address: bigint): string | undefined {
    return this.#inner.unfillableAt?.(pid, address);
  }

  now(): number {
    this.#record(Kind.NOW);
    return this.#timeUs / 1000;
  }

  addressOf(view: ArrayBufferView): bigint {
    const address = this.#inner.addressOf(view);
    const timeUs = this.#timeUs;
    this.#writer.begin(Kind.ADDRESS_OF, timeUs);
    this.#writer.set(0, view.byteLength);
    this.#writer.setWord(1, address);
    this.#writer.end(timeUs);
    this.#contents(view);
    return address;
  }

  /** What a page is filled with, as far as it is to be kept. */
  #contents(view: ArrayBufferView): void {
    const { contents } = this.#writer;
    if (contents === 'none') return;
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    const kept = contents === 'full' ? bytes : hash(bytes);
    for (let at = 0; at < kept.length; at += PAYLOAD_MOST) {
      const some = kept.subarray(at, at + PAYLOAD_MOST);
      this.#writer.begin(Kind.CONTENT, this.#timeUs);
      this.#writer.payload(some.length).set(some);
      this.#writer.end(this.#timeUs);
    }
  }

  watch(fd: number, ready: () => void): Watch {
    const id = ++this.#lastId;
    const watch = this.#inner.watch(fd, () => {
      this.#record(Kind.READY, id);
      ready();
    });
    this.#record(Kind.WATCH, fd, id);
    return this.#closing(watch, id);
  }

  after(delayMs: number, due: () => void): Watch {
    const id = ++this.#lastId;
    const watch = this.#inner.after(delayMs, () => {
      this.#record(Kind.DUE, id);
      due();
    });
    const timeUs = this.#clock();
    this.#writer.begin(Kind.AFTER, timeUs);
    this.#writer.setWord(0, bitsOf(delayMs));
    this.#writer.set(1, id);
    this.#writer.end(timeUs);
    return this.#closing(watch, id);
  }

  #closing(watch: Watch, id: number): Watch {
    return {
      close: () => {
        this.#record(Kind.UNWATCH, id);
        watch.close();
      },
    };
  }
}

const float = new Float64Array(1);
const bits = new BigUint64Array(float.buffer);

/** A number as the bits of its double, so that nothing of it is lost. */
export function bitsOf(value: number): bigint {
  float[0] = value;
  return bits[0] as bigint;
}

/** 64 bits of FNV-1a, as bytes. */
function hash(bytes: Uint8Array): Uint8Array {
  let [low, high] = [0x84222325, 0xcbf29ce4];
  for (const byte of bytes) {
    low = (low ^ byte) >>> 0;
    // Times 2^40 + 0x1b3, in halves of 32 bits.
    const product = low * 0x1b3;
    high = (Math.imul(high, 0x1b3) + Math.floor(product / 2 ** 32) + (low << 8)) | 0;
    low = product >>> 0;
  }
  const out = new DataView(new ArrayBuffer(8));
  out.setUint32(0, low >>> 0, true);
  out.setUint32(4, high >>> 0, true);
  return new Uint8Array(out.buffer);
}
