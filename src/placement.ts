// Where a loop's thread runs, and how soon processors are awake. A fault is two wake-ups, and what they cost depends on
// whether the thread that faults and the one that answers share a processor, and on how deep an idle one sleeps, far more
// than on anything else. The loop's thread is moved, and no other.
//
// Rules:
//  - It goes where it was allowed to when the loop began, nowhere else; and it is put back when the loop ends.
//  - Processors are kept awake only while faults come fast: that costs the whole machine.
//  - `auto` decides by what it measures, and forgets nothing of what it measured lately: see arrangements.ts. Where many
//    fault at once it leaves everything to the scheduler, and measures nothing.

import { invalidValue, outOfRange, wrongType } from './arguments.js';
import { type Arrangement, Arrangements } from './arrangements.js';
import type { Processors, ThreadSeen, Watch } from './kernel.js';

export const PLACEMENTS = ['auto', 'none', 'follow', 'awake'] as const;

/**
 * Where the thread of a loop runs. `none`: where the scheduler puts it. `follow`: on the processor of the thread that
 * faults, and away again when several fault at once. `awake`: where the scheduler puts it, and while faults come fast no
 * idle processor of the machine goes to sleep (which only a privileged process may ask for). `auto`: whichever of these
 * brings most faults a second. Numbers: on these processors.
 *
 * @useDeclaredType
 */
export type Placement = (typeof PLACEMENTS)[number] | readonly number[];

/** Faults between two looks at where the thread that faults has gone, and how fast they come. */
const LOOK_FAULTS = 256;
/** Faults behind a pause, until it is seen how fast they come; and how many milliseconds they may be apart then. */
const RETURN_FAULTS = 64;
const APART_MOST_MS = 1;
/**
 * So many faults are answered in a round, on an average, and no processor sleeps that it would pay to wake; and so few, that
 * this is over. In between it stays as it is: to keep processors awake, and to let them sleep, takes a while.
 */
const CROWD = 3;
const CROWD_LEAST = 2;
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
  /** What is done where there is nothing to find out. */
  readonly #fixed: Arrangement;
  /** Where it was put; −1: where the scheduler likes. */
  #cpu = -1;
  /** Keeps processors from sleeping. */
  #awake: Watch | undefined;
  #paused = false;
  #crowded = false;
  /** Faults since the last look, in how many rounds, and when that was. */
  #faults = 0;
  #rounds = 0;
  #dueAt: number;
  #since: number;
  /** The thread that faulted last, if the kernel tells; and how often it was another than before. */
  #tid = 0;
  #turns = 0;
  /** Faults of the threads at the last look at all of them; undefined: there was none. */
  #counted: Map<number, number> | undefined;
  /** The only thread that faults, if it is known, and how often it had at the last look. */
  #toucher = 0;
  #toucherFaults = 0;

  /** @throws RangeError none of the processors is one that this thread may run on */
  constructor(processors: Processors, pid: number, placement: Exclude<Placement, 'none'>) {
    this.#processors = processors;
    this.#pid = pid;
    this.#own = processors.allowed();
    this.#fixed = placement === 'follow' || placement === 'awake' ? placement : 'scheduler';
    this.#arrangements = placement === 'auto' && this.#own.length > 1 ? new Arrangements(found) : undefined;
    this.#since = processors.now();
    this.#dueAt = this.#firstLook();
    if (typeof placement === 'object') processors.place(usable(placement, this.#own));
    // Not before it is needed: of many threads it takes long.
    else if (this.#arrangement === 'follow') this.#countFaults();
  }

  /** Faults were answered; the last of them was this thread's (0: not known). */
  answered(faults: number, tid: number): void {
    if (this.#paused) {
      this.#paused = false;
      this.#begin(this.#firstLook());
    }
    this.#faults += faults;
    this.#rounds++;
    if (tid !== this.#tid) {
      this.#tid = tid;
      this.#turns++;
    }
    if (this.#faults >= this.#dueAt) this.#look();
  }

  /** Whether processors are kept awake: `pause` is to be told soon then. */
  get keepsAwake(): boolean {
    return this.#awake !== undefined;
  }

  /** No fault has come for a while. */
  pause(): void {
    this.#paused = true;
    this.#letSleep();
  }

  /** The loop ends: the thread may run where it might before. */
  leave(): void {
    this.#letSleep();
    this.#processors.place(this.#own);
    found = this.#arrangements ?? found;
  }

  get #arrangement(): Arrangement {
    return this.#arrangements?.arrangement ?? this.#fixed;
  }

  /** Faults until the first look, which measures nothing: whoever is followed has to fault first. */
  #firstLook(): number {
    if (this.#arrangement === 'follow') return 1;
    if (this.#arrangement === 'awake') return RETURN_FAULTS;
    return this.#arrangements?.faults ?? Number.POSITIVE_INFINITY;
  }

  #begin(faults: number): void {
    this.#dueAt = faults;
    this.#faults = 0;
    this.#rounds = 0;
    this.#turns = 0;
    this.#since = this.#processors.now();
  }

  #look(): void {
    const ms = (this.#processors.now() - this.#since) / this.#faults;
    const before = this.#arrangement;
    const crowded =
      this.#arrangements !== undefined &&
      this.#faults >= this.#rounds * (this.#crowded ? CROWD_LEAST : CROWD);
    this.#crowded = crowded;
    if (this.#arrangements && !crowded && this.#faults >= this.#arrangements.faults)
      this.#arrangements.took(ms);
    const arrangement = crowded ? 'scheduler' : this.#arrangement;
    if (arrangement !== before) this.#toucher = 0;
    this.#place(arrangement === 'follow');
    if (arrangement !== 'awake' || ms > APART_MOST_MS) this.#letSleep();
    else this.#awake ??= this.#processors.keepAwake();
    this.#begin(this.#arrangements?.faults ?? LOOK_FAULTS);
  }

  #letSleep(): void {
    this.#awake?.close();
    this.#awake = undefined;
  }

  #place(follow: boolean): void {
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
    return this.#busiest();
  }

  #busiest(): number {
    const before = this.#counted;
    const threads = this.#countFaults();
    // What they have faulted before is none of this loop's.
    if (!before) return -1;
    const made = threads.map((thread) => ({
      ...thread,
      faults: thread.faults - (before.get(thread.tid) ?? 0),
    }));
    const all = made.reduce((sum, { faults }) => sum + faults, 0);
    const touchers = made
      .filter(({ faults }) => faults > all * SHARE_LEAST)
      .sort((a, b) => b.faults - a.faults);
    const [first] = touchers;
    if (!first) return -1;
    if (touchers.length === 1) {
      this.#toucher = first.tid;
      this.#toucherFaults = this.#counted?.get(first.tid) ?? 0;
    }
    const apart = touchers.some(({ processor }) => processor !== first.processor);
    // Several at once, on several processors, are left alone.
    return apart ? -1 : first.processor;
  }

  #countFaults(): readonly ThreadSeen[] {
    const threads = this.#processors.threads(this.#pid);
    this.#counted = new Map(threads.map(({ tid, faults }) => [tid, faults]));
    return threads;
  }
}
