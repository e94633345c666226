// What a simulation throws: which invariant is broken, and all that repeats the run. An ordinary Error, so that any
// test framework shows it.

/** What holds in every run. */
export const INVARIANTS = {
  asleep: 'a thread sleeps for ever',
  livelock: 'threads and handler are busy, and nobody gets on',
  content: 'a page does not hold what its source or its last writer put there',
  removed: 'a page that was removed holds data',
  protection: 'a write to a page that is write-protected was not asked for',
  told: 'the handler is not told what the kernel said, once and in order',
  closed: 'closed is not told last and once',
  leak: 'a descriptor is left open',
  threw: 'the handler threw',
} as const;
export type Invariant = keyof typeof INVARIANTS;

/** A run in which an invariant is broken. */
export interface Failure {
  readonly invariant: Invariant;
  /** What was seen. */
  readonly detail: string;
  readonly cause?: unknown;
}

/** What repeats a run. */
export interface Repeat {
  /** The seed it began with; undefined where choices were given. */
  readonly seed: number | undefined;
  /** Every decision of the run: `choices` of `simulate` repeats it. */
  readonly choices: readonly number[];
  /** Who did what, what the handler was told and did, and what the kernel answered. */
  readonly schedule: readonly string[];
}

/** Lines that a message shows of a schedule's beginning, and of its end. */
const LINES_SHOWN = 20;
/** Choices that it shows. */
const CHOICES_SHOWN = 1000;

/** The lines; of many the first and the last. */
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
