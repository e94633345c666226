// One guest that is served: its userfaultfd, its thread, and the monitor behind it.
//
// Rules:
//  - A session owns its userfaultfd from its making on, and closes it exactly once, when its thread has ended.
//  - Where serving fails the monitor is killed, unless that is not wanted: a guest without its handler hangs for ever.

import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import type { Worker } from 'node:worker_threads';
import { closeDescriptor } from '../../shim/descriptors.js';
import type { Peer } from '../../shim/socket.js';
import type { Wait } from '../loop.js';
import { Userfaultfd } from '../userfaultfd.js';
import type { Run } from './background.js';
import type { Region } from './handoff.js';
import type { SessionReport, SessionTask } from './session-task.js';
import { Tally } from './tally.js';

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

export interface SessionOptions {
  readonly id: number;
  readonly fd: number;
  readonly peer: Peer;
  readonly regions: readonly Region[];
  readonly memory: string;
  readonly window: number;
  readonly wait: Wait;
  readonly prefetch: readonly Run[];
  readonly eager: boolean;
  readonly record: SessionTask['record'];
}

export class Session {
  readonly id: number;
  readonly peer: Peer;
  readonly regions: readonly Region[];
  /** Bytes of the guest's memory. */
  readonly bytes: number;
  readonly tally = new Tally();
  /** Nanoseconds from the news of a fault until it was answered. */
  readonly latency: RecordableHistogram = createHistogram({ highest: LATENCY_MOST_NS });
  /** By performance.now(). */
  readonly begunMs = performance.now();
  /** When nothing was left to install in the background; undefined: not yet. */
  settledMs: number | undefined;
  endedMs: number | undefined;
  /** Resolves when the thread is gone and the descriptor closed; never rejects. */
  readonly ended: Promise<SessionEnd>;
  readonly #worker: Worker;
  readonly #stopped = new Int32Array(new SharedArrayBuffer(4));
  #stopHandle: SharedArrayBuffer | undefined;
  #end: SessionEnd | undefined;
  /** The descriptor was not closed by the thread. */
  #open = true;

  /** Takes the descriptor, and a thread that waits for its task. */
  constructor(worker: Worker, options: SessionOptions) {
    const { id, fd, peer, regions, memory, window, wait, prefetch, eager, record } = options;
    this.id = id;
    this.peer = peer;
    this.regions = regions;
    this.bytes = regions.reduce((sum, { length }) => sum + length, 0);
    const task: SessionTask = {
      ...{ fd, pid: peer.pid, regions, memory, window, wait, prefetch, eager, record },
      tally: this.tally.shared,
      latency: this.latency,
      stopped: this.#stopped.buffer as SharedArrayBuffer,
    };
    this.#worker = worker;
    this.#worker.postMessage(task);
    this.#worker.on('message', (report: SessionReport) => this.#hear(report));
    this.#worker.on('error', (error) => {
      this.#end = { how: 'failed', error };
    });
    this.ended = new Promise((resolve) => {
      this.#worker.once('exit', () => {
        this.endedMs = performance.now();
        if (this.#open) takeBack(fd);
        resolve(this.#end ?? { how: 'failed', error: new Error('its thread has ended') });
      });
    });
  }

  /** Stops serving. A guest that still runs will hang at its next fault. */
  stop(): void {
    Atomics.store(this.#stopped, 0, 1);
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#worker.postMessage('stop');
  }

  /** Bytes that are in the guest's memory, as far as it is known here. */
  get resident(): number {
    // A page that two threads asked for at once is counted twice after a removal.
    return Math.min(this.bytes, Math.max(0, this.tally.installed - this.tally.get('taken')));
  }

  #hear(report: SessionReport): void {
    if (report.is === 'settled') this.settledMs = performance.now();
    else if (report.is === 'ended') this.#end = { how: report.how };
    else if (report.is === 'left') this.#open = report.open;
    else {
      this.#stopHandle = report.stopHandle;
      if (Atomics.load(this.#stopped, 0) !== 0) Userfaultfd.stop(report.stopHandle);
    }
  }
}

/** Closes a userfaultfd whose thread is gone. */
function takeBack(fd: number): void {
  try {
    Userfaultfd.wrap(fd).close();
  } catch {
    // What was handed over was none.
    closeDescriptor(fd);
  }
}
