// What happened to pages, in columns: one row for each fault, for each stretch of pages that was filled ahead, and for
// each that was removed, in the order of time.

/** What happened; also the order of colours. */
export const What = { read: 0, write: 1, removed: 2, prefetched: 3 } as const;
export const WHATS = ['read', 'write', 'removed', 'prefetched'] as const;

/** No latency: the fault was not let go, or joined one that waited already. */
export const NO_LATENCY = -1;
const LATENCY_MOST = 2 ** 31 - 1;

export class Events {
  length = 0;
  /** Microseconds since the recording began; never less than the one before. */
  time = new Float64Array(1024);
  /** The first page, and how many. */
  page = new Float64Array(1024);
  pages = new Float64Array(1024);
  what = new Uint8Array(1024);
  /** Of a fault the index of its kind (KINDS), of a removal that of its cause (CAUSES). */
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

  /** The first event that is not before a time. */
  firstAt(time: number): number {
    return this.#first((other) => other >= time);
  }

  /** The first event that is after a time. */
  firstAfter(time: number): number {
    return this.#first((other) => other > time);
  }

  #first(isTrue: (time: number) => boolean): number {
    let low = 0;
    let high = this.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (isTrue(this.time[middle] as number)) high = middle;
      else low = middle + 1;
    }
    return low;
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
export const CAUSES = ['remove', 'unmap', 'remap'] as const;

/** What an event is called. */
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
