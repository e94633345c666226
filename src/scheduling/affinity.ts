// Decides where a loop's thread runs, and whether processors are kept awake. A fault costs two wake-ups. Their cost
// depends mostly on whether the faulting thread and the loop's thread share a processor, and on how deep an idle
// processor sleeps. Only the loop's thread is moved.
//
// Rules:
//  - The thread runs only on the processors that its mask had when the loop began. The mask is restored when the loop
//    ends.
//  - Processors are kept awake only while faults come fast, because it affects the whole machine.
//  - `auto` decides by measurements, and keeps recent ones: see affinity-tuner.ts. If many threads fault at once, it
//    leaves everything to the scheduler, and measures nothing.

import { invalidValue, outOfRange, wrongType } from '../errors/arguments.js';
import type { Processors, ThreadSeen, Watch } from '../kernel/port.js';
import { AffinityTuner, type PlacementStrategy } from './affinity-tuner.js';

export const PLACEMENTS = ['auto', 'none', 'follow', 'awake'] as const;

/**
 * Where the thread of a loop runs. `none`: the scheduler decides. `follow`: on the processor of the faulting thread; if
 * several threads fault at once, the scheduler decides. `awake`: the scheduler decides, and no idle processor of the
 * machine sleeps while faults come fast (which needs privilege). `auto`: whichever of these serves most faults a
 * second. Numbers: on these processors.
 *
 * @useDeclaredType
 */
export type Placement = (typeof PLACEMENTS)[number] | readonly number[];

/** Faults between two checks of where the faulting thread runs, and how fast faults come. */
const CHECK_FAULTS = 256;
/** After a pause, processors are kept awake only after RETURN_FAULTS faults that are at most APART_MOST_MS apart. */
const RETURN_FAULTS = 64;
const APART_MOST_MS = 1;
/**
 * From an average of CROWD faults per batch on, no processor sleeps, so placement gains nothing. That ends below an
 * average of CROWD_LEAST. Between the two nothing changes, because switching takes a while.
 */
const CROWD = 3;
const CROWD_LEAST = 2;
/** A thread with less than this share of the faults is ignored. */
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
 * The processors of a list that a thread may run on.
 *
 * @throws RangeError if there is none
 */
export function usable(placement: readonly number[], own: readonly number[]): number[] {
  const possible = placement.filter((cpu) => own.includes(cpu));
  if (possible.length > 0 || own.length === 0) return possible;
  throw outOfRange(
    'placement',
    `some of the processors ${own.join(', ')}, which this thread may use`,
    placement,
  );
}

/**
 * The findings of this thread's last loop, for its next loop. The guests that one thread of a server serves are alike.
 */
let found: AffinityTuner | undefined;

/** Places the calling thread while a loop runs in it. */
export class Affinity {
  readonly #processors: Processors;
  /** The process that faults; 0: this one. */
  readonly #pid: number;
  readonly #own: readonly number[];
  readonly #tuner: AffinityTuner | undefined;
  /** The strategy that is used if nothing is tuned. */
  readonly #fixed: PlacementStrategy;
  /** The processor it was moved to; −1: the scheduler decides. */
  #cpu = -1;
  /** Keeps processors from sleeping. */
  #awake: Watch | undefined;
  #paused = false;
  #crowded = false;
  /**
   * Faults and batches since the last check, the number of faults at which the next check is due, and when the last
   * check was.
   */
  #faults = 0;
  #batches = 0;
  #dueAt: number;
  #since: number;
  /** The thread that faulted last, if the kernel reports it. `#turns`: how often it changed. */
  #tid = 0;
  #turns = 0;
  /** Fault counts of all threads at the last check; undefined: there was none. */
  #counted: Map<number, number> | undefined;
  /** The only faulting thread, if known, and its fault count at the last check. */
  #toucher = 0;
  #toucherFaults = 0;

  /** @throws RangeError if this thread may run on none of the processors */
  constructor(processors: Processors, pid: number, placement: Exclude<Placement, 'none'>) {
    this.#processors = processors;
    this.#pid = pid;
    this.#own = processors.allowed();
    this.#fixed = placement === 'follow' || placement === 'awake' ? placement : 'scheduler';
    this.#tuner = placement === 'auto' && this.#own.length > 1 ? new AffinityTuner(found) : undefined;
    this.#since = processors.now();
    this.#dueAt = this.#firstCheck();
    if (typeof placement === 'object') processors.place(usable(placement, this.#own));
    // Count the threads' faults only when needed: with many threads this takes long.
    else if (this.#strategy === 'follow') this.#countFaults();
  }

  /** To call when faults were answered. `tid`: the thread of the last one (0: unknown). */
  answered(faults: number, tid: number): void {
    if (this.#paused) {
      this.#paused = false;
      this.#begin(this.#firstCheck());
    }
    this.#faults += faults;
    this.#batches++;
    if (tid !== this.#tid) {
      this.#tid = tid;
      this.#turns++;
    }
    if (this.#faults >= this.#dueAt) this.#check();
  }

  /** Whether processors are kept awake: then `pause` must be called soon after faults stop. */
  get keepsAwake(): boolean {
    return this.#awake !== undefined;
  }

  /** To call when no fault has come for a while. */
  pause(): void {
    this.#paused = true;
    this.#stopKeepingAwake();
  }

  /** To call when the loop ends: restores the thread's mask. */
  restore(): void {
    this.#stopKeepingAwake();
    this.#processors.place(this.#own);
    found = this.#tuner ?? found;
  }

  get #strategy(): PlacementStrategy {
    return this.#tuner?.strategy ?? this.#fixed;
  }

  /** Faults until the first check. It measures nothing, because the thread to follow must fault first. */
  #firstCheck(): number {
    if (this.#strategy === 'follow') return 1;
    if (this.#strategy === 'awake') return RETURN_FAULTS;
    return this.#tuner?.faults ?? Number.POSITIVE_INFINITY;
  }

  #begin(faults: number): void {
    this.#dueAt = faults;
    this.#faults = 0;
    this.#batches = 0;
    this.#turns = 0;
    this.#since = this.#processors.now();
  }

  #check(): void {
    const ms = (this.#processors.now() - this.#since) / this.#faults;
    const before = this.#strategy;
    const crowded =
      this.#tuner !== undefined && this.#faults >= this.#batches * (this.#crowded ? CROWD_LEAST : CROWD);
    this.#crowded = crowded;
    if (this.#tuner && !crowded && this.#faults >= this.#tuner.faults) this.#tuner.measured(ms);
    const strategy = crowded ? 'scheduler' : this.#strategy;
    if (strategy !== before) this.#toucher = 0;
    this.#place(strategy === 'follow');
    if (strategy !== 'awake' || ms > APART_MOST_MS) this.#stopKeepingAwake();
    else this.#awake ??= this.#processors.keepAwake();
    this.#begin(this.#tuner?.faults ?? CHECK_FAULTS);
  }

  #stopKeepingAwake(): void {
    this.#awake?.close();
    this.#awake = undefined;
  }

  #place(follow: boolean): void {
    const cpu = follow ? this.#processorOfToucher() : -1;
    if (cpu === this.#cpu) return;
    // If this thread may not run on that processor, or the processor is offline, the scheduler decides.
    const there = cpu >= 0 && this.#own.includes(cpu) && this.#processors.place([cpu]) === 0;
    if (!there) this.#processors.place(this.#own);
    this.#cpu = there ? cpu : -1;
  }

  /** The processor on which the faulting thread ran last; −1: there is no thread to follow. */
  #processorOfToucher(): number {
    if (this.#tid !== 0) this.#toucher = this.#turns <= 1 ? this.#tid : 0;
    if (this.#toucher !== 0) {
      const thread = this.#processors.thread(this.#pid, this.#toucher);
      // If the kernel does not report the faulting thread, its fault count shows whether it is still the same.
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
    // Without earlier counts, it is unknown which faults came since this loop began.
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
    // If several threads fault on several processors, the scheduler decides.
    return apart ? -1 : first.processor;
  }

  #countFaults(): readonly ThreadSeen[] {
    const threads = this.#processors.threads(this.#pid);
    this.#counted = new Map(threads.map(({ tid, faults }) => [tid, faults]));
    return threads;
  }
}
