// Requests to a store's server: retries with backoff and jitter, time-outs, a limit of bytes a second. Bodies are whole
// objects in memory. Nothing here uses libuv's thread pool.

import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Dispatcher } from 'undici';
import {
  backoffMs,
  checkEncoding,
  type Headers,
  RequestFailure,
  redirectOf,
  statusFailure,
  type Version,
} from '../pager/http-answer.js';
import { ReadBuffers } from '../pager/http-buffers.js';
import { type Connections, openConnections } from '../pager/http-connections.js';
import type { TransportOptions } from '../pager/http-description.js';
import { connectionFailure, Exchange } from '../pager/http-exchange.js';
import { PARALLEL } from './options.js';
import { type ObjectRange, type Room, StoreError } from './store.js';

export interface Outgoing {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'DELETE';
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
}

export interface Incoming {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Buffer;
  /** The target of a redirect. */
  readonly redirect: string | undefined;
}

/** One thing to do, over as many requests as it takes. */
export interface Errand {
  /** The object, for messages. */
  readonly place: string;
  /** Most bytes of the body of a success. */
  readonly most: number;
  readonly signal: AbortSignal | undefined;
  /** Makes the next request. Called again for each attempt, so that a signature is never old. */
  prepare(): Outgoing | Promise<Outgoing>;
  /**
   * Looks at an answer that is no success. True: another request, made now, may succeed. May throw a RequestFailure or
   * a StoreError that says more than the status.
   */
  again?(answer: Incoming): boolean;
}

const TIMEOUT_MS = 30_000;
const ATTEMPTS = 5;
/** An attempt ends after so many time-outs, however its bytes trickle. */
const TIMEOUTS_MOST = 10;
/** Requests of one attempt, with redirects and renewed signatures. */
const REQUESTS_MOST = 6;
/** Most bytes that are kept of the body of an error. */
const ERROR_BODY_MOST = 16 << 10;

/** How fast bytes may go in all directions together. */
class Bandwidth {
  readonly #bytesPerMs: number;
  #freeAt = 0;

  constructor(bytesPerSecond: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  use(bytes: number): void {
    this.#freeAt = Math.max(this.#freeAt, performance.now()) + bytes / this.#bytesPerMs;
  }

  async wait(signal: AbortSignal): Promise<void> {
    for (;;) {
      const ms = this.#freeAt - performance.now();
      if (ms <= 0) return;
      await sleep(ms, undefined, { signal });
    }
  }
}

export class HttpClient {
  readonly #connections: Connections;
  readonly #buffers = new ReadBuffers();
  readonly #timeoutMs: number;
  readonly #attempts: number;
  readonly #bandwidth: Bandwidth | undefined;
  readonly #closing = new AbortController();

  constructor(options: TransportOptions & { bytesPerSecond?: number }) {
    // Each call listens.
    setMaxListeners(0, this.#closing.signal);
    const { timeoutMs = TIMEOUT_MS, attempts = ATTEMPTS, parallel = PARALLEL, bytesPerSecond } = options;
    this.#timeoutMs = timeoutMs;
    this.#attempts = attempts;
    this.#bandwidth = bytesPerSecond === undefined ? undefined : new Bandwidth(bytesPerSecond);
    this.#connections = openConnections(options, timeoutMs, parallel, this.#buffers);
  }

  /**
   * Resolves with a success (2xx). `room`: where its body should go, if the server says how long it is.
   *
   * @throws StoreError; the reason of the signal
   */
  async call(errand: Errand, room?: Room): Promise<Incoming> {
    return this.#retry(errand, async (signal) => {
      for (let requests = 1; ; requests++) {
        const outgoing = await errand.prepare();
        await this.#bandwidth?.wait(signal);
        this.#bandwidth?.use(outgoing.body?.length ?? 0);
        const answer = await this.#exchange(outgoing, errand.most, signal, room);
        this.#bandwidth?.use(answer.body.length);
        if (answer.status < 300) return answer;
        if (errand.again?.(answer) && requests < REQUESTS_MOST) continue;
        throw statusFailure(answer.status, answer.headers);
      }
    });
  }

  /** Whether a HEAD request finds an object. Without the right to list a bucket, S3 answers 403 for what is not there. */
  async has(errand: Errand): Promise<boolean> {
    return (await this.writtenMs(errand)) !== undefined;
  }

  /** As `Store.writtenMs`, by a HEAD request. */
  async writtenMs(errand: Errand): Promise<number | undefined> {
    try {
      const { headers } = await this.call(errand);
      const written = Date.parse(`${headers['last-modified'] ?? ''}`);
      return Number.isNaN(written) ? Number.POSITIVE_INFINITY : written;
    } catch (error) {
      if (error instanceof StoreError && ['missing', 'refused'].includes(error.kind)) return undefined;
      throw error;
    }
  }

  /** Reads a part of an object. @throws as `call` */
  async range(
    errand: Omit<Errand, 'most' | 'again'>,
    offset: number,
    length: number,
    version: unknown,
  ): Promise<ObjectRange> {
    const into = new Uint8Array(length);
    const progress = { offset, into, reached: 0, arrived: () => {} };
    return this.#retry(errand, async (signal) => {
      const { url, headers } = await errand.prepare();
      await this.#bandwidth?.wait(signal);
      const { dispatcher } = this.#connections;
      const pinned = version as Version | undefined;
      const exchange = new Exchange(dispatcher, url, headers, progress, pinned, this.#buffers);
      const stop = (): void => exchange.stop(signal.reason);
      signal.addEventListener('abort', stop);
      try {
        const answered = await exchange.done;
        this.#bandwidth?.use(length);
        if ('version' in answered) {
          const { version } = answered;
          return { bytes: into, version, size: version.size, identity: identityOf(version) };
        }
        throw new RequestFailure('the server redirected a request for a part', 'permanent');
      } finally {
        signal.removeEventListener('abort', stop);
      }
    });
  }

  async #retry<T>(
    { place, signal: given }: Pick<Errand, 'place' | 'signal'>,
    attempt: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    // Of its own, because a store lives long, and so would what AbortSignal.any registers with it.
    const ending = new AbortController();
    const end = (): void => ending.abort(given?.reason);
    const ends = [this.#closing.signal, ...(given ? [given] : [])];
    for (const signal of ends) signal.addEventListener('abort', end);
    if (ends.some(({ aborted }) => aborted)) end();
    try {
      return await this.#repeat(place, ending.signal, attempt);
    } catch (error) {
      given?.throwIfAborted();
      if (this.#closing.signal.aborted) throw new StoreError('failed', `${place}: the store was closed`);
      throw error;
    } finally {
      for (const signal of ends) signal.removeEventListener('abort', end);
    }
  }

  async #repeat<T>(
    place: string,
    signal: AbortSignal,
    attempt: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    for (let tries = 1; ; tries++) {
      try {
        signal.throwIfAborted();
        return await attempt(signal);
      } catch (error) {
        if (!(error instanceof RequestFailure)) throw error;
        if (error.remedy !== 'retry' || tries >= this.#attempts)
          throw storeError(place, error, tries, this.#attempts);
        await sleep(backoffMs(tries, error), undefined, { signal });
      }
    }
  }

  async #exchange(
    outgoing: Outgoing,
    most: number,
    signal: AbortSignal,
    room: Room | undefined,
  ): Promise<Incoming> {
    const call = new Call(most, this.#timeoutMs, this.#buffers, room);
    const stop = (): void => call.stop(signal.reason);
    signal.addEventListener('abort', stop);
    try {
      const { method, url, headers, body } = outgoing;
      this.#connections.dispatcher.dispatch(
        {
          origin: url.origin,
          path: url.pathname + url.search,
          method,
          headers: { ...headers, 'accept-encoding': 'identity' },
          ...(body && { body: Buffer.from(body.buffer, body.byteOffset, body.length) }),
        },
        call,
      );
      return await call.done;
    } finally {
      signal.removeEventListener('abort', stop);
    }
  }

  close(): void {
    this.#closing.abort(new Error('closed'));
    this.#connections.close();
  }
}

/** One request and its whole answer. */
class Call implements Dispatcher.DispatchHandler {
  readonly done: Promise<Incoming>;
  #resolve!: (incoming: Incoming) => void;
  #reject!: (error: unknown) => void;
  #over = false;
  #controller: Dispatcher.DispatchController | undefined;
  #timer: NodeJS.Timeout | undefined;
  #status = 0;
  #headers: Headers = {};
  /** The body: one part if its length was known, else those that arrived. */
  #parts: Uint8Array[] = [];
  #bytes = 0;
  #length: number | undefined;
  readonly #most: number;
  readonly #timeoutMs: number;
  readonly #buffers: ReadBuffers;
  readonly #room: Room;

  constructor(
    most: number,
    timeoutMs: number,
    buffers: ReadBuffers,
    room: Room = (bytes) => Buffer.allocUnsafeSlow(bytes),
  ) {
    this.#most = most;
    this.#timeoutMs = timeoutMs;
    this.#buffers = buffers;
    this.#room = room;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  stop(reason: unknown): void {
    this.#fail(reason);
    this.#controller?.abort(new Error('stopped'));
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#over) {
      controller.abort(new Error('stopped'));
      return;
    }
    const limitMs = Math.min(this.#timeoutMs * TIMEOUTS_MOST, 2 ** 31 - 1);
    this.#timer = setTimeout(() => {
      this.stop(new RequestFailure(`the request was not done after ${limitMs / 1000} s`, 'retry'));
    }, limitMs);
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: Headers): void {
    // Informational answers precede the real one.
    if (this.#over || status < 200) return;
    this.#status = status;
    this.#headers = headers;
    if (status >= 300) return;
    try {
      checkEncoding(headers);
    } catch (error) {
      this.stop(error);
      return;
    }
    const length = Number(headers['content-length'] ?? Number.NaN);
    if (length > this.#most) this.stop(tooLong(length, this.#most));
    if (!Number.isNaN(length)) this.#length = length;
  }

  onResponseData(_: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (this.#over) return;
    const most = this.#status < 300 ? (this.#length ?? this.#most) : ERROR_BODY_MOST;
    const at = this.#bytes;
    this.#bytes += chunk.length;
    if (this.#bytes > most) {
      if (this.#status < 300) {
        this.stop(tooLong(this.#bytes, most));
      } else {
        // What was read of an error's body says enough.
        this.#succeed();
        this.#controller?.abort(new Error('not needed'));
      }
      return;
    }
    this.#keep(chunk, at);
    this.#buffers.release(chunk);
  }

  #keep(chunk: Uint8Array, at: number): void {
    if (this.#length === undefined) {
      this.#parts.push(Buffer.from(chunk));
      return;
    }
    const body = this.#parts[0] ?? this.#room(this.#length);
    this.#parts[0] = body;
    body.set(chunk, at);
  }

  /** All of the body, not copied if it is one part. */
  get #body(): Buffer {
    const [part, second] = this.#parts;
    if (!part || second) return Buffer.concat(this.#parts);
    return Buffer.from(part.buffer, part.byteOffset, Math.min(part.length, this.#bytes));
  }

  onResponseEnd(): void {
    if (!this.#over) this.#succeed();
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    this.#fail(connectionFailure(error));
  }

  #succeed(): void {
    this.#end();
    const [status, headers] = [this.#status, this.#headers];
    try {
      const redirect = redirectOf(status, headers);
      this.#resolve({ status, headers, body: this.#body, redirect });
    } catch {
      // A redirect that says not where to.
      this.#resolve({ status, headers, body: this.#body, redirect: undefined });
    }
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    this.#end();
    this.#reject(error);
  }

  #end(): void {
    this.#over = true;
    clearTimeout(this.#timer);
  }
}

function tooLong(length: number, most: number): RequestFailure {
  return new RequestFailure(`the object has at least ${length} bytes, more than ${most}`, 'permanent');
}

/** Undefined: the server sends neither an ETag nor a date. */
function identityOf({ pinned, value, weak }: Version): string | undefined {
  return pinned === 'size' && weak === undefined ? undefined : JSON.stringify([pinned, value, weak]);
}

const MISSING = [404, 410];
const REFUSED = [401, 403];

function storeError(place: string, error: RequestFailure, tries: number, attempts: number): StoreError {
  const { status = 0, message, cause } = error;
  const kind = MISSING.includes(status) ? 'missing' : REFUSED.includes(status) ? 'refused' : 'failed';
  const times = tries === 1 ? '' : ` (attempt ${tries} of ${attempts})`;
  const options = cause === undefined ? undefined : { cause };
  return new StoreError(kind, `${place}: ${message}${times}`, options);
}
