// What is installed while nobody asks for it: first what a recorded run has touched, then, if wanted, everything else.
//
// Rules:
//  - One step is short, so that a fault which comes meanwhile waits for no more than that.
//  - What cannot be installed here is no failure: whoever needs it asks for it. If there is no memory this pauses; what is
//    not mapped, or cannot be read, is left out, and counted.
//  - Whoever waits for a page that is installed here is woken behind the step. Woken by the page itself he would be asleep
//    again at the next one that is missing: as many wake-ups as pages, where that is what prefetching is to spare.

import { UffdError } from '../errors.js';
import type { Userfaultfd } from '../userfaultfd.js';
import { wholePages } from '../whole-pages.js';
import { AHEAD_BYTES, type Answers } from './answers.js';
import { type Region, SYSTEM_PAGE } from './handoff.js';
import type { SharedRuns } from './memory-file.js';
import type { Count, Tally } from './tally.js';

/** Calls of a step, at most: pages that lie apart take one each. And bytes. */
const STEP_CALLS = 32;
const STEP_BYTES = 4 * AHEAD_BYTES;
/** Calls in a row that see to nothing, until the page is left out. */
const FRUITLESS_MOST = 4;
/** There is no memory, for now. */
const PAUSING: ReadonlySet<string> = new Set(['ENOMEM', 'ENOSPC']);

export interface BackgroundOptions {
  readonly regions: readonly Region[];
  /** In the order in which they are to be installed. */
  readonly prefetch: SharedRuns;
  readonly eager: boolean;
  readonly tally: Tally;
}

export class Background {
  readonly #answers: Answers;
  readonly #uffd: Userfaultfd;
  readonly #regions: readonly Region[];
  /** Parts of the file: what is prefetched, and from some index on what comes behind that, each region as a whole. */
  readonly #parts: Float64Array;
  readonly #eager: number;
  readonly #tally: Tally;
  #pause: string | undefined;
  /** Calls in a row that have seen to nothing. */
  #fruitless = 0;
  /** The part that comes next, and the region in which it is looked for. */
  #part = 0;
  #place = 0;
  /** The region that is being filled, from and to which offset in the file. */
  #region: Region | undefined;
  #at = 0;
  #to = 0;
  /** Where somebody may have been left asleep, as numbers: addresses of pages fit in. */
  #asleepFrom = Number.POSITIVE_INFINITY;
  #asleepTo = 0;

  constructor(answers: Answers, { regions, prefetch, eager, tally }: BackgroundOptions, uffd: Userfaultfd) {
    this.#answers = answers;
    this.#tally = tally;
    this.#uffd = uffd;
    this.#regions = regions;
    const rest = eager ? regions.flatMap(({ offset, length }) => [offset, length]) : [];
    this.#parts = new Float64Array(prefetch.length + rest.length);
    this.#parts.set(prefetch);
    this.#parts.set(rest, prefetch.length);
    this.#eager = prefetch.length;
  }

  /** Why it pauses; undefined: it does not. */
  get pause(): string | undefined {
    return this.#pause;
  }

  /** A little more. */
  step(): 'more' | 'done' | 'paused' {
    this.#pause = undefined;
    try {
      for (let bytes = 0, calls = 0; bytes < STEP_BYTES && calls < STEP_CALLS; calls++) {
        if (this.#uffd.closed || (this.#at >= this.#to && !this.#next())) return 'done';
        bytes += this.#fill(this.#region as Region);
        if (this.#pause) return 'paused';
        // What was in the way may be read now.
        if (this.#fruitless > 0) break;
      }
    } finally {
      this.#wake();
    }
    return 'more';
  }

  #wake(): void {
    if (this.#asleepTo > this.#asleepFrom && !this.#uffd.closed) {
      this.#uffd.wake(BigInt(this.#asleepFrom), this.#asleepTo - this.#asleepFrom);
    }
    this.#asleepFrom = Number.POSITIVE_INFINITY;
    this.#asleepTo = 0;
  }

  /** Goes to the next part of a region. False: that was all. */
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

  /** Installs what comes next of a region. How many bytes were seen to. */
  #fill(region: Region): number {
    const { start, offset, pageSize } = region;
    const most = wholePages(Math.min(AHEAD_BYTES, this.#to - this.#at), pageSize);
    const page = start + BigInt(this.#at - offset);
    const { seen, leftOut } = this.#install(region, page, most);
    const from = Number(page);
    this.#asleepFrom = Math.min(this.#asleepFrom, from);
    this.#asleepTo = Math.max(this.#asleepTo, from + most);
    if (this.#pause) return 0;
    if (leftOut > 0 && pageSize > SYSTEM_PAGE && this.#answers.shortage.isDry(pageSize)) {
      this.#pause = `no page of ${pageSize / 2 ** 20} MiB is free`;
      return 0;
    }
    // A change of the mapping came first, and may do so again; but not for ever.
    this.#fruitless = seen === 0 ? this.#fruitless + 1 : 0;
    const over = this.#fruitless < FRUITLESS_MOST ? 0 : pageSize;
    if (over > 0) this.#fruitless = 0;
    this.#at += seen + over;
    if (leftOut + over > 0) this.#tally.add('leftOut', leftOut + over);
    return seen + over;
  }

  #install(region: Region, page: bigint, most: number): { seen: number; leftOut: number } {
    const count: Count = this.#part < this.#eager ? 'prefetched' : 'eager';
    try {
      return this.#answers.fillAhead(this.#uffd, region, page, most, count);
    } catch (error) {
      if (!(error instanceof UffdError)) throw error;
      // What was installed in front of it counts the next time: it is not missing any more.
      if (error.transferred > 0) return { seen: error.transferred, leftOut: 0 };
      const { pageSize } = region;
      if (!PAUSING.has(error.code)) return { seen: pageSize, leftOut: pageSize };
      this.#pause = error.message;
      return { seen: 0, leftOut: 0 };
    }
  }
}
