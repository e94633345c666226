// Shrinks a run that breaks an invariant. A run is a list of choices, and 0 is the plainest choice.
//
// How: first the threads get less to do. Parts of the choices before the first step are left out, and for each attempt
// several schedules are tried, the plainest one first. Then the schedule is simplified: parts of the list are left out
// or set to 0, and single numbers are lowered. A new list is kept if it is simpler and breaks the same invariant.

import { type Chooser, Random } from '../sim/chooser.js';
import type { Attempt } from './simulate.js';

/** Makes a run with these choices. `fallback` decides after their end; `steps`: most steps, if that is limited. */
export type Runner = (
  choices: readonly number[],
  fallback: Chooser | undefined,
  steps: number | undefined,
) => Promise<Attempt>;

/** A run that breaks the invariant. */
type FailingRun = Pick<Attempt, 'choices' | 'planned' | 'steps' | 'injected'>;

/** Most choices of all runs together. A run that is busy without progress takes thousands of choices. */
const CHOICES_MOST = 1_000_000;
/** Parts up to this size are tried at every position. Larger parts are tried only at multiples of their size. */
const SMALL_PART = 6;
/** How many schedules are tried for a part that is left out, and for the final list. */
const SCHEDULES = 12;
const LAST_SCHEDULES = 100;
/** By how many positions the rest may shift after a number was lowered. */
const SHIFTS = [0, 1, -1, 2, -2];

export class Shrinker {
  readonly #run: Runner;
  readonly #invariant: string | undefined;
  #best: FailingRun;
  #left: number;
  #choices = 0;

  constructor(run: Runner, { failure, choices, ...found }: Attempt, runs: number) {
    this.#run = run;
    this.#invariant = failure?.invariant;
    this.#best = { ...found, choices: trimmed(choices) };
    this.#left = runs;
  }

  /** Returns the choices of the simplest run that was found within the allowed number of runs. */
  async shrink(): Promise<readonly number[]> {
    await this.#try(this.#best.choices.slice(0, this.#best.planned));
    await this.#untilStable(() => this.#plan());
    await this.#schedules(this.#best, LAST_SCHEDULES);
    await this.#untilStable(async () => {
      await this.#parts(() => []);
      await this.#parts((part) => part.map(() => 0));
      await this.#lower();
    });
    return this.#best.choices;
  }

  /** Whether the failure is that the run goes on forever. */
  get #endless(): boolean {
    return this.#invariant === 'livelock';
  }

  /** Whether the runs are used up. */
  get #spent(): boolean {
    return this.#left <= 0 || this.#choices >= CHOICES_MOST;
  }

  /** The parts of a list, large ones first, from its end. */
  *#places(length: number): Generator<{ at: number; size: number }> {
    for (let size = length; size >= 1; size -= Math.ceil(size / 4)) {
      const stride = size <= SMALL_PART ? 1 : size;
      for (let at = length - size; at >= 0 && !this.#spent; at -= stride) yield { at, size };
    }
  }

  /** Repeats a pass until it finds nothing simpler. */
  async #untilStable(pass: () => Promise<void>): Promise<void> {
    for (let before: FailingRun | undefined; before !== this.#best; ) {
      before = this.#best;
      await pass();
    }
  }

  /** Gives the threads less to do. */
  async #plan(): Promise<void> {
    for (const { at, size } of this.#places(this.#best.planned)) {
      const { choices, planned } = this.#best;
      if (at + size > planned) continue;
      const less = [...choices.slice(0, at), ...choices.slice(at + size)];
      await this.#try(less);
      await this.#schedules({ choices: less, planned: planned - size }, SCHEDULES);
    }
  }

  /** Looks for another schedule of the same work. */
  async #schedules(
    { choices, planned }: Pick<FailingRun, 'choices' | 'planned'>,
    count: number,
  ): Promise<void> {
    // Every schedule of such a run, even the plainest, goes on forever.
    if (this.#endless) return;
    const plan = choices.slice(0, planned);
    for (let schedule = 0; schedule < count; schedule++) await this.#try(plan, new Random(schedule));
  }

  /** Replaces parts with simpler ones. */
  async #parts(simpler: (part: readonly number[]) => number[]): Promise<void> {
    for (const { at, size } of this.#places(this.#best.choices.length)) {
      const { choices } = this.#best;
      const part = choices.slice(at, at + size);
      if (part.length > 0)
        await this.#try([...choices.slice(0, at), ...simpler(part), ...choices.slice(at + size)]);
    }
  }

  /** Lowers single numbers. If the run then needs fewer or more choices, choices are left out or put in. */
  async #lower(): Promise<void> {
    for (let at = this.#best.choices.length - 1; at >= 0 && !this.#spent; at--) {
      const value = this.#best.choices[at] ?? 0;
      for (const lower of new Set([0, Math.floor(value / 2), value - 1])) {
        if (lower < 0 || lower >= value) continue;
        for (const shift of SHIFTS) {
          const { choices } = this.#best;
          const behind = choices.slice(at + 1 + Math.max(-shift, 0));
          const plain = Array.from({ length: Math.max(shift, 0) }, () => 0);
          await this.#try([...choices.slice(0, at), lower, ...plain, ...behind]);
        }
      }
    }
  }

  /** Keeps a simpler list if it breaks the same invariant. `fallback` decides after the end of the list. */
  async #try(choices: readonly number[], fallback?: Chooser): Promise<void> {
    if (this.#spent) return;
    this.#left--;
    // A run with far more steps is not simpler, so it need not run to its end.
    const run = await this.#run(choices, fallback, this.#endless ? undefined : 2 * this.#best.steps);
    const { failure, choices: made, ...found } = run;
    this.#choices += made.length;
    if (failure?.invariant !== this.#invariant) return;
    // Keep only the choices that the run has used: the list may be longer.
    const simpler = { ...found, choices: trimmed(made) };
    if (isSimpler(simpler, this.#best, this.#endless)) this.#best = simpler;
  }
}

/** Removes the plain choices at the end of a list, which are implied. */
function trimmed(choices: readonly number[]): readonly number[] {
  return choices.slice(0, choices.findLastIndex((choice) => choice !== 0) + 1);
}

/**
 * Whether `a` is simpler than `b`. Compares, in this order: injected failures, planned choices (the work of the
 * threads), steps, choices that are not plain, the length of the list, and its sum. If the runs go on forever, steps
 * are ignored.
 */
function isSimpler(a: FailingRun, b: FailingRun, endless: boolean): boolean {
  const measures = ({ injected, planned, steps, choices }: FailingRun): number[] => [
    [...injected.values()].reduce((sum, count) => sum + count, 0),
    planned,
    endless ? 0 : steps,
    choices.filter((choice) => choice !== 0).length,
    choices.length,
    choices.reduce((sum, choice) => sum + choice, 0),
  ];
  const [mine, other] = [measures(a), measures(b)];
  const at = mine.findIndex((measure, index) => measure !== other[index]);
  return at >= 0 && (mine[at] as number) < (other[at] as number);
}
