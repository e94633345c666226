// A guest in a process of its own, as whoever started it sees it.

import type { ChildProcess } from 'node:child_process';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';
import type { GuestAnswer, GuestOptions, GuestOrder, Numbered, Touched, TouchOrder } from './protocol.js';

/** What the guest was told cannot be done, or its process is gone. */
export class GuestError extends Error {
  override readonly name = 'GuestError';
  readonly code = 'ERR_UFFD_GUEST';
}

export class Guest {
  /** Resolves once it has handed its memory over. */
  readonly handedOver: Promise<{ pages: number; pageSize: number }>;
  /** Resolves when the process is gone: its exit code, or the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #child: ChildProcess;
  /** Who waits for the answer to which order. */
  readonly #waiting = new Map<number, (answer: GuestAnswer) => void>();
  #lastId = 0;
  #gone: string | undefined;

  constructor(options: GuestOptions) {
    this.#child = startProcess('guest', [JSON.stringify(options)], {}, COMMAND);
    this.ended = new Promise((resolve) => {
      const end = (why: number | string): void => {
        this.#gone = `the guest's process has ended (${why})`;
        for (const tell of this.#waiting.values()) tell({ is: 'failed', reason: this.#gone });
        this.#waiting.clear();
        resolve(why);
      };
      this.#child.once('exit', (code, signal) => end(signal ?? code ?? ''));
      // It could not be started, or what was sent did not reach it: in the end it is gone.
      this.#child.on('error', (error) => {
        if (this.#child.pid === undefined) end(error.message);
      });
    });
    this.#child.on('message', ({ id, ...answer }: Numbered<GuestAnswer>) => {
      this.#waiting.get(id)?.(answer as GuestAnswer);
      this.#waiting.delete(id);
    });
    this.handedOver = this.#answerTo(0, 'handed over');
    // Whoever asks hears of it.
    this.handedOver.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Threads touch pages, and compare each. */
  touch(order: Omit<TouchOrder, 'do'>): Promise<Touched> {
    return this.#ask({ do: 'touch', ...order }, 'touched');
  }

  /** Takes pages away: from the first, up to the last, exclusive. */
  async remove(from: number, to: number): Promise<void> {
    await this.#ask({ do: 'remove', from, to }, 'removed');
  }

  /** Compares every page. */
  verify(threads = 1): Promise<Touched> {
    return this.#ask({ do: 'verify', threads }, 'touched');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** Ends it. */
  async end(): Promise<number | string> {
    if (this.#gone === undefined) this.#child.send({ id: 0, do: 'exit' } satisfies Numbered<GuestOrder>);
    return this.ended;
  }

  #ask<K extends GuestAnswer['is']>(
    order: GuestOrder,
    expected: K,
  ): Promise<Extract<GuestAnswer, { is: K }>> {
    const id = ++this.#lastId;
    const answer = this.#answerTo(id, expected);
    if (this.#gone === undefined) this.#child.send({ id, ...order } satisfies Numbered<GuestOrder>);
    return answer;
  }

  #answerTo<K extends GuestAnswer['is']>(id: number, expected: K): Promise<Extract<GuestAnswer, { is: K }>> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) {
        reject(new GuestError(this.#gone));
        return;
      }
      this.#waiting.set(id, (answer) => {
        if (answer.is === expected) resolve(answer as Extract<GuestAnswer, { is: K }>);
        else
          reject(new GuestError(answer.is === 'failed' ? answer.reason : `the guest answered: ${answer.is}`));
      });
    });
  }
}
