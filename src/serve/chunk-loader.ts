// Brings chunks from the cache or the store into images, for all guests of a server.
//
// Rules:
//  - Chunks that threads of guests wait for come first, then those of the working set, in its order.
//  - A chunk is loaded once, however many guests and images want it; among processes the cache's lock sees to that.
//  - Nothing that a chunk needs fails for good: it is tried again, with growing pauses, for as long as the server runs.
//    A guest's handler has its own deadline. A failure is reported as a problem until it is over.
//  - A chunk is verified before it enters an image. One that cannot be written to the cache is kept in memory.

import { setMaxListeners } from 'node:events';
import { closeSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Chunks, chunkBytes, chunkId } from '../store/chunk-index.js';
import { type ChunkReader, DamagedChunkError } from '../store/chunk-reader.js';
import { StoreError } from '../store/store.js';
import type { ChunkCache, ChunkLock, FileProof } from './chunk-cache.js';
import type { ChunkChecker } from './chunk-checker.js';
import { LATENCY_BOUNDS } from './counters.js';
import type { ImageMapping } from './image-mapping.js';

/** What a loader needs of an image. */
export interface LoadedImage {
  readonly reader: Pick<ChunkReader, 'fetch'> & { readonly index: Chunks };
  readonly mapping: Pick<ImageMapping, 'has' | 'map' | 'keep'>;
  /** Whether its memory is gone. */
  readonly closed: boolean;
  /** A chunk is there now. */
  arrived(chunk: number): void;
}

/** Where chunks came from. */
export interface TierCounts {
  chunks: number;
  bytes: number;
  /** The sum of the latencies, in seconds. */
  seconds: number;
  /** Chunks by latency: one number for each of `LATENCY_BOUNDS`, and one for longer ones. */
  readonly latencies: number[];
}

/** What a server has loaded, since its start. */
export interface LoaderCounts {
  /** Chunks that were in the cache. */
  readonly cache: TierCounts;
  /** Chunks that were fetched from the store. */
  readonly store: TierCounts;
  /** Tries that failed. */
  failed: number;
  /** Bytes that could not be put into the cache or mapped, and are in memory. */
  keptBytes: number;
}

/** What can be wrong. */
export type Trouble = 'store' | 'chunks' | 'cache' | 'mappings';

export interface LoaderOptions {
  readonly cache: ChunkCache;
  /** Most fetches at once. */
  readonly parallel: number;
  readonly checker: ChunkChecker;
  /** Reports a problem, or, without a reason, that it is over. */
  readonly report: (trouble: Trouble, reason: string | undefined) => void;
  /**
   * Milliseconds for which another process may hold the lock of a chunk. After that, this one fetches the chunk, too,
   * because the other may have been stopped. Default 10,000.
   */
  readonly lockedMostMs?: number;
}

/** Milliseconds until a failed chunk is tried again: they double, up to the second number. */
const RETRY_MS = 250;
const RETRY_MOST_MS = 5000;
/** The same for a chunk that another process fetches. */
const LOCKED_MS = 5;
const LOCKED_MOST_MS = 200;
/** Milliseconds without an answer after which a store is a problem. */
const SLOW_MS = 5000;
/** Most bytes of chunks that are loaded at once. Each chunk also has a compressed form. */
const LOADING_BYTES = 64 << 20;

interface Task {
  readonly id: string;
  readonly image: LoadedImage;
  readonly chunk: number;
  /** Where it belongs: the first place, and others with the same bytes. */
  readonly places: { image: LoadedImage; chunk: number }[];
  /** Whether a thread of a guest waits for it. */
  demanded: boolean;
  readonly sinceMs: number;
  tries: number;
  /** How often it was found locked, and since when. */
  locked: number;
  lockedSinceMs: number;
  /** The timer until it is tried again. */
  rest: NodeJS.Timeout | undefined;
}

export class ChunkLoader {
  readonly counts: LoaderCounts = { cache: emptyTier(), store: emptyTier(), failed: 0, keptBytes: 0 };
  readonly #options: LoaderOptions;
  readonly #tasks = new Map<string, Task>();
  /** Tasks that wait for their turn, in order. */
  readonly #demanded = new Set<Task>();
  readonly #ahead = new Set<Task>();
  readonly #resting = new Set<Task>();
  /** Tasks that the store has failed, or is slow to answer. */
  readonly #troubled = new Set<Task>();
  /** Why chunks cannot be had although the store answers, by id. */
  readonly #bad = new Map<string, string>();
  readonly #ended = new AbortController();
  #running = 0;
  #fetching = 0;
  /** Called when the last task has ended after `close`. */
  #drained = (): void => {};

  constructor(options: LoaderOptions) {
    this.#options = options;
    // Each fetch listens, and more than ten run at once.
    setMaxListeners(0, this.#ended.signal);
  }

  /** Chunks that are being fetched now, and those that are still to come. */
  get inFlight(): { fetching: number; waiting: number } {
    return { fetching: this.#fetching, waiting: this.#tasks.size };
  }

  /** Brings a chunk into an image. `demanded`: a thread of a guest waits for it. */
  want(image: LoadedImage, chunk: number, demanded: boolean): void {
    if (image.mapping.has(chunk) || this.#ended.signal.aborted) return;
    const id = chunkId(image.reader.index, chunk);
    const known = this.#tasks.get(id);
    const task: Task = known ?? {
      ...{ id, image, chunk, places: [], demanded: false, sinceMs: performance.now() },
      ...{ tries: 0, locked: 0, lockedSinceMs: 0, rest: undefined },
    };
    this.#tasks.set(id, task);
    if (!task.places.some((place) => place.image === image && place.chunk === chunk))
      task.places.push({ image, chunk });
    if (!known || (demanded && !task.demanded)) {
      task.demanded ||= demanded;
      if (!known || this.#ahead.delete(task)) this.#queue(task);
      else this.#again(task);
    }
    this.#next();
  }

  #queue(task: Task): void {
    (task.demanded ? this.#demanded : this.#ahead).add(task);
  }

  #next(): void {
    const { parallel } = this.#options;
    for (const queue of [this.#demanded, this.#ahead]) {
      for (const task of queue) {
        const { index } = task.image.reader;
        const most = Math.max(2, Math.min(2 * parallel, Math.floor(LOADING_BYTES / index.chunkSize)));
        // Some room stays free for what a guest asks for.
        const mine = task.demanded ? most : Math.max(1, Math.min(parallel, most - 1));
        if (this.#running >= mine) return;
        queue.delete(task);
        this.#running++;
        void this.#run(task);
      }
    }
  }

  async #run(task: Task): Promise<void> {
    let pauseMs: number | undefined;
    try {
      // Chunks that are in the cache come without a pause: the turns between them are for what guests ask for.
      if (!task.demanded) await nextTurn();
      if (!this.#ended.signal.aborted) pauseMs = await this.#load(task);
    } catch (error) {
      pauseMs = this.#failed(task, error as Error);
    }
    this.#running--;
    if (this.#running === 0) this.#options.checker.trim();
    if (this.#ended.signal.aborted) {
      if (this.#running === 0) this.#drained();
      return;
    }
    if (pauseMs === undefined) {
      this.#tasks.delete(task.id);
      // Another process may have fetched it.
      this.#reportBad(task.id, undefined);
      this.#untroubled(task);
    } else {
      this.#resting.add(task);
      task.rest = setTimeout(() => this.#again(task), pauseMs);
    }
    this.#next();
  }

  #again(task: Task): void {
    clearTimeout(task.rest);
    if (!this.#resting.delete(task)) return;
    this.#queue(task);
    this.#next();
  }

  /** Returns the milliseconds after which it is to be tried again; undefined: it is there. */
  async #load(task: Task): Promise<number | undefined> {
    const { checker } = this.#options;
    const length = chunkBytes(task.image.reader.index, task.chunk);
    let bytes: Uint8Array | undefined;
    try {
      return await this.#loadInto(task, length, () => {
        bytes ??= checker.buffer(length);
        return bytes;
      });
    } finally {
      if (bytes) checker.release(bytes);
    }
  }

  /** `into`: gives the memory for the bytes, from the moment when it is called. */
  async #loadInto(task: Task, length: number, into: () => Uint8Array): Promise<number | undefined> {
    const { cache } = this.#options;
    const { id } = task;
    const found = cache.open(id, length, task.image.reader.index.digest);
    if (found !== undefined && (await this.#isWhole(task, found, into))) {
      this.#place(task, found, into(), this.counts.cache);
      return undefined;
    }
    const locked = this.#lock(id);
    if (locked === 'came') return 0;
    if (locked === 'locked' && !this.#isOverdue(task))
      return Math.min(LOCKED_MS * 2 ** task.locked++, LOCKED_MOST_MS);
    const lock = locked === 'locked' ? undefined : locked;
    try {
      await this.#fetch(task, into);
    } catch (error) {
      if (lock) cache.unlock(lock);
      throw error;
    }
    const bytes = into();
    this.#place(
      task,
      lock && this.#put(lock, bytes, task.image.reader.index.digest),
      bytes,
      this.counts.store,
    );
    this.#recovered();
    return undefined;
  }

  /** Whether the file of a chunk is whole. Otherwise it is closed and removed. */
  async #isWhole(task: Task, fd: number, into: () => Uint8Array): Promise<boolean> {
    const { cache, checker } = this.#options;
    const { id, image } = task;
    const wrong = await checker.file(fd, into, image.reader.index.digest, id, () => task.demanded);
    if (wrong === undefined) {
      cache.used(fd);
      return true;
    }
    closeSync(fd);
    cache.remove(id);
    return false;
  }

  async #fetch(task: Task, into: () => Uint8Array): Promise<void> {
    const { image, chunk } = task;
    const slow = setTimeout(() => {
      this.#storeTroubles(task, `no answer for ${SLOW_MS / 1000} s; guests wait`);
    }, SLOW_MS);
    this.#fetching++;
    try {
      const { checker } = this.#options;
      const check = checker.frames(() => task.demanded);
      await image.reader.fetch(chunk, into, this.#ended.signal, check, checker.room);
    } finally {
      clearTimeout(slow);
      this.#fetching--;
    }
  }

  /** Whether another process has the lock of a chunk for too long. The chunk is then not put into the cache. */
  #isOverdue(task: Task): boolean {
    const { lockedMostMs = 10_000 } = this.#options;
    const now = performance.now();
    if (task.locked === 0) task.lockedSinceMs = now;
    return now - task.lockedSinceMs >= lockedMostMs;
  }

  /** Undefined: the cache cannot be written to. */
  #lock(id: string): ChunkLock | 'locked' | 'came' | undefined {
    try {
      return this.#options.cache.lock(id) ?? 'came';
    } catch (error) {
      this.#cacheFailed(error);
      return undefined;
    }
  }

  #put(lock: ChunkLock, bytes: Uint8Array, proof: FileProof): number | undefined {
    try {
      const fd = this.#options.cache.put(lock, bytes, proof);
      this.#options.report('cache', undefined);
      return fd;
    } catch (error) {
      this.#cacheFailed(error);
      return undefined;
    }
  }

  #cacheFailed(error: unknown): void {
    const { folder } = this.#options.cache;
    this.#options.report(
      'cache',
      `chunks are kept in memory, because they cannot be written to ${folder}: ${(error as Error).message}`,
    );
  }

  /** Puts a chunk into its images. Closes its file. */
  #place(task: Task, fd: number | undefined, bytes: Uint8Array, tier: TierCounts): void {
    const seconds = (performance.now() - task.sinceMs) / 1000;
    tier.chunks++;
    tier.bytes += bytes.length;
    tier.seconds += seconds;
    const at = LATENCY_BOUNDS.findIndex((bound) => seconds <= bound);
    const slot = at < 0 ? LATENCY_BOUNDS.length : at;
    tier.latencies[slot] = (tier.latencies[slot] as number) + 1;
    for (const { image, chunk } of task.places) {
      if (image.closed || image.mapping.has(chunk)) continue;
      if (fd === undefined || !this.#map(image, chunk, fd, bytes.length)) {
        image.mapping.keep(chunk, bytes);
        this.counts.keptBytes += bytes.length;
      }
      image.arrived(chunk);
    }
    if (fd !== undefined) closeSync(fd);
  }

  #map(image: LoadedImage, chunk: number, fd: number, length: number): boolean {
    if (image.mapping.map(chunk, fd, length)) {
      this.#options.report('mappings', undefined);
      return true;
    }
    this.#options.report(
      'mappings',
      'the kernel allows no more mappings, so further chunks are kept in memory; raise vm.max_map_count, or use larger chunks',
    );
    return false;
  }

  /** Reports a failure. Returns the milliseconds after which it is to be tried again. */
  #failed(task: Task, error: Error): number {
    if (this.#ended.signal.aborted) return 0;
    this.counts.failed++;
    if (isAboutChunk(error)) {
      this.#reportBad(task.id, error.message);
      this.#untroubled(task);
    } else this.#storeTroubles(task, error.message);
    const pauseMs = Math.min(RETRY_MS * 2 ** task.tries++, RETRY_MOST_MS);
    return pauseMs * (0.5 + Math.random() / 2);
  }

  #storeTroubles(task: Task, reason: string): void {
    this.#troubled.add(task);
    this.#options.report('store', reason);
  }

  /** The store does not trouble a task any more. */
  #untroubled(task: Task): void {
    if (this.#troubled.delete(task) && this.#troubled.size === 0) this.#options.report('store', undefined);
  }

  /** The store has answered: what has failed because of it is tried again at once. */
  #recovered(): void {
    if (this.#troubled.size === 0) return;
    const troubled = [...this.#troubled];
    this.#troubled.clear();
    this.#options.report('store', undefined);
    for (const task of troubled) this.#again(task);
  }

  #reportBad(id: string, message: string | undefined): void {
    if (message !== undefined) this.#bad.set(id, message);
    else if (!this.#bad.delete(id)) return;
    const [first] = this.#bad.values();
    this.#options.report('chunks', first && `${this.#bad.size} cannot be had; the first: ${first}`);
  }

  /** Ends all fetches. Resolves when none runs any more. */
  async close(): Promise<void> {
    this.#ended.abort(new Error('the server has ended'));
    for (const { rest } of this.#resting) clearTimeout(rest);
    this.#resting.clear();
    this.#demanded.clear();
    this.#ahead.clear();
    this.#tasks.clear();
    if (this.#running > 0) {
      await new Promise<void>((resolve) => {
        this.#drained = resolve;
      });
    }
  }
}

function emptyTier(): TierCounts {
  return { chunks: 0, bytes: 0, seconds: 0, latencies: new Array<number>(LATENCY_BOUNDS.length + 1).fill(0) };
}

/** Whether the store works, and only this chunk cannot be had. Many S3 servers refuse what they do not have. */
function isAboutChunk(error: Error): boolean {
  if (error instanceof DamagedChunkError) return true;
  return error instanceof StoreError && (error.kind === 'missing' || error.kind === 'refused');
}
