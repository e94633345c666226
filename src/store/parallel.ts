// Runs tasks, several at once. The first failure ends all of them.

import { setMaxListeners } from 'node:events';

export class TaskPool {
  readonly #most: number;
  readonly #running = new Set<Promise<void>>();
  readonly #aborted = new AbortController();
  readonly #stop: () => void;
  readonly #outer: AbortSignal | undefined;
  #failure: { error: unknown } | undefined;

  /** `most`: tasks at once. */
  constructor(most: number, signal?: AbortSignal) {
    this.#most = most;
    this.#outer = signal;
    this.#stop = () => this.#fail(signal?.reason);
    // Each call of a task listens.
    setMaxListeners(0, this.#aborted.signal);
    signal?.addEventListener('abort', this.#stop);
    if (signal?.aborted) this.#stop();
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#aborted.abort(error);
  }

  /** Starts a task when there is room for it. @throws the failure of an earlier task */
  async start(task: (signal: AbortSignal) => Promise<void>): Promise<void> {
    while (this.#running.size >= this.#most) await Promise.race(this.#running);
    this.#check();
    const running = task(this.#aborted.signal)
      .catch((error) => this.#fail(error))
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  #check(): void {
    if (this.#failure) throw this.#failure.error;
  }

  /** Waits for all tasks. @throws the first failure, when no task runs any more */
  async end(): Promise<void> {
    await Promise.all(this.#running);
    this.#outer?.removeEventListener('abort', this.#stop);
    this.#check();
  }

  /** Ends all tasks because of an error elsewhere, and waits for them. */
  async cancel(error: unknown): Promise<void> {
    this.#fail(error);
    await Promise.all(this.#running);
    this.#outer?.removeEventListener('abort', this.#stop);
  }
}

/** Calls `body` with a pool, and waits for its tasks however `body` ends. */
export async function withTasks(
  most: number,
  signal: AbortSignal | undefined,
  body: (pool: TaskPool) => Promise<void>,
): Promise<void> {
  const pool = new TaskPool(most, signal);
  try {
    await body(pool);
  } catch (error) {
    await pool.cancel(error);
    throw error;
  }
  await pool.end();
}

/** Tasks at once if each needs the memory of a chunk or two: at most 256 MiB. */
export function tasksFor(parallel: number, chunkSize: number): number {
  return Math.max(2, Math.min(parallel, Math.floor((128 << 20) / chunkSize)));
}
