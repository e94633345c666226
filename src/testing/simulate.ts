// `simulate`: one run, decided by a seed or by a list of choices.

import type { Injection } from '../sim/injection.js';
import { type Chooser, Noted, Random, Script } from '../sim/random.js';
import { checkSimulate } from './check.js';
import { type Failure, SimulationError } from './failure.js';
import { Run, type RunOptions } from './run.js';

export interface SimulateOptions extends RunOptions {
  /** Decides the run: an integer from 0 to 2^32 − 1. Default 1. */
  seed?: number;
  /** Decides the run in place of a seed: what a failure says. Behind its end comes the plainest choice. */
  choices?: readonly number[];
  /** Write a schedule also where nothing fails. */
  schedule?: boolean;
}

export interface Simulated {
  /** Steps of threads, and callbacks. */
  readonly steps: number;
  /** Faults that the handler was offered. */
  readonly faults: number;
  /** How often what was injected. */
  readonly injected: ReadonlyMap<Injection, number>;
  /** Every decision of the run. */
  readonly choices: readonly number[];
  /** Who did what; empty unless asked for. */
  readonly schedule: readonly string[];
}

/** What one run came to. */
export interface Tried extends Simulated {
  readonly failure: Failure | undefined;
  /** How many of the choices were made before the first step: what the threads have to do. */
  readonly planned: number;
}

/** One run; nothing is thrown but mistakes in its options. `behind` decides where `choices` end. */
export async function attempt(options: SimulateOptions, behind?: Chooser): Promise<Tried> {
  const { choices, seed = 1, schedule = false } = options;
  const chooser = new Noted(choices ? new Script(choices, behind) : new Random(seed));
  const run = new Run(options, chooser, schedule);
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

/** The same run again, with its schedule, as an error. */
export async function explain(
  options: SimulateOptions,
  choices: readonly number[],
  seed: number | undefined,
): Promise<SimulationError> {
  const { record: _, ...again } = options;
  const told = await attempt({ ...again, choices, schedule: true });
  const { failure } = told;
  if (!failure)
    throw new Error('a run was not repeatable: its handler or its threads depend on more than their world');
  return new SimulationError(failure, { seed, choices, schedule: told.schedule });
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
 * @throws SimulationError where one is broken: which, and the choices and the schedule that led there; TypeError, RangeError
 *   that name the option that is wrong
 */
export async function simulate(options: SimulateOptions): Promise<Simulated> {
  checkSimulate(options);
  const { failure, planned: _, ...simulated } = await attempt(options);
  if (!failure) return simulated;
  const seed = options.choices ? undefined : (options.seed ?? 1);
  throw await explain(options, simulated.choices, seed);
}
