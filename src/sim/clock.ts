// Virtual time: what waits for it, and when it is too long that nobody got on.
//
// Rules:
//  - Time passes with each step and each call, and jumps where everybody sleeps. Where nobody gets on it passes
//    faster, so that whoever waits for its time does not need a step for each microsecond.
//  - A run may have a limit to the time in which no thread gets on. Once it is over, everybody hears of it. Then there
//    is a limit to the fills in a row that bring nothing, too: who tries again and again keeps a processor busy.

import type { Watch } from '../kernel.js';

/** Virtual milliseconds that a step takes. */
export const STEP_MS = 0.001;
/** The same where nobody gets on, of a step and of a call; and how many of them it takes to say so. */
const IDLE_MS = 0.05;
const IDLE_CALL_MS = 0.01;
const IDLE_STEPS = 500;
/** Steps of threads, since one got on last, from which on they are not asleep but busy in vain. */
const BUSY_STEPS = 200;
/** Fills in a row that installed nothing, while no thread got on, from which on the handler is busy in vain. */
const VAIN_FILLS = 2000;

/** Nobody gets on any more: all sleep and nothing will ever wake them, or they are busy in vain. */
export class Stuck extends Error {
  override readonly name = 'Stuck';
  readonly code = 'ERR_UFFD_STUCK';
  readonly how: 'asleep' | 'busy';

  constructor(message: string, how: 'asleep' | 'busy') {
    super(message);
    this.how = how;
  }
}

/** Something that is due at a time. */
export interface Timer {
  readonly at: number;
  /** When it was its turn last, in steps. */
  turn: number;
  due(): void;
}

export class Clock {
  /** Virtual milliseconds. */
  now = 0;
  /** Set to end the run: the next step or call throws it. */
  halted: Error | undefined;
  readonly #patienceMs: number;
  readonly #timers = new Set<Timer>();
  /** What lets threads go on that are held back: no callbacks, so it happens wherever the time is looked at. */
  readonly #held = new Set<{ until: number; release(): void }>();
  /** When a thread got on last. */
  #progressMs = 0;
  /** Calls and steps since then, steps alone, and those of threads. */
  #calls = 0;
  #steps = 0;
  #inVain = 0;
  #vainFills = 0;

  constructor(patienceMs: number) {
    this.#patienceMs = patienceMs;
  }

  after(delayMs: number, turn: number, due: () => void): Watch {
    const timer = { at: this.now + delayMs, turn, due };
    this.#timers.add(timer);
    return { close: () => void this.#timers.delete(timer) };
  }

  /** Timers whose time has come. */
  due(): Timer[] {
    return [...this.#timers].filter(({ at }) => at <= this.now);
  }

  remove(timer: Timer): void {
    this.#timers.delete(timer);
  }

  hold(forMs: number, release: () => void): void {
    this.#held.add({ until: this.now + forMs, release });
  }

  /** Lets those go on that were held back long enough. */
  releaseDue(): void {
    for (const held of this.#held) {
      if (held.until > this.now) continue;
      this.#held.delete(held);
      held.release();
    }
  }

  /** When time alone lets a thread go on; infinite: never. */
  get nextRelease(): number {
    return Math.min(Number.POSITIVE_INFINITY, ...[...this.#held].map(({ until }) => until));
  }

  /** The same, or calls back. */
  get next(): number {
    return Math.min(this.nextRelease, ...[...this.#timers].map(({ at }) => at));
  }

  /** A thread has done something, or there is another reason to go on waiting. */
  progressed(): void {
    this.#progressMs = this.now;
    this.#calls = 0;
    this.#steps = 0;
    this.#inVain = 0;
    this.#vainFills = 0;
  }

  /** A thread is about to do something. */
  tried(): void {
    this.#inVain++;
  }

  /** A call was made that resolves faults. `installed`: it has brought something. */
  filled(installed: boolean): void {
    this.#vainFills = installed ? 0 : this.#vainFills + 1;
    if (this.#vainFills < VAIN_FILLS || this.#patienceMs === Number.POSITIVE_INFINITY) return;
    this.halted = new Stuck(`${VAIN_FILLS} fills in a row have brought nothing`, 'busy');
    throw this.halted;
  }

  /** Something happens. */
  step(): void {
    this.#steps++;
    this.call(false);
  }

  /** A call is made; idle: nobody else could do anything meanwhile. */
  call(idle: boolean): void {
    if (this.halted) throw this.halted;
    this.#calls++;
    if (idle || this.#steps > IDLE_STEPS) this.now += IDLE_MS;
    else this.now += this.#calls > IDLE_STEPS ? IDLE_CALL_MS : STEP_MS;
    this.#lookOut();
  }

  /** Time goes on to a moment. */
  jump(to: number): void {
    this.now = Math.max(this.now, to);
    this.#lookOut();
  }

  /** It is an error that nobody has got on for long. */
  #lookOut(): void {
    if (this.now - this.#progressMs <= this.#patienceMs) return;
    const [how, what] =
      this.#inVain > BUSY_STEPS
        ? (['busy', 'are busy, and none of them gets on'] as const)
        : (['asleep', 'sleep, and nobody wakes them'] as const);
    this.halted = new Stuck(`for ${this.#patienceMs} ms the threads ${what}`, how);
    throw this.halted;
  }
}
