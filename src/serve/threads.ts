// Threads for sessions. One is always ready, so that a guest does not wait for its own to begin; one that has served is
// kept for the next guest, and is quicker then.

import { Worker } from 'node:worker_threads';

/** Threads that are kept though nobody needs them. */
const IDLE_MOST = 2;
/** When the next is made, behind the one that was taken: a guest that was just handed over needs the processors. */
const SPARE_AFTER_MS = 500;

export class Threads {
  readonly #idle: Worker[] = [create()];
  #spare: NodeJS.Timeout | undefined;
  #closed = false;
  /** More than one may be needed. */
  readonly #more: boolean;

  constructor(more: boolean) {
    this.#more = more;
  }

  /** A thread that waits for its task, a message. Whoever has served last comes first. */
  take(): Worker {
    const worker = this.#idle.pop() ?? create();
    worker.ref();
    if (this.#more) this.#spare ??= setTimeout(() => this.#makeSpare(), SPARE_AFTER_MS).unref();
    return worker;
  }

  /** It has served, and may serve again. */
  giveBack(worker: Worker): void {
    worker.unref();
    if (this.#closed || this.#idle.length >= IDLE_MOST) void worker.terminate();
    else this.#idle.push(worker);
  }

  /** Lets go of those that nobody needs. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#spare);
    await Promise.all(this.#idle.splice(0).map((worker) => worker.terminate()));
  }

  #makeSpare(): void {
    this.#spare = undefined;
    if (this.#idle.length === 0 && !this.#closed) this.#idle.push(create());
  }
}

function create(): Worker {
  const worker = new Worker(new URL('./session-worker.js', import.meta.url), { name: 'vm' });
  // One that waits keeps nobody from ending.
  worker.unref();
  return worker;
}
