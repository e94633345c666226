// The virtual time of a simulation, its timers, and the detection of runs without progress.
//
// Rules:
//  - Time passes with each step of a thread and each call of the port. If all threads sleep, it jumps to the next
//    timer. While no thread makes progress it passes faster, so that a thread that waits for a time does not need a
//    step for each microsecond.
//  - A run may limit the time in which no thread makes progress. When that time is over, the next step or call throws.
//    Such a run also limits the number of fills in a row that install nothing, because a handler that keeps retrying
//    would never end.

import type { Watch } from '../kernel/port.js';

/** Virtual milliseconds that a step takes. */
export const STEP_MS = 0.001;
/** Virtual milliseconds that a step and a call take after IDLE_STEPS steps or calls without progress of a thread. */
const IDLE_MS = 0.05;
const IDLE_CALL_MS = 0.01;
const IDLE_STEPS = 500;
/** Steps without progress after which the threads count as busy, not as asleep. */
const BUSY_STEPS = 200;
/** Fills in a row that install nothing, without progress of a thread, after which the handler counts as busy. */
const EMPTY_FILLS_MOST = 2000;

/**
 * The error of a run without progress: all threads sleep and will never be woken, or they are busy and make no
 * progress.
 */
export class Stuck extends Error {
  override readonly name = 'Stuck';
  readonly code = 'ERR_UFFD_STUCK';
  readonly how: 'asleep' | 'busy';

  constructor(message: string, how: 'asleep' | 'busy') {
    super(message);
    this.how = how;
  }
}

/** A callback that is due at a time. */
export interface Timer {
  readonly at: number;
  /** The step at which it was set, for the fair choice of the scheduler. */
  turn: number;
  due(): void;
}

export class Clock {
  /** Virtual time in milliseconds. */
  now = 0;
  /** If set, the next step or call throws it, which ends the run. */
  halted: Error | undefined;
  readonly #limitMs: number;
  readonly #timers = new Set<Timer>();
  /**
   * What is held for a time: threads in the middle of a mapping change, and an emptied pool of huge pages. The
   * scheduler releases them (`releaseDue`), so they need no timers.
   */
  readonly #held = new Set<{ until: number; release(): void }>();
  /** The time at which a thread made progress last. */
  #progressMs = 0;
  /**
   * Counts since the last progress: calls and steps together; steps alone; steps of threads; and fills in a row that
   * have installed nothing.
   */
  #calls = 0;
  #steps = 0;
  #attempts = 0;
  #emptyFills = 0;

  constructor(limitMs: number) {
    this.#limitMs = limitMs;
  }

  after(delayMs: number, turn: number, due: () => void): Watch {
    const timer = { at: this.now + delayMs, turn, due };
    this.#timers.add(timer);
    return { close: () => void this.#timers.delete(timer) };
  }

  /** Timers that are due. */
  due(): Timer[] {
    return [...this.#timers].filter(({ at }) => at <= this.now);
  }

  remove(timer: Timer): void {
    this.#timers.delete(timer);
  }

  hold(forMs: number, release: () => void): void {
    this.#held.add({ until: this.now + forMs, release });
  }

  /** Releases what was held long enough. */
  releaseDue(): void {
    for (const held of this.#held) {
      if (held.until > this.now) continue;
      this.#held.delete(held);
      held.release();
    }
  }

  /** When the next hold ends; infinite: never. */
  get nextRelease(): number {
    return Math.min(Number.POSITIVE_INFINITY, ...[...this.#held].map(({ until }) => until));
  }

  /** When the next hold ends or the next timer is due. */
  get next(): number {
    return Math.min(this.nextRelease, ...[...this.#timers].map(({ at }) => at));
  }

  /** To call when a thread made progress, or if there is another reason to wait longer. */
  progressed(): void {
    this.#progressMs = this.now;
    this.#calls = 0;
    this.#steps = 0;
    this.#attempts = 0;
    this.#emptyFills = 0;
  }

  /** To call when a thread is about to take a step. */
  attempted(): void {
    this.#attempts++;
  }

  /**
   * To call after a call that resolves faults. `installed`: whether it installed something. While a thread is held in
   * the middle of a mapping change no fill can succeed, so those fills are not counted against the handler.
   */
  filled(installed: boolean): void {
    this.#emptyFills = installed || this.#held.size > 0 ? 0 : this.#emptyFills + 1;
    if (this.#emptyFills < EMPTY_FILLS_MOST || this.#limitMs === Number.POSITIVE_INFINITY) return;
    this.halted = new Stuck(`${EMPTY_FILLS_MOST} fills in a row have installed nothing`, 'busy');
    throw this.halted;
  }

  /** Lets time pass for a step. */
  step(): void {
    this.#steps++;
    this.call(false);
  }

  /** Lets time pass for a call. `idle`: whether no thread could run meanwhile. */
  call(idle: boolean): void {
    if (this.halted) throw this.halted;
    this.#calls++;
    if (idle || this.#steps > IDLE_STEPS) this.now += IDLE_MS;
    else this.now += this.#calls > IDLE_STEPS ? IDLE_CALL_MS : STEP_MS;
    this.#checkProgress();
  }

  /** Jumps to a time. */
  jump(to: number): void {
    this.now = Math.max(this.now, to);
    this.#checkProgress();
  }

  /** Throws if no thread has made progress for too long. */
  #checkProgress(): void {
    if (this.now - this.#progressMs <= this.#limitMs) return;
    const [how, what] =
      this.#attempts > BUSY_STEPS
        ? (['busy', 'are busy, and none of them makes progress'] as const)
        : (['asleep', 'sleep, and nothing wakes them'] as const);
    this.halted = new Stuck(`for ${this.#limitMs} ms the threads ${what}`, how);
    throw this.halted;
  }
}
