// Tests, with a time limit each. A test file makes a suite and runs it; run.ts starts every file in a process
// of its own, hears on a pipe which test begins and how it ended, and kills the process when one hangs.

import { writeSync } from 'node:fs';
import { suite as uvuSuite } from 'uvu';

/** What a test file tells run.ts, a line of JSON each. */
export type Report =
  | { event: 'begin'; name: string; limitMs: number }
  | { event: 'passed' | 'failed'; name: string }
  | { event: 'skipped'; name: string; reason: string };

/** Milliseconds that a test may take, unless it asks for more. Generous: it is there for what never ends. */
const LIMIT_MS = 60_000;

class Skip extends Error {}

/** Ends the test that calls it. Where UFFD_REQUIRE_KERNEL is set, that is a failure. */
export function skip(reason: string): never {
  if (process.env.UFFD_REQUIRE_KERNEL)
    throw new Error(`skipped although UFFD_REQUIRE_KERNEL is set: ${reason}`);
  throw new Skip(reason);
}

/** The same for what no machine can be required to have: it is counted as skipped everywhere. */
export function leaveOut(reason: string): never {
  throw new Skip(reason);
}

export interface Suite {
  (name: string, body: () => void | Promise<void>, limitMs?: number): void;
  run(): void;
}

export function suite(title: string): Suite {
  const tests = uvuSuite(title);
  const add = (name: string, body: () => void | Promise<void>, limitMs = LIMIT_MS): void => {
    const full = `${title}: ${name}`;
    tests(name, async () => {
      report({ event: 'begin', name: full, limitMs });
      try {
        await body();
      } catch (error) {
        if (error instanceof Skip) {
          report({ event: 'skipped', name: full, reason: error.message });
          return;
        }
        report({ event: 'failed', name: full });
        throw error;
      }
      report({ event: 'passed', name: full });
    });
  };
  return Object.assign(add, { run: () => tests.run() });
}

/** Where reports go in a runtime that has no descriptor for them. */
declare global {
  var uffdReport: ((line: Report) => void) | undefined;
}

function report(line: Report): void {
  if (globalThis.uffdReport) {
    globalThis.uffdReport(line);
    return;
  }
  const fd = process.env.UFFD_REPORT_FD;
  // Synchronous: the very next thing the test does may be to hang.
  if (fd) writeSync(Number(fd), `${JSON.stringify(line)}\n`);
}

/** A seed for random tests: UFFD_SEED, or a new one; it is printed, so that a failure can be repeated. */
export function seed(): number {
  const chosen = Number(process.env.UFFD_SEED ?? Math.floor(Math.random() * 2 ** 31));
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
