// `explore`: runs one seed after the other until a run breaks an invariant, then shrinks that run.

import { checkExplore } from './check.js';
import { type Runner, Shrinker } from './shrink.js';
import { attempt, explain, type SimulateOptions } from './simulate.js';

export interface ExploreOptions extends Omit<SimulateOptions, 'seed' | 'choices' | 'record'> {
  /**
   * How many seeds to try, from seed 1 on. Or which seeds to try: at least one, each from 0 to 2^32 − 1. Default 1000.
   */
  seeds?: number | { from: number; count: number };
  /** Most runs that shrinking takes. Default 3000. */
  shrinks?: number;
  /** Called with the text of a failure before it is thrown; for example, console.error. */
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
 * @throws SimulationError with the seed that repeats the failure, and the smallest schedule that was found; TypeError,
 *   RangeError naming the wrong option
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
    const again: Runner = (choices, fallback, steps) =>
      attempt({ ...run, ...(steps === undefined ? {} : { steps }), choices }, fallback);
    const error = await explain(run, await new Shrinker(again, tried, shrinks).shrink(), seed);
    print?.(error.message);
    throw error;
  }
  return explored;
}
