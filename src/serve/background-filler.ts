// Installs pages in the background: first those that a recorded run has touched, then, if requested, all others.
//
// Rules:
//  - A step is short, because a fault that comes meanwhile waits for its end.
//  - A page that cannot be installed in the background is no failure: the guest faults on it when it needs it. If there
//    is no memory, the work pauses. Pages that are not mapped or cannot be read are left out, and counted.
//  - Parts that the source does not have yet are left for later, and the work goes on with the others.
//  - Threads that wait for these pages are woken after the step. If each page woke its thread, the thread would sleep
//    again at the next missing page, and prefetching would save no wake-ups.

import { UffdError } from '../errors/errors.js';
import { wholePages } from '../memory/whole-pages.js';
import type { Userfaultfd } from '../uffd/userfaultfd.js';
import type { Count, Tally } from './counters.js';
import type { SharedRanges } from './extents.js';
import { type Region, SYSTEM_PAGE } from './handoff-protocol.js';
import { AHEAD_BYTES, type SnapshotHandler } from './snapshot-handler.js';

/** A step makes at most this many calls (each separate page takes one), and installs at most this many bytes. */
const STEP_CALLS = 32;
const STEP_BYTES = 4 * AHEAD_BYTES;
/** Calls in a row without progress, after which the page is left out. */
const FRUITLESS_MOST = 4;
/** Error codes after which the work pauses: there is no memory now. */
const PAUSING: ReadonlySet<string> = new Set(['ENOMEM', 'ENOSPC']);

export interface BackgroundOptions {
  /** Ranges of the memory file, in the order of installation. */
  readonly prefetch: SharedRanges;
  readonly eager: boolean;
  readonly tally: Tally;
}

export class BackgroundFiller {
  readonly #handler: SnapshotHandler;
  readonly #uffd: Userfaultfd;
  /** The guest's regions at the time when the part was looked up. */
  #regions: readonly Region[];
  /** Parts of the memory file: first those to prefetch, then whole regions. */
  #parts: Float64Array;
  /** Index of the first part that is not to prefetch. */
  #eager: number;
  /** Parts that the source did not have, as offset and length: to prefetch, and others. */
  #absent: [prefetch: number[], eager: number[]] = [[], []];
  readonly #tally: Tally;
  #pause: string | undefined;
  /** Calls in a row without progress. */
  #fruitless = 0;
  /** The next part, and the region in which it is looked up. */
  #part = 0;
  #place = 0;
  /** The region that is being filled, and the range of file offsets. */
  #region: Region | undefined;
  #at = 0;
  #to = 0;
  /** The addresses between which threads may have been left asleep. Page addresses fit in numbers. */
  #asleepFrom = Number.POSITIVE_INFINITY;
  #asleepTo = 0;

  constructor(handler: SnapshotHandler, { prefetch, eager, tally }: BackgroundOptions, uffd: Userfaultfd) {
    const { regions } = handler;
    this.#handler = handler;
    this.#tally = tally;
    this.#uffd = uffd;
    this.#regions = regions;
    const rest = eager ? regions.flatMap(({ offset, length }) => [offset, length]) : [];
    this.#parts = new Float64Array(prefetch.length + rest.length);
    this.#parts.set(prefetch);
    this.#parts.set(rest, prefetch.length);
    this.#eager = prefetch.length;
  }

  /** Why the work pauses; undefined if it does not. */
  get pause(): string | undefined {
    return this.#pause;
  }

  /** Does one step. 'waiting': the source does not have what is left; the next step looks for it again. */
  step(): 'more' | 'done' | 'paused' | 'waiting' {
    this.#pause = undefined;
    try {
      for (let bytes = 0, calls = 0; bytes < STEP_BYTES && calls < STEP_CALLS; calls++) {
        this.#followRegions();
        if (this.#uffd.closed) return 'done';
        if (this.#at >= this.#to && !this.#next()) return this.#beginAgain() ? 'waiting' : 'done';
        bytes += this.#fill(this.#region as Region);
        if (this.#pause) return 'paused';
        // End the step after a call without progress, because the call may succeed in the next step.
        if (this.#fruitless > 0) break;
      }
    } finally {
      this.#wake();
    }
    return 'more';
  }

  /** Makes what was absent the parts of the next pass. False: nothing was. */
  #beginAgain(): boolean {
    const [prefetch, eager] = this.#absent;
    this.#absent = [[], []];
    this.#parts = Float64Array.from([...prefetch, ...eager]);
    this.#eager = prefetch.length;
    this.#part = 0;
    return this.#parts.length > 0;
  }

  #wake(): void {
    if (this.#asleepTo > this.#asleepFrom && !this.#uffd.closed) {
      this.#uffd.wake(BigInt(this.#asleepFrom), this.#asleepTo - this.#asleepFrom);
    }
    this.#asleepFrom = Number.POSITIVE_INFINITY;
    this.#asleepTo = 0;
  }

  /** Looks the part up again after an mremap. Its pages that were installed before count as present. */
  #followRegions(): void {
    if (this.#regions === this.#handler.regions) return;
    this.#regions = this.#handler.regions;
    this.#place = 0;
    this.#at = this.#to;
  }

  /** Goes to the next part of a region. False if there is none. */
  #next(): boolean {
    while (this.#part < this.#parts.length) {
      const region = this.#regions[this.#place++];
      if (region === undefined) {
        this.#place = 0;
        this.#part += 2;
        continue;
      }
      const from = this.#parts[this.#part] as number;
      const to = from + (this.#parts[this.#part + 1] as number);
      const { offset, length, pageSize } = region;
      const first = Math.max(from, offset);
      this.#region = region;
      this.#at = first - ((first - offset) % pageSize);
      this.#to = Math.min(to, offset + length);
      if (this.#at < this.#to) return true;
    }
    return false;
  }

  /** Installs the next pages of a region. Returns the bytes that were handled. */
  #fill(region: Region): number {
    const { start, offset, pageSize } = region;
    const most = wholePages(Math.min(AHEAD_BYTES, this.#to - this.#at), pageSize);
    const page = start + BigInt(this.#at - offset);
    const { seen, leftOut, absent = 0 } = this.#install(region, page, most);
    if (absent > 0) {
      const length = Math.min(absent, this.#to - this.#at);
      const later = this.#absent[this.#part < this.#eager ? 0 : 1];
      // After an mremap the same part is looked up again.
      if (later.at(-2) !== this.#at) later.push(this.#at, length);
      this.#at += length;
      return 0;
    }
    const from = Number(page);
    this.#asleepFrom = Math.min(this.#asleepFrom, from);
    this.#asleepTo = Math.max(this.#asleepTo, from + most);
    if (this.#pause) return 0;
    if (leftOut > 0 && pageSize > SYSTEM_PAGE && this.#handler.shortage.isDry(pageSize)) {
      this.#pause = `no page of ${pageSize / 2 ** 20} MiB is free`;
      return 0;
    }
    // A mapping change came first. After FRUITLESS_MOST such calls in a row, the page is left out.
    this.#fruitless = seen === 0 ? this.#fruitless + 1 : 0;
    const skipped = this.#fruitless < FRUITLESS_MOST ? 0 : pageSize;
    if (skipped > 0) this.#fruitless = 0;
    this.#at += seen + skipped;
    if (leftOut + skipped > 0) this.#tally.add('leftOut', leftOut + skipped);
    return seen + skipped;
  }

  #install(region: Region, page: bigint, most: number): ReturnType<SnapshotHandler['fillAhead']> {
    const count: Count = this.#part < this.#eager ? 'prefetched' : 'eager';
    try {
      return this.#handler.fillAhead(this.#uffd, region, page, most, count);
    } catch (error) {
      if (!(error instanceof UffdError)) throw error;
      // Pages installed before the failed one are no longer missing, so the next call counts them.
      if (error.transferred > 0) return { seen: error.transferred, leftOut: 0 };
      const { pageSize } = region;
      if (!PAUSING.has(error.code)) return { seen: pageSize, leftOut: pageSize };
      this.#pause = error.message;
      return { seen: 0, leftOut: 0 };
    }
  }
}
