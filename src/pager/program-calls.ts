// A source and a sink that run in the program: the pager's thread calls them by message.

import type { PagerCommand, PagerReport, ProgramSource } from './messages.js';
import { SINK_BYTES } from './sink.js';
import { type OpenSource, SourceError, type Target } from './source.js';

type Call = Extract<PagerReport, { is: 'read' | 'write' | 'sync' }>;
type Answer = Extract<PagerCommand, { is: 'answer' }>;
/** Distributes over the kinds of calls. */
type WithoutId<T> = T extends unknown ? Omit<T, 'id'> : never;

interface Waiting {
  resolve(bytes: Uint8Array | undefined): void;
  reject(error: unknown): void;
}

/** The calls of a program that are under way. */
export class ProgramCalls {
  readonly #post: (report: PagerReport) => void;
  readonly #waiting = new Map<number, Waiting>();
  #calls = 0;

  constructor(post: (report: PagerReport) => void) {
    this.#post = post;
  }

  /** Resolves with the bytes of the answer. @throws the program's error; the reason of `signal` */
  call(call: WithoutId<Call>, signal?: AbortSignal): Promise<Uint8Array | undefined> {
    const id = ++this.#calls;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      signal?.addEventListener('abort', () => {
        if (this.#waiting.delete(id)) this.#post({ is: 'cancel', id });
        reject(signal.reason);
      });
      this.#post({ ...call, id });
    });
  }

  /** The program's answer. */
  answer({ id, bytes, error }: Answer): void {
    const waiting = this.#waiting.get(id);
    if (!this.#waiting.delete(id) || !waiting) return;
    if (error === undefined) waiting.resolve(bytes);
    else
      waiting.reject(
        Object.assign(
          new SourceError(error.message, error.permanent),
          error.code !== undefined && { code: error.code },
        ),
      );
  }

  close(): void {
    for (const { reject } of this.#waiting.values()) reject(new SourceError('the pager is closed', true));
    this.#waiting.clear();
  }
}

/** A source of the program. */
export function programSource({ size, parallel, identity }: ProgramSource, calls: ProgramCalls): OpenSource {
  return {
    size,
    parallel,
    identity,
    async read(offset, into, signal) {
      const { length } = into;
      const bytes = await calls.call({ is: 'read', offset, length }, signal);
      signal.throwIfAborted();
      if (bytes?.length !== length)
        throw new SourceError(`read has returned ${bytes?.length} bytes instead of ${length}`, false);
      into.set(bytes);
    },
    close() {},
  };
}

/** A sink of the program. */
export function programSink(calls: ProgramCalls): Target {
  return {
    bytesAtOnce: SINK_BYTES,
    async write(parts, signal) {
      for (const { offset, bytes } of parts) await calls.call({ is: 'write', offset, bytes }, signal);
    },
    async sync() {
      await calls.call({ is: 'sync' });
    },
    close() {},
  };
}
