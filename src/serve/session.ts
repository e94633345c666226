// One guest that is served: its userfaultfd, its thread, and the monitor behind it.
//
// Rule: the thread works with a copy of the userfaultfd's descriptor, which is gone when the session has ended. The
// descriptor itself stays the server's: whatever becomes of the thread, closing its copy lets no waiter go.

import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import type { Worker } from 'node:worker_threads';
import { closeDescriptor, sameFile } from '../../shim/descriptors.js';
import { duplicate } from '../../shim/memory.js';
import type { Peer } from '../../shim/socket.js';
import { UffdError } from '../errors.js';
import { Userfaultfd } from '../userfaultfd.js';
import type { Region } from './handoff.js';
import type { Recorded, SessionOrder, SessionReport, SessionTask } from './session-task.js';
import { Tally } from './tally.js';
import type { Threads } from './threads.js';

/** No answer takes longer than a minute and a half; a histogram wants to know. */
const LATENCY_MOST_NS = 1e11;

/** How a session has ended. */
export type SessionEnd =
  /** The monitor has exited, or called exec. */
  | { readonly how: 'exited' }
  /** The userfaultfd said that nothing will come any more. */
  | { readonly how: 'closed' }
  | { readonly how: 'stopped' }
  | { readonly how: 'failed'; readonly error: Error };

/** Why a guest could not be served: what its thread has met, or that it is gone. */
export class SessionError extends Error {
  override readonly name = 'SessionError';
  /** That of the error which was met, like 'EFAULT'; undefined for a fault of this program. */
  readonly code: string | undefined;

  constructor(message: string, code: string | undefined, stack?: string) {
    super(message);
    this.code = code;
    // Where it happened, in its own thread.
    if (stack !== undefined) this.stack = stack;
  }
}

/** The background pauses for so long when there is no memory. */
const RESUMED_MS = 1000;
/** A shortage is told every second while somebody waits. */
const SHORT_FOR_MS = 5000;

const GONE = new SessionError('its thread has ended', 'ERR_UFFD_THREAD');

/** What a session is made of: its task, but for what it shares with its thread. */
export interface SessionOptions extends Omit<SessionTask, 'pid' | 'tally' | 'latency' | 'stopped'> {
  readonly peer: Peer;
  /** Told of what the operator should hear of, and the guest does not suffer from. */
  readonly warned: (reason: string) => void;
  /** Pages that are waited for cannot be installed for want of memory, and why; undefined: they can again. */
  readonly short: (reason: string | undefined) => void;
}

export class Session {
  readonly id: number;
  readonly peer: Peer;
  readonly regions: readonly Region[];
  /** Bytes of the guest's memory. */
  readonly bytes: number;
  readonly tally = new Tally();
  /** Nanoseconds from the news of a fault until it was answered, to a hundredth. */
  readonly latency: RecordableHistogram = createHistogram({ highest: LATENCY_MOST_NS, figures: 2 });
  /** By performance.now(). */
  readonly begunMs = performance.now();
  /** When nothing was left to install in the background; undefined: not yet. */
  settledMs: number | undefined;
  endedMs: number | undefined;
  /** What became of its recording, once it has ended; undefined: none was made. */
  recorded: Recorded | undefined;
  /** Resolves when nothing is served any more; never rejects. */
  readonly ended: Promise<SessionEnd>;
  readonly #worker: Worker;
  readonly #warned: (reason: string) => void;
  readonly #short: (reason: string | undefined) => void;
  /** No word that there is no memory for so long: nobody waits for it any more. */
  #shortage: NodeJS.Timeout | undefined;
  #resumption: NodeJS.Timeout | undefined;
  readonly #stopped = new Int32Array(new SharedArrayBuffer(4));
  #stopHandle: SharedArrayBuffer | undefined;

  /**
   * Begins to serve a userfaultfd, whose descriptor stays the caller's, in a thread of its own.
   *
   * @throws UffdError EMFILE; ThreadError
   */
  constructor(threads: Threads, options: SessionOptions) {
    const { peer, warned, short, ...rest } = options;
    this.#short = short;
    const { id, fd, regions } = rest;
    const copy = duplicate(fd);
    if (copy < 0) throw new UffdError(copy, 'fcntl');
    let worker: Worker;
    try {
      worker = threads.take();
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
    };
    this.#worker = worker;
    this.#warned = warned;
    this.ended = new Promise((resolve) => {
      const end = (how: SessionEnd, open: boolean): void => {
        this.endedMs = performance.now();
        clearTimeout(this.#resumption);
        this.#hearShort(undefined);
        worker.off('message', heard).off('error', failed).off('exit', gone);
        if (open) closeDescriptor(copy);
        resolve(how);
      };
      const heard = (report: SessionReport): void => {
        if (report.is !== 'ended') this.#hear(report);
        else {
          this.recorded = report.recorded;
          end(endOf(report), report.open);
          threads.giveBack(worker);
        }
      };
      // The thread itself is gone. Its copy is closed if the number stands for the same file still.
      const failed = (error: Error): void => end({ how: 'failed', error }, sameFile(fd, copy) === true);
      const gone = (): void => end({ how: 'failed', error: GONE }, sameFile(fd, copy) === true);
      worker.on('message', heard).on('error', failed).on('exit', gone);
    });
    worker.postMessage({ is: 'task', task } satisfies SessionOrder);
  }

  /** Its thread has begun to serve, and has all that it needs. */
  get serving(): boolean {
    return this.#stopHandle !== undefined;
  }

  /** Stops serving. A guest that still runs will hang at its next fault. */
  stop(): void {
    Atomics.store(this.#stopped, 0, 1);
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#worker.postMessage({ is: 'stop', id: this.id } satisfies SessionOrder);
  }

  /** Bytes that are in the guest's memory, as far as it is known here. */
  get resident(): number {
    // A page that two threads asked for at once is counted twice after a removal.
    return Math.min(this.bytes, Math.max(0, this.tally.installed - this.tally.get('taken')));
  }

  #hear(report: Exclude<SessionReport, { is: 'ended' }>): void {
    if (report.is === 'warned') this.#warned(report.reason);
    else if (report.is === 'settled') this.settledMs = performance.now();
    else if (report.is === 'short') this.#hearShort(report.reason);
    else if (report.is === 'paused') this.#resumption = setTimeout(() => this.#resume(), RESUMED_MS);
    else if (report.is === 'serving') {
      this.#stopHandle = report.stopHandle;
      if (Atomics.load(this.#stopped, 0) !== 0) Userfaultfd.stop(report.stopHandle);
    }
  }

  /** Its background is to go on: the loop is stopped for that, and begun again. */
  #resume(): void {
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#worker.postMessage({ is: 'resume', id: this.id } satisfies SessionOrder);
  }

  #hearShort(reason: string | undefined): void {
    clearTimeout(this.#shortage);
    this.#shortage =
      reason === undefined ? undefined : setTimeout(() => this.#short(undefined), SHORT_FOR_MS);
    this.#short(reason);
  }
}

function endOf({ how, error }: Extract<SessionReport, { is: 'ended' }>): SessionEnd {
  if (how !== 'failed') return { how };
  return { how, error: error ? new SessionError(error.message, error.code, error.stack) : GONE };
}
