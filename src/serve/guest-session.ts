// One served guest: its userfaultfd, its thread, and its monitor.
//
// Rule: the thread works with a copy of the userfaultfd's descriptor, which is closed when the session has ended. The
// server keeps the original, so closing the copy wakes no waiter, whatever happens to the thread.

import type { EventEmitter } from 'node:events';
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import { closeDescriptor, sameFile } from '../../shim/descriptors.js';
import { duplicate } from '../../shim/memory.js';
import type { Peer } from '../../shim/socket.js';
import { UffdError } from '../errors/errors.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { Tally } from './counters.js';
import type { Region } from './handoff-protocol.js';
import {
  NEWS,
  type Recorded,
  type SessionCommand,
  type SessionReport,
  type SessionTask,
  SLEEP,
} from './worker-messages.js';

/** No answer takes longer than 90 s; a histogram needs a maximum. */
const LATENCY_MOST_NS = 1e11;

/** How a session has ended. */
export type SessionEnd =
  /** The monitor has exited, or called exec. */
  | { readonly how: 'exited' }
  /** The userfaultfd reported that no more messages will come. */
  | { readonly how: 'closed' }
  | { readonly how: 'stopped' }
  | { readonly how: 'failed'; readonly error: Error };

/** Why a guest could not be served: an error of its thread, or the end of that thread. */
export class SessionError extends Error {
  override readonly name = 'SessionError';
  /** The code of that error, like 'EFAULT'; undefined for a bug of this program. */
  readonly code: string | undefined;

  constructor(message: string, code: string | undefined, stack?: string) {
    super(message);
    this.code = code;
    // The stack of the thread in which it happened.
    if (stack !== undefined) this.stack = stack;
  }
}

/** Milliseconds for which the background work pauses if there is no memory. */
const RESUMED_MS = 1000;
/** Milliseconds until a thread is woken for chunks that it has not asked for. */
const ARRIVALS_MS = 4;
/** Milliseconds without a report after which a shortage is over: it is reported every second while a thread waits. */
const SHORT_FOR_MS = 5000;

const GONE = new SessionError('its thread has ended', 'ERR_UFFD_THREAD');

/** Options of a session: its task, without the memory that it shares with its thread. */
export interface SessionOptions extends Omit<SessionTask, 'pid' | 'tally' | 'latency' | 'stopped' | 'news'> {
  readonly peer: Peer;
  /** Called with notices for the operator that harm no guest. */
  readonly warned: (reason: string) => void;
  /**
   * Called with the reason while pages cannot be installed because there is no memory; with undefined when they can
   * again.
   */
  readonly short: (reason: string | undefined) => void;
  /** Called with chunks that threads of the guest wait for. */
  readonly wanted?: (chunks: readonly number[]) => void;
}

/** What a session needs of its thread: a Worker that sends `SessionReport`s. */
export interface SessionWorker extends Pick<EventEmitter, 'on' | 'off'> {
  postMessage(command: SessionCommand): void;
}

/** Where sessions get their threads from: the part of `WorkerPool` that they need. */
export interface Threads {
  expect(): void;
  take(): { readonly worker: SessionWorker };
  giveBack(thread: { readonly worker: SessionWorker }): void;
}

export class GuestSession {
  readonly id: number;
  readonly peer: Peer;
  readonly regions: readonly Region[];
  /** Bytes of the guest's memory. */
  readonly bytes: number;
  readonly tally = new Tally();
  /** Nanoseconds from reading a fault until it was answered, to 1 %. */
  readonly latency: RecordableHistogram = createHistogram({ highest: LATENCY_MOST_NS, figures: 2 });
  /** When the session began, by performance.now(). */
  readonly begunMs = performance.now();
  /** When all pages were installed in the background; undefined: not yet. */
  settledMs: number | undefined;
  endedMs: number | undefined;
  /** How its recording ended, once it has; undefined if there was none. */
  recorded: Recorded | undefined;
  /** Resolves when the session has ended; never rejects. */
  readonly ended: Promise<SessionEnd>;
  readonly #worker: SessionWorker;
  readonly #warned: (reason: string) => void;
  readonly #short: (reason: string | undefined) => void;
  readonly #wanted: ((chunks: readonly number[]) => void) | undefined;
  readonly #news = new Int32Array(new SharedArrayBuffer(8));
  /** Ends the shortage if it is not reported again in time. */
  #shortageTimer: NodeJS.Timeout | undefined;
  #resumption: NodeJS.Timeout | undefined;
  /** Until the thread is woken for chunks that it has not asked for. */
  #arrivals: NodeJS.Timeout | undefined;
  readonly #stopped = new Int32Array(new SharedArrayBuffer(4));
  #stopHandle: SharedArrayBuffer | undefined;

  /**
   * Begins to serve a userfaultfd in a thread of its own. The caller keeps the descriptor.
   *
   * @throws UffdError EMFILE; ThreadError
   */
  constructor(threads: Threads, options: SessionOptions) {
    const { peer, warned, short, wanted, ...rest } = options;
    this.#short = short;
    this.#wanted = wanted;
    const { id, fd, regions } = rest;
    const copy = duplicate(fd);
    if (copy < 0) throw new UffdError(copy, 'fcntl');
    let thread: { readonly worker: SessionWorker };
    try {
      thread = threads.take();
    } catch (error) {
      closeDescriptor(copy);
      throw error;
    }
    this.id = id;
    this.peer = peer;
    this.regions = regions;
    this.bytes = regions.reduce((sum, { length }) => sum + length, 0);
    const task: SessionTask = {
      ...rest,
      fd: copy,
      pid: peer.pid,
      tally: this.tally.shared,
      latency: this.latency,
      stopped: this.#stopped.buffer as SharedArrayBuffer,
      news: this.#news.buffer as SharedArrayBuffer,
    };
    const { worker } = thread;
    this.#worker = worker;
    this.#warned = warned;
    this.ended = new Promise((resolve) => {
      const end = (how: SessionEnd, open: boolean): void => {
        this.endedMs = performance.now();
        clearTimeout(this.#resumption);
        clearTimeout(this.#arrivals);
        this.#handleShortage(undefined);
        worker.off('message', received).off('error', failed).off('exit', gone);
        if (open) closeDescriptor(copy);
        resolve(how);
      };
      const received = (report: SessionReport): void => {
        if (report.is !== 'ended') this.#handleReport(report);
        else {
          this.recorded = report.recorded;
          end(endOf(report), report.open);
          threads.giveBack(thread);
        }
      };
      // The thread has ended without a report. Its copy is closed if the number still refers to the same file.
      const failed = (error: Error): void => end({ how: 'failed', error }, sameFile(fd, copy) === true);
      const gone = (): void => end({ how: 'failed', error: GONE }, sameFile(fd, copy) === true);
      worker.on('message', received).on('error', failed).on('exit', gone);
    });
    worker.postMessage({ is: 'task', task } satisfies SessionCommand);
  }

  /** Whether the thread serves, and needs nothing more to begin. */
  get serving(): boolean {
    return this.#stopHandle !== undefined;
  }

  /** Stops serving. A guest that still runs hangs at its next fault. */
  stop(): void {
    Atomics.store(this.#stopped, 0, 1);
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#worker.postMessage({ is: 'stop', id: this.id } satisfies SessionCommand);
  }

  /**
   * Says that a chunk has come. Wakes the thread if it sleeps and waits for it: `asked`: the thread has asked for it. If
   * it waits for any, it is woken a little later, for all that have come until then: many guests may wait for the same.
   */
  chunkArrived(asked: boolean): void {
    Atomics.add(this.#news, NEWS.count, 1);
    const sleep = Atomics.load(this.#news, NEWS.sleep);
    if (sleep === SLEEP.awake) return;
    if (asked) this.#resume();
    else if (sleep === SLEEP.any) this.#arrivals ??= setTimeout(() => this.#resumeForAny(), ARRIVALS_MS);
  }

  #resumeForAny(): void {
    this.#arrivals = undefined;
    if (Atomics.load(this.#news, NEWS.sleep) === SLEEP.any) this.#resume();
  }

  /** Resident bytes of the guest, by the counters. */
  get resident(): number {
    // After a removal, a page that two threads asked for at once is counted twice.
    return Math.min(this.bytes, Math.max(0, this.tally.installed - this.tally.get('taken')));
  }

  #handleReport(report: Exclude<SessionReport, { is: 'ended' }>): void {
    if (report.is === 'warned') this.#warned(report.reason);
    else if (report.is === 'settled') this.settledMs = performance.now();
    else if (report.is === 'wanted') this.#wanted?.(report.chunks);
    else if (report.is === 'short') this.#handleShortage(report.reason);
    else if (report.is === 'paused') this.#resumption = setTimeout(() => this.#resume(), RESUMED_MS);
    else if (report.is === 'serving') {
      this.#stopHandle = report.stopHandle;
      if (Atomics.load(this.#stopped, 0) !== 0) Userfaultfd.stop(report.stopHandle);
      // Chunks that came before could not wake the thread.
      else if (Atomics.load(this.#news, NEWS.count) > 0) this.#resume();
    }
  }

  /** Stops the loop, whose thread then does its other work and starts the loop again. */
  #resume(): void {
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#worker.postMessage({ is: 'resume', id: this.id } satisfies SessionCommand);
  }

  #handleShortage(reason: string | undefined): void {
    clearTimeout(this.#shortageTimer);
    this.#shortageTimer =
      reason === undefined ? undefined : setTimeout(() => this.#short(undefined), SHORT_FOR_MS);
    this.#short(reason);
  }
}

function endOf({ how, error }: Extract<SessionReport, { is: 'ended' }>): SessionEnd {
  if (how !== 'failed') return { how };
  return { how, error: error ? new SessionError(error.message, error.code, error.stack) : GONE };
}
