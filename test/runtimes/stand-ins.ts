// Stand-ins for Node's modules in runtimes without them: enough for tests that need little. Other tests are left out
// with a reason.

import { dequal } from 'dequal';
import { leaveOut } from '../support/harness.js';

const needs = (what: string) => (): never => leaveOut(`it needs ${what}`);

// ---- node:assert -------------------------------------------------------------------------------------------

type Expected = RegExp | Record<string, unknown> | ((error: Error) => boolean);

class AssertionError extends Error {
  override readonly name = 'AssertionError';
  readonly actual: unknown;
  readonly expected: unknown;

  constructor(message: string | undefined, actual?: unknown, expected?: unknown) {
    super(message ?? 'the values differ');
    this.actual = actual;
    this.expected = expected;
  }
}

function check(holds: unknown, message?: string, actual?: unknown, expected?: unknown): asserts holds {
  if (!holds) throw new AssertionError(message, actual, expected);
}

function asExpected(error: unknown, expected: Expected | undefined, message?: string): void {
  if (expected === undefined) return;
  if (expected instanceof RegExp) check(expected.test(String(error)), message ?? `${error}`, error, expected);
  else if (typeof expected === 'function') check(expected(error as Error), message, error, expected);
  else {
    for (const [key, value] of Object.entries(expected)) {
      const found = (error as Record<string, unknown>)[key];
      const fits = value instanceof RegExp ? value.test(String(found)) : dequal(found, value);
      check(fits, message ?? `${key}: ${found}`, found, value);
    }
  }
}

const NOTHING = Symbol('nothing was thrown');

export const strict = {
  ok: (value: unknown, message?: string) => check(value, message, value, true),
  equal: (actual: unknown, expected: unknown, message?: string) =>
    check(Object.is(actual, expected), message ?? `${actual} is not ${expected}`, actual, expected),
  notEqual: (actual: unknown, expected: unknown, message?: string) =>
    check(!Object.is(actual, expected), message, actual, expected),
  deepEqual: (actual: unknown, expected: unknown, message?: string) =>
    check(dequal(actual, expected), message, actual, expected),
  match: (text: string, pattern: RegExp, message?: string) =>
    check(pattern.test(text), message ?? `${text} does not match ${pattern}`, text, pattern),
  doesNotMatch: (text: string, pattern: RegExp, message?: string) =>
    check(!pattern.test(text), message ?? `${text} matches ${pattern}`, text, pattern),
  fail(message?: string): never {
    throw new AssertionError(message);
  },
  throws(body: () => unknown, expected?: Expected, message?: string): void {
    let thrown: unknown = NOTHING;
    try {
      body();
    } catch (error) {
      thrown = error;
    }
    check(thrown !== NOTHING, message ?? 'nothing was thrown');
    asExpected(thrown, expected, message);
  },
  async rejects(
    given: Promise<unknown> | (() => Promise<unknown>),
    expected?: Expected,
    message?: string,
  ): Promise<void> {
    const promise = typeof given === 'function' ? given() : given;
    const thrown = await promise.then(
      () => NOTHING,
      (error) => error,
    );
    check(thrown !== NOTHING, message ?? 'it did not reject');
    asExpected(thrown, expected, message);
  },
};

// ---- node:fs, node:net, node:url, node:timers/promises, node:worker_threads --------------------------------

export const fileURLToPath = String;

export function setTimeout(delayMs: number): Promise<void> {
  return new Promise((resolve) => globalThis.setTimeout(resolve, delayMs));
}

export const [readFileSync, openSync, closeSync, readSync, writeSync, readdirSync, readlinkSync, statfsSync] =
  Array(8).fill(needs('files'));
export const [existsSync, mkdtempSync, rmSync, writeFileSync, tmpdir, dirname, join] = Array(7).fill(
  needs('files'),
);
export const [execFileSync, spawn, once] = Array(3).fill(needs('other processes'));
export const createRequire = needs('native code');
export const createServer = needs('sockets');
export const constants = {};
export const isMainThread = true;

// ---- binaryen ----------------------------------------------------------------------------------------------

export default { readBinary: needs('binaryen, which is as large as a browser') };
