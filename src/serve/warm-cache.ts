// Fills a cache before a server needs it.

import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ChunkIndex, chunkId } from '../store/chunk-index.js';
import { ChunkReader } from '../store/chunk-reader.js';
import { tasksFor, withTasks } from '../store/parallel.js';
import type { Store } from '../store/store.js';
import { ChunkCache, isWhole } from './chunk-cache.js';
import type { FileRange } from './extents.js';

export interface WarmCacheOptions {
  /** The folder of the cache, and its most bytes. */
  readonly cache: string;
  readonly cacheBytes: number;
  /** What to fetch, in this order. Default: everything. */
  readonly ranges?: readonly FileRange[];
  readonly signal?: AbortSignal;
  /** Called after each chunk. */
  readonly progress?: (counts: WarmCacheCounts) => void;
}

/** What was done so far. */
export interface WarmCacheCounts {
  /** Chunks that are not zeros. */
  readonly chunks: number;
  readonly cachedChunks: number;
  readonly fetchedChunks: number;
}

/** Milliseconds between two looks at a chunk that another process fetches. */
const LOCKED_MS = 50;

/**
 * Fetches chunks that are not in the cache. Those that are there are verified, and fetched again if they are damaged.
 *
 * @throws StoreError, DamagedChunkError, Node's errors; the reason of the signal
 */
export async function warmCache(
  index: ChunkIndex,
  store: Store,
  options: WarmCacheOptions,
): Promise<WarmCacheCounts> {
  const { cacheBytes, ranges = [{ offset: 0, length: index.size }], signal, progress } = options;
  const cache = new ChunkCache(options.cache, cacheBytes);
  const reader = await ChunkReader.open(index, store);
  try {
    const chunks = chunksOf(index, ranges).filter((chunk) => !reader.isZero(chunk));
    const counts = { chunks: chunks.length, cachedChunks: 0, fetchedChunks: 0 };
    await withTasks(tasksFor(store.parallel, index.chunkSize), signal, async (pool) => {
      for (const chunk of chunks) {
        await pool.start(async (aborted) => {
          counts[await warm(cache, reader, chunk, aborted)]++;
          progress?.({ ...counts });
        });
      }
    });
    await cache.bounded();
    return counts;
  } finally {
    reader.close();
  }
}

/** The chunks that ranges touch, each once, in their order. */
function chunksOf({ size, chunkSize }: ChunkIndex, ranges: readonly FileRange[]): number[] {
  const chunks = new Set<number>();
  for (const { offset, length } of ranges) {
    const end = Math.min(offset + length, size);
    for (let chunk = Math.floor(offset / chunkSize); chunk * chunkSize < end; chunk++) chunks.add(chunk);
  }
  return [...chunks];
}

async function warm(
  cache: ChunkCache,
  reader: ChunkReader,
  chunk: number,
  signal: AbortSignal,
): Promise<'cachedChunks' | 'fetchedChunks'> {
  const id = chunkId(reader.index, chunk);
  const bytes = reader.bufferFor(chunk);
  for (;;) {
    signal.throwIfAborted();
    const found = cache.open(id, bytes.length, reader.index.digest);
    if (found !== undefined) {
      const whole = isWhole(found, bytes, reader.index.digest, id);
      if (whole) cache.used(found);
      else cache.remove(id);
      closeSync(found);
      if (whole) return 'cachedChunks';
    }
    const lock = cache.lock(id);
    if (lock === 'locked') await sleep(LOCKED_MS, undefined, { signal });
    if (typeof lock !== 'object') continue;
    try {
      await reader.fetch(chunk, () => bytes, signal);
    } catch (error) {
      cache.unlock(lock);
      throw error;
    }
    closeSync(cache.put(lock, bytes, reader.index.digest));
    return 'fetchedChunks';
  }
}
