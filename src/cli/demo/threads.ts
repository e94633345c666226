// The demo's threads as main sees them: what they answer, that they failed, and that they have ended.
//
// Rule: a userfaultfd that is lent to the loop's thread is taken back and closed when that thread has ended,
// however it ended. Closing lets every thread go that still sleeps in a fault; before, none of them could be
// ended, because a sleeper does not even hear `terminate`.

import { on } from 'node:events';
import { Worker } from 'node:worker_threads';
import { UffdError, Userfaultfd } from '../../index.js';
import type { LoopReady, LoopTask } from './messages.js';
import type { Recorded } from './recording.js';

/** A worker thread. Its answers wait here until they are asked for. */
export class Thread {
  /** Resolves when the thread is gone; never rejects. */
  readonly ended: Promise<void>;
  protected readonly worker: Worker;
  readonly #name: string;
  readonly #answers: AsyncIterator<unknown[]>;

  constructor(name: string, script: URL, task: unknown) {
    this.#name = name;
    this.worker = new Worker(script, { workerData: task, name });
    this.ended = new Promise((resolve) => {
      this.worker.once('exit', () => resolve());
    });
    this.#answers = on(this.worker, 'message', { close: ['exit'] });
  }

  /** The thread's next answer; rejects where it fails or ends before one. */
  async next<T>(): Promise<T> {
    const { done, value } = await this.#answers.next();
    if (done) throw Object.assign(new Error(`${this.#name} ended too early`), { code: 'ERR_UFFD_THREAD' });
    return value[0] as T;
  }

  async terminate(): Promise<void> {
    await this.worker.terminate();
  }
}

/** The thread that answers faults. */
export class LoopThread extends Thread {
  /** Resolves when it is about to serve. */
  readonly ready: Promise<LoopReady>;
  /** Rejects when it ends without having been told to. */
  readonly lost: Promise<never>;
  readonly #fd: number;
  readonly #recorded: Promise<Recorded | undefined>;

  /** Lends it `uffd`, which is not to be used any more. */
  constructor(uffd: Userfaultfd, task: Omit<LoopTask, 'fd' | 'features' | 'ranges'>) {
    const { features, ranges } = uffd;
    const fd = uffd.release();
    try {
      const whole: LoopTask = { ...task, fd, features, ranges };
      super('the fault loop', new URL('./loop-worker.js', import.meta.url), whole);
    } catch (error) {
      takeBack(fd);
      throw error;
    }
    this.#fd = fd;
    this.ready = this.next<LoopReady>();
    this.#recorded = this.ready.then(() => (task.record ? this.next<Recorded>() : undefined));
    this.lost = this.#recorded.then(() => this.next());
    // Whoever looks hears of it; that nobody looks any more is no failure.
    this.lost.catch(() => {});
  }

  /** Stops the loop, waits for its thread, and closes the userfaultfd. What became of the recording, if it has one. */
  async end(): Promise<Recorded | undefined> {
    const ready = await this.ready.catch(() => undefined);
    if (ready) Userfaultfd.stop(ready.stopHandle);
    this.worker.postMessage('end');
    await this.ended;
    takeBack(this.#fd);
    return this.#recorded.catch(() => undefined);
  }
}

/** Closes a userfaultfd whose thread is gone. */
function takeBack(fd: number): void {
  try {
    Userfaultfd.wrap(fd).close();
  } catch (error) {
    // The loop closes a descriptor that it could not read.
    if (!(error instanceof UffdError && (error.code === 'EBADF' || error.code === 'ENOTTY'))) throw error;
  }
}
