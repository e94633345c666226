// A store on a web server: GET and HEAD; PUT, if the server allows it. It cannot be listed.

import { headersFor, redirected, targetOf } from '../pager/http-target.js';
import { type Errand, HttpClient } from './http-client.js';
import { PARALLEL, type StoreOptions } from './options.js';
import { checkKey, type ListedObject, type ObjectRange, type Room, type Store, StoreError } from './store.js';

export class HttpStore implements Store {
  readonly name: string;
  readonly can = { range: true, put: true, list: false, delete: false };
  readonly parallel: number;
  readonly #client: HttpClient;
  readonly #base: ReturnType<typeof targetOf>;

  /** `url`: an http: or https: URL; a query is sent with each request. */
  constructor(url: string, options: StoreOptions) {
    this.#base = targetOf(url, options.headers ?? {});
    const { origin, pathname } = this.#base.target.url;
    this.name = (origin + pathname).replace(/\/$/, '');
    this.parallel = options.parallel ?? PARALLEL;
    this.#client = new HttpClient(options);
  }

  async get(key: string, most: number, signal?: AbortSignal, room?: Room): Promise<Uint8Array> {
    return (await this.#client.call(this.#errand('GET', key, most, signal), room)).body;
  }

  range(
    key: string,
    offset: number,
    length: number,
    version?: unknown,
    signal?: AbortSignal,
  ): Promise<ObjectRange> {
    return this.#client.range(this.#errand('GET', key, 0, signal), offset, length, version);
  }

  has(key: string, signal?: AbortSignal): Promise<boolean> {
    return this.#client.has(this.#errand('HEAD', key, 0, signal));
  }

  writtenMs(key: string, signal?: AbortSignal): Promise<number | undefined> {
    return this.#client.writtenMs(this.#errand('HEAD', key, 0, signal));
  }

  async refresh(): Promise<boolean> {
    return false;
  }

  async put(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    await this.#client.call(this.#errand('PUT', key, 1 << 20, signal, bytes));
  }

  // biome-ignore lint/correctness/useYield: it cannot be listed
  async *list(): AsyncGenerator<ListedObject> {
    throw new StoreError('unable', `${this.name}: a web server cannot list a store; use a folder or s3://`);
  }

  async delete(): Promise<void> {
    throw new StoreError('unable', `${this.name}: nothing can be removed from a store on a web server`);
  }

  async sync(): Promise<void> {}

  close(): void {
    this.#client.close();
  }

  #errand(
    method: 'GET' | 'HEAD' | 'PUT',
    key: string,
    most: number,
    signal: AbortSignal | undefined,
    body?: Uint8Array,
  ): Errand {
    checkKey(key);
    const url = new URL(this.#base.target.url);
    url.pathname = `${url.pathname.replace(/\/$/, '')}/${key}`;
    let target = { url, trusted: true };
    return {
      place: `${this.name}/${key}`,
      most: method === 'HEAD' ? Number.POSITIVE_INFINITY : most,
      signal,
      prepare: () => ({
        method,
        url: target.url,
        headers: headersFor(target, this.#base.headers),
        ...(body && { body }),
      }),
      again({ redirect }) {
        if (redirect === undefined || method === 'PUT') return false;
        target = redirected(target, redirect);
        return true;
      },
    };
  }
}
