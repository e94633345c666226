// Events of pages, in columns: one row for each fault, each extent that was filled ahead, and each removal, in the
// order of time.

import { firstIndex } from './numbers.js';

/** The sorts of events, which is also the order of colours. */
export const What = { read: 0, write: 1, removed: 2, prefetched: 3 } as const;
export const WHATS = ['read', 'write', 'removed', 'prefetched'] as const;

/** The latency of a fault that was not answered, or that joined a fault that was waiting already. */
export const NO_LATENCY = -1;
const LATENCY_MOST = 2 ** 31 - 1;

export class Events {
  length = 0;
  /** Microseconds since the recording began, ascending. */
  time = new Float64Array(1024);
  /** The first page, and the number of pages. */
  page = new Float64Array(1024);
  pages = new Float64Array(1024);
  what = new Uint8Array(1024);
  /** For a fault the index of its kind (KINDS), for a removal that of its cause (CAUSES). */
  detail = new Uint8Array(1024);
  /** Microseconds, or NO_LATENCY. */
  latency = new Int32Array(1024);
  thread = new Uint32Array(1024);

  add(time: number, page: number, pages: number, what: number, detail: number, thread: number): number {
    if (this.length === this.time.length) this.#grow();
    const at = this.length++;
    this.time[at] = at > 0 ? Math.max(time, this.time[at - 1] as number) : time;
    this.page[at] = page;
    this.pages[at] = pages;
    this.what[at] = what;
    this.detail[at] = detail;
    this.latency[at] = NO_LATENCY;
    this.thread[at] = thread;
    return at;
  }

  setLatency(at: number, latencyUs: number): void {
    this.latency[at] = Math.min(Math.max(0, latencyUs), LATENCY_MOST);
  }

  /** The first event at or after a time. */
  firstAt(time: number): number {
    return firstIndex(this.length, (at) => (this.time[at] as number) >= time);
  }

  /** The first event after a time. */
  firstAfter(time: number): number {
    return firstIndex(this.length, (at) => (this.time[at] as number) > time);
  }

  #grow(): void {
    const size = this.length * 2;
    const grown = <T extends { set(from: T): void }>(from: T, to: T): T => {
      to.set(from);
      return to;
    };
    this.time = grown(this.time, new Float64Array(size));
    this.page = grown(this.page, new Float64Array(size));
    this.pages = grown(this.pages, new Float64Array(size));
    this.what = grown(this.what, new Uint8Array(size));
    this.detail = grown(this.detail, new Uint8Array(size));
    this.latency = grown(this.latency, new Int32Array(size));
    this.thread = grown(this.thread, new Uint32Array(size));
  }
}

/** Kinds of faults, and causes of removals, by `detail`. */
export const KINDS = ['missing', 'write-protect', 'minor'] as const;
export type Kind = (typeof KINDS)[number];
export const CAUSES = ['remove', 'unmap', 'remap'] as const;

/** The name of an event. */
export function nameOf(events: Events, at: number): string {
  const detail = events.detail[at] as number;
  switch (events.what[at]) {
    case What.removed:
      return CAUSES[detail] ?? 'remove';
    case What.prefetched:
      return 'prefetched';
    default: {
      const access = events.what[at] === What.write ? 'write' : 'read';
      return detail === 0 ? access : `${KINDS[detail]} ${access}`;
    }
  }
}

export function isFault(events: Events, at: number): boolean {
  return (events.what[at] as number) <= What.write;
}
