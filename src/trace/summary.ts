// The summary of a run: faults, pages, ranges, latencies. It reads the trace once. The memory that it needs grows with
// the touched pages (one bit for each) and the sleeping threads, not with the trace.

import { wrongType } from '../errors/arguments.js';
import { MODES, type Mode } from '../kernel/features.js';
import { CallbackResult, Note } from '../kernel/port.js';
import { type Message, MessageDecoder } from '../uffd/messages.js';
import { Kind, noteOf } from './codec.js';
import { Histogram } from './histogram.js';
import { openParametersOf } from './open-parameters.js';
import { HugePages, PageSet, type Pages } from './pages.js';
import { TraceReader } from './reader.js';
import { nameOf } from './record-format.js';

const EAGAIN = -11;
/** Most ranges that are listed; further ones are only counted. */
const RANGES_LISTED = 100;
/** The mode bit "do not wake". WRITEPROTECT has it one bit higher, and its first bit means "protect". */
const DONT_WAKE = 1n;
const PROTECT = 1n;
const PROTECT_DONT_WAKE = 2n;
/** The index of an ioctl's struct in the fields of its record. */
const GIVEN = 3;

/** Ioctls that can wake threads, by kind: the words of the struct, and which of them is the length. */
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
  /** How the userfaultfd was opened, and the requested features. `handler`: the calls are a foreign handler's. */
  how: 'open' | 'wrap' | 'handler' | 'unknown';
  features: readonly string[];
  pageSize: number;
  /** Notes of the recorder. */
  about: Record<string, unknown>;
  contents: string;
  /** Milliseconds from the first record to the last. */
  durationMs: number;
  bytes: number;
  blocks: number;
  records: number;
  /** Page faults that were read, by kind and access. */
  faults: number;
  faultsByKind: Record<Mode, { read: number; write: number }>;
  /** Threads that faulted; 0 if the kernel did not report them. */
  threads: number;
  /** Distinct pages that were faulted on. */
  pages: number;
  /** Mapping changes that were read. */
  changes: { remove: number; unmap: number; remap: number; fork: number };
  /**
   * The first ranges that were registered, by `wrap` or during the recording. `rangesRegistered`: how many there were.
   */
  ranges: { start: string; bytes: number; modes: Mode[] }[];
  rangesRegistered: number;
  /** Microseconds from the read of a fault to the call that woke the threads at its page. */
  latencyUs: { count: number; p50: number; p90: number; p99: number; most: number };
  /** Faults that were read, but whose threads no call woke. */
  unresolved: number;
  /** Calls for which the kernel returned EAGAIN, except reads of an empty queue. */
  eagains: number;
  /** Deferred faults, which were offered again. */
  reoffers: number;
  /** How often each call was made, by name. */
  calls: Record<string, number>;
  /** Why the trace ended early. */
  damage?: string;
}

/**
 * Called with the events of a trace, in order, while it is summarised. Times are microseconds since the recording
 * began; pages are numbers: addresses divided by the system's page size.
 */
export interface TraceObserver {
  /** A fault was read. */
  fault(timeUs: number, page: number, kind: Mode, access: 'read' | 'write', tid: number): void;
  /** The threads that waited for a page were woken, `latencyUs` after the first of their faults was read. */
  letGo(timeUs: number, page: number, latencyUs: number): void;
  /** Pages were filled for which no fault waited. */
  filledAhead(timeUs: number, page: number, pages: number): void;
  /** Pages were removed or moved. */
  removed(timeUs: number, page: number, pages: number, how: 'remove' | 'unmap' | 'remap'): void;
  /** `pages` pages from `page` on are parts of huge pages. Each huge page consists of `each` pages. */
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

/** Summarises record by record, for callers that do other work in between. The reader stays open. */
export class TraceSummarizer {
  readonly #reader: TraceReader;
  readonly #observer: Partial<TraceObserver>;
  readonly #decoder = new MessageDecoder();
  readonly #counts = new Uint32Array(64);
  readonly #pages: PageSet;
  readonly #huge = new HugePages();
  readonly #threads = new Set<number>();
  readonly #latency = new Histogram();
  /** When the fault of each page with waiting threads was read. */
  readonly #sleeping = new Map<number, number>();
  readonly #faults = MODES.map(() => ({ read: 0, write: 0 }));
  readonly #changes = { remove: 0, unmap: 0, remap: 0, fork: 0 };
  readonly #ranges: TraceSummary['ranges'] = [];
  /** The range that was registered last. */
  #registered: Pages = { first: 0, end: 0 };
  #rangesRegistered = 0;
  /** The page size that the program passed for the range; 0 if none. */
  #chosenPageSize = 0;
  #eagains = 0;
  #reoffers = 0;
  #lastUs = 0;

  constructor(reader: TraceReader, observer: Partial<TraceObserver> = {}) {
    this.#reader = reader;
    this.#observer = observer;
    this.#pages = new PageSet(reader.meta.pageSize);
    for (const { start, length, modes, pageSize } of openParametersOf(reader.meta)?.ranges ?? []) {
      this.#range(BigInt(start), length, [...modes]);
      this.#pagesAre(pageSize);
    }
  }

  /** Adds the next record to the summary. False if there was none. */
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
    } else if (noteOf(kind) === Note.ANSWER) {
      if (codec.words[0] === CallbackResult.notNow) this.#reoffers++;
    } else if (noteOf(kind) === Note.REGISTER) {
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

  /** Pages of a range that threads wait for, in order. */
  #sleepersOf({ first, end }: Pages): number[] {
    const found: number[] = [];
    if (end - first <= this.#sleeping.size) {
      for (let page = first; page < end; page++) if (this.#sleeping.has(page)) found.push(page);
      return found;
    }
    for (const page of this.#sleeping.keys()) if (page >= first && page < end) found.push(page);
    return found.sort((a, b) => a - b);
  }

  /** Reports the filled pages for which no fault waited. */
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

  /** Notes that the range that was registered last has pages of this size. */
  #pagesAre(pageSize: number): void {
    const each = pageSize / this.#reader.meta.pageSize;
    if (!Number.isInteger(each) || each < 2) return;
    const { first, end } = this.#registered;
    this.#huge.add(first, end, each);
    this.#observer.hugePages?.(first, end - first, each);
  }

  /** The summary so far. */
  summary(): TraceSummary {
    const { meta, bytesRead, blocks, records, damage } = this.#reader;
    const origin = openParametersOf(meta);
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
