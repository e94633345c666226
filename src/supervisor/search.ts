// Runs a handler against one simulated guest after the other, until a run breaks an invariant. That run is shrunk, and
// repeated to see whether the handler does the same again.

import { type Failure, SimulationError } from '../testing/failure.js';
import { type Runner, Shrinker } from '../testing/shrink.js';
import type { Attempt } from '../testing/simulate.js';
import { type Decisions, type HandlerOptions, HandlerRuns } from './handler-run.js';

export interface SearchOptions extends HandlerOptions {
  /** The first seed, and how many. */
  readonly from: number;
  readonly count: number;
  /** Most runs that shrinking takes. Default 1000. */
  readonly shrinks?: number;
}

/** A run that breaks an invariant, and how it was repeated. */
export interface FoundFailure {
  readonly seed: number;
  readonly failure: Failure;
  /** What is broken, and the smallest schedule that was found: a line each. */
  readonly lines: readonly string[];
  /** How many of the repeated runs failed in the same way, with the same schedule. */
  readonly repeats: { readonly failed: number; readonly of: number };
  /** The handler's last lines on its standard error, in the run that is printed. */
  readonly errors: readonly string[];
}

export interface SearchResult {
  readonly runs: number;
  readonly steps: number;
  readonly faults: number;
  readonly milliseconds: number;
  readonly found?: FoundFailure;
  readonly abilities: HandlerRuns['abilities'];
  /** Whether the handler has tried to open a userfaultfd of its own, which was refused. */
  readonly ownUffd: boolean;
}

const SHRINKS = 1000;
/** How long shrinking may take. A handler with threads needs half a second for each run in which it waits for ever. */
const SHRINK_MS = 60_000;
const REPEATS = 3;

/** `progress`: called with the number of runs so far after each run, those of shrinking too. It may throw to end the search. */
export async function searchHandler(
  options: SearchOptions,
  progress: (runs: number) => void = () => {},
): Promise<SearchResult> {
  const { from, count, shrinks = SHRINKS } = options;
  const handler = new HandlerRuns(options);
  const begun = performance.now();
  const total = { runs: 0, steps: 0, faults: 0 };
  let found: FoundFailure | undefined;
  const attempt = (decisions: Decisions): Attempt => {
    const tried = handler.attempt(decisions);
    progress(total.runs);
    return tried;
  };
  try {
    for (let seed = from; seed < from + count && !found; seed++) {
      const tried = attempt({ seed });
      total.runs++;
      total.steps += tried.steps;
      total.faults += tried.faults;
      if (tried.failure) found = await explained(handler, attempt, seed, tried, shrinks);
    }
    const { abilities, ownUffd } = handler;
    const milliseconds = performance.now() - begun;
    return { ...total, milliseconds, abilities, ownUffd, ...(found ? { found } : {}) };
  } finally {
    handler.close();
  }
}

/** Shrinks and repeats a run that has failed. */
async function explained(
  handler: HandlerRuns,
  attempt: HandlerRuns['attempt'],
  seed: number,
  tried: Attempt,
  shrinks: number,
): Promise<FoundFailure> {
  const until = performance.now() + SHRINK_MS;
  const again: Runner = async (choices, fallback, steps) =>
    performance.now() > until ? { ...tried, failure: undefined } : attempt({ choices, fallback, steps });
  const best = await new Shrinker(again, tried, shrinks).shrink();
  let choices = best;
  let shown = attempt({ choices, schedule: true });
  if (!shown.failure) {
    // The shrunk run does not repeat. The first one may.
    choices = tried.choices;
    shown = attempt({ choices, schedule: true });
  }
  const { lastErrors } = handler;
  let failed = 0;
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const { failure, schedule } = attempt({ choices, schedule: true });
    if (failure && sameLines(schedule, shown.schedule)) failed++;
  }
  const failure = shown.failure ?? (tried.failure as Failure);
  const { schedule } = shown;
  const { message } = new SimulationError(failure, { seed, choices, schedule });
  return {
    seed,
    failure: { invariant: failure.invariant, detail: failure.detail },
    lines: message.split('\n'),
    repeats: { failed, of: REPEATS },
    errors: lastErrors,
  };
}

function sameLines(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((line, index) => line === b[index]);
}
