// `simulate`: one run, decided by a seed or by a list of choices.

import { type Chooser, Noted, Random, Script } from '../sim/chooser.js';
import type { Injection } from '../sim/injection.js';
import { checkSimulate } from './check.js';
import { type Failure, SimulationError } from './failure.js';
import { type RunOptions, SimulationRun } from './run.js';

export interface SimulateOptions extends RunOptions {
  /** Decides the run: an integer from 0 to 2^32 − 1. Default 1. */
  seed?: number;
  /**
   * Decides the run in place of a seed: a list of choices, such as those of a failure. After the end of the list every
   * choice is the plainest.
   */
  choices?: readonly number[];
  /** Write a schedule even if nothing fails. */
  schedule?: boolean;
}

export interface Simulated {
  /** Number of steps of threads and of callbacks. */
  readonly steps: number;
  /** Number of faults that the handler was offered. */
  readonly faults: number;
  /** How often each failure was injected. */
  readonly injected: ReadonlyMap<Injection, number>;
  /** Every decision of the run. */
  readonly choices: readonly number[];
  /** What each thread did; empty unless requested. */
  readonly schedule: readonly string[];
}

/** The outcome of one run. */
export interface Attempt extends Simulated {
  readonly failure: Failure | undefined;
  /** How many of the choices were made before the first step: they decide the work of the threads. */
  readonly planned: number;
}

/** Makes one run. Throws only if its options are wrong. `fallback` decides after the end of `choices`. */
export async function attempt(options: SimulateOptions, fallback?: Chooser): Promise<Attempt> {
  const { choices, seed = 1, schedule = false } = options;
  const chooser = new Noted(choices ? new Script(choices, fallback) : new Random(seed));
  const run = new SimulationRun(options, chooser, schedule);
  await run.go();
  if (run.mistake) throw run.mistake.error;
  return {
    failure: run.failure,
    planned: run.planned,
    steps: run.steps,
    faults: run.faults,
    injected: run.world.kernel.injector?.counts ?? new Map(),
    choices: chooser.choices,
    schedule: run.schedule?.lines ?? [],
  };
}

/** Repeats a failed run with a schedule, and returns the failure as an error. */
export async function explain(
  options: SimulateOptions,
  choices: readonly number[],
  seed: number | undefined,
): Promise<SimulationError> {
  const { record: _, ...again } = options;
  const repeated = await attempt({ ...again, choices, schedule: true });
  const { failure } = repeated;
  if (!failure)
    throw new Error('a run was not repeatable: its handler or its threads depend on more than their world');
  return new SimulationError(failure, { seed, choices, schedule: repeated.schedule });
}

/**
 * Runs a handler and threads in a simulated kernel, and checks every invariant.
 *
 * @example
 * ```ts
 * import { read, write } from 'userfaultfd/sim';
 * import { answerFromSource, simulate } from 'userfaultfd/testing';
 *
 * const { faults } = await simulate({
 *   seed: 7,
 *   handler: (world) => answerFromSource(world),
 *   threads: (world) => [
 *     (function* () {
 *       yield write(world.page(0), 1);
 *       console.log(yield read(world.page(0)));
 *     })(),
 *   ],
 * });
 * console.log(faults);
 * ```
 *
 * @throws SimulationError if an invariant is broken: which one, the choices and the schedule that led there; TypeError,
 *   RangeError naming the wrong option
 */
export async function simulate(options: SimulateOptions): Promise<Simulated> {
  checkSimulate(options);
  const { failure, planned: _, ...simulated } = await attempt(options);
  if (!failure) return simulated;
  const seed = options.choices ? undefined : (options.seed ?? 1);
  throw await explain(options, simulated.choices, seed);
}
