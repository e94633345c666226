// One request and its answer. The body goes from the socket's buffers directly into the pager's memory.

import type { Dispatcher } from 'undici';
import {
  checkAnswer,
  type Headers,
  precondition,
  RequestFailure,
  redirectOf,
  type Version,
} from './http-answer.js';
import type { ReadBuffers } from './http-buffers.js';

/** The bytes that one read asks for, and how many of them have arrived, over all its requests. */
export interface Progress {
  readonly offset: number;
  readonly into: Uint8Array;
  reached: number;
  readonly arrived: (bytes: number) => void;
}

export type Answered = { redirect: string } | { version: Version };

/** Bodies of errors and redirects up to this size are read to their end, so that the connection can be used again. */
const SHORT_BODY = 16 << 10;

/** Requests the rest of a read. After it has settled, it does not write to memory. */
export class Exchange implements Dispatcher.DispatchHandler {
  readonly done: Promise<Answered>;
  #resolve!: (answered: Answered) => void;
  #reject!: (error: unknown) => void;
  #over = false;
  #controller: Dispatcher.DispatchController | undefined;
  #answer: Answered | undefined;
  readonly #progress: Progress;
  readonly #version: Version | undefined;
  readonly #buffers: ReadBuffers;

  constructor(
    dispatcher: Pick<Dispatcher, 'dispatch'>,
    url: URL,
    headers: Readonly<Record<string, string>>,
    progress: Progress,
    version: Version | undefined,
    buffers: ReadBuffers,
  ) {
    this.#buffers = buffers;
    this.#progress = progress;
    this.#version = version;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    const range = `bytes=${progress.offset + progress.reached}-${this.#last}`;
    dispatcher.dispatch(
      {
        origin: url.origin,
        path: url.pathname + url.search,
        method: 'GET',
        headers: { ...headers, 'accept-encoding': 'identity', range, ...precondition(version) },
      },
      this,
    );
  }

  get #last(): number {
    return this.#progress.offset + this.#progress.into.length - 1;
  }

  /** Rejects at once, and ends the request. */
  stop(reason: unknown): void {
    if (this.#over) return;
    this.#over = true;
    this.#reject(reason);
    this.#controller?.abort(new Error('stopped'));
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    // It was stopped while it waited for a connection.
    if (this.#over) controller.abort(new Error('stopped'));
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: Headers): void {
    // Informational answers precede the real one.
    if (this.#over || status < 200) return;
    const { offset, reached } = this.#progress;
    try {
      const redirect = redirectOf(status, headers);
      if (redirect === undefined) {
        const version = checkAnswer(status, headers, offset + reached, this.#last, this.#version);
        this.#answer = { version };
        return;
      }
      this.#over = true;
      this.#resolve({ redirect });
    } catch (error) {
      this.#over = true;
      this.#reject(error);
    }
    const length = headers['content-length'];
    if (length === undefined || Number(length) > SHORT_BODY || status < 300)
      this.#controller?.abort(new Error('not needed'));
  }

  onResponseData(_: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (this.#over) return;
    const { into, reached, arrived } = this.#progress;
    if (chunk.length > into.length - reached) {
      this.stop(new RequestFailure('the server sent more bytes than it announced', 'permanent'));
      return;
    }
    into.set(chunk, reached);
    this.#buffers.release(chunk);
    this.#progress.reached += chunk.length;
    arrived(this.#progress.reached);
  }

  onResponseEnd(): void {
    if (this.#over) return;
    this.#over = true;
    const { into, reached } = this.#progress;
    if (reached === into.length && this.#answer) {
      this.#resolve(this.#answer);
    } else {
      this.#reject(new RequestFailure(`the body ended ${into.length - reached} bytes early`, 'retry'));
    }
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    if (this.#over) return;
    this.#over = true;
    this.#reject(connectionFailure(error));
  }
}

/** What went wrong, by the code of an error of Node or undici. */
const WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'the connection was refused',
  ECONNRESET: 'the connection was reset',
  EHOSTUNREACH: 'the host cannot be reached',
  ENETUNREACH: 'the network cannot be reached',
  ENOTFOUND: 'its host name does not exist',
  EPIPE: 'the connection was closed',
  ETIMEDOUT: 'the connection timed out',
  HPE_INVALID_CONSTANT: 'the server does not speak HTTP',
  UND_ERR_BODY_TIMEOUT: 'no further byte of the body arrived in time',
  UND_ERR_CONNECT_TIMEOUT: 'the connection timed out',
  UND_ERR_HEADERS_TIMEOUT: 'the server did not answer in time',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'the body ended early',
  UND_ERR_SOCKET: 'the connection was closed',
};

/** Codes of OpenSSL for a certificate that is not trusted, and of Node for one of another host. */
const CERTIFICATE = /CERT|^UNABLE_TO_|^INVALID_(CA|PURPOSE)$|^PATH_LENGTH_EXCEEDED$|^HOSTNAME_MISMATCH$/;

/** Why an exchange ended without an answer. */
export function connectionFailure(error: Error): RequestFailure {
  const { code = '', syscall = '' } = error as NodeJS.ErrnoException;
  const options = { cause: error };
  const proxy = /^Proxy response \((\d+)\)/.exec(error.message)?.[1];
  if (proxy !== undefined) {
    const status = Number(proxy);
    const lasting = status >= 400 && status < 500 && status !== 408 && status !== 429;
    return new RequestFailure(`the proxy answered ${status}`, lasting ? 'permanent' : 'retry', options);
  }
  if (/Proxy Authentication Required/.test(error.message))
    return new RequestFailure('the proxy demands a user name and password', 'permanent', options);
  if (CERTIFICATE.test(code)) {
    const message = `the server's certificate is not trusted: ${error.message}`;
    return new RequestFailure(message, 'permanent', options);
  }
  // c-ares reports ECONNREFUSED if no name server answers.
  if (syscall.startsWith('query') && code !== 'ENOTFOUND')
    return new RequestFailure(`its host name could not be resolved (${code})`, 'retry', options);
  return new RequestFailure(WORDS[code] ?? error.message, 'retry', options);
}
