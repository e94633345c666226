// A trace as JSON in the Trace Event Format, which Chrome and Perfetto open. The JSON is produced in pieces. Only
// waiting faults are kept, so a longer trace needs no more memory.
//
// A fault whose thread is known is on the track of that thread. Every other fault has a track of its own, because
// faults overlap.

import { wrongType } from '../errors/arguments.js';
import type { Mode } from '../kernel/features.js';
import { Kind } from './codec.js';
import { TraceReader } from './reader.js';
import { describe, nameOf } from './record-format.js';
import { type TraceObserver, TraceSummarizer } from './summary.js';

/** The least size of a piece, except the last, in characters. */
const PIECE = 65536;
/** The process that all tracks belong to. Its thread 0 is the track of calls and events. */
const PID = 1;

interface PendingFault {
  readonly id: number;
  readonly timeUs: number;
  readonly kind: Mode;
  readonly access: 'read' | 'write';
  readonly tid: number;
}

/** The trace as JSON, piece by piece. Reads the trace to its end, and closes its reader. */
export function* perfettoJson(reader: TraceReader): Generator<string, void, void> {
  if (!(reader instanceof TraceReader)) throw wrongType('reader', 'a TraceReader', reader);
  const events = new Events(reader.meta.pageSize);
  const summarizer = new TraceSummarizer(reader, events);
  try {
    let text = `{"displayTimeUnit":"ms","traceEvents":[\n${events.begin()}`;
    while (summarizer.next()) {
      events.record(reader);
      text += events.take();
      if (text.length < PIECE) continue;
      yield text;
      text = '';
    }
    events.end();
    const { faults, damage } = summarizer.summary();
    const other = JSON.stringify({ pageSize: reader.meta.pageSize, faults, damage });
    yield `${text}${events.take()}\n],"otherData":${other}}\n`;
  } finally {
    reader.close();
  }
}

/** Makes events from the records of a trace, and keeps them until they are taken. */
class Events implements Partial<TraceObserver> {
  readonly #pageSize: bigint;
  readonly #waiting = new Map<number, PendingFault[]>();
  readonly #threads = new Set<number>();
  #text = '';
  #faults = 0;
  #asleep = 0;
  #lastUs = 0;

  constructor(pageSize: number) {
    this.#pageSize = BigInt(pageSize);
  }

  /** The first events: the names of the process and its tracks. */
  begin(): string {
    const name = (what: string, tid: number, name: string): string =>
      JSON.stringify({ ph: 'M', name: what, pid: PID, tid, args: { name } });
    return `${name('process_name', 0, 'userfaultfd')},\n${name('thread_name', 0, 'calls and events')}`;
  }

  take(): string {
    const text = this.#text;
    this.#text = '';
    return text;
  }

  fault(timeUs: number, page: number, kind: Mode, access: 'read' | 'write', tid: number): void {
    if (tid !== 0 && !this.#threads.has(tid)) {
      this.#threads.add(tid);
      this.#add({ ph: 'M', name: 'thread_name', pid: PID, tid, args: { name: `thread ${tid}` } });
    }
    const one = { id: this.#faults++, timeUs, kind, access, tid };
    const others = this.#waiting.get(page);
    if (others) others.push(one);
    else this.#waiting.set(page, [one]);
    this.#count(timeUs, 1);
  }

  letGo(timeUs: number, page: number): void {
    const waiting = this.#waiting.get(page) ?? [];
    this.#waiting.delete(page);
    for (const one of waiting) this.#slept(one, page, timeUs, true);
    this.#count(timeUs, -waiting.length);
  }

  filledAhead(timeUs: number, page: number, pages: number): void {
    this.#instant('filled ahead', timeUs, { start: this.#hex(page), pages });
  }

  removed(timeUs: number, page: number, pages: number, how: string): void {
    this.#instant(how, timeUs, { start: this.#hex(page), pages });
  }

  /** To call for each record. Each ioctl becomes an event of its own. */
  record(reader: TraceReader): void {
    const { codec } = reader;
    const { kind } = codec;
    this.#lastUs = codec.time;
    if (kind >= Kind.IOCTL && kind < Kind.NOTE)
      this.#instant(nameOf(kind), codec.time, { call: describe(reader.call) });
  }

  /** Ends the events of threads that still sleep at the end of the trace. */
  end(): void {
    for (const [page, waiting] of this.#waiting)
      for (const one of waiting) this.#slept(one, page, this.#lastUs, false);
  }

  #slept({ id, timeUs, kind, access, tid }: PendingFault, page: number, endUs: number, letGo: boolean): void {
    const name = kind === 'missing' ? access : `${kind} ${access}`;
    const about = { name, cat: 'fault', pid: PID, tid };
    const args = { page: this.#hex(page), kind, access, letGo };
    if (tid !== 0) {
      this.#add({ ph: 'X', ...about, ts: timeUs, dur: endUs - timeUs, args });
      return;
    }
    this.#add({ ph: 'b', ...about, id, ts: timeUs, args });
    this.#add({ ph: 'e', ...about, id, ts: endUs });
  }

  #count(timeUs: number, more: number): void {
    this.#asleep += more;
    this.#add({ ph: 'C', name: 'faults waiting', pid: PID, ts: timeUs, args: { faults: this.#asleep } });
  }

  #instant(name: string, timeUs: number, args: object): void {
    this.#add({ ph: 'i', s: 't', name, cat: 'call', pid: PID, tid: 0, ts: timeUs, args });
  }

  #add(event: object): void {
    this.#text += `,\n${JSON.stringify(event)}`;
  }

  #hex(page: number): string {
    return `0x${(BigInt(page) * this.#pageSize).toString(16)}`;
  }
}
