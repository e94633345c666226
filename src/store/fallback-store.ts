// Two stores as one: what the first does not have, or cannot give, is read from the second. Writes go to the first.

import type { Abilities, ListedObject, ObjectRange, Room, Store } from './store.js';

export class FallbackStore implements Store {
  readonly name: string;
  readonly can: Abilities;
  readonly parallel: number;
  readonly #first: Store;
  readonly fallback: Store;

  constructor(first: Store, second: Store) {
    this.#first = first;
    this.fallback = second;
    this.name = first.name;
    this.can = { ...first.can, range: first.can.range && second.can.range };
    this.parallel = first.parallel;
  }

  get(key: string, most: number, signal?: AbortSignal, room?: Room): Promise<Uint8Array> {
    return this.#either((store) => store.get(key, most, signal, room), signal);
  }

  range(
    key: string,
    offset: number,
    length: number,
    version?: unknown,
    signal?: AbortSignal,
  ): Promise<ObjectRange> {
    return this.#either((store) => store.range(key, offset, length, version, signal), signal);
  }

  async has(key: string, signal?: AbortSignal): Promise<boolean> {
    return this.#first.has(key, signal);
  }

  writtenMs(key: string, signal?: AbortSignal): Promise<number | undefined> {
    return this.#first.writtenMs(key, signal);
  }

  refresh(key: string, signal?: AbortSignal): Promise<boolean> {
    return this.#first.refresh(key, signal);
  }

  put(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#first.put(key, bytes, signal);
  }

  list(signal?: AbortSignal): AsyncIterable<ListedObject> {
    return this.#first.list(signal);
  }

  delete(key: string, signal?: AbortSignal): Promise<void> {
    return this.#first.delete(key, signal);
  }

  sync(): Promise<void> {
    return this.#first.sync();
  }

  close(): void {
    this.#first.close();
    this.fallback.close();
  }

  /** If both fail, the error is the first store's. */
  async #either<T>(ask: (store: Store) => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    try {
      return await ask(this.#first);
    } catch (error) {
      signal?.throwIfAborted();
      try {
        return await ask(this.fallback);
      } catch {
        signal?.throwIfAborted();
        throw error;
      }
    }
  }
}
