// `checkHandler`: tests a page-fault handler in any language, as a program, on the real kernel or in simulated ones.

import type { CheckReport, ScenarioResult } from '../conformance/result.js';
import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkNames,
  checkOptions,
  invalidValue,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { UnsupportedError } from '../kernel/port.js';
import type { SimulatedSupport } from '../supervisor/support.js';

export type { SimulatedSupport };

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
  /**
   * Whether the handler is tested in simulated kernels instead: with random guests, any schedule, and no privileges.
   * `env`, `ready`, `scenarios`, `repeat` and `deadlineMs` are not for this. Default false.
   */
  simulated?: boolean | undefined;
  /** With `simulated`: how many seeds to try, from 1 on, or which ones; 1 to 2^32 − 1. Default 300. */
  seeds?: number | { readonly from: number; readonly count: number } | undefined;
  /** With `simulated`: one process of the handler gets one hand-off after the other, which is faster. Default false. */
  reuse?: boolean | undefined;
  /** With `simulated`: called with the number of runs so far, those of shrinking too, about five times a second. */
  onProgress?: ((runs: number) => void) | undefined;
  /** Scenarios by name, or by the beginnings of their names, like `remove`. Default: all. */
  scenarios?: readonly string[] | undefined;
  /** How often each scenario runs, at least 1. Default 1. */
  repeat?: number | undefined;
  /** Milliseconds that each part of a scenario may take, 100 to 3,600,000. Default 10,000. */
  deadlineMs?: number | undefined;
  /**
   * A folder where each failed scenario leaves the handler's output, the guest's steps and the threads' states. With
   * `simulated`: the handler's output, the schedule, and a trace, which `replayGuest` repeats.
   */
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
const SEED_MOST = 2 ** 32 - 1;
/** Options for one of the two kinds of kernels. */
const REAL = ['env', 'ready', 'scenarios', 'repeat', 'deadlineMs'] as const;
const SIMULATED = ['seeds', 'reuse', 'onProgress'] as const;

/** Checks by option name. */
const CHECKS: Readonly<Record<keyof CheckHandlerOptions, (value: unknown, name: string) => void>> = {
  command: checkCommand,
  env: checkOptions,
  ready(value, name) {
    if (!(value instanceof RegExp)) throw wrongType(name, 'a regular expression', value);
  },
  simulated: checkBoolean,
  seeds(value, name) {
    const { from, count } = typeof value === 'number' ? { from: 1, count: value } : seedsOf(value, name);
    checkInteger(from, `${name}: from`, 1, SEED_MOST);
    checkInteger(count, typeof value === 'number' ? name : `${name}: count`, 1, SEED_MOST - from + 1);
  },
  reuse: checkBoolean,
  onProgress: checkFunction,
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

function seedsOf(value: unknown, name: string): { from: unknown; count: unknown } {
  checkOptions(value, name);
  return value as { from: unknown; count: unknown };
}

function checkCommand(value: unknown, name: string): void {
  if (!Array.isArray(value) || !value.every((word) => typeof word === 'string'))
    throw wrongType(name, 'a list of words', value);
  if (value.length === 0) throw outOfRange(name, 'a list of at least one word', '[]');
  if (!value.some((word) => word.includes('{socket}')))
    throw invalidValue(`${name} must contain {socket}: the path at which the handler has to listen`);
}

/**
 * Tests a page-fault handler. It starts the handler, plays a microVM's monitor that hands its guest's memory over as
 * Firecracker does, and compares every page that the guest reads. docs/guides/test-your-handler.md has an example.
 *
 * On the real kernel, each scenario has a handler, a memory file and a guest of its own. It needs userfaultfd, and some
 * scenarios need root or huge pages. In simulated kernels, the handler's system calls are trapped (seccomp), and random
 * guests run in any schedule; a failure has a seed and the smallest schedule that was found. That needs no privileges.
 *
 * @returns the results; a handler is sound if none has the verdict `fail`
 * @throws TypeError, RangeError naming the wrong option; UnsupportedError, UffdError if there is no userfaultfd here, or
 *   system calls of other processes cannot be trapped; the error of spawn if the handler cannot be started (ENOENT, EACCES)
 */
export async function checkHandler(options: CheckHandlerOptions): Promise<CheckReport> {
  checkOptions(options, 'options');
  checkCommand(options.command, 'command');
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(CHECKS, name))
      throw invalidValue(`options: there is no '${name}'; there are ${Object.keys(CHECKS).join(', ')}`);
    if (value !== undefined) CHECKS[name as keyof CheckHandlerOptions](value, name);
  }
  const { simulated = false } = options;
  const misplaced = (simulated ? REAL : SIMULATED).find((name) => options[name] !== undefined);
  if (misplaced !== undefined)
    throw invalidValue(
      `options: '${misplaced}' is for checks ${simulated ? 'on the real kernel' : 'with simulated: true'}`,
    );
  const { checkSimulated, runSuite } = await loadSuite();
  if (!simulated) return runSuite({ ...options, deadlineMs: options.deadlineMs ?? DEADLINE_MS });
  const { command, seeds, reuse, evidence, signal, onProgress, onResult } = options;
  const report = await checkSimulated(command, {
    ...(seeds !== undefined && { seeds }),
    ...(reuse !== undefined && { reuse }),
    ...(evidence !== undefined && { evidence }),
    ...(signal && { signal }),
    ...(onProgress && { progress: onProgress }),
  });
  for (const result of report.results) onResult?.(result);
  return report;
}

/** The scenarios of `checkHandler`, in the order in which they run. */
export async function handlerScenarios(): Promise<readonly { name: string; why: string }[]> {
  const { NAMES } = await loadSuite();
  return NAMES;
}

/**
 * Says whether handlers can be checked in simulated kernels here (`checkHandler` with `simulated`): they can if `calls`
 * and `memory` are `ok`. It tries that with a shell, and blocks for less than a second. `uffd doctor` prints the same,
 * and what helps.
 *
 * @throws UnsupportedError if this is not Linux, or koffi is missing
 */
export async function simulatedSupport(): Promise<SimulatedSupport> {
  return (await loadSuite()).trySimulatedSupport();
}

/** Loads the suite when it is needed, because the rest of this entry runs where there are no processes. */
export async function loadSuite(): Promise<typeof import('../conformance/suite.js')> {
  const suite = await import('../conformance/suite.js');
  // A bundle for a browser has an empty module in its place (package.json, `browser`).
  if (!('runSuite' in suite)) throw new UnsupportedError('a handler can be checked on Linux, in Node alone');
  return suite;
}
