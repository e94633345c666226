// The error that a simulation throws. It says which invariant is broken, and has everything to repeat the run. It is an
// ordinary Error, so any test framework shows it.

/** The invariants: what holds in every run. */
export const INVARIANTS = {
  asleep: 'a thread sleeps for ever',
  livelock: 'threads and handler are busy, and none of them makes progress',
  content: 'a page does not hold what its source or its last writer put there',
  removed: 'a page that was removed holds data',
  protection: 'a write to a write-protected page did not fault',
  told: 'the handler did not get what the kernel reported, once and in order',
  closed: 'closed is not called exactly once, as the last call',
  leak: 'a descriptor is left open',
  threw: 'the handler threw',
  ended: 'the handler has ended, or it has killed the process that it serves',
} as const;
export type Invariant = keyof typeof INVARIANTS;

/** A broken invariant. */
export interface Failure {
  readonly invariant: Invariant;
  /** What was observed. */
  readonly detail: string;
  readonly cause?: unknown;
}

/** What repeats a run. */
export interface Repeat {
  /** The seed of the run; undefined if choices were given. */
  readonly seed: number | undefined;
  /** Every decision of the run: `choices` of `simulate` repeats it. */
  readonly choices: readonly number[];
  /** What each thread did, how the handler was called and what it did, and what the kernel answered. */
  readonly schedule: readonly string[];
}

/** How many lines a message shows of the beginning of a schedule, and how many of its end. */
const LINES_SHOWN = 20;
/** How many choices a message shows. */
const CHOICES_SHOWN = 1000;

/** The lines. If there are many, only the first and the last ones. */
function shown(lines: readonly string[]): readonly string[] {
  const left = lines.length - 2 * LINES_SHOWN;
  if (left <= 0) return lines;
  return [...lines.slice(0, LINES_SHOWN), `… ${left} lines more …`, ...lines.slice(-LINES_SHOWN)];
}

export class SimulationError extends Error implements Repeat {
  override readonly name = 'SimulationError';
  readonly code = 'ERR_UFFD_SIMULATION';
  readonly invariant: Invariant;
  readonly detail: string;
  readonly seed: number | undefined;
  readonly choices: readonly number[];
  readonly schedule: readonly string[];

  constructor({ invariant, detail, cause }: Failure, { seed, choices, schedule }: Repeat) {
    super(
      [
        `${INVARIANTS[invariant]}: ${detail}`,
        seed === undefined ? '' : `to repeat it: seed: ${seed}`,
        ...shown(schedule).map((line) => `  ${line}`),
        choices.length > CHOICES_SHOWN
          ? `to repeat this schedule: the ${choices.length} numbers in choices`
          : `to repeat this schedule: choices: [${choices.join(', ')}]`,
      ]
        .filter(Boolean)
        .join('\n'),
      cause === undefined ? {} : { cause },
    );
    this.invariant = invariant;
    this.detail = detail;
    this.seed = seed;
    this.choices = choices;
    this.schedule = schedule;
  }
}
