// `checkSimulated`: looks for a schedule that breaks a handler, in a thread of its own, because answering trapped calls
// blocks.

import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import type { CheckReport, ScenarioResult } from '../conformance/result.js';
import { UffdError, UnsupportedError } from '../errors/errors.js';
import { INVARIANTS } from '../testing/failure.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import { HandlerNotReady } from './handler-run.js';
import {
  type FoundFailure,
  type SearchOptions,
  type SearchResult,
  SHRINK_MS,
  searchHandler,
} from './search.js';
import { knowsArchitecture } from './system-calls.js';

export interface CheckSimulatedOptions extends Omit<SearchOptions, 'command' | 'from' | 'count'> {
  /** How many seeds to try, from seed 1 on. Or which ones. Default 300. */
  readonly seeds?: number | { readonly from: number; readonly count: number };
  /** Called after some of the runs, with how many there were. */
  readonly progress?: (runs: number) => void;
  /** Ends the check early: it rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

const SEEDS = 300;
const PROGRESS_MS = 200;
const SCENARIO = 'random guests';
const WHY =
  'a race between removals, faults and the handler shows only in some schedules, and every one may happen';

interface Order {
  readonly search: SearchOptions;
  /** Not 0: end the search after the run that is under way. */
  readonly stop: Int32Array;
}

type Message = { progress: number } | { result: SearchResult } | { notReady: string } | { refused: Refused };
interface Refused {
  readonly errno?: number;
  readonly syscall?: string;
  readonly message: string;
}

/**
 * Tests a handler in simulated kernels: no privilege and no device is needed. `command`: the handler and its arguments,
 * with the placeholders {socket} and {memory}.
 *
 * @throws UnsupportedError, UffdError if system calls of other processes cannot be trapped here
 */
export async function checkSimulated(
  command: readonly string[],
  { seeds = SEEDS, progress, signal, ...options }: CheckSimulatedOptions = {},
): Promise<CheckReport> {
  if (!knowsArchitecture)
    throw new UnsupportedError(
      `the system calls of ${process.arch} are not known, only those of x64 and arm64`,
    );
  signal?.throwIfAborted();
  const range = typeof seeds === 'number' ? { from: 1, count: seeds } : seeds;
  const search: SearchOptions = { ...options, ...range, command };
  const begun = performance.now();
  // The thread cannot receive messages while it searches.
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const order: Order = { search, stop };
  const worker = startThread('handler-search', { workerData: order }, ENTRY);
  const abort = (): void => void Atomics.store(stop, 0, 1);
  signal?.addEventListener('abort', abort, { once: true });
  let last: Message | undefined;
  worker.on('message', (message: Message) => {
    if ('progress' in message) progress?.(message.progress);
    else last = message;
  });
  try {
    await once(worker, 'exit');
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  signal?.throwIfAborted();
  if (last && 'refused' in last) throw refusal(last.refused);
  const milliseconds = Math.round(performance.now() - begun);
  const about = { scenario: SCENARIO, why: WHY, milliseconds };
  const result: ScenarioResult =
    last && 'result' in last
      ? { ...about, ...verdictOf(last.result) }
      : {
          ...about,
          verdict: 'fail',
          reason: last && 'notReady' in last ? last.notReady : 'the search has ended',
        };
  return { command, simulated: true, results: [result] };
}

function refusal({ errno, syscall, message }: Refused): Error {
  if (errno === undefined || syscall === undefined) return new UnsupportedError(message);
  return new UffdError(errno, syscall);
}

function verdictOf(result: SearchResult): Omit<ScenarioResult, 'scenario' | 'why' | 'milliseconds'> {
  const { found, runs, faults, ownUffd } = result;
  const opened = ownUffd ? ', and the handler tried to open a userfaultfd of its own, which was refused' : '';
  if (!found)
    return { verdict: 'pass', reason: `${runs} guests with ${faults} faults broke nothing${opened}` };
  const { failure, lines, repeats, seed, errors, kept } = found;
  return {
    verdict: 'fail',
    reason: `${INVARIANTS[failure.invariant]}: ${failure.detail}`,
    // The first two lines are the reason and the seed.
    details: [
      ...lines.slice(2),
      ...remarks(found),
      ...causes(result),
      ...errors.map((line) => `standard error: ${line}`),
    ],
    repeats,
    seed,
    ...(kept && kept.failure === undefined ? { evidence: kept.folder, trace: kept.trace } : {}),
  };
}

/** What there is to say of how a failure was found. */
function remarks({ cut, alone, kept }: FoundFailure): string[] {
  return [
    ...(cut ? [`shrinking has ended after ${SHRINK_MS / 1000} s: there may be a shorter schedule`] : []),
    ...(alone
      ? []
      : [
          'a new process of the handler passes with this guest: it fails because of what it keeps of earlier guests (--reuse)',
        ]),
    ...(kept?.failure === undefined ? [] : [`the files of the failure were not kept: ${kept.failure}`]),
  ];
}

/** Why a run may not repeat. */
function causes({ found, abilities }: SearchResult): string[] {
  if (!found?.alone || found.repeats.failed === found.repeats.of) return [];
  return [
    'the run does not repeat each time: threads, clocks, or hash tables with random seeds may decide differently',
    ...(abilities.fixed
      ? []
      : ['addresses are randomised, because this system does not allow to turn that off']),
    ...(abilities.killable
      ? []
      : ['before Linux 5.19, signals may make answers vanish, above all those of Go']),
  ];
}

/** The caller has aborted the search. */
class Stopped extends Error {}

/** The search, in its thread. */
export async function runSearch(): Promise<void> {
  const post = (message: Message): void => parentPort?.postMessage(message);
  const { search, stop } = workerData as Order;
  let told = 0;
  try {
    const result = await searchHandler(search, (runs) => {
      if (Atomics.load(stop, 0) !== 0) throw new Stopped();
      const now = performance.now();
      if (now - told < PROGRESS_MS) return;
      told = now;
      post({ progress: runs });
    });
    post({ result });
  } catch (error) {
    if (error instanceof HandlerNotReady) post({ notReady: error.message });
    else if (error instanceof UffdError)
      post({ refused: { errno: error.errno, syscall: error.syscall, message: error.message } });
    else if (error instanceof UnsupportedError) post({ refused: { message: error.message } });
    else if (!(error instanceof Stopped)) throw error;
  }
}
