// `explore`: run after run, each from a seed of its own, until one breaks an invariant; that one is made as small as
// can be.
//
// How it shrinks: a run is a list of choices, and 0 is the plainest. A shorter list, or one with smaller numbers, is
// simpler. It is kept where the same invariant is broken.

import { attempt, explain, type SimulateOptions } from './simulate.js';

export interface ExploreOptions extends Omit<SimulateOptions, 'seed' | 'choices' | 'record'> {
  /** How many seeds, or which. Default 1000, from 1 on. */
  seeds?: number | { from: number; count: number };
  /** Runs that shrinking may take. Default 500. */
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
  const { seeds = 1000, shrinks = 500, print, ...run } = options;
  const { from, count } = typeof seeds === 'number' ? { from: 1, count: seeds } : seeds;
  const explored = { runs: 0, steps: 0, faults: 0 };
  for (let seed = from; seed < from + count; seed++) {
    const { failure, choices, steps, faults } = await attempt({ ...run, seed });
    explored.runs++;
    explored.steps += steps;
    explored.faults += faults;
    if (!failure) continue;
    const smallest = await new Shrinking(run, failure.invariant, choices, shrinks).shrink();
    const error = await explain(run, smallest, seed);
    print?.(error.message);
    throw error;
  }
  return explored;
}

class Shrinking {
  readonly #options: SimulateOptions;
  readonly #invariant: string;
  #best: readonly number[];
  #left: number;

  constructor(options: SimulateOptions, invariant: string, choices: readonly number[], runs: number) {
    this.#options = options;
    this.#invariant = invariant;
    this.#best = trimmed(choices);
    this.#left = runs;
  }

  async shrink(): Promise<readonly number[]> {
    for (let before = -1; before !== weight(this.#best) && this.#left > 0; ) {
      before = weight(this.#best);
      await this.#cut();
      await this.#simplify(() => []);
      await this.#simplify((part) => part.map(() => 0));
      await this.#lower();
    }
    return this.#best;
  }

  /** Keeps the first part alone. */
  async #cut(): Promise<void> {
    for (let keep = 0; keep < this.#best.length; keep = Math.ceil((keep + this.#best.length) / 2) || 1) {
      await this.#try(this.#best.slice(0, keep));
      if (keep + 1 >= this.#best.length) return;
    }
  }

  /** Puts something simpler in place of parts, large ones first. */
  async #simplify(simpler: (part: readonly number[]) => number[]): Promise<void> {
    for (let size = Math.ceil(this.#best.length / 2); size >= 1; size = Math.floor(size / 2)) {
      for (let at = this.#best.length - size; at >= 0; at -= size) {
        const part = this.#best.slice(at, at + size);
        await this.#try([...this.#best.slice(0, at), ...simpler(part), ...this.#best.slice(at + size)]);
      }
    }
  }

  /** Makes single numbers smaller. */
  async #lower(): Promise<void> {
    for (let at = this.#best.length - 1; at >= 0; at--) {
      const value = this.#best[at] ?? 0;
      for (const lower of new Set([Math.floor(value / 2), value - 1])) {
        if (lower >= 0 && lower < value) await this.#try(this.#best.with(at, lower));
      }
    }
  }

  /** Keeps a list that is simpler, if the same invariant is broken. */
  async #try(choices: readonly number[]): Promise<void> {
    if (this.#left <= 0 || weight(trimmed(choices)) >= weight(this.#best)) return;
    this.#left--;
    const tried = await attempt({ ...this.#options, choices });
    if (tried.failure?.invariant !== this.#invariant) return;
    // What was really asked for: what is behind the failure was not.
    const asked = trimmed(tried.choices);
    this.#best = weight(asked) <= weight(trimmed(choices)) ? asked : trimmed(choices);
  }
}

/** Without plain choices at the end, which are understood. */
function trimmed(choices: readonly number[]): readonly number[] {
  return choices.slice(0, choices.findLastIndex((choice) => choice !== 0) + 1);
}

/** How far from plain: choices that are not, then their number and size. */
function weight(choices: readonly number[]): number {
  let sum = choices.length;
  for (const choice of choices) sum += choice === 0 ? 0 : 100 + Math.min(choice, 99);
  return sum;
}
