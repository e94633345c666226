// Finds the placement strategy that serves the most faults per second. 'scheduler': the scheduler places the loop's
// thread. 'follow': the loop's thread runs on the processor of the faulting thread. 'awake': the scheduler places the
// thread, and idle processors are kept awake. Pure: the caller reports how long faults took, and this class says what
// to try next.
//
// Rules:
//  - Each strategy is tried several times, in turn, for the same number of faults. Its time is the median of its trials
//    (of two, the lower one). Medians filter out noise from other processes and from chance decisions of the scheduler.
//  - If a strategy was in use before, its average time from then counts as much as that median.
//  - Another strategy replaces the scheduler's choice only if it gains more than these times usually vary.
//  - Trials are repeated when faults have become much slower or faster, and also at intervals. If they change nothing,
//    they are repeated more and more rarely, so that only a few of all faults are served during trials.

export type PlacementStrategy = 'scheduler' | 'follow' | 'awake';

/**
 * Numbers of faults. SETTLE_FIRST faults are not timed before the first trial, because code is not compiled yet and
 * processors are in light sleep. SETTLE faults are not timed at the beginning of each trial, while the threads move.
 * Then TIMED faults are timed.
 */
const SETTLE_FIRST = 256;
const SETTLE = 32;
const TIMED = 64;
/** Faults between two checks of the kept strategy. */
const KEPT = 128;
/** Keeping processors awake comes last, because its effect lasts longer than a trial takes to settle. */
const TRIALS: readonly PlacementStrategy[] = [
  'scheduler',
  'follow',
  'scheduler',
  'follow',
  'scheduler',
  'awake',
  'awake',
];
/**
 * The strategies, the cheapest first. A strategy is chosen only if its time is below this share of the best time of the
 * strategies before it. A strategy that pays takes a half or a fifth of the time, and the times of TIMED faults vary by
 * a quarter.
 */
const SHARE_MOST: Readonly<Record<PlacementStrategy, number>> = { scheduler: 1, follow: 0.75, awake: 0.7 };
const STRATEGIES = Object.keys(SHARE_MOST) as PlacementStrategy[];
/**
 * The pattern of faults has changed if faults are slower or faster by the factor CHANGE in CHANGE_CHECKS checks in a
 * row.
 */
const CHANGE = 1.5;
const CHANGE_CHECKS = 2;
/**
 * Faults until trials are repeated, at first and at most: CHANGED_* if the pattern has changed, AGAIN_* if it has not.
 */
const CHANGED_FIRST = 2 ** 9;
const CHANGED_MOST = 2 ** 16;
const AGAIN_FIRST = 2 ** 13;
const AGAIN_MOST = 2 ** 22;
/** Weight of a new check in the recent average of a strategy. */
const NEWEST = 1 / 8;

export class AffinityTuner {
  /** The strategy to use now, and for how many faults. */
  strategy: PlacementStrategy = TRIALS[0] as PlacementStrategy;
  faults = SETTLE_FIRST;
  /** Index of the trial; −1: a strategy is kept. */
  #trial = 0;
  #settled = false;
  #tried: Record<PlacementStrategy, number[]> = nothingTried();
  /** Milliseconds per fault of each strategy, while it was kept. */
  #recentMs: Partial<Record<PlacementStrategy, number>> = {};
  /** Expected milliseconds per fault of the kept strategy. */
  #expected = 0;
  #changed = 0;
  #kept = 0;
  /** Faults until the next trials. `#againChanged`: the same after a change of the pattern. */
  #again = AGAIN_FIRST;
  #againChanged = CHANGED_FIRST;
  #last: PlacementStrategy | undefined;

  /** @param before earlier findings about similar faults: they are kept until the faults turn out to differ */
  constructor(before?: AffinityTuner) {
    if (before === undefined || before.#last === undefined) return;
    this.#last = before.#last;
    this.#recentMs = { ...before.#recentMs };
    this.#again = before.#again;
    this.#againChanged = before.#againChanged;
    this.#expected = before.#expected;
    this.#keep(before.#last);
    this.#kept = before.#kept;
    this.#changed = before.#changed;
  }

  /** Reports the milliseconds per fault of the last `faults`. */
  measured(ms: number): void {
    if (this.#trial < 0) this.#measuredKept(ms);
    else if (this.#settled) this.#measuredTrial(ms);
    else {
      this.#settled = true;
      this.faults = TIMED;
    }
  }

  #measuredTrial(ms: number): void {
    this.#tried[this.strategy].push(ms);
    this.#trial++;
    this.#settled = false;
    this.faults = SETTLE;
    if (this.#trial < TRIALS.length) this.strategy = TRIALS[this.#trial] as PlacementStrategy;
    else this.#choose();
  }

  #choose(): void {
    const time = (one: PlacementStrategy): number => {
      const trial = middle(this.#tried[one]);
      return (trial + (this.#recentMs[one] ?? trial)) / 2;
    };
    const chosen = STRATEGIES.reduce((one, next) => (time(next) < time(one) * SHARE_MOST[next] ? next : one));
    const known = chosen === this.#last;
    this.#again = known ? Math.min(this.#again * 2, AGAIN_MOST) : AGAIN_FIRST;
    this.#againChanged = known ? Math.min(this.#againChanged * 2, CHANGED_MOST) : CHANGED_FIRST;
    this.#last = chosen;
    for (const one of STRATEGIES) if (this.#recentMs[one] !== undefined) this.#recentMs[one] = time(one);
    this.#expected = middle(this.#tried[chosen]);
    this.#keep(chosen);
  }

  #keep(strategy: PlacementStrategy): void {
    this.strategy = strategy;
    this.#trial = -1;
    this.#changed = 0;
    this.#kept = 0;
    this.faults = KEPT;
  }

  #measuredKept(ms: number): void {
    this.#kept += KEPT;
    const { strategy } = this;
    const recentMs = this.#recentMs[strategy] ?? ms;
    this.#recentMs[strategy] = recentMs + (ms - recentMs) * NEWEST;
    const same = ms < this.#expected * CHANGE && ms > this.#expected / CHANGE;
    this.#changed = same ? 0 : this.#changed + 1;
    // Follow slow changes.
    if (same) this.#expected += (ms - this.#expected) * NEWEST;
    const changed = this.#changed >= CHANGE_CHECKS && this.#kept >= this.#againChanged;
    if (!changed && this.#kept < this.#again) return;
    if (changed) this.#recentMs[strategy] = ms;
    this.#trial = 0;
    this.#settled = false;
    this.#tried = nothingTried();
    this.strategy = TRIALS[0] as PlacementStrategy;
    this.faults = SETTLE_FIRST;
  }
}

/** The median; of an even number of times, the lower middle one. */
function middle(times: readonly number[]): number {
  return [...times].sort((a, b) => a - b)[(times.length - 1) >> 1] as number;
}

function nothingTried(): Record<PlacementStrategy, number[]> {
  return { scheduler: [], follow: [], awake: [] };
}
