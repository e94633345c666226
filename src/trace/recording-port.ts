// A port that records its calls: everything that crosses it, in order, with results and times. A replay needs nothing
// else.
//
// Rules:
//  - Recording changes nothing, except that times are cut to whole microseconds, so that the recorded run and its
//    replay get the same times.
//  - Only the first attached userfaultfd is recorded; a forked child has a trace of its own or none.
//  - A request for the time right after an ioctl or a poll, or right before a read, returns the time of that call's
//    record. Any other request for the time has a record of its own. Otherwise a spinning loop would write more records
//    of the time than of all other calls.

import { PAYLOAD_MOST } from '../bindings/trace.js';
import {
  type Kernel,
  type KernelPort,
  type LinearMemory,
  Note,
  type Processors,
  type Watch,
} from '../kernel/port.js';
import { Kind, NOTE_FIELDS, noteKind } from './codec.js';
import { copyWords, type TraceWriter } from './writer.js';

const EAGAIN = -11;
const POLLFDS_MOST = 3;
const STRUCT_WORDS_MOST = 12;
/** The first field of a poll's record that holds a descriptor. */
const POLL_ENTRIES = 3;

/** `timed`: whether each read has a time of its own, because there may have been waits that are not recorded. */
export function recordingKernel(
  inner: Kernel,
  writer: TraceWriter,
  meta: Record<string, unknown>,
  timed = false,
): Kernel {
  let attached = false;
  return {
    pageSize: inner.pageSize,
    ...(inner.elsewhere ? { elsewhere: true } : {}),
    attach(memory) {
      const port = inner.attach(memory);
      if (attached) return port;
      attached = true;
      writer.start({ ...meta, pageSize: inner.pageSize });
      return new RecordingPort(port, memory, writer, timed);
    },
  };
}

class RecordingPort implements KernelPort {
  /** The processors on which threads run. Their use is not recorded. */
  readonly processors?: Processors;
  readonly unrecorded: KernelPort;
  raise?: (error: unknown) => void;
  readonly #inner: KernelPort;
  readonly #memory: LinearMemory;
  readonly #writer: TraceWriter;
  readonly #timed: boolean;
  readonly #begunUs: number;
  /** The core's memory in words and in half words. */
  #words = new BigUint64Array();
  #halves = new Uint32Array();
  /** The ioctl's struct before the call. */
  readonly #given = new BigUint64Array(STRUCT_WORDS_MOST);
  /** How many ioctls have not returned yet: in a simulated kernel the program may make calls during a call. */
  #calls = 0;
  /** Whether the last read found nothing, and no poll followed it. */
  #empty = true;
  #timeUs = 0;
  /** Whether the last record is a call that has just ended, at the time of the record. */
  #justEnded = false;
  /** Whether the time was returned for a read that has not come yet. */
  #told = false;
  #lastId = 0;

  constructor(inner: KernelPort, memory: LinearMemory, writer: TraceWriter, timed: boolean) {
    this.#inner = inner;
    if (inner.processors) this.processors = inner.processors;
    this.unrecorded = inner;
    if (inner.raise) this.raise = (error) => inner.raise?.(error);
    this.#memory = memory;
    this.#writer = writer;
    this.#timed = timed;
    this.#begunUs = Math.floor(inner.now() * 1000);
  }

  /** Whole microseconds since the recording began, for the next record. */
  #clock(): number {
    this.#before();
    this.#timeUs = Math.max(this.#timeUs, Math.floor(this.#inner.now() * 1000) - this.#begunUs);
    return this.#timeUs;
  }

  /** The time of the last record, without reading the clock. */
  #sameTime(): number {
    this.#before();
    return this.#timeUs;
  }

  /**
   * To call before any record except that of a read: a time that was returned for a read then needs a record of its
   * own.
   */
  #before(): void {
    this.#justEnded = false;
    if (!this.#told) return;
    this.#told = false;
    this.#writer.append(Kind.NOW, this.#timeUs);
  }

  /** Makes the views of the core's memory again after it grew, because the old buffer is empty then. */
  #look(): void {
    if (this.#words.length > 0) return;
    this.#words = new BigUint64Array(this.#memory.buffer);
    this.#halves = new Uint32Array(this.#memory.buffer);
  }

  /** Writes a record that has only numbers. */
  #record(kind: number, ...fields: readonly number[]): void {
    const timeUs = this.#clock();
    for (const [index, field] of fields.entries()) this.#writer.set(index, field);
    this.#writer.append(kind, timeUs);
  }

  /** Records a call that has returned, and whose arguments and result are numbers. */
  #returned(result: number, kind: number, ...given: readonly number[]): number {
    this.#record(kind, ...given, result);
    return result;
  }

  // ---- the hot path --------------------------------------------------------------------------------------

  ioctl(fd: number, request: number, at: number): number {
    const words = Math.min((request >>> 19) & 0x7ff, STRUCT_WORDS_MOST);
    const given = this.#calls === 0 ? this.#given : new BigUint64Array(STRUCT_WORDS_MOST);
    this.#look();
    copyWords(given, this.#words, at >>> 3, words);
    this.#calls++;
    const result = this.#inner.ioctl(fd, request, at);
    this.#calls--;
    const timeUs = this.#clock();
    this.#look();
    this.#writer.struct(given, this.#words, at >>> 3, words);
    this.#writer.ioctl(timeUs, fd, request, result);
    this.#justEnded = true;
    return result;
  }

  read(fd: number, at: number, length: number): number {
    const result = this.#inner.read(fd, at, length);
    // A read after an answer or a poll takes almost no time; after an empty read the loop may have waited.
    const timeUs = (this.#empty || this.#timed) && !this.#told ? this.#clock() : this.#timeUs;
    this.#told = false;
    this.#justEnded = false;
    this.#empty = result === EAGAIN;
    if (result > 0) {
      this.#look();
      this.#writer.payloadFrom(this.#words, at, result);
    }
    this.#writer.numbers(result === EAGAIN ? Kind.READ_EMPTY : Kind.READ, timeUs, fd, length, result);
    return result;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    const result = this.#inner.poll(at, count, timeoutMs);
    const timeUs = this.#clock();
    this.#empty = false;
    this.#look();
    for (let half = 0; half < 2 * POLLFDS_MOST; half++) {
      const value = half < 2 * count ? (this.#halves[(at >>> 2) + half] as number) | 0 : 0;
      this.#writer.set(POLL_ENTRIES + half, value);
    }
    this.#writer.numbers(Kind.POLL, timeUs, count, timeoutMs, result);
    this.#justEnded = true;
    return result;
  }

  note(code: Note, first: bigint, second: number, third: number, fourth: bigint): void {
    const writer = this.#writer;
    // A note of a handler gets the time of the call before it. A note of the program may come long after that call.
    const timeUs =
      code < Note.WAKE || code === Note.ANSWER || code >= Note.SOURCE ? this.#sameTime() : this.#clock();
    writer.setWord(0, first);
    if ((NOTE_FIELDS[code] as number) > 1) {
      writer.set(1, second);
      writer.set(2, third);
      writer.setWord(3, fourth);
    }
    writer.append(noteKind(code), timeUs);
  }

  readsAgain(byTime: boolean): boolean {
    if (!byTime) this.#record(Kind.SLEEP);
    return byTime;
  }

  sense(stopRequested: boolean): boolean {
    if (stopRequested) this.note(Note.STOP, 1n, 0, 0, 0n);
    return stopRequested;
  }

  // ---- the rest ------------------------------------------------------------------------------------------

  userfaultfd(flags: number): number {
    return this.#returned(this.#inner.userfaultfd(flags), Kind.USERFAULTFD, flags);
  }

  openDevice(): number {
    return this.#returned(this.#inner.openDevice(), Kind.OPEN_DEVICE);
  }

  ioctlValue(fd: number, request: number, value: number): number {
    const result = this.#inner.ioctlValue(fd, request, value);
    return this.#returned(result, Kind.IOCTL_VALUE, fd, request, value);
  }

  fcntl(fd: number, command: number, argument: number): number {
    return this.#returned(this.#inner.fcntl(fd, command, argument), Kind.FCNTL, fd, command, argument);
  }

  close(fd: number): number {
    return this.#returned(this.#inner.close(fd), Kind.CLOSE, fd);
  }

  eventfd(): number {
    return this.#returned(this.#inner.eventfd(), Kind.EVENTFD);
  }

  pidfd(pid: number): number {
    return this.#returned(this.#inner.pidfd(pid), Kind.PIDFD, pid);
  }

  openPagemap(pid: number): number {
    return this.#returned(this.#inner.openPagemap(pid), Kind.OPEN_PAGEMAP, pid);
  }

  pageSizeAt(pid: number, address: bigint): number {
    const result = this.#inner.pageSizeAt(pid, address);
    const timeUs = this.#clock();
    this.#writer.set(0, pid);
    this.#writer.setWord(1, address);
    this.#writer.setWord(2, BigInt(result));
    this.#writer.append(Kind.PAGE_SIZE_AT, timeUs);
    return result;
  }

  unfillableAt(pid: number, address: bigint): string | undefined {
    return this.#inner.unfillableAt?.(pid, address);
  }

  now(): number {
    if (!this.#justEnded) this.#record(Kind.NOW);
    return this.#timeUs / 1000;
  }

  timeOfRead(): number {
    if (!this.#justEnded) {
      this.#clock();
      this.#told = true;
    }
    return this.#timeUs / 1000;
  }

  addressOf(view: ArrayBufferView): bigint {
    const address = this.#inner.addressOf(view);
    const timeUs = this.#sameTime();
    this.#writer.set(0, view.byteLength);
    this.#writer.setWord(1, address);
    this.#writer.append(Kind.ADDRESS_OF, timeUs);
    this.#contents(view);
    return address;
  }

  /** Records the contents of a page's source, or their hash, if the writer keeps them. */
  #contents(view: ArrayBufferView): void {
    const { contents } = this.#writer;
    if (contents === 'none') return;
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    const kept = contents === 'full' ? bytes : hash(bytes);
    for (let at = 0; at < kept.length; at += PAYLOAD_MOST) {
      const some = kept.subarray(at, at + PAYLOAD_MOST);
      this.#writer.payload(some.length).set(some);
      this.#writer.append(Kind.CONTENT, this.#timeUs);
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
    this.#writer.setWord(0, bitsOf(delayMs));
    this.#writer.set(1, id);
    this.#writer.append(Kind.AFTER, timeUs);
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

/** The bits of a number's double, so that no digit is lost. */
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
