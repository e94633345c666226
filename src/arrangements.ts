// Which of two arrangements brings more faults a second: the loop's thread left to the scheduler, or following the thread
// that faults. Pure: it is told how long faults took, and says what to try next.
//
// Rules:
//  - Each is tried twice, in turn, for as many faults, and the better time of each counts: what another process took
//    meanwhile is nobody's merit.
//  - The scheduler's own choice is left only for a gain that is seen clearly.
//  - It looks again when faults have become much slower or faster, and now and then, ever more rarely while that changes
//    nothing: so what is tried in vain is a small part of all faults.

export type Arrangement = 'scheduler' | 'follow';

/** Faults of a trial that are not timed, since the threads are on their way; and that are. */
const SETTLE = 32;
const TIMED = 96;
/** Faults between two looks at an arrangement that is kept. */
const KEPT = 512;
const TRIALS: readonly Arrangement[] = ['scheduler', 'follow', 'scheduler', 'follow'];
/** Following has to take less than this, by the scheduler's time. */
const GAIN = 0.95;
/** A pattern has changed where faults take this many times as long or as short, so many looks in a row. */
const CHANGE = 1.5;
const CHANGE_LOOKS = 4;
/** Faults until it is tried again: at first, and at most. */
const AGAIN_FIRST = 2 ** 16;
const AGAIN_MOST = 2 ** 22;

export class Arrangements {
  /** What to do now, and for how many faults. */
  arrangement: Arrangement = TRIALS[0] as Arrangement;
  faults = SETTLE;
  /** Index of the trial; −1: one is kept. */
  #trial = 0;
  #settled = false;
  #best: Record<Arrangement, number> = fresh();
  /** Milliseconds of a fault that the kept arrangement is expected to take. */
  #expected = 0;
  #changed = 0;
  #kept = 0;
  #again = AGAIN_FIRST;
  #last: Arrangement | undefined;

  /** @param before what was found out about faults like those that come now: it is kept until they are seen to differ */
  constructor(before?: Arrangements) {
    if (before === undefined || before.#last === undefined) return;
    this.#last = before.#last;
    this.#expected = before.#best[before.#last];
    this.#best = before.#best;
    this.#again = before.#again;
    this.arrangement = before.#last;
    this.#trial = -1;
    this.faults = KEPT;
  }

  /** Milliseconds that each of the last `faults` took. */
  took(ms: number): void {
    if (this.#trial >= 0) this.#tried(ms);
    else this.#keep(ms);
  }

  #tried(ms: number): void {
    if (!this.#settled) {
      this.#settled = true;
      this.faults = TIMED;
      return;
    }
    this.#best[this.arrangement] = Math.min(this.#best[this.arrangement], ms);
    this.#trial++;
    this.#settled = false;
    this.faults = SETTLE;
    if (this.#trial < TRIALS.length) this.arrangement = TRIALS[this.#trial] as Arrangement;
    else this.#choose();
  }

  #choose(): void {
    const { scheduler, follow } = this.#best;
    const chosen = follow < scheduler * GAIN ? 'follow' : 'scheduler';
    this.#again = chosen === this.#last ? Math.min(this.#again * 2, AGAIN_MOST) : AGAIN_FIRST;
    this.#last = chosen;
    this.arrangement = chosen;
    this.#expected = this.#best[chosen];
    this.#trial = -1;
    this.#changed = 0;
    this.#kept = 0;
    this.faults = KEPT;
  }

  #keep(ms: number): void {
    this.#kept += KEPT;
    const same = ms < this.#expected * CHANGE && ms > this.#expected / CHANGE;
    this.#changed = same ? 0 : this.#changed + 1;
    // What changes slowly is followed.
    if (same) this.#expected += (ms - this.#expected) / 8;
    if (this.#changed < CHANGE_LOOKS && this.#kept < this.#again) return;
    if (this.#changed >= CHANGE_LOOKS) this.#last = undefined;
    this.#trial = 0;
    this.#settled = false;
    this.#best = fresh();
    this.arrangement = TRIALS[0] as Arrangement;
    this.faults = SETTLE;
  }
}

function fresh(): Record<Arrangement, number> {
  return { scheduler: Number.POSITIVE_INFINITY, follow: Number.POSITIVE_INFINITY };
}
