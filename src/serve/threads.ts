// Threads for sessions. One is always made ahead, so that a guest does not wait for its own to begin.

import { Worker } from 'node:worker_threads';

export class Threads {
  #spare: Worker | undefined = create();

  /** A thread that waits for its task, a message. */
  take(): Worker {
    const worker = this.#spare ?? create();
    this.#spare = create();
    worker.ref();
    return worker;
  }

  /** Lets go of the one that nobody needs. */
  async close(): Promise<void> {
    const spare = this.#spare;
    this.#spare = undefined;
    await spare?.terminate();
  }
}

function create(): Worker {
  const worker = new Worker(new URL('./session-worker.js', import.meta.url), { name: 'vm' });
  // One that waits keeps nobody from ending.
  worker.unref();
  return worker;
}
