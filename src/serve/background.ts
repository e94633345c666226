// What is installed while nobody asks for it: first what a recorded run has touched, then, if wanted, everything else.
//
// Rules:
//  - One step is short, so that a fault which comes meanwhile waits for no more than that.
//  - Whoever waits for a page that is installed here is woken behind the step. Woken by the page itself he would be asleep
//    again at the next one that is missing: as many wake-ups as pages, where that is what prefetching is to spare.

import type { UffdError } from '../errors.js';
import type { Userfaultfd } from '../userfaultfd.js';
import { wholePages } from '../whole-pages.js';
import { AHEAD_BYTES, type Answers } from './answers.js';
import type { Region } from './handoff.js';
import type { Run } from './memory-file.js';
import type { Count } from './tally.js';

/** Calls of a step, at most: pages that lie apart take one each. And bytes. */
const STEP_CALLS = 32;
const STEP_BYTES = 4 * AHEAD_BYTES;

export interface BackgroundOptions {
  readonly regions: readonly Region[];
  /** In the order in which they are to be installed. */
  readonly prefetch: readonly Run[];
  readonly eager: boolean;
}

export class Background {
  readonly #answers: Answers;
  readonly #uffd: Userfaultfd;
  /** Where somebody may have been left asleep; the end is behind it. */
  #start = 0n;
  #end = 0n;
  /** Tells the bytes that were installed. */
  readonly #steps: Iterator<number, undefined>;
  #done = false;

  constructor(answers: Answers, options: BackgroundOptions, uffd: Userfaultfd) {
    this.#answers = answers;
    this.#uffd = uffd;
    this.#steps = this.#walk(options);
  }

  /** A little more. False: there is no more. */
  step(): boolean {
    try {
      for (let bytes = 0, calls = 0; bytes < STEP_BYTES && calls < STEP_CALLS && !this.#done; calls++) {
        const { done, value } = this.#steps.next();
        this.#done = done === true;
        bytes += value ?? 0;
      }
    } finally {
      this.#wake();
    }
    return !this.#done;
  }

  #wake(): void {
    if (this.#end > this.#start && !this.#uffd.closed) {
      this.#uffd.wake(this.#start, Number(this.#end - this.#start));
    }
    this.#end = 0n;
  }

  *#walk({ regions, prefetch, eager }: BackgroundOptions): Generator<number, undefined> {
    for (const { offset, length } of prefetch) {
      for (const region of regions) yield* this.#fill(region, offset, offset + length, 'prefetched');
    }
    if (!eager) return;
    for (const region of regions) {
      yield* this.#fill(region, region.offset, region.offset + region.length, 'eager');
    }
  }

  /** Installs what is missing of a part of the file, as far as the region has it. */
  *#fill(region: Region, from: number, to: number, count: Count): Generator<number> {
    const { start, length, offset, pageSize } = region;
    const first = Math.max(from, offset);
    const last = Math.min(to, offset + length);
    for (let at = first - ((first - offset) % pageSize); at < last && !this.#uffd.closed; ) {
      const most = wholePages(Math.min(AHEAD_BYTES, last - at), pageSize);
      const page = start + BigInt(at - offset);
      const some = this.#install(region, page, most, count);
      const end = page + BigInt(some);
      this.#start = this.#end === 0n || page < this.#start ? page : this.#start;
      this.#end = end > this.#end ? end : this.#end;
      at += some;
      yield some;
    }
  }

  /** How far to go on. */
  #install(region: Region, page: bigint, most: number, count: Count): number {
    try {
      return this.#answers.fillAhead(this.#uffd, region, page, most, count);
    } catch (error) {
      // What cannot be read is left to whoever needs it.
      if ((error as UffdError).code !== 'EFAULT') throw error;
      return region.pageSize;
    }
  }
}
