// `explore`: run after run, each from a seed of its own, until one breaks an invariant; that one is made as small as
// can be.
//
// How it shrinks: a run is a list of choices, and 0 is the plainest. Parts of the list are left out or made plain, and
// single numbers smaller. What breaks the same invariant in fewer steps, or with plainer choices, is kept.

import { attempt, explain, type SimulateOptions } from './simulate.js';

export interface ExploreOptions extends Omit<SimulateOptions, 'seed' | 'choices' | 'record'> {
  /** How many seeds, or which. Default 1000, from 1 on. */
  seeds?: number | { from: number; count: number };
  /** Runs that shrinking may take. Default 1000. */
  shrinks?: number;
  /** Told of a failure before it is thrown: console.error, for one. */
  print?: (text: string) => void;
}

export interface Explored {
  readonly runs: number;
  readonly steps: number;
  readonly faults: number;
}

/**
 * Looks for a schedule that breaks an invariant.
 *
 * @throws SimulationError with the seed that repeats it, and the smallest schedule that was found
 */
export async function explore(options: ExploreOptions): Promise<Explored> {
  const { seeds = 1000, shrinks = 1000, print, ...run } = options;
  const { from, count } = typeof seeds === 'number' ? { from: 1, count: seeds } : seeds;
  const explored = { runs: 0, steps: 0, faults: 0 };
  for (let seed = from; seed < from + count; seed++) {
    const { failure, choices, steps, faults } = await attempt({ ...run, seed });
    explored.runs++;
    explored.steps += steps;
    explored.faults += faults;
    if (!failure) continue;
    const smallest = await new Shrinking(run, failure.invariant, { choices, steps }, shrinks).shrink();
    const error = await explain(run, smallest, seed);
    print?.(error.message);
    throw error;
  }
  return explored;
}

/** A run that breaks the invariant. */
interface Found {
  readonly choices: readonly number[];
  readonly steps: number;
}

/** Parts up to this size are tried at every place, larger ones side by side. */
const SMALL_PART = 6;

class Shrinking {
  readonly #options: SimulateOptions;
  readonly #invariant: string;
  #best: Found;
  #left: number;

  constructor(options: SimulateOptions, invariant: string, found: Found, runs: number) {
    this.#options = options;
    this.#invariant = invariant;
    this.#best = { ...found, choices: trimmed(found.choices) };
    this.#left = runs;
  }

  async shrink(): Promise<readonly number[]> {
    for (let before: Found | undefined; before !== this.#best && this.#left > 0; ) {
      before = this.#best;
      await this.#parts(() => []);
      await this.#parts((part) => part.map(() => 0));
      await this.#lower();
    }
    return this.#best.choices;
  }

  /** Puts something simpler in place of parts, large ones first. */
  async #parts(simpler: (part: readonly number[]) => number[]): Promise<void> {
    for (let size = this.#best.choices.length; size >= 1; size -= Math.ceil(size / 4)) {
      const stride = size <= SMALL_PART ? 1 : size;
      for (let at = this.#best.choices.length - size; at >= 0; at -= stride) {
        const { choices } = this.#best;
        const part = choices.slice(at, at + size);
        if (part.length > 0)
          await this.#try([...choices.slice(0, at), ...simpler(part), ...choices.slice(at + size)]);
      }
    }
  }

  /** Makes single numbers smaller. */
  async #lower(): Promise<void> {
    for (let at = this.#best.choices.length - 1; at >= 0; at--) {
      const value = this.#best.choices[at] ?? 0;
      for (const lower of new Set([Math.floor(value / 2), value - 1])) {
        if (lower > 0) await this.#try(this.#best.choices.with(at, lower));
      }
    }
  }

  /** Keeps a list that is simpler, if the same invariant is broken. */
  async #try(choices: readonly number[]): Promise<void> {
    if (this.#left <= 0) return;
    this.#left--;
    const { failure, ...tried } = await attempt({ ...this.#options, choices });
    if (failure?.invariant !== this.#invariant) return;
    // What was really asked for: a list may be longer than the run.
    const found = { steps: tried.steps, choices: trimmed(tried.choices) };
    if (isSimpler(found, this.#best)) this.#best = found;
  }
}

/** Without plain choices at the end, which are understood. */
function trimmed(choices: readonly number[]): readonly number[] {
  return choices.slice(0, choices.findLastIndex((choice) => choice !== 0) + 1);
}

/** Fewer steps first; then fewer choices that are not plain; then shorter, and smaller. */
function isSimpler(a: Found, b: Found): boolean {
  const measures = ({ steps, choices }: Found): number[] => [
    steps,
    choices.filter((choice) => choice !== 0).length,
    choices.length,
    choices.reduce((sum, choice) => sum + choice, 0),
  ];
  const [mine, other] = [measures(a), measures(b)];
  const at = mine.findIndex((measure, index) => measure !== other[index]);
  return at >= 0 && (mine[at] as number) < (other[at] as number);
}
