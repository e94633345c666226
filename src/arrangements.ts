// Which arrangement brings most faults a second: the loop's thread left to the scheduler, or following the thread that
// faults, or left to the scheduler while idle processors are kept awake. Pure: it is told how long faults took, and says
// what to try next.
//
// Rules:
//  - Each is tried several times, in turn, for as many faults; the middle one of its times counts, or the better of two:
//    what another process took meanwhile is nobody's merit, and what the scheduler did once may have been luck.
//  - How it did while it was kept counts as much as a trial.
//  - The scheduler's own choice is left only for a gain that is larger than what such times vary by.
//  - It looks again when faults have become much slower or faster, and now and then, both ever more rarely while that
//    changes nothing: so what is tried in vain is a small part of all faults.

export type Arrangement = 'scheduler' | 'follow' | 'awake';

/**
 * Faults that are not timed: before the first trial, since what was before goes on for a while (code that is not compiled,
 * processors that sleep lightly); and at the beginning of each, while the threads are on their way. And those that are.
 */
const SETTLE_FIRST = 256;
const SETTLE = 32;
const TIMED = 64;
/** Faults between two looks at an arrangement that is kept. */
const KEPT = 128;
/** What keeps processors awake comes last, since it goes on for longer than a trial has to settle. */
const TRIALS: readonly Arrangement[] = [
  'scheduler',
  'follow',
  'scheduler',
  'follow',
  'scheduler',
  'awake',
  'awake',
];
/**
 * The cheapest first; each of the others has to take less than this, by the time of the best before it. Where another
 * pays, faults take a half or a fifth of the time; and so few of them vary by a quarter.
 */
const SHARE_MOST: Readonly<Record<Arrangement, number>> = { scheduler: 1, follow: 0.75, awake: 0.7 };
const ARRANGEMENTS = Object.keys(SHARE_MOST) as Arrangement[];
/** A pattern has changed where faults take this many times as long or as short, so many looks in a row. */
const CHANGE = 1.5;
const CHANGE_LOOKS = 2;
/** Faults until it is tried again, whatever changes, and where nothing does: at first, and at most. */
const CHANGED_FIRST = 2 ** 9;
const CHANGED_MOST = 2 ** 16;
const AGAIN_FIRST = 2 ** 13;
const AGAIN_MOST = 2 ** 22;
/** What a look adds to how an arrangement did lately. */
const NEWEST = 1 / 8;

export class Arrangements {
  /** What to do now, and for how many faults. */
  arrangement: Arrangement = TRIALS[0] as Arrangement;
  faults = SETTLE_FIRST;
  /** Index of the trial; −1: one is kept. */
  #trial = 0;
  #settled = false;
  #tried: Record<Arrangement, number[]> = nothingTried();
  /** Milliseconds of a fault, while each was kept. */
  #lately: Partial<Record<Arrangement, number>> = {};
  /** Milliseconds of a fault that the kept arrangement is expected to take. */
  #expected = 0;
  #changed = 0;
  #kept = 0;
  /** Faults until it is tried again; and where it has become much slower or faster. */
  #again = AGAIN_FIRST;
  #againChanged = CHANGED_FIRST;
  #last: Arrangement | undefined;

  /** @param before what was found out about faults like those that come now: it is kept until they are seen to differ */
  constructor(before?: Arrangements) {
    if (before === undefined || before.#last === undefined) return;
    this.#last = before.#last;
    this.#lately = { ...before.#lately };
    this.#again = before.#again;
    this.#againChanged = before.#againChanged;
    this.#expected = before.#expected;
    this.#keep(before.#last);
    this.#kept = before.#kept;
    this.#changed = before.#changed;
  }

  /** Milliseconds that each of the last `faults` took. */
  took(ms: number): void {
    if (this.#trial < 0) this.#tookKept(ms);
    else if (this.#settled) this.#tookTried(ms);
    else {
      this.#settled = true;
      this.faults = TIMED;
    }
  }

  #tookTried(ms: number): void {
    this.#tried[this.arrangement].push(ms);
    this.#trial++;
    this.#settled = false;
    this.faults = SETTLE;
    if (this.#trial < TRIALS.length) this.arrangement = TRIALS[this.#trial] as Arrangement;
    else this.#choose();
  }

  #choose(): void {
    const time = (one: Arrangement): number => {
      const trial = middle(this.#tried[one]);
      return (trial + (this.#lately[one] ?? trial)) / 2;
    };
    const chosen = ARRANGEMENTS.reduce((one, next) =>
      time(next) < time(one) * SHARE_MOST[next] ? next : one,
    );
    const known = chosen === this.#last;
    this.#again = known ? Math.min(this.#again * 2, AGAIN_MOST) : AGAIN_FIRST;
    this.#againChanged = known ? Math.min(this.#againChanged * 2, CHANGED_MOST) : CHANGED_FIRST;
    this.#last = chosen;
    for (const one of ARRANGEMENTS) if (this.#lately[one] !== undefined) this.#lately[one] = time(one);
    this.#expected = middle(this.#tried[chosen]);
    this.#keep(chosen);
  }

  #keep(arrangement: Arrangement): void {
    this.arrangement = arrangement;
    this.#trial = -1;
    this.#changed = 0;
    this.#kept = 0;
    this.faults = KEPT;
  }

  #tookKept(ms: number): void {
    this.#kept += KEPT;
    const { arrangement } = this;
    const lately = this.#lately[arrangement] ?? ms;
    this.#lately[arrangement] = lately + (ms - lately) * NEWEST;
    const same = ms < this.#expected * CHANGE && ms > this.#expected / CHANGE;
    this.#changed = same ? 0 : this.#changed + 1;
    // What changes slowly is followed.
    if (same) this.#expected += (ms - this.#expected) * NEWEST;
    const changed = this.#changed >= CHANGE_LOOKS && this.#kept >= this.#againChanged;
    if (!changed && this.#kept < this.#again) return;
    if (changed) this.#lately[arrangement] = ms;
    this.#trial = 0;
    this.#settled = false;
    this.#tried = nothingTried();
    this.arrangement = TRIALS[0] as Arrangement;
    this.faults = SETTLE_FIRST;
  }
}

/** The middle one of an odd number, or the smaller of the middle two. */
function middle(times: readonly number[]): number {
  return [...times].sort((a, b) => a - b)[(times.length - 1) >> 1] as number;
}

function nothingTried(): Record<Arrangement, number[]> {
  return { scheduler: [], follow: [], awake: [] };
}
