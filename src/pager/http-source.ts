// A remote file as a source of a pager: range requests, with retries, redirects, and a check in each answer that the file
// is still the one that was opened.

import { backoffMs, RequestFailure, type Version } from './http-answer.js';
import { ReadBuffers } from './http-buffers.js';
import { type Connections, openConnections } from './http-connections.js';
import type { HttpSource } from './http-description.js';
import { type Answered, Exchange, type Progress } from './http-exchange.js';
import { display, headersFor, redirected, type Target, targetOf } from './http-target.js';
import { type OpenSource, SourceError } from './source.js';

export { type HttpSource, type HttpSourceOptions, httpSource } from './http-description.js';

export interface OpenHttpSource extends OpenSource {
  /**
   * What each answer must repeat besides the size: the strong ETag; else the time of the last change, which does not
   * show two changes in one second; else nothing, and a change that keeps the size is not noticed.
   */
  readonly pinned: 'etag' | 'last-modified' | 'size';
}

/**
 * Connects to the server, and finds out the size and version of the file.
 *
 * @throws SourceError, as a rejection; the reason of `signal` if it was aborted
 */
export async function openHttpSource(source: HttpSource, signal: AbortSignal): Promise<OpenHttpSource> {
  signal.throwIfAborted();
  const opening = new RemoteFile(source);
  try {
    await opening.open(signal);
    return opening;
  } catch (error) {
    opening.close();
    throw error;
  }
}

class RemoteFile implements OpenHttpSource {
  readonly parallel: number;
  readonly #attempts: number;
  readonly #redirects: number;
  readonly #buffers = new ReadBuffers();
  readonly #connections: Connections;
  /** The URL that the program named. */
  readonly #original: Target;
  /** The URL that answered last, after redirects. */
  #target: Target;
  /** Headers for the origin that the program named. */
  readonly #headers: Readonly<Record<string, string>>;
  #version: Version | undefined;
  /** Rejects the reads that are under way. */
  readonly #stops = new Set<(reason: unknown) => void>();
  #closed = false;

  constructor({ url: href, options }: HttpSource) {
    const { timeoutMs = 30_000, attempts = 5, redirects = 5, parallel = 8, headers = {} } = options;
    this.parallel = parallel;
    this.#attempts = attempts;
    this.#redirects = redirects;
    const { target, headers: sent } = targetOf(href, headers);
    this.#original = target;
    this.#target = target;
    this.#headers = sent;
    this.#connections = openConnections(options, timeoutMs, parallel, this.#buffers);
  }

  get size(): number {
    return this.#version?.size as number;
  }

  get pinned(): 'etag' | 'last-modified' | 'size' {
    return this.#version?.pinned as 'etag';
  }

  /** The path is a part of it, because servers make ETags of sizes and dates, which several files may share. */
  get identity(): string | undefined {
    const { pinned, value } = this.#version as Version;
    return pinned === 'size' ? undefined : `${this.#original.url.pathname}, ${pinned} ${value}`;
  }

  /** Requests the first byte. Some servers refuse HEAD, or do not say there that they support ranges. */
  async open(signal: AbortSignal): Promise<void> {
    const progress = { offset: 0, into: new Uint8Array(1), reached: 0, arrived: () => {} };
    this.#version = await this.#fill(progress, signal);
  }

  async read(
    offset: number,
    into: Uint8Array,
    signal: AbortSignal,
    arrived: (bytes: number) => void,
  ): Promise<void> {
    if (offset + into.length > this.size)
      throw new RangeError(`bytes ${offset}-${offset + into.length - 1} of a source of ${this.size} bytes`);
    if (into.length > 0) await this.#fill({ offset, into, reached: 0, arrived }, signal);
  }

  close(): void {
    this.#closed = true;
    for (const stop of this.#stops) stop(this.#closedError());
    this.#connections.close();
  }

  #closedError(): SourceError {
    return new SourceError(`${display(this.#original.url)} was closed`, true);
  }

  /** Fills memory with as many requests as it takes. */
  async #fill(progress: Progress, signal: AbortSignal): Promise<Version> {
    signal.throwIfAborted();
    if (this.#closed) throw this.#closedError();
    const attempt = new Attempt();
    const abort = (): void => attempt.stop(signal.reason);
    const stop = (reason: unknown): void => attempt.stop(reason);
    signal.addEventListener('abort', abort);
    this.#stops.add(stop);
    try {
      return await this.#retry(progress, attempt);
    } finally {
      signal.removeEventListener('abort', abort);
      this.#stops.delete(stop);
    }
  }

  async #retry(progress: Progress, attempt: Attempt): Promise<Version> {
    let renewed = false;
    for (let tries = 1; ; ) {
      const used = this.#target;
      try {
        return await this.#follow(used, progress, attempt);
      } catch (error) {
        if (!(error instanceof RequestFailure)) throw error;
        // A redirect may now lead to another server, or to a URL with a new signature.
        if (this.#target === used) this.#target = this.#original;
        if (error.remedy === 'renew' && used !== this.#original && !renewed) {
          renewed = true;
          continue;
        }
        // It could be read when it was opened: a key may be renewed, and a server restored.
        if (error.remedy === 'renew') throw this.#failed(error, this.#version === undefined, tries);
        if (error.remedy !== 'retry') throw this.#failed(error, true, tries);
        if (tries === this.#attempts) throw this.#failed(error, false, tries);
        await attempt.pause(backoffMs(tries, error));
        tries++;
      }
    }
  }

  #failed(error: RequestFailure, permanent: boolean, tries: number): SourceError {
    const times = tries === 1 ? '' : ` (attempt ${tries} of ${this.#attempts})`;
    const message = `cannot read ${display(this.#original.url)}: ${error.message}${times}`;
    return new SourceError(
      message,
      permanent,
      error.cause === undefined ? undefined : { cause: error.cause },
    );
  }

  /** Requests the rest of a read from a URL, and from where it redirects to. */
  async #follow(start: Target, progress: Progress, attempt: Attempt): Promise<Version> {
    let target = start;
    for (let hops = 0; ; hops++) {
      const answered = await this.#request(target, progress, attempt);
      if ('version' in answered) {
        this.#target = target;
        return answered.version;
      }
      if (hops === this.#redirects)
        throw new RequestFailure(`the server redirected more than ${hops} times`, 'permanent');
      target = redirected(target, answered.redirect);
    }
  }

  #request(target: Target, progress: Progress, attempt: Attempt): Promise<Answered> {
    const headers = headersFor(target, this.#headers);
    return attempt.run(
      () =>
        new Exchange(
          this.#connections.dispatcher,
          target.url,
          headers,
          progress,
          this.#version,
          this.#buffers,
        ),
    );
  }
}

/** What a read waits for at the moment, a request or a pause, and whether it was stopped. */
class Attempt {
  #stopped: { reason: unknown } | undefined;
  #stop: ((reason: unknown) => void) | undefined;

  /** Makes the read reject at once. */
  stop(reason: unknown): void {
    this.#stopped ??= { reason };
    this.#stop?.(reason);
  }

  async run(start: () => Exchange): Promise<Answered> {
    this.#check();
    const exchange = start();
    this.#stop = (reason) => exchange.stop(reason);
    const answered = await exchange.done;
    // The answer and the abort may have come in the same turn of the event loop.
    this.#check();
    return answered;
  }

  async pause(ms: number): Promise<void> {
    this.#check();
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(resolve, ms);
      this.#stop = (reason) => {
        clearTimeout(timer);
        reject(reason);
      };
    });
  }

  #check(): void {
    if (this.#stopped) throw this.#stopped.reason;
  }
}
