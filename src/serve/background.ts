// What is installed while nobody asks for it: first what a recorded run has touched, then, if wanted, everything else.
//
// Rule: one step is short, so that a fault which comes meanwhile waits for no more than that.

import type { UffdError } from '../errors.js';
import type { Userfaultfd } from '../userfaultfd.js';
import { wholePages } from '../whole-pages.js';
import { AHEAD_BYTES, type Answers } from './answers.js';
import type { Region } from './handoff.js';
import type { Count } from './tally.js';

/** Calls of a step, at most: pages that lie apart take one each. */
const STEP_CALLS = 16;

/** A stretch of the memory file. */
export interface Run {
  readonly offset: number;
  readonly length: number;
}

export interface BackgroundOptions {
  readonly regions: readonly Region[];
  /** In the order in which they are to be installed. */
  readonly prefetch: readonly Run[];
  readonly eager: boolean;
}

export class Background {
  readonly #answers: Answers;
  /** Tells the bytes that were installed. */
  readonly #steps: Iterator<number, undefined>;
  #done = false;

  constructor(answers: Answers, options: BackgroundOptions, uffd: Userfaultfd) {
    this.#answers = answers;
    this.#steps = this.#walk(options, uffd);
  }

  /** A little more. False: there is no more. */
  step(): boolean {
    for (let bytes = 0, calls = 0; bytes < AHEAD_BYTES && calls < STEP_CALLS && !this.#done; calls++) {
      const { done, value } = this.#steps.next();
      this.#done = done === true;
      bytes += value ?? 0;
    }
    return !this.#done;
  }

  *#walk({ regions, prefetch, eager }: BackgroundOptions, uffd: Userfaultfd): Generator<number, undefined> {
    for (const { offset, length } of prefetch) {
      for (const region of regions) yield* this.#fill(uffd, region, offset, offset + length, 'prefetched');
    }
    if (!eager) return;
    for (const region of regions) {
      yield* this.#fill(uffd, region, region.offset, region.offset + region.length, 'eager');
    }
  }

  /** Installs what is missing of a part of the file, as far as the region has it. */
  *#fill(uffd: Userfaultfd, region: Region, from: number, to: number, count: Count): Generator<number> {
    const { start, length, offset, pageSize } = region;
    const first = Math.max(from, offset);
    const last = Math.min(to, offset + length);
    for (let at = first - ((first - offset) % pageSize); at < last && !uffd.closed; ) {
      const most = wholePages(Math.min(AHEAD_BYTES, last - at), pageSize);
      const some = this.#install(uffd, region, start + BigInt(at - offset), most, count);
      at += some;
      yield some;
    }
  }

  /** How far to go on. */
  #install(...step: Parameters<Answers['fillAhead']>): number {
    const [, region] = step;
    try {
      return this.#answers.fillAhead(...step);
    } catch (error) {
      // What cannot be read is left to whoever needs it.
      if ((error as UffdError).code !== 'EFAULT') throw error;
      return region.pageSize;
    }
  }
}
