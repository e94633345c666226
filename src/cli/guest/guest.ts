// A guest in a process of its own, as seen by the process that started it.

import type { ChildProcess } from 'node:child_process';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';
import type {
  GuestCommand,
  GuestOptions,
  GuestReply,
  TouchCommand,
  TouchResults,
  WithId,
} from './protocol.js';

/** The guest could not carry out a command, or its process is gone. */
export class GuestError extends Error {
  override readonly name = 'GuestError';
  readonly code = 'ERR_UFFD_GUEST';
}

export class Guest {
  /** Resolves once the guest has handed over its memory. */
  readonly handedOver: Promise<{ pages: number; pageSize: number }>;
  /** Resolves when the process has ended: its exit code, or the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #child: ChildProcess;
  /** The callers that wait, by command. */
  readonly #waiting = new Map<number, (answer: GuestReply) => void>();
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
      // The process could not be started, or a message did not reach it. In either case it ends.
      this.#child.on('error', (error) => {
        if (this.#child.pid === undefined) end(error.message);
      });
    });
    this.#child.on('message', ({ id, ...answer }: WithId<GuestReply>) => {
      this.#waiting.get(id)?.(answer as GuestReply);
      this.#waiting.delete(id);
    });
    this.handedOver = this.#answerTo(0, 'handed over');
    // The callers get this error. Node must not report it as unhandled as well.
    this.handedOver.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Lets threads touch pages and compare each. */
  touch(order: Omit<TouchCommand, 'do'>): Promise<TouchResults> {
    return this.#ask({ do: 'touch', ...order }, 'touched');
  }

  /** Removes the pages from the first up to the last, exclusive. */
  async remove(from: number, to: number): Promise<void> {
    await this.#ask({ do: 'remove', from, to }, 'removed');
  }

  /** Compares every page. */
  verify(threads = 1): Promise<TouchResults> {
    return this.touch({ threads, order: 'sequential', seed: 0 });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** Ends the guest's process. */
  async end(): Promise<number | string> {
    if (this.#gone === undefined) this.#child.send({ id: 0, do: 'exit' } satisfies WithId<GuestCommand>);
    return this.ended;
  }

  #ask<K extends GuestReply['is']>(
    command: GuestCommand,
    expected: K,
  ): Promise<Extract<GuestReply, { is: K }>> {
    const id = ++this.#lastId;
    const answer = this.#answerTo(id, expected);
    if (this.#gone === undefined) this.#child.send({ id, ...command } satisfies WithId<GuestCommand>);
    return answer;
  }

  #answerTo<K extends GuestReply['is']>(id: number, expected: K): Promise<Extract<GuestReply, { is: K }>> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== undefined) {
        reject(new GuestError(this.#gone));
        return;
      }
      this.#waiting.set(id, (answer) => {
        if (answer.is === expected) resolve(answer as Extract<GuestReply, { is: K }>);
        else
          reject(new GuestError(answer.is === 'failed' ? answer.reason : `the guest answered: ${answer.is}`));
      });
    });
  }
}
