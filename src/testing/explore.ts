// `explore`: run after run, each from a seed of its own, until one breaks an invariant; that one is made small.

import { checkExplore } from './check.js';
import { shrink } from './shrink.js';
import { attempt, explain, type SimulateOptions } from './simulate.js';

export interface ExploreOptions extends Omit<SimulateOptions, 'seed' | 'choices' | 'record'> {
  /** How many seeds, from 1 on, or which: at least one, each from 0 to 2^32 − 1. Default 1000. */
  seeds?: number | { from: number; count: number };
  /** Runs that shrinking may take. Default 3000. */
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
 * @example
 * ```ts
 * import { explore } from 'userfaultfd/testing';
 *
 * const { runs } = await explore({
 *   seeds: 50,
 *   handler: (world) => ({
 *     pagefault({ page }, uffd) {
 *       const removed = uffd.pageState(page) === 'removed';
 *       const done = removed
 *         ? uffd.zero(page, world.pageSize)
 *         : uffd.copy(page, world.source(world.indexOf(page) ?? 0));
 *       return done === world.pageSize;
 *     },
 *   }),
 * });
 * console.log(`nothing is broken in ${runs} worlds`);
 * ```
 *
 * @throws SimulationError with the seed that repeats it, and the smallest schedule that was found; TypeError, RangeError that
 *   name the option that is wrong
 */
export async function explore(options: ExploreOptions): Promise<Explored> {
  checkExplore(options);
  const { seeds = 1000, shrinks = 3000, print, ...run } = options;
  const { from, count } = typeof seeds === 'number' ? { from: 1, count: seeds } : seeds;
  const explored = { runs: 0, steps: 0, faults: 0 };
  for (let seed = from; seed < from + count; seed++) {
    const tried = await attempt({ ...run, seed });
    explored.runs++;
    explored.steps += tried.steps;
    explored.faults += tried.faults;
    if (!tried.failure) continue;
    const error = await explain(run, await shrink(run, tried, shrinks), seed);
    print?.(error.message);
    throw error;
  }
  return explored;
}
