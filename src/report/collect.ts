// Reads a trace into what the page shows: the summary of `uffd inspect` and, in the same pass, the columns that are
// drawn.

import { bucketOf } from '../trace/histogram.js';
import { HugePages } from '../trace/pages.js';
import { TraceReader } from '../trace/reader.js';
import { type TraceObserver, TraceSummarizer, type TraceSummary } from '../trace/summary.js';
import { CAUSES, Events, KINDS, type Kind, What } from './events.js';
import { type Growth, growthOf } from './growth.js';
import { Rows } from './rows.js';
import { inSlices, turn } from './slices.js';

/** A trace, as the page keeps it. */
export interface Model {
  readonly name: string;
  readonly summary: TraceSummary;
  readonly events: Events;
  readonly rows: Rows;
  /** The rows of each event: the first one, and their number. */
  readonly row: Float64Array;
  readonly height: Float64Array;
  /** The histogram bucket of each latency. */
  readonly bucket: Uint16Array;
  /** Undefined if there are too many pages to count. */
  readonly growth: Growth | undefined;
  /** Microseconds. */
  readonly duration: number;
}

/** @throws TraceError if these bytes are no trace */
export async function collect(
  name: string,
  bytes: Uint8Array,
  progress: (part: number) => void,
): Promise<Model> {
  const reader = TraceReader.of(bytes);
  const columns = new Columns();
  const summarizer = new TraceSummarizer(reader, columns);
  await inSlices(
    () => summarizer.next(),
    () => progress(reader.bytesRead / bytes.length),
  );
  progress(1);
  await turn();
  return modelOf(name, summarizer.summary(), columns.events);
}

function modelOf(name: string, summary: TraceSummary, events: Events): Model {
  const rows = new Rows(events);
  const row = new Float64Array(events.length);
  const height = new Float64Array(events.length);
  const bucket = new Uint16Array(events.length);
  for (let at = 0; at < events.length; at++) {
    const first = events.page[at] as number;
    row[at] = rows.rowOf(first);
    height[at] = Math.max(0, rows.rowBehind(first + (events.pages[at] as number)) - (row[at] as number));
    bucket[at] = bucketOf(Math.max(0, events.latency[at] as number));
  }
  const growth = growthOf(events, row, height, rows.count);
  const duration = Math.max(summary.durationMs * 1000, 1);
  return { name, summary, events, rows, row, height, bucket, growth, duration };
}

/** Records the events that the summary meets. */
class Columns implements TraceObserver {
  readonly events = new Events();
  readonly #huge = new HugePages();
  #anyHuge = false;
  /** The first fault of each page that threads wait for. */
  readonly #waiting = new Map<number, number>();

  fault(timeUs: number, page: number, kind: Kind, access: 'read' | 'write', tid: number): void {
    let [first, pages] = [page, 1];
    if (this.#anyHuge) {
      const whole = this.#huge.whole(page);
      [first, pages] = [whole.first, whole.end - whole.first];
    }
    const at = this.events.add(timeUs, first, pages, What[access], KINDS.indexOf(kind), tid);
    if (!this.#waiting.has(page)) this.#waiting.set(page, at);
  }

  letGo(_timeUs: number, page: number, latencyUs: number): void {
    const at = this.#waiting.get(page);
    if (at === undefined) return;
    this.#waiting.delete(page);
    this.events.setLatency(at, latencyUs);
  }

  filledAhead(timeUs: number, page: number, pages: number): void {
    this.events.add(timeUs, page, pages, What.prefetched, 0, 0);
  }

  removed(timeUs: number, page: number, pages: number, how: (typeof CAUSES)[number]): void {
    this.events.add(timeUs, page, pages, What.removed, CAUSES.indexOf(how), 0);
  }

  hugePages(page: number, pages: number, each: number): void {
    this.#anyHuge = true;
    this.#huge.add(page, page + pages, each);
  }
}
