// Has the trials made, in a process of their own. A trial that does not end is ended, one that kills its
// process is told, and the others go on in a new process: every trial has an outcome, in bounded time.

import type { Trial } from './findings.js';
import { runHelper } from './helper.js';
import type { Task, TrialName, Tried } from './trial-process.js';

export interface TrialLimits {
  /** For one trial; for the first one the start of the process is part of it. */
  oneMs: number;
  /** For all of them. */
  allMs: number;
}

export const LIMITS: TrialLimits = { oneMs: 10_000, allMs: 60_000 };

/** @throws the signal's reason */
export async function makeTrials(
  names: readonly TrialName[],
  way: Task['way'],
  signal: AbortSignal,
  limits = LIMITS,
): Promise<ReadonlyMap<TrialName, Trial>> {
  const trials = new Map<TrialName, Trial>();
  const endMs = performance.now() + limits.allMs;
  for (;;) {
    signal.throwIfAborted();
    const left = names.filter((name) => !trials.has(name));
    const leftMs = endMs - performance.now();
    if (leftMs <= 0)
      for (const name of left) trials.set(name, { outcome: 'not tried', detail: 'no time was left' });
    if (left.length === 0 || leftMs <= 0) return trials;
    const { why } = await runHelper<Tried>(
      'trials',
      { answers: left.length, message: { names: left, way } satisfies Task },
      ({ name, trial }) => void trials.set(name, trial),
      signal,
      Math.min(limits.oneMs, leftMs),
    );
    // What it was at when it ended is what ended it.
    const culprit = left.find((name) => !trials.has(name));
    if (culprit !== undefined) trials.set(culprit, { outcome: 'failed', detail: why });
  }
}
