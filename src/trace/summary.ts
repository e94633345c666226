// What a trace tells of a run: faults, pages, ranges, how long answers took. It reads the trace once, and what it
// keeps grows with the pages that were touched (a bit each) and with the threads that sleep, not with the trace.

import { wrongType } from '../arguments.js';
import { MODES } from '../core.js';
import type { Mode } from '../features.js';
import { Answer, Note } from '../kernel.js';
import { type Message, MessageDecoder } from '../messages.js';
import { Kind } from './codec.js';
import { Histogram } from './histogram.js';
import { originOf } from './origin.js';
import { HugePages, PageSet, type Pages } from './pages.js';
import { TraceReader } from './reader.js';
import { nameOf } from './records.js';

const EAGAIN = -11;
/** Ranges that are listed; more are counted. */
const RANGES_LISTED = 100;
/** Of a struct's mode: leave the sleepers asleep. WRITEPROTECT has it one bit further, and protects by the first. */
const DONT_WAKE = 1n;
const PROTECT = 1n;
const PROTECT_DONT_WAKE = 2n;
/** Where an ioctl's struct begins, in fields. */
const GIVEN = 3;

/** Ioctls that can let sleepers go, by kind: words of the struct, and which of them is the length. */
const RESOLVING: Readonly<Record<number, { words: number; length: number; filled: boolean }>> = {
  [Kind.IOCTL + 1]: { words: 2, length: 1, filled: false },
  [Kind.IOCTL + 2]: { words: 2, length: 1, filled: false },
  [Kind.IOCTL + 3]: { words: 5, length: 2, filled: true },
  [Kind.IOCTL + 4]: { words: 4, length: 1, filled: true },
  [Kind.IOCTL + 5]: { words: 5, length: 2, filled: true },
  [Kind.IOCTL + 6]: { words: 3, length: 1, filled: false },
  [Kind.IOCTL + 7]: { words: 4, length: 1, filled: true },
  [Kind.IOCTL + 8]: { words: 4, length: 1, filled: true },
};
const REGISTER = Kind.IOCTL;
const MOVE = Kind.IOCTL + 5;
const WRITEPROTECT = Kind.IOCTL + 6;
const POISON = Kind.IOCTL + 8;

export interface TraceSummary {
  /** How the userfaultfd came to be; and the features that were asked for. */
  how: 'open' | 'wrap' | 'unknown';
  features: readonly string[];
  pageSize: number;
  /** What its recorder wrote down of itself. */
  about: Record<string, unknown>;
  contents: string;
  /** From the first record to the last. */
  durationMs: number;
  bytes: number;
  blocks: number;
  records: number;
  /** Page faults that were read, by kind and access. */
  faults: number;
  faultsByKind: Record<Mode, { read: number; write: number }>;
  /** Threads that faulted; 0 where the kernel did not say which. */
  threads: number;
  /** Different pages that were faulted on. */
  pages: number;
  /** Mapping changes that were read. */
  changes: { remove: number; unmap: number; remap: number; fork: number };
  /** Registered, by wrap or during the recording; the first of them, and how many there were. */
  ranges: { start: string; bytes: number; modes: Mode[] }[];
  rangesRegistered: number;
  /** From the read of a fault to the call that let its page's sleepers go. */
  latencyUs: { count: number; p50: number; p90: number; p99: number; most: number };
  /** Faults that were read and not let go by a call. */
  unresolved: number;
  /** Calls that the kernel answered with EAGAIN, reads of an empty queue aside. */
  eagains: number;
  /** Answers "not now": the fault was offered again. */
  reoffers: number;
  /** How often each call was made, by name. */
  calls: Record<string, number>;
  /** Why the trace ends before its time. */
  damage?: string;
}

/**
 * Is told what happened, in the trace's order, while it is summarised. Times are microseconds since the recording began;
 * pages are numbers: addresses in pages of the system's size.
 */
export interface TraceObserver {
  /** A fault was read. */
  fault(timeUs: number, page: number, kind: Mode, access: 'read' | 'write', tid: number): void;
  /** Who sleeps on a page goes on, so long after the first fault of them was read. */
  letGo(timeUs: number, page: number, latencyUs: number): void;
  /** Pages were filled for which no fault waited. */
  filledAhead(timeUs: number, page: number, pages: number): void;
  /** Pages are gone, or elsewhere. */
  removed(timeUs: number, page: number, pages: number, how: 'remove' | 'unmap' | 'remap'): void;
  /** There are huge pages in this range, of so many pages each. */
  hugePages(page: number, pages: number, each: number): void;
}

/** Reads a trace to its end, and closes its reader. */
export function summarize(reader: TraceReader, observer?: Partial<TraceObserver>): TraceSummary {
  if (!(reader instanceof TraceReader)) throw wrongType('reader', 'a TraceReader', reader);
  const summarizer = new TraceSummarizer(reader, observer);
  try {
    while (summarizer.next());
  } finally {
    reader.close();
  }
  return summarizer.summary();
}

/** The same record by record, for those who have something else to do in between. The reader stays open. */
export class TraceSummarizer {
  readonly #reader: TraceReader;
  readonly #observer: Partial<TraceObserver>;
  readonly #decoder = new MessageDecoder();
  readonly #counts = new Uint32Array(64);
  readonly #pages: PageSet;
  readonly #huge = new HugePages();
  readonly #threads = new Set<number>();
  readonly #latency = new Histogram();
  /** When the fault of each page that sleeps was read. */
  readonly #sleeping = new Map<number, number>();
  readonly #faults = MODES.map(() => ({ read: 0, write: 0 }));
  readonly #changes = { remove: 0, unmap: 0, remap: 0, fork: 0 };
  readonly #ranges: TraceSummary['ranges'] = [];
  /** The one that was registered last. */
  #registered: Pages = { first: 0, end: 0 };
  #rangesRegistered = 0;
  /** What the program said of the range that it registers; 0: nothing. */
  #chosenPageSize = 0;
  #eagains = 0;
  #reoffers = 0;
  #lastUs = 0;

  constructor(reader: TraceReader, observer: Partial<TraceObserver> = {}) {
    this.#reader = reader;
    this.#observer = observer;
    this.#pages = new PageSet(reader.meta.pageSize);
    for (const { start, length, modes, pageSize } of originOf(reader.meta)?.ranges ?? []) {
      this.#range(BigInt(start), length, [...modes]);
      this.#pagesAre(pageSize);
    }
  }

  /** Takes the next record in. False: there was none. */
  next(): boolean {
    if (!this.#reader.next()) return false;
    this.#take();
    return true;
  }

  #take(): void {
    const { codec, payload } = this.#reader;
    const { kind } = codec;
    this.#counts[kind] = (this.#counts[kind] as number) + 1;
    this.#lastUs = codec.time;
    if (kind === Kind.READ) {
      if (payload.length % 32 === 0)
        for (const message of this.#decoder.decode(payload)) this.#message(message);
    } else if (kind === Kind.NOTE + Note.ANSWER) {
      if (codec.words[0] === Answer.notNow) this.#reoffers++;
    } else if (kind === Kind.NOTE + Note.REGISTER) {
      this.#chosenPageSize = codec.integer(3);
    } else if (kind === Kind.PAGE_SIZE_AT) {
      this.#pagesAre(codec.integer(2));
    } else if (kind >= Kind.IOCTL && kind < Kind.NOTE) {
      this.#ioctl(kind, codec.words, codec.number(2));
    }
  }

  #message(message: Message): void {
    if (message.event === 'unknown') return;
    if (message.event !== 'pagefault') {
      this.#changes[message.event]++;
      this.#changed(message);
      return;
    }
    const { kind, access, tid, address } = message;
    (this.#faults[MODES.indexOf(kind)] as { read: number; write: number })[access]++;
    if (tid !== 0) this.#threads.add(tid);
    const page = this.#pages.add(address);
    if (!this.#sleeping.has(page)) this.#sleeping.set(page, this.#lastUs);
    this.#observer.fault?.(this.#lastUs, page, kind, access, tid);
  }

  #changed(message: Message): void {
    if (message.event === 'remap') {
      const { from, length } = message;
      if (length > 0) this.#removed(this.#pagesOf(from, BigInt(length)), message.event);
    } else if ((message.event === 'remove' || message.event === 'unmap') && message.end > message.start) {
      this.#removed(this.#pagesOf(message.start, message.end - message.start), message.event);
    }
  }

  #removed({ first, end }: Pages, how: 'remove' | 'unmap' | 'remap'): void {
    this.#observer.removed?.(this.#lastUs, first, end - first, how);
  }

  #ioctl(kind: number, words: BigUint64Array, result: number): void {
    if (result === EAGAIN) this.#eagains++;
    const word = (index: number): bigint => words[GIVEN + index] as bigint;
    if (kind === REGISTER && result === 0) {
      const modes = MODES.filter((_, bit) => (word(2) >> BigInt(bit)) & 1n);
      this.#range(word(0), Number(word(1)), modes);
      this.#pagesAre(this.#chosenPageSize);
    }
    const shape = RESOLVING[kind];
    if (!shape) return;
    const { length, filled, words: count } = shape;
    const mode = filled || kind === WRITEPROTECT ? word(length + 1) : 0n;
    const done =
      filled && result < 0 ? BigInt.asIntN(64, word(2 * count - 1)) : result < 0 ? 0n : word(length);
    if (done <= 0n || (kind === MOVE && result !== 0)) return;
    const pages = this.#pagesOf(word(0), done);
    if (filled && kind !== POISON && this.#observer.filledAhead) this.#filled(pages);
    const asleep =
      kind === WRITEPROTECT ? mode & (PROTECT | PROTECT_DONT_WAKE) : filled ? mode & DONT_WAKE : 0n;
    if (!asleep) for (const page of this.#sleepersOf(pages)) this.#wake(page);
  }

  #pagesOf(start: bigint, bytes: bigint): Pages {
    return { first: this.#pages.pageOf(start), end: this.#pages.pageOf(start + bytes - 1n) + 1 };
  }

  /** Pages of a range that somebody sleeps on, in their order. */
  #sleepersOf({ first, end }: Pages): number[] {
    const found: number[] = [];
    if (end - first <= this.#sleeping.size) {
      for (let page = first; page < end; page++) if (this.#sleeping.has(page)) found.push(page);
      return found;
    }
    for (const page of this.#sleeping.keys()) if (page >= first && page < end) found.push(page);
    return found.sort((a, b) => a - b);
  }

  /** Tells what lies between the pages that faults waited for. */
  #filled(pages: Pages): void {
    let { first } = pages;
    const tell = (end: number): void => {
      if (end > first) this.#observer.filledAhead?.(this.#lastUs, first, end - first);
    };
    for (const page of this.#sleepersOf(pages)) {
      const whole = this.#huge.whole(page);
      tell(whole.first);
      first = Math.max(first, whole.end);
    }
    tell(pages.end);
  }

  #wake(page: number): void {
    const since = this.#sleeping.get(page);
    if (since === undefined) return;
    this.#sleeping.delete(page);
    const latencyUs = this.#lastUs - since;
    this.#latency.add(latencyUs);
    this.#observer.letGo?.(this.#lastUs, page, latencyUs);
  }

  #range(start: bigint, bytes: number, modes: Mode[]): void {
    this.#rangesRegistered++;
    if (bytes > 0) this.#registered = this.#pagesOf(start, BigInt(bytes));
    if (this.#ranges.length < RANGES_LISTED) {
      this.#ranges.push({ start: `0x${start.toString(16)}`, bytes, modes });
    }
  }

  /** The range that was registered last has pages of this size. */
  #pagesAre(pageSize: number): void {
    const each = pageSize / this.#reader.meta.pageSize;
    if (!Number.isInteger(each) || each < 2) return;
    const { first, end } = this.#registered;
    this.#huge.add(first, end, each);
    this.#observer.hugePages?.(first, end - first, each);
  }

  /** What was found so far. */
  summary(): TraceSummary {
    const { meta, bytesRead, blocks, records, damage } = this.#reader;
    const origin = originOf(meta);
    const calls: Record<string, number> = {};
    for (const [kind, count] of this.#counts.entries()) {
      if (count > 0) calls[nameOf(kind)] = (calls[nameOf(kind)] ?? 0) + count;
    }
    return {
      how: origin?.how ?? 'unknown',
      features: [...(origin?.features ?? []), ...(origin?.optional ?? [])],
      pageSize: meta.pageSize,
      about: (meta.about as Record<string, unknown> | undefined) ?? {},
      contents: (meta.contents as string | undefined) ?? 'none',
      durationMs: this.#lastUs / 1000,
      bytes: bytesRead,
      blocks,
      records,
      faults: this.#faults.reduce((sum, { read, write }) => sum + read + write, 0),
      faultsByKind: Object.fromEntries(
        MODES.map((mode, index) => [mode, this.#faults[index]]),
      ) as TraceSummary['faultsByKind'],
      threads: this.#threads.size,
      pages: this.#pages.size,
      changes: this.#changes,
      ranges: this.#ranges,
      rangesRegistered: this.#rangesRegistered,
      latencyUs: {
        count: this.#latency.count,
        p50: this.#latency.percentile(50),
        p90: this.#latency.percentile(90),
        p99: this.#latency.percentile(99),
        most: this.#latency.most,
      },
      unresolved: this.#sleeping.size,
      eagains: this.#eagains,
      reoffers: this.#reoffers,
      calls,
      ...(damage === undefined ? {} : { damage }),
    };
  }
}
