// Runs a handler against one simulated guest after the other, until a run breaks an invariant. That run is shrunk, and
// repeated to see whether the handler does the same again.

import { type Failure, INVARIANTS, SimulationError } from '../testing/failure.js';
import { type Runner, Shrinker } from '../testing/shrink.js';
import type { Attempt } from '../testing/simulate.js';
import type { TraceWriter } from '../trace/writer.js';
import { Evidence } from './evidence.js';
import { type Decisions, type HandlerOptions, HandlerRuns } from './handler-run.js';

export interface SearchOptions extends HandlerOptions {
  /** The first seed, and how many. */
  readonly from: number;
  readonly count: number;
  /** Most runs that shrinking takes. Default 1000. */
  readonly shrinks?: number;
  /** A folder for the files of a failure, the trace of its run among them. */
  readonly evidence?: string;
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
  /** Where the files of the run that is printed are, or why they are not there. */
  readonly kept?: Pick<Evidence, 'folder' | 'trace' | 'failure'>;
  /** Whether the time for shrinking was over before all was tried. */
  readonly cut: boolean;
  /** Whether it fails in a process that has served no guest before, too. If not, it was neither shrunk nor repeated. */
  readonly alone: boolean;
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
export const SHRINK_MS = 15_000;
const REPEATS = 3;

/** `progress`: called with the number of runs so far after each run, those of shrinking too. It may throw to end the search. */
export async function searchHandler(
  options: SearchOptions,
  progress: (runs: number) => void = () => {},
): Promise<SearchResult> {
  const { from, count } = options;
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
      if (!tried.failure) continue;
      // What the process keeps of earlier guests may be the cause. Shrinking needs a process for each run.
      const alone = handler.forgoReuse() ? attempt({ seed }) : tried;
      found = alone.failure
        ? await explained(handler, attempt, seed, alone, options)
        : onlyReused(seed, tried, tried.failure);
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
  { shrinks = SHRINKS, evidence: root, command }: SearchOptions,
): Promise<FoundFailure> {
  const until = performance.now() + SHRINK_MS;
  let cut = false;
  const again: Runner = async (choices, fallback, steps) => {
    cut ||= performance.now() > until;
    return cut ? { ...tried, failure: undefined } : attempt({ choices, fallback, steps });
  };
  const best = await new Shrinker(again, tried, shrinks).shrink();
  const evidence = root === undefined ? undefined : new Evidence(root);
  const show = (choices: readonly number[]): Attempt => {
    const run = (record?: TraceWriter): Attempt => attempt({ choices, schedule: true, record });
    return evidence ? evidence.record({ command, seed }, run) : run();
  };
  let choices = best;
  let shown = show(choices);
  if (!shown.failure) {
    // The shrunk run does not repeat. The first one may.
    choices = tried.choices;
    shown = show(choices);
  }
  const { lastErrors } = handler;
  const failure = shown.failure ?? (tried.failure as Failure);
  const reason = `${INVARIANTS[failure.invariant]}: ${failure.detail}`;
  evidence?.keep({ reason, schedule: shown.schedule, ...handler.said });
  let failed = 0;
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const { failure, schedule } = attempt({ choices, schedule: true });
    if (failure && sameLines(schedule, shown.schedule)) failed++;
  }
  const { schedule } = shown;
  const { message } = new SimulationError(failure, { seed, choices, schedule });
  return {
    seed,
    failure: { invariant: failure.invariant, detail: failure.detail },
    lines: message.split('\n'),
    repeats: { failed, of: REPEATS },
    errors: lastErrors,
    ...(evidence && { kept: { ...evidence } }),
    cut,
    alone: true,
  };
}

/** A failure of a process that has served other guests before. The same guest breaks nothing in a new one. */
function onlyReused(seed: number, { choices }: Attempt, failure: Failure): FoundFailure {
  const { invariant, detail } = failure;
  const { message } = new SimulationError(failure, { seed, choices, schedule: [] });
  const lines = message.split('\n');
  return {
    ...{ seed, failure: { invariant, detail }, lines },
    ...{ repeats: { failed: 0, of: 1 }, errors: [], cut: false, alone: false },
  };
}

function sameLines(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((line, index) => line === b[index]);
}
