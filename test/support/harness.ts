// Tests, each with a time limit. A test file makes a suite and runs it. run.ts starts every file in a process of its
// own, reads from a pipe which test begins and how it ended, and kills the process if a test hangs.

import { writeSync } from 'node:fs';
import { suite as uvuSuite } from 'uvu';

/** The messages of a test file to run.ts, a line of JSON each. */
export type Report =
  | { event: 'begin'; name: string; limitMs: number }
  | { event: 'passed' | 'failed'; name: string }
  | { event: 'skipped'; name: string; reason: string };

/** Time limit of a test in milliseconds, unless the test sets one. It is generous, as it only has to end hung tests. */
const LIMIT_MS = 60_000;
/** Time limit of a wait for another test file, in milliseconds. */
const TURN_MS = 1_200_000;

class Skip extends Error {}

/** Skips the test that calls it. If UFFD_REQUIRE_KERNEL is set, the test fails instead. */
export function skip(reason: string): never {
  if (process.env.UFFD_REQUIRE_KERNEL)
    throw new Error(`skipped although UFFD_REQUIRE_KERNEL is set: ${reason}`);
  throw new Skip(reason);
}

/** Skips the test for a reason that no machine can be required to remove: it counts as skipped everywhere. */
export function leaveOut(reason: string): never {
  throw new Skip(reason);
}

export interface Suite {
  (name: string, body: () => void | Promise<void>, limitMs?: number): void;
  run(): void;
}

/** The test that runs now, and its time limit. */
let current: { name: string; limitMs: number } | undefined;

/** Waits for another test file. The test's time limit begins anew after that. */
export async function untimed<T>(wait: () => Promise<T>): Promise<T> {
  const test = current;
  if (test) report({ event: 'begin', name: test.name, limitMs: TURN_MS });
  try {
    return await wait();
  } finally {
    if (test) report({ event: 'begin', ...test });
  }
}

export function suite(title: string): Suite {
  const tests = uvuSuite(title);
  let over = false;
  const add = (name: string, body: () => void | Promise<void>, limitMs = LIMIT_MS): void => {
    const full = `${title}: ${name}`;
    if (process.env.UFFD_GREP && !full.includes(process.env.UFFD_GREP)) return;
    tests(name, async () => {
      if (over) return;
      current = { name: full, limitMs };
      report({ event: 'begin', ...current });
      try {
        await body();
      } catch (error) {
        if (error instanceof Skip) {
          report({ event: 'skipped', name: full, reason: error.message });
          return;
        }
        report({ event: 'failed', name: full });
        // The remaining tests do not run.
        over = process.env.UFFD_BAIL !== undefined;
        throw error;
      }
      report({ event: 'passed', name: full });
    });
  };
  return Object.assign(add, { run: () => tests.run() });
}

/** Receives reports in a runtime that has no descriptor for them. */
declare global {
  var uffdReport: ((line: Report) => void) | undefined;
}

function report(line: Report): void {
  if (globalThis.uffdReport) {
    globalThis.uffdReport(line);
    return;
  }
  const fd = process.env.UFFD_REPORT_FD;
  // Synchronous, because the test may hang right after this.
  if (fd) writeSync(Number(fd), `${JSON.stringify(line)}\n`);
}

/**
 * A seed for random tests: 1, so that a change is not refused for what another one has broken; UFFD_SEED=N another, and
 * UFFD_SEED=random one that no run had. It is printed, so that a failure can be repeated.
 */
export function seed(): number {
  const { UFFD_SEED = '1' } = process.env;
  const chosen = UFFD_SEED === 'random' ? Math.floor(Math.random() * 2 ** 31) : Number(UFFD_SEED);
  console.log(`UFFD_SEED=${chosen}`);
  return chosen;
}

/** A small generator of pseudo-random numbers (xorshift32): integers from 0 up to `below`, exclusive. */
export function generator(start: number): (below: number) => number {
  let state = (start ^ 0x9e3779b9) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}
