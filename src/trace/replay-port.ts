// A port that answers from a trace. Each call is compared with the next record. The same call with the same arguments
// gets the recorded result. The first difference is kept. From then on, a call gets only a result that lets the caller
// end.
//
// Rules:
//  - The port makes no system call, and never waits.
//  - Bytes that the kernel wrote are written again, to the address that the caller passes now.
//  - The address and the length of a source are not compared, because they differ in every run.

import { Operation as Op } from '../bindings/core.js';
import { type Kernel, type KernelPort, type LinearMemory, Note, type Watch } from '../kernel/port.js';
import { type Codec, Kind, NOTE_FIELDS, noteKind, noteOf } from './codec.js';
import type { TraceReader } from './reader.js';
import { type Call, callOf, describe, nameOf } from './record-format.js';
import { bitsOf } from './recording-port.js';

const EAGAIN = -11;
const ENOSYS = -38;
const STRUCT_WORDS_MOST = 12;
/** COPY's request, and the word of its struct that holds the source address. */
const COPY_REQUEST = 0xc028aa03;
const SOURCE_WORD = 1;
/**
 * The field of a note that holds the source or the page size. SOURCE_COMPARED: the notes in which this field is the
 * same in every run.
 */
export const SOURCE_FIELD = 3;
const SOURCE_COMPARED: ReadonlySet<number> = new Set([Op.MOVE, Note.REGISTER]);
/** How many calls before a difference are reported. */
const BEFORE_KEPT = 8;
/** The offset of an ioctl's struct in the half words of a record. */
const GIVEN_AT = 4 + 3 * 2;
/** Stands for the addresses of views and structs of an unrecorded userfaultfd. */
const NOWHERE = 0x1000n;

/** The first call that differs from the trace. */
export interface Difference {
  /** The number of the call in the trace, from 0; the description has no number. */
  readonly index: number;
  /** The recorded call, and the call that was made, as text. */
  readonly expected: string;
  readonly came: string;
  /** The last calls before the difference, in order. */
  readonly before: readonly string[];
}

export class ReplayKernel {
  difference: Difference | undefined;
  /** Whether the replay is over: no call is compared any more. */
  over = false;
  readonly callbacks = new Map<number, () => void>();
  /** Makes the call of the program that the next record holds. */
  program: () => void = () => {};
  /** Called with each note that matched the trace. */
  noted: (code: Note, first: bigint, second: number) => void = () => {};
  readonly codec: Codec;
  readonly #reader: TraceReader;
  /** Whether an unused record is ready in the codec. */
  #ahead = false;
  #index = -1;
  /** Whether the trace has a record for each time that was asked for (version 1). */
  readonly allTimes: boolean;
  /**
   * The time of the last used record, in milliseconds. `justEnded`: whether the caller may now ask for the time without
   * a record.
   */
  timeMs = 0;
  justEnded = false;

  constructor(reader: TraceReader) {
    this.#reader = reader;
    this.codec = reader.codec;
    this.allTimes = reader.version === 1;
  }

  get pageSize(): number {
    return this.#reader.meta.pageSize;
  }

  /** Whether calls get only results that let the caller end. */
  get done(): boolean {
    return this.over || this.difference !== undefined;
  }

  /** Number of records that were used. */
  get used(): number {
    return this.#index + (this.#ahead ? 0 : 1);
  }

  /** The kind of the next record; −1 if there is none. */
  peek(): number {
    if (!this.#ahead) {
      if (!this.#reader.next()) return -1;
      this.#ahead = true;
      this.#index++;
    }
    return this.codec.halves[0] as number;
  }

  /** Uses the next record; it stays readable in the codec until the one after it is read. */
  take(): void {
    const kind = this.peek();
    this.#ahead = false;
    this.timeMs = this.codec.time / 1000;
    this.justEnded = !this.allTimes && (kind === Kind.POLL || (kind >= Kind.IOCTL && kind < Kind.NOTE));
  }

  /** Whether the next record is of this kind, and no difference was found so far. */
  isNext(kind: number): boolean {
    if (this.over || this.difference !== undefined) return false;
    return (noteOf(kind) < 0 ? this.peekCall() : this.peek()) === kind;
  }

  /**
   * The kind of the next record, which must be a call. In a simulated kernel the program may make calls during a call:
   * their records stand before that call, and this function makes them.
   */
  peekCall(): number {
    for (;;) {
      const kind = this.peek();
      const note = noteOf(kind);
      // A stop that another thread has requested is no call of the program: `sense` takes its record.
      const stops = note === Note.STOP && this.codec.words[0] === 1n;
      if (note < 0 || note === Note.ANSWER || stops || this.done) return kind;
      const { used } = this;
      this.program();
      if (this.used === used) return kind;
    }
  }

  /**
   * Keeps the difference: the call `came` was made instead of the one in the next record. After the end of a cut trace,
   * no call is a difference.
   */
  differ(came: string): void {
    if (this.done) return;
    const there = this.peek() >= 0;
    if (!there && this.#reader.damage !== undefined) {
      this.over = true;
      return;
    }
    this.difference = { ...this.#next(there), came };
  }

  /** The next record, as a difference shows it. */
  nextCall(): Omit<Difference, 'came'> {
    return this.#next(this.peek() >= 0);
  }

  #next(there: boolean): Omit<Difference, 'came'> {
    return {
      index: there ? this.#index : this.#index + 1,
      expected: there ? describe(callOf(this.codec.halves)) : 'the end of the trace',
      before: this.#lastCalls().map(describe),
    };
  }

  #lastCalls(): Call[] {
    const { used } = this;
    const calls: Call[] = [];
    for (let index = Math.max(used - BEFORE_KEPT, 0); index < used; index++) {
      const back = this.#index - index;
      calls.push(callOf(back === 0 ? this.codec.halves : this.codec.before(back)));
    }
    return calls;
  }

  kernel(): Kernel {
    let attached = false;
    return {
      pageSize: this.pageSize,
      elsewhere: true,
      attach: (memory) => {
        const first = !attached;
        attached = true;
        return first ? new ReplayPort(this, memory) : new InertPort();
      },
    };
  }
}

class ReplayPort implements KernelPort {
  readonly #playback: ReplayKernel;
  readonly #codec: Codec;
  readonly #memory: LinearMemory;
  #halves = new Uint32Array();

  constructor(playback: ReplayKernel, memory: LinearMemory) {
    this.#playback = playback;
    this.#codec = playback.codec;
    this.#memory = memory;
  }

  /** The core's memory in half words. The view is made again after the memory grew. */
  get #view(): Uint32Array {
    if (this.#halves.length === 0) this.#halves = new Uint32Array(this.#memory.buffer);
    return this.#halves;
  }

  /** Replays a call that has only numbers: the last field of its record is the result. */
  #call(kind: number, ...given: readonly number[]): number {
    if (this.#playback.done) return 0;
    if (this.#playback.isNext(kind) && given.every((value, index) => this.#codec.number(index) === value)) {
      this.#playback.take();
      return this.#codec.number(given.length);
    }
    this.#playback.differ(`${nameOf(kind)}(${given.join(', ')})`);
    return 0;
  }

  userfaultfd(flags: number): number {
    return this.#call(Kind.USERFAULTFD, flags);
  }

  openDevice(): number {
    return this.#call(Kind.OPEN_DEVICE);
  }

  ioctlValue(fd: number, request: number, value: number): number {
    return this.#call(Kind.IOCTL_VALUE, fd, request | 0, value);
  }

  fcntl(fd: number, command: number, argument: number): number {
    return this.#call(Kind.FCNTL, fd, command, argument);
  }

  close(fd: number): number {
    return this.#call(Kind.CLOSE, fd);
  }

  eventfd(): number {
    return this.#call(Kind.EVENTFD);
  }

  pidfd(pid: number): number {
    return this.#call(Kind.PIDFD, pid);
  }

  openPagemap(pid: number): number {
    return this.#call(Kind.OPEN_PAGEMAP, pid);
  }

  pageSizeAt(pid: number, address: bigint): number {
    if (!this.#playback.isNext(Kind.PAGE_SIZE_AT)) {
      this.#playback.differ(pageSizeCame(pid, address));
      return this.#playback.pageSize;
    }
    if (this.#codec.words[1] === address && this.#codec.integer(0) === pid) this.#playback.take();
    else this.#playback.differ(pageSizeCame(pid, address));
    return this.#codec.integer(2);
  }

  // ---- the hot path: no closures, because each call would allocate one --------------------------------------

  ioctl(fd: number, request: number, at: number): number {
    const codec = this.#codec;
    const kind = codec.exports.traceIoctlKind(request);
    const words = Math.min((request >>> 19) & 0x7ff, STRUCT_WORDS_MOST);
    if (!this.#playback.isNext(kind) || !this.#isGiven(fd, request, at, words)) {
      this.#ioctlDiffers(kind, fd, request, at, words);
      return 0;
    }
    this.#playback.take();
    const recorded = codec.halves;
    const view = this.#view;
    const back = GIVEN_AT + words * 2;
    const to = at >>> 2;
    for (let half = 0; half < words * 2; half++) view[to + half] = recorded[back + half] as number;
    return codec.number(2);
  }

  /** Whether the next record is an ioctl with this struct. */
  #isGiven(fd: number, request: number, at: number, words: number): boolean {
    const codec = this.#codec;
    if (codec.number(0) !== fd || codec.half(1) !== request) return false;
    const recorded = codec.halves;
    const view = this.#view;
    const from = at >>> 2;
    for (let half = 0; half < words * 2; half++) {
      if (recorded[GIVEN_AT + half] === view[from + half]) continue;
      if (request !== COPY_REQUEST || half >> 1 !== SOURCE_WORD) return false;
    }
    return true;
  }

  #ioctlDiffers(kind: number, fd: number, request: number, at: number, words: number): void {
    if (this.#playback.done) return;
    const given = new BigUint64Array(this.#memory.buffer, at, words);
    this.#playback.differ(describe({ kind, time: 0, words: [BigInt(fd), BigInt(request), 0n, ...given] }));
  }

  read(fd: number, at: number, length: number): number {
    const codec = this.#codec;
    if (this.#playback.done) return EAGAIN;
    const kind = this.#playback.peekCall();
    const reads = kind === Kind.READ || kind === Kind.READ_EMPTY;
    if (!reads || codec.number(0) !== fd || codec.number(1) !== length) {
      this.#playback.differ(`read(${fd}, ${length})`);
      return EAGAIN;
    }
    this.#playback.take();
    if (kind === Kind.READ_EMPTY) return EAGAIN;
    const result = codec.number(2);
    if (result > 0) new Uint8Array(this.#memory.buffer, at, result).set(codec.payloadRead);
    return result;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    const codec = this.#codec;
    if (!this.#playback.isNext(Kind.POLL) || !this.#isPolled(at, count, timeoutMs)) {
      this.#pollDiffers(at, count, timeoutMs);
      return 0;
    }
    this.#playback.take();
    const view = this.#view;
    const to = (at >>> 2) + 1;
    for (let index = 0; index < count; index++) view[to + index * 2] = codec.number(4 + index * 2);
    return codec.number(2);
  }

  /** Whether the next record is a poll of these descriptors. */
  #isPolled(at: number, count: number, timeoutMs: number): boolean {
    const codec = this.#codec;
    if (codec.number(0) !== count || codec.number(1) !== timeoutMs) return false;
    const view = this.#view;
    const from = at >>> 2;
    for (let index = 0; index < count; index++) {
      if (codec.number(3 + index * 2) !== ((view[from + index * 2] as number) | 0)) return false;
    }
    return true;
  }

  #pollDiffers(at: number, count: number, timeoutMs: number): void {
    const from = at >>> 2;
    const fds = Array.from({ length: count }, (_, index) => (this.#view[from + index * 2] as number) | 0);
    this.#playback.differ(`poll([${fds.join(', ')}], ${timeoutMs})`);
  }

  now(): number {
    const playback = this.#playback;
    if (playback.justEnded) return playback.timeMs;
    if (playback.isNext(Kind.NOW)) playback.take();
    else playback.differ('now()');
    return playback.timeMs;
  }

  timeOfRead(): number {
    const playback = this.#playback;
    if (playback.allTimes || playback.justEnded || playback.isNext(Kind.NOW)) return this.now();
    return playback.done ? playback.timeMs : this.#codec.time / 1000;
  }

  /** In traces of version 1 the times decide, as they did in the recorded run. */
  readsAgain(byTime: boolean): boolean {
    const playback = this.#playback;
    if (playback.allTimes || playback.done) return byTime;
    const sleeps = playback.isNext(Kind.SLEEP);
    if (sleeps) playback.take();
    return !sleeps;
  }

  addressOf(view: ArrayBufferView): bigint {
    if (!this.#playback.isNext(Kind.ADDRESS_OF)) {
      this.#playback.differ(`the address of ${view.byteLength} bytes`);
      return NOWHERE;
    }
    this.#playback.take();
    const address = this.#codec.words[1] as bigint;
    while (this.#playback.peek() === Kind.CONTENT) this.#playback.take();
    return address;
  }

  // ---- callbacks and notes -------------------------------------------------------------------------------

  watch(fd: number, ready: () => void): Watch {
    return this.#register(Kind.WATCH, `watch(${fd})`, BigInt(fd), ready);
  }

  after(delayMs: number, due: () => void): Watch {
    return this.#register(Kind.AFTER, `after(${delayMs} ms)`, bitsOf(delayMs), due);
  }

  #register(kind: number, came: string, argument: bigint, callback: () => void): Watch {
    const playback = this.#playback;
    const codec = this.#codec;
    if (!playback.isNext(kind) || codec.words[0] !== argument) {
      playback.differ(came);
      return { close() {} };
    }
    playback.take();
    const id = codec.number(1);
    playback.callbacks.set(id, callback);
    return {
      close: () => {
        playback.callbacks.delete(id);
        if (playback.isNext(Kind.UNWATCH) && codec.number(0) === id) playback.take();
        else playback.differ(`unwatch(${id})`);
      },
    };
  }

  note(code: Note, first: bigint, second: number, third: number, fourth: bigint): void {
    if (this.#playback.isNext(noteKind(code)) && this.#isNoted(code, first, second, third, fourth)) {
      this.#playback.take();
      this.#playback.noted(code, first, second);
      return;
    }
    const words = [first, BigInt(second), BigInt(third), fourth];
    this.#playback.differ(describe({ kind: noteKind(code), time: 0, words }));
  }

  /** Whether the next record is a note with these fields. */
  #isNoted(code: Note, first: bigint, second: number, third: number, fourth: bigint): boolean {
    const codec = this.#codec;
    const fields = NOTE_FIELDS[code] as number;
    if (codec.words[0] !== first) return false;
    if (fields >= 2 && codec.integer(1) !== second) return false;
    if (fields >= 3 && codec.number(2) !== third) return false;
    return fields < 4 || !SOURCE_COMPARED.has(code) || codec.words[SOURCE_FIELD] === fourth;
  }

  /** Does nothing: the replay itself detects that a promise of the handler has rejected. */
  raise(): void {}

  /** Whether another thread has requested a stop. A replay stops at the record at which the recorded run stopped. */
  sense(): boolean {
    if (this.#playback.done) return true;
    const kind = this.#playback.peek();
    // After the end of the trace, no call of the loop is a difference.
    if (kind < 0) this.#playback.over = true;
    if (kind !== Kind.NOTE + Note.STOP) return kind < 0;
    if (this.#codec.words[0] !== 1n) return false;
    this.#playback.take();
    return true;
  }
}

function pageSizeCame(pid: number, address: bigint): string {
  return `page size at 0x${address.toString(16)} of process ${pid}`;
}

/**
 * The port of a userfaultfd that is not recorded, such as a forked child's. Every call succeeds, and no message ever
 * comes.
 */
class InertPort implements KernelPort {
  userfaultfd = (): number => ENOSYS;
  openDevice = (): number => 0;
  ioctl = (): number => 0;
  ioctlValue = (): number => 0;
  read = (): number => EAGAIN;
  poll = (): number => 0;
  fcntl = (): number => 0;
  close = (): number => 0;
  eventfd = (): number => 0;
  pidfd = (): number => 0;
  openPagemap = (): number => 0;
  pageSizeAt = (): number => 0;
  now = (): number => 0;
  addressOf = (): bigint => NOWHERE;
  watch = (): Watch => ({ close() {} });
  after = (): Watch => ({ close() {} });
}
