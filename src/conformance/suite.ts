// The suite on the real kernel: runs scenarios one after the other. Also gives the simulated check and the recorder, so that
// bundles for browsers leave out all of them with this file.

import '../kernel/linux.js';
import { invalidValue } from '../errors/arguments.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import type { CheckReport, ScenarioResult } from './result.js';
import { type RunOptions, runScenario } from './run-scenario.js';
import type { Scenario } from './scenario.js';
import { SCENARIOS } from './scenarios/index.js';

export { checkSimulated } from '../supervisor/check-simulated.js';
export { recordProgram } from '../supervisor/record-handler.js';
export { trySimulatedSupport } from '../supervisor/support.js';

export interface SuiteOptions extends RunOptions {
  /** Names of scenarios, or of their beginnings, like `remove`; default: all. */
  readonly scenarios?: readonly string[] | undefined;
  /** How often each scenario runs; default 1. */
  readonly repeat?: number | undefined;
  /** Called with each result. */
  readonly onResult?: ((result: ScenarioResult) => void) | undefined;
}

/** The names of all scenarios, and why they matter. */
export const NAMES: readonly Pick<Scenario, 'name' | 'why'>[] = SCENARIOS.map(({ name, why }) => ({
  name,
  why,
}));

/** @throws TypeError if a name begins no scenario's; UffdError if there is no userfaultfd; Error of spawn */
export async function runSuite(options: SuiteOptions): Promise<CheckReport> {
  const chosen = choose(options.scenarios);
  // If this is not possible, the error says what to do, and no scenario can run.
  Userfaultfd.open({ features: ['event-remove'] }).close();
  const results: ScenarioResult[] = [];
  for (const scenario of chosen) {
    const result = await repeated(scenario, options);
    results.push(result);
    options.onResult?.(result);
  }
  return { command: options.command, simulated: false, results };
}

function choose(names: readonly string[] | undefined): readonly Scenario[] {
  for (const name of names ?? []) {
    if (!SCENARIOS.some((scenario) => scenario.name.startsWith(name)))
      throw invalidValue(`no scenario's name begins with '${name}'; uffd check-handler --list prints all`);
  }
  if (names === undefined || names.length === 0) return SCENARIOS;
  return SCENARIOS.filter((scenario) => names.some((name) => scenario.name.startsWith(name)));
}

/** Runs a scenario as often as asked. The first failure is reported, with the number of all. */
async function repeated(scenario: Scenario, options: SuiteOptions): Promise<ScenarioResult> {
  const { repeat = 1 } = options;
  const results: ScenarioResult[] = [];
  for (let run = 0; run < repeat; run++) results.push(await runScenario(scenario, options));
  const failures = results.filter(({ verdict }) => verdict === 'fail');
  const milliseconds = results.reduce((sum, result) => sum + result.milliseconds, 0);
  const shown = failures[0] ?? (results[0] as ScenarioResult);
  const repeats = repeat > 1 ? { repeats: { failed: failures.length, of: repeat } } : {};
  return { ...shown, ...repeats, milliseconds };
}
