// Threads for sessions. One is always ready, so that a guest does not wait for its own to begin; one that has served is
// kept for the next guest, and is quicker then.
//
// Rules:
//  - A thread that cannot be made (a limit of tasks: pids.max, ulimit -u) is an error where a guest needs it, and nothing
//    where it would only have been a spare one.
//  - No thread is ended before it has said that it is ready. One that is ended while it loads koffi takes the
//    whole process with it (koffi 3.3: napi_throw).

import type { Worker } from 'node:worker_threads';
import { descriptorsLeft } from '../../shim/descriptors.js';
import { startThread } from '../parts.js';

/**
 * Threads that are kept though nobody needs them: many for a while, since guests that came at once may do so again, and to
 * begin a thread costs more than to serve a thousand faults; then few.
 */
const IDLE_MOST = 16;
const IDLE_FEW = 2;
const IDLE_MS = 30_000;
/** When the next is made, behind the one that was taken: a guest that was just handed over needs the processors. */
const SPARE_AFTER_MS = 500;
/**
 * V8's young generation of such a thread, at most. A loop makes some bytes of garbage for a fault; where they fill 48 MiB,
 * V8's own choice, before they are collected, memory seems to grow for a million faults.
 */
const YOUNG_MB = 4;
/** It is made only where so many descriptors are left: Node loses some where a thread cannot have its own. */
const SPARE_DESCRIPTORS = 64;

/** No thread can be made for a guest. */
export class ThreadError extends Error {
  override readonly name = 'ThreadError';
  readonly code = 'ERR_UFFD_THREAD';
}

export class Threads {
  readonly #idle: Worker[] = [];
  /** Those that have said so, or are gone. */
  readonly #ready = new WeakMap<Worker, Promise<void>>();
  #spare: NodeJS.Timeout | undefined;
  #quiet: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;
  /** More than one may be needed. */
  readonly #more: boolean;

  constructor(more: boolean) {
    this.#more = more;
  }

  /** Makes one, if none is there and there is room. */
  prepare(): void {
    this.#spare = undefined;
    if (this.#idle.length > 0 || this.#closing || descriptorsLeft() < SPARE_DESCRIPTORS) return;
    try {
      this.#idle.push(this.#create());
    } catch (error) {
      // The guest that comes next may find room.
      if (!(error instanceof ThreadError)) throw error;
    }
  }

  /**
   * A thread that waits for its task, a message. Whoever has served last comes first.
   *
   * @throws ThreadError there is none, and none can be made
   */
  take(): Worker {
    const worker = this.#idle.pop() ?? this.#create();
    worker.ref();
    if (this.#more) this.#spare ??= setTimeout(() => this.prepare(), SPARE_AFTER_MS).unref();
    return worker;
  }

  /** It has served, and may serve again. */
  giveBack(worker: Worker): void {
    worker.unref();
    if (this.#closing || this.#idle.length >= IDLE_MOST) {
      void this.#end(worker);
      return;
    }
    this.#idle.push(worker);
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => this.#thin(), IDLE_MS).unref();
  }

  /** No guest has ended for a while. */
  #thin(): void {
    for (const worker of this.#idle.splice(0, this.#idle.length - IDLE_FEW)) void this.#end(worker);
  }

  /** Lets go of those that nobody needs. Idempotent. */
  close(): Promise<void> {
    clearTimeout(this.#spare);
    clearTimeout(this.#quiet);
    this.#closing ??= Promise.all(this.#idle.splice(0).map((worker) => this.#end(worker))).then(() => {});
    return this.#closing;
  }

  async #end(worker: Worker): Promise<void> {
    // Until then it keeps the process from ending without it.
    worker.ref();
    await this.#ready.get(worker);
    await worker.terminate();
  }

  #create(): Worker {
    const worker = startedThread();
    // One that waits keeps nobody from ending; and one that ends, for whatever reason, serves nobody.
    worker.unref();
    const gone = (): void => {
      const index = this.#idle.indexOf(worker);
      if (index >= 0) this.#idle.splice(index, 1);
    };
    this.#ready.set(
      worker,
      new Promise((resolve) => {
        worker.once('message', () => resolve()).once('exit', () => resolve());
      }),
    );
    return worker.on('error', gone).on('exit', gone);
  }
}

function startedThread(): Worker {
  try {
    const options = { name: 'vm', resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB } };
    return startThread('session', options, { file: '../part.js', module: import.meta.url });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_WORKER_INIT_FAILED') throw error;
    throw new ThreadError(
      `no thread can be made for a guest: ${(error as Error).message}; raise the limit of tasks (TasksMax=, pids.max, ulimit -u)`,
    );
  }
}
