// A snapshot in a chunk store as a source of a pager.
//
// Rules:
//  - A chunk is verified before a byte of it gets into the pager's memory.
//  - It is fetched once, however many reads need it: those that come meanwhile wait for the same fetch.
//  - Chunks of zeros are never fetched.

import { INDEX_BYTES_MOST, indexHash, parseIndex } from '../store/chunk-index.js';
import { ChunkReader, DamagedChunkError } from '../store/chunk-reader.js';
import { openStore, readPlace } from '../store/open-store.js';
import { type Store, StoreError } from '../store/store.js';
import type { ChunkSource } from './chunk-description.js';
import { type OpenSource, SourceError } from './source.js';

const CACHE_BYTES = 16 << 20;
const CHUNKS_LEAST = 2;

/** A chunk that is being fetched. */
interface Fetch {
  readonly done: Promise<Uint8Array>;
  /** Aborted when no read waits for it any more. */
  readonly unwanted: AbortController;
  waiting: number;
}

/**
 * Reads the index. The store is not asked for anything yet.
 *
 * @throws SourceError, IndexError, as a rejection; the reason of `signal` if it was aborted
 */
export async function openChunkSource(source: ChunkSource, signal: AbortSignal): Promise<OpenSource> {
  const { index: place, store: where, options } = source;
  const { indexSha256, cacheBytes = CACHE_BYTES, ...storeOptions } = options;
  const name = typeof place === 'string' ? place.replace(/\?.*/, '') : 'the index';
  let bytes: Uint8Array;
  try {
    bytes =
      typeof place === 'string' ? await readPlace(place, INDEX_BYTES_MOST, storeOptions, signal) : place;
  } catch (error) {
    throw error instanceof StoreError ? new SourceError(error.message, true, { cause: error }) : error;
  }
  const identity = indexHash(bytes);
  if (indexSha256 !== undefined && identity !== indexSha256)
    throw new SourceError(`${name} is not the index that was asked for: its SHA-256 is ${identity}`, true);
  const index = parseIndex(bytes, name);
  const store = await openStore(where, storeOptions);
  return new Chunks(await ChunkReader.open(index, store), store, `index ${identity}`, cacheBytes);
}

class Chunks implements OpenSource {
  readonly size: number;
  readonly parallel: number;
  readonly identity: string;
  readonly #reader: ChunkReader;
  readonly #store: Store;
  readonly #fetches = new Map<number, Fetch>();
  /** Decompressed chunks; the one that was used last is the last one. */
  readonly #cache = new Map<number, Uint8Array>();
  readonly #cachedMost: number;

  constructor(reader: ChunkReader, store: Store, identity: string, cacheBytes: number) {
    this.#reader = reader;
    this.#store = store;
    this.size = reader.index.size;
    this.parallel = store.parallel;
    this.identity = identity;
    this.#cachedMost = Math.max(CHUNKS_LEAST, Math.floor(cacheBytes / reader.index.chunkSize));
  }

  async read(
    offset: number,
    into: Uint8Array,
    signal: AbortSignal,
    arrived: (bytes: number) => void,
  ): Promise<void> {
    const { chunkSize } = this.#reader.index;
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const chunk = Math.floor(at / chunkSize);
      const start = at - chunk * chunkSize;
      const part = into.subarray(done, Math.min(into.length, done + chunkSize - start));
      if (this.#reader.isZero(chunk)) part.fill(0);
      else part.set((await this.#chunk(chunk, signal)).subarray(start, start + part.length));
      done += part.length;
      arrived(done);
    }
  }

  async #chunk(chunk: number, signal: AbortSignal): Promise<Uint8Array> {
    signal.throwIfAborted();
    const known = this.#cache.get(chunk);
    if (known) {
      this.#cache.delete(chunk);
      this.#cache.set(chunk, known);
      return known;
    }
    const fetch = this.#fetches.get(chunk) ?? this.#fetch(chunk);
    fetch.waiting++;
    const left = new Promise<never>((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    });
    try {
      return await Promise.race([fetch.done, left]);
    } catch (error) {
      signal.throwIfAborted();
      throw sourceError(error);
    } finally {
      if (--fetch.waiting === 0) fetch.unwanted.abort(new Error('no read waits for it'));
    }
  }

  #fetch(chunk: number): Fetch {
    const unwanted = new AbortController();
    const bytes = this.#reader.bufferFor(chunk);
    const done = this.#reader
      .read(chunk, bytes, unwanted.signal)
      .then(() => {
        this.#keep(chunk, bytes);
        return bytes;
      })
      .finally(() => {
        if (this.#fetches.get(chunk) === fetch) this.#fetches.delete(chunk);
      });
    // Every read may have left before it fails.
    done.catch(() => {});
    const fetch = { done, unwanted, waiting: 0 };
    unwanted.signal.addEventListener('abort', () => {
      if (this.#fetches.get(chunk) === fetch) this.#fetches.delete(chunk);
    });
    this.#fetches.set(chunk, fetch);
    return fetch;
  }

  #keep(chunk: number, bytes: Uint8Array): void {
    this.#cache.set(chunk, bytes);
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size <= this.#cachedMost) return;
      this.#cache.delete(oldest);
    }
  }

  close(): void {
    for (const { unwanted } of this.#fetches.values()) unwanted.abort(new SourceError('it was closed', true));
    this.#store.close();
    this.#reader.close();
    this.#cache.clear();
  }
}

/** A missing or damaged chunk is not a permanent failure, because another pack may write it again. */
function sourceError(error: unknown): unknown {
  if (error instanceof StoreError || error instanceof DamagedChunkError)
    return new SourceError(error.message, false, { cause: error });
  return error;
}
