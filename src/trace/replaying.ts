// A kernel that answers from a trace. Every call is held against the next record: the same call with the same
// arguments gets the recorded answer; the first that differs is noted, and from then on nothing is answered but what
// lets the caller come to an end.
//
// Rules:
//  - Nothing is asked of the system, and nothing is waited for.
//  - Bytes that the kernel wrote are written again, where the caller has them now.
//  - Where the bytes of a page lie, and how many there are behind it, is not compared: that is another in every run.

import { Op } from '../core.js';
import { type Kernel, type KernelPort, Note, type Watch } from '../kernel.js';
import { Kind, NOTE_FIELDS } from './codec.js';
import type { TraceReader } from './reader.js';
import { bitsOf } from './recording.js';
import { type Call, callOf, describe, nameOf } from './records.js';

const EAGAIN = -11;
const ENOSYS = -38;
const STRUCT_WORDS_MOST = 12;
/** Words of COPY's struct: where the source lies. */
const COPY_REQUEST = 0xc028aa03;
const SOURCE_WORD = 1;
/** Where the source, or the page size, lies in a note; and the notes in which that is the same in every run. */
const SOURCE_FIELD = 3;
const SOURCE_COMPARED: ReadonlySet<number> = new Set([Op.move, Note.REGISTER]);
/** How many calls before a difference are told. */
const BEFORE_KEPT = 8;
/** Halves of words that a record takes, and where in it an ioctl's struct begins. */
const HALVES = 60;
const GIVEN_AT = 4 + 3 * 2;
/** Addresses that a userfaultfd that was not recorded would have. */
const NOWHERE = 0x1000n;

/** The first call that differs from the trace. */
export interface Difference {
  /** Its number in the trace, from 0; the description has none. */
  readonly index: number;
  /** The recorded call, and the one that came, as people read them. */
  readonly expected: string;
  readonly came: string;
  /** The last calls before it, in order. */
  readonly before: readonly string[];
}

export class Playback {
  difference: Difference | undefined;
  /** The replay is over: nothing is compared any more. */
  over = false;
  readonly callbacks = new Map<number, () => void>();
  /** Makes the call of the program's that the next record tells. */
  program: () => void = () => {};
  readonly #reader: TraceReader;
  /** The last records that were used up, as they lay in the codec. */
  readonly #kept = Array.from({ length: BEFORE_KEPT }, () => new Uint32Array(HALVES));
  /** Whether a record lies ready in the codec that nobody has asked for. */
  #ahead = false;
  #index = -1;

  constructor(reader: TraceReader) {
    this.#reader = reader;
  }

  get pageSize(): number {
    return this.#reader.meta.pageSize;
  }

  get codec(): TraceReader['codec'] {
    return this.#reader.codec;
  }

  /** Calls are answered with what lets the caller come to an end. */
  get done(): boolean {
    return this.over || this.difference !== undefined;
  }

  /** Records that were used up. */
  get used(): number {
    return this.#index + (this.#ahead ? 0 : 1);
  }

  /** The kind of the next record; −1: there is none. */
  peek(): number {
    if (!this.#ahead) {
      if (!this.#reader.next()) return -1;
      this.#ahead = true;
      this.#index++;
    }
    return this.codec.kind;
  }

  /** The next record is used up; it stays readable in the codec until the one behind it is looked at. */
  take(): void {
    this.peek();
    this.#ahead = false;
    this.#kept[this.#index % BEFORE_KEPT]?.set(this.codec.halves);
  }

  /** Whether the next record is of a kind, and all went well so far; else that is the difference. */
  expect(kind: number, came: () => string): boolean {
    if (this.done) return false;
    if ((kind < Kind.NOTE ? this.peekCall() : this.peek()) === kind) return true;
    this.differ(came());
    return false;
  }

  /**
   * The kind of the next record, which is to be a call. In a simulated kernel the program may go on while a call is
   * under way: what it did then stands before the call, and is done here.
   */
  peekCall(): number {
    for (;;) {
      const kind = this.peek();
      if (kind < Kind.NOTE || kind === Kind.NOTE + Note.ANSWER || this.done) return kind;
      const { used } = this;
      this.program();
      if (this.used === used) return kind;
    }
  }

  /** Notes that this came instead of the next record. Behind the end of a trace that was cut, everything is right. */
  differ(came: string): void {
    if (this.done) return;
    const there = this.peek() >= 0;
    if (!there && this.#reader.damage !== undefined) {
      this.over = true;
      return;
    }
    this.difference = {
      index: there ? this.#index : this.#index + 1,
      expected: there ? describe(callOf(this.codec.halves)) : 'the end of the trace',
      came,
      before: this.#lastCalls().map(describe),
    };
  }

  #lastCalls(): Call[] {
    const { used } = this;
    const calls: Call[] = [];
    for (let index = Math.max(used - BEFORE_KEPT, 0); index < used; index++) {
      calls.push(callOf(this.#kept[index % BEFORE_KEPT] as Uint32Array));
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
  readonly #playback: Playback;
  readonly #memory: WebAssembly.Memory;
  #halves = new Uint32Array();

  constructor(playback: Playback, memory: WebAssembly.Memory) {
    this.#playback = playback;
    this.#memory = memory;
  }

  /** The core's memory in halves of words; taken again after it grew. */
  get #view(): Uint32Array {
    if (this.#halves.length === 0) this.#halves = new Uint32Array(this.#memory.buffer);
    return this.#halves;
  }

  /** A call of numbers alone: the last field of its record is the answer. */
  #call(kind: number, ...given: readonly number[]): number {
    const { codec } = this.#playback;
    const came = (): string => `${nameOf(kind)}(${given.join(', ')})`;
    if (!this.#playback.expect(kind, came)) return 0;
    if (given.some((value, index) => codec.number(index) !== value)) {
      this.#playback.differ(came());
      return 0;
    }
    this.#playback.take();
    return codec.number(given.length);
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
    const came = (): string => `page size at 0x${address.toString(16)} of process ${pid}`;
    if (!this.#playback.expect(Kind.PAGE_SIZE_AT, came)) return this.#playback.pageSize;
    const { codec } = this.#playback;
    if (codec.words[1] !== address || codec.integer(0) !== pid) this.#playback.differ(came());
    else this.#playback.take();
    return codec.integer(2);
  }

  // ---- the hot path --------------------------------------------------------------------------------------

  ioctl(fd: number, request: number, at: number): number {
    const { codec } = this.#playback;
    const kind = codec.exports.traceIoctlKind(request);
    const words = Math.min((request >>> 19) & 0x7ff, STRUCT_WORDS_MOST);
    const view = this.#view;
    const from = at >>> 2;
    if (!this.#playback.expect(kind, () => this.#ioctlCame(kind, fd, request, at, words))) return 0;
    const recorded = codec.halves;
    let same = codec.number(0) === fd && codec.half(1) === request;
    for (let half = 0; half < words * 2 && same; half++) {
      if (request === COPY_REQUEST && half >> 1 === SOURCE_WORD) continue;
      same = recorded[GIVEN_AT + half] === view[from + half];
    }
    if (!same) {
      this.#playback.differ(this.#ioctlCame(kind, fd, request, at, words));
      return 0;
    }
    this.#playback.take();
    const back = GIVEN_AT + words * 2;
    for (let half = 0; half < words * 2; half++) view[from + half] = recorded[back + half] as number;
    return codec.number(2);
  }

  #ioctlCame(kind: number, fd: number, request: number, at: number, words: number): string {
    const given = new BigUint64Array(this.#memory.buffer, at, words);
    return describe({ kind, time: 0, words: [BigInt(fd), BigInt(request), 0n, ...given] });
  }

  read(fd: number, at: number, length: number): number {
    const { codec } = this.#playback;
    const came = (): string => `read(${fd}, ${length})`;
    if (this.#playback.done) return EAGAIN;
    const kind = this.#playback.peekCall();
    const reads = kind === Kind.READ || kind === Kind.READ_EMPTY;
    if (!reads || codec.number(0) !== fd || codec.number(1) !== length) {
      this.#playback.differ(came());
      return EAGAIN;
    }
    this.#playback.take();
    if (kind === Kind.READ_EMPTY) return EAGAIN;
    const result = codec.number(2);
    if (result > 0) new Uint8Array(this.#memory.buffer, at, result).set(codec.payloadRead);
    return result;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    const { codec } = this.#playback;
    const view = this.#view;
    const from = at >>> 2;
    const came = (): string => {
      const fds = Array.from({ length: count }, (_, index) => (view[from + index * 2] as number) | 0);
      return `poll([${fds.join(', ')}], ${timeoutMs})`;
    };
    if (!this.#playback.expect(Kind.POLL, came)) return 0;
    let same = codec.number(0) === count && codec.number(1) === timeoutMs;
    for (let index = 0; index < count && same; index++) {
      same = codec.number(3 + index * 2) === ((view[from + index * 2] as number) | 0);
    }
    if (!same) {
      this.#playback.differ(came());
      return 0;
    }
    this.#playback.take();
    for (let index = 0; index < count; index++) view[from + index * 2 + 1] = codec.number(4 + index * 2);
    return codec.number(2);
  }

  now(): number {
    const { codec } = this.#playback;
    if (!this.#playback.expect(Kind.NOW, () => 'now()')) return codec.time / 1000;
    this.#playback.take();
    return codec.time / 1000;
  }

  addressOf(view: ArrayBufferView): bigint {
    const { codec } = this.#playback;
    const came = (): string => `the address of ${view.byteLength} bytes`;
    if (!this.#playback.expect(Kind.ADDRESS_OF, came)) return NOWHERE;
    this.#playback.take();
    const address = codec.words[1] as bigint;
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
    const { codec } = playback;
    const inert = { close() {} };
    if (!playback.expect(kind, () => came)) return inert;
    if (codec.words[0] !== argument) {
      playback.differ(came);
      return inert;
    }
    playback.take();
    const id = codec.number(1);
    playback.callbacks.set(id, callback);
    return {
      close: () => {
        playback.callbacks.delete(id);
        const closes = (): string => `unwatch(${id})`;
        if (!playback.expect(Kind.UNWATCH, closes)) return;
        if (codec.number(0) === id) playback.take();
        else playback.differ(closes());
      },
    };
  }

  note(code: Note, first: bigint, second: number, third: number, fourth: bigint): void {
    const { codec } = this.#playback;
    const kind = Kind.NOTE + code;
    const came = (): string =>
      describe({ kind, time: 0, words: [first, BigInt(second), BigInt(third), fourth] });
    if (!this.#playback.expect(kind, came)) return;
    const fields = NOTE_FIELDS[code] as number;
    const same =
      codec.words[0] === first &&
      (fields < 2 || codec.integer(1) === second) &&
      (fields < 3 || codec.number(2) === third) &&
      (fields < 4 || !SOURCE_COMPARED.has(code) || codec.words[SOURCE_FIELD] === fourth);
    if (same) this.#playback.take();
    else this.#playback.differ(came());
  }

  /** A stop that another thread asked for is found where it was found. */
  sense(): boolean {
    if (this.#playback.done || this.#playback.peek() < 0) return true;
    if (this.#playback.codec.kind !== Kind.NOTE + Note.STOP || this.#playback.codec.words[0] !== 1n)
      return false;
    this.#playback.take();
    return true;
  }
}

/** The port of a userfaultfd that was not recorded: a child's. Everything works, and nothing ever happens. */
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
