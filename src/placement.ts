// Where a loop's thread runs. A fault is two wake-ups, and what they cost depends on whether the thread that faults and
// the one that answers share a processor, far more than on anything else. The loop's thread is moved, and no other.
//
// Rules:
//  - It goes where it was allowed to when the loop began, nowhere else; and it is put back when the loop ends.
//  - `auto` decides by what it measures, and forgets nothing of what it measured lately: see arrangements.ts.

import { invalidValue, outOfRange, wrongType } from './arguments.js';
import { Arrangements } from './arrangements.js';
import type { Processors, ThreadSeen } from './kernel.js';

export const PLACEMENTS = ['auto', 'none', 'follow'] as const;

/**
 * Where the thread of a loop runs. `none`: where the scheduler puts it. `follow`: on the processor of the thread that
 * faults, and away again when several fault at once. `auto`: whichever of the two brings more faults a second. Numbers:
 * on these processors.
 *
 * @useDeclaredType
 */
export type Placement = (typeof PLACEMENTS)[number] | readonly number[];

/** Faults between two looks at where the thread that faults has gone. */
const LOOK_FAULTS = 256;
/** A thread that makes less than this share of the faults does not count. */
const SHARE_LEAST = 1 / 10;
const PROCESSOR_MOST = 8191;

export function checkPlacement(placement: unknown, argument = 'placement'): asserts placement is Placement {
  if (Array.isArray(placement)) {
    if (placement.length === 0) throw invalidValue(`${argument} must name at least one processor`);
    for (const cpu of placement) {
      if (!Number.isInteger(cpu) || cpu < 0 || cpu > PROCESSOR_MOST)
        throw invalidValue(`${argument} must hold numbers of processors; it holds ${String(cpu)}`);
    }
    return;
  }
  if (typeof placement !== 'string')
    throw wrongType(argument, `one of ${PLACEMENTS.join(', ')}, or an array`, placement);
  if (!(PLACEMENTS as readonly string[]).includes(placement))
    throw invalidValue(
      `${argument} must be one of ${PLACEMENTS.join(', ')}, or an array; it is '${placement}'`,
    );
}

/**
 * Those of some processors that a thread may run on.
 *
 * @throws RangeError there is none
 */
export function usable(placement: readonly number[], own: readonly number[]): number[] {
  const possible = placement.filter((cpu) => own.includes(cpu));
  if (possible.length > 0 || own.length === 0) return possible;
  throw outOfRange(
    'placement',
    `some of the processors ${own.join(', ')}, which may be used here`,
    placement,
  );
}

/** What the last loop of this thread has found out: a server's thread serves guests that are alike. */
let found: Arrangements | undefined;

/** Places the calling thread while a loop runs in it. */
export class Placer {
  readonly #processors: Processors;
  /** The process that faults; 0: this one. */
  readonly #pid: number;
  readonly #own: readonly number[];
  readonly #arrangements: Arrangements | undefined;
  readonly #follows: boolean;
  /** Where it was put; −1: where the scheduler likes. */
  #cpu = -1;
  /** Faults since the last look, and when that was. */
  #faults = 0;
  #dueAt: number;
  #since: number;
  /** The thread that faulted last, if the kernel tells; and how often it was another than before. */
  #tid = 0;
  #turns = 0;
  /** Faults of the threads at the last look at all of them. */
  #counted = new Map<number, number>();
  /** The only thread that faults, if it is known, and how often it had at the last look. */
  #toucher = 0;
  #toucherFaults = 0;

  /** @throws RangeError none of the processors is one that this thread may run on */
  constructor(processors: Processors, pid: number, placement: Exclude<Placement, 'none'>) {
    this.#processors = processors;
    this.#pid = pid;
    this.#own = processors.allowed();
    this.#follows = placement === 'follow';
    this.#arrangements = placement === 'auto' && this.#own.length > 1 ? new Arrangements(found) : undefined;
    this.#since = processors.now();
    const follows = this.#follows || this.#arrangements?.arrangement === 'follow';
    // Whoever is followed has to fault first.
    this.#dueAt = follows ? 1 : (this.#arrangements?.faults ?? Number.POSITIVE_INFINITY);
    // What threads have faulted before is none of this loop's.
    if (typeof placement === 'string') this.#countFaults(processors.threads(pid));
    if (typeof placement === 'object') processors.place(usable(placement, this.#own));
  }

  /** Faults were answered; the last of them was this thread's (0: not known). */
  answered(faults: number, tid: number): void {
    this.#faults += faults;
    if (tid !== this.#tid) {
      this.#tid = tid;
      this.#turns++;
    }
    if (this.#faults >= this.#dueAt) this.#look();
  }

  /** The loop ends: the thread may run where it might before. */
  leave(): void {
    this.#processors.place(this.#own);
    found = this.#arrangements ?? found;
  }

  #look(): void {
    const now = this.#processors.now();
    let follow = true;
    if (this.#arrangements) {
      const { arrangement: before } = this.#arrangements;
      // The first look is there to follow whoever faults, and has measured nothing.
      if (this.#faults >= this.#arrangements.faults)
        this.#arrangements.took((now - this.#since) / this.#faults);
      const { arrangement } = this.#arrangements;
      if (arrangement !== before) this.#toucher = 0;
      follow = arrangement === 'follow';
    }
    this.#dueAt = this.#arrangements?.faults ?? LOOK_FAULTS;
    this.#arrange(follow);
    this.#faults = 0;
    this.#turns = 0;
    this.#since = this.#processors.now();
  }

  #arrange(follow: boolean): void {
    const cpu = follow ? this.#processorOfToucher() : -1;
    if (cpu === this.#cpu) return;
    // It may be one that this thread must not run on, or that has been taken away: then it stays free.
    const there = cpu >= 0 && this.#own.includes(cpu) && this.#processors.place([cpu]) === 0;
    if (!there) this.#processors.place(this.#own);
    this.#cpu = there ? cpu : -1;
  }

  /** Where whoever faults ran last; −1: nobody can be followed. */
  #processorOfToucher(): number {
    if (this.#tid !== 0) this.#toucher = this.#turns <= 1 ? this.#tid : 0;
    if (this.#toucher !== 0) {
      const thread = this.#processors.thread(this.#pid, this.#toucher);
      // Where the kernel does not tell who faults, its count has to: it may be another thread by now.
      const made = (thread?.faults ?? 0) - this.#toucherFaults;
      this.#toucherFaults = thread?.faults ?? 0;
      if (thread && (this.#tid !== 0 || made > this.#faults * SHARE_LEAST)) return thread.processor;
      this.#toucher = 0;
    }
    return this.#busiest(this.#processors.threads(this.#pid));
  }

  #busiest(threads: readonly ThreadSeen[]): number {
    const made = threads.map((thread) => ({
      ...thread,
      faults: thread.faults - (this.#counted.get(thread.tid) ?? 0),
    }));
    this.#countFaults(threads);
    const all = made.reduce((sum, { faults }) => sum + faults, 0);
    const touchers = made
      .filter(({ faults }) => faults > all * SHARE_LEAST)
      .sort((a, b) => b.faults - a.faults);
    const [first] = touchers;
    if (!first) return -1;
    if (touchers.length === 1) {
      this.#toucher = first.tid;
      this.#toucherFaults = this.#counted.get(first.tid) ?? 0;
    }
    const apart = touchers.some(({ processor }) => processor !== first.processor);
    // Several at once, on several processors: whoever only follows leaves them alone; who measures may try.
    return apart && this.#follows ? -1 : first.processor;
  }

  #countFaults(threads: readonly ThreadSeen[]): void {
    this.#counted = new Map(threads.map(({ tid, faults }) => [tid, faults]));
  }
}
