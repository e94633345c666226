// `checkHandler`: tests a page-fault handler in any language, as a program, on the real kernel.

import type { CheckReport, ScenarioResult } from '../conformance/result.js';
import {
  checkFunction,
  checkInteger,
  checkNames,
  checkOptions,
  invalidValue,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { UnsupportedError } from '../kernel/port.js';

export interface CheckHandlerOptions {
  /**
   * The handler's program and its words. `{socket}` and `{memory}` in them are replaced by the paths of the socket that
   * the handler must bind, and of the memory file.
   */
  command: readonly string[];
  /** Environment variables for the handler, besides those of this process. */
  env?: Readonly<Record<string, string>> | undefined;
  /** What the handler prints when it is ready. Default: it is ready when the file of its socket exists. */
  ready?: RegExp | undefined;
  /** Scenarios by name, or by the beginnings of their names, like `remove`. Default: all. */
  scenarios?: readonly string[] | undefined;
  /** How often each scenario runs, at least 1. Default 1. */
  repeat?: number | undefined;
  /** Milliseconds that each part of a scenario may take, 100 to 3,600,000. Default 10,000. */
  deadlineMs?: number | undefined;
  /** A folder where each failed scenario leaves the handler's output, the guest's steps and the threads' states. */
  evidence?: string | undefined;
  /** Ends the check: the handler is killed, and `checkHandler` rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Called with each result as soon as it is known. */
  onResult?: ((result: ScenarioResult) => void) | undefined;
}

const DEADLINE_MS = 10_000;
const DEADLINE_LEAST_MS = 100;
const DEADLINE_MOST_MS = 3_600_000;
const REPEAT_MOST = 1_000_000;

/** Checks by option name. */
const CHECKS: Readonly<Record<keyof CheckHandlerOptions, (value: unknown, name: string) => void>> = {
  command: checkCommand,
  env: checkOptions,
  ready(value, name) {
    if (!(value instanceof RegExp)) throw wrongType(name, 'a regular expression', value);
  },
  scenarios: checkNames,
  repeat: (value, name) => checkInteger(value, name, 1, REPEAT_MOST),
  deadlineMs: (value, name) => checkInteger(value, name, DEADLINE_LEAST_MS, DEADLINE_MOST_MS),
  evidence(value, name) {
    if (typeof value !== 'string') throw wrongType(name, 'a path, a string', value);
  },
  signal(value, name) {
    if (!(value instanceof AbortSignal)) throw wrongType(name, 'an AbortSignal', value);
  },
  onResult: checkFunction,
};

function checkCommand(value: unknown, name: string): void {
  if (!Array.isArray(value) || !value.every((word) => typeof word === 'string'))
    throw wrongType(name, 'a list of words', value);
  if (value.length === 0) throw outOfRange(name, 'a list of at least one word', '[]');
  if (!value.some((word) => word.includes('{socket}')))
    throw invalidValue(`${name} must contain {socket}: the path at which the handler has to listen`);
}

/**
 * Tests a page-fault handler on the real kernel. It starts the handler, plays a microVM's monitor that hands its guest's
 * memory over as Firecracker does, and compares every page that the guest reads. Each scenario has a handler, a memory
 * file and a guest of its own. It needs userfaultfd, and some scenarios need root or huge pages. docs/guides/test-your-handler.md has an example.
 *
 * @returns the results; a handler is sound if none has the verdict `fail`
 * @throws TypeError, RangeError naming the wrong option; UnsupportedError, UffdError if there is no userfaultfd here;
 *   the error of spawn if the handler cannot be started (ENOENT, EACCES)
 */
export async function checkHandler(options: CheckHandlerOptions): Promise<CheckReport> {
  checkOptions(options, 'options');
  checkCommand(options.command, 'command');
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(CHECKS, name))
      throw invalidValue(`options: there is no '${name}'; there are ${Object.keys(CHECKS).join(', ')}`);
    if (value !== undefined) CHECKS[name as keyof CheckHandlerOptions](value, name);
  }
  const { runSuite } = await loadSuite();
  return runSuite({ ...options, deadlineMs: options.deadlineMs ?? DEADLINE_MS });
}

/** The scenarios of `checkHandler`, in the order in which they run. */
export async function handlerScenarios(): Promise<readonly { name: string; why: string }[]> {
  const { NAMES } = await loadSuite();
  return NAMES;
}

/** Loads the suite when it is needed, because the rest of this entry runs where there are no processes. */
async function loadSuite(): Promise<typeof import('../conformance/suite.js')> {
  const suite = await import('../conformance/suite.js');
  // A bundle for a browser has an empty module in its place (package.json, `browser`).
  if (!('runSuite' in suite)) throw new UnsupportedError('a handler can be checked on Linux, in Node alone');
  return suite;
}
