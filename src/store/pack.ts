// Splits memory into chunks, and writes those that a store lacks. The index is made last, so it never names a chunk that
// is not there.
//
// Rule: `prune` may run at the same time. It does not know the index that is being made, and leaves only young chunks
// alone. So a chunk that the store has is made young again, without sending it if the store can do that, and before the
// index is made, each chunk that the store had is looked for once more.

import { setImmediate as turn } from 'node:timers/promises';
import type { MemoryImage } from '../serve/memory-image.js';
import {
  CHUNK_DEFAULT,
  type ChunkIndex,
  checkChunking,
  chunkKey,
  type Digest,
  encodeIndex,
  ID_BYTES,
  idOf,
  zeroIds,
} from './chunk-index.js';
import { type Compressor, LEVEL_STORED, needCompressor } from './compression.js';
import { type TaskPool, tasksFor, withTasks } from './parallel.js';
import { GRACE_MS, type Store, StoreError } from './store.js';

export interface PackOptions {
  /** Bytes of a chunk: a multiple of 4096. Default 512 KiB. */
  readonly chunkSize?: number;
  /** What chunks are named by. Default `sha512-256`. */
  readonly digest?: Digest;
  readonly signal?: AbortSignal;
  /** Called now and then. */
  readonly progress?: (counts: PackCounts) => void;
}

/** What was done so far. */
export interface PackCounts {
  /** Bytes of the memory, and how many of them are done. */
  readonly size: number;
  readonly doneBytes: number;
  readonly chunks: number;
  /** Chunks of zeros. */
  readonly zeroChunks: number;
  /** Different chunks, that of zeros included. */
  readonly distinctChunks: number;
  /**
   * Of these, what the store already had, and what was written to it. A plain web server gets a chunk again that it has
   * had for half of the default grace period of `prune`.
   */
  readonly presentChunks: number;
  readonly storedChunks: number;
  /** Compressed bytes that were written to the store. */
  readonly storedBytes: number;
}

/** A chunk of this age, in milliseconds, is made young, so that `prune` leaves it for as long once more. */
const REFRESHED_MS = GRACE_MS / 2;

/**
 * Packs memory into a store. Chunks that the store has are not sent again, so an interrupted call is resumed by calling
 * it again.
 *
 * @returns the bytes of the index, and the counts
 * @throws RangeError, MemoryImageError, StoreError, UnsupportedError; the reason of the signal
 */
export async function pack(
  image: MemoryImage,
  store: Store,
  options: PackOptions = {},
): Promise<{ index: Buffer; counts: PackCounts }> {
  const { chunkSize = CHUNK_DEFAULT, digest = 'sha512-256', signal } = options;
  checkChunking(image.size, chunkSize, digest);
  const compressor = needCompressor();
  try {
    const packing = new Packing(image, store, compressor, chunkSize, digest, options.progress);
    await withTasks(tasksFor(store.parallel, chunkSize), signal, (pool) => packing.run(pool));
    options.progress?.(packing.counts);
    image.checkUnchanged();
    await store.sync();
    await withTasks(store.parallel, signal, (pool) => packing.check(pool));
    return { index: encodeIndex(packing.index), counts: packing.counts };
  } finally {
    compressor.close();
  }
}

class Packing {
  readonly index: ChunkIndex;
  readonly #image: MemoryImage;
  readonly #store: Store;
  readonly #compressor: Compressor;
  readonly #progress: ((counts: PackCounts) => void) | undefined;
  readonly #zero: ReturnType<typeof zeroIds>;
  readonly #zeros: Buffer;
  readonly #seen = new Set<string>();
  /** Chunks that the store had, and that were not written again. */
  readonly #present: string[] = [];
  /** Memory of chunks that are done. */
  readonly #free: Buffer[] = [];
  #doneBytes = 0;
  #zeroChunks = 0;
  #storedChunks = 0;
  #storedBytes = 0;

  constructor(
    image: MemoryImage,
    store: Store,
    compressor: Compressor,
    chunkSize: number,
    digest: Digest,
    progress: ((counts: PackCounts) => void) | undefined,
  ) {
    const { size } = image;
    const count = Math.ceil(size / chunkSize);
    this.index = { size, chunkSize, digest, count, ids: new Uint8Array(count * ID_BYTES) };
    this.#image = image;
    this.#store = store;
    this.#compressor = compressor;
    this.#progress = progress;
    this.#zero = zeroIds(this.index);
    this.#zeros = Buffer.alloc(chunkSize);
  }

  get counts(): PackCounts {
    return {
      size: this.index.size,
      doneBytes: this.#doneBytes,
      chunks: this.index.count,
      zeroChunks: this.#zeroChunks,
      distinctChunks: this.#seen.size,
      presentChunks: this.#present.length,
      storedChunks: this.#storedChunks,
      storedBytes: this.#storedBytes,
    };
  }

  async run(pool: TaskPool): Promise<void> {
    const { size, chunkSize, count } = this.index;
    for (let chunk = 0; chunk < count; chunk++) {
      await this.#pack(pool, chunk, Math.min(chunkSize, size - chunk * chunkSize));
      this.#progress?.(this.counts);
      // Reading and hashing are synchronous: answers of the network come in between.
      await turn();
    }
  }

  async #pack(pool: TaskPool, chunk: number, length: number): Promise<void> {
    const { chunkSize, digest, ids } = this.index;
    const memory = this.#free.pop() ?? Buffer.allocUnsafeSlow(chunkSize);
    const bytes = memory.subarray(0, length);
    const zeros = this.#zeros.subarray(0, length);
    const isZero = !this.#image.read(chunk * chunkSize, bytes) || bytes.equals(zeros);
    const zeroId = length === chunkSize ? this.#zero.whole : this.#zero.last;
    const id = isZero ? zeroId : idOf(bytes, digest);
    ids.set(Buffer.from(id, 'hex'), chunk * ID_BYTES);
    if (isZero) this.#zeroChunks++;
    if (this.#seen.has(id)) {
      this.#free.push(memory);
      this.#doneBytes += length;
      return;
    }
    this.#seen.add(id);
    await pool.start(async (signal) => {
      await this.#keep(id, isZero ? zeros : bytes, signal);
      this.#free.push(memory);
      this.#doneBytes += length;
    });
  }

  /** @throws StoreError if a chunk that the store had is gone */
  async check(pool: TaskPool): Promise<void> {
    for (const key of this.#present) {
      await pool.start(async (signal) => {
        if (await this.#store.has(key, signal)) return;
        throw new StoreError(
          'missing',
          `${this.#store.name}/${key} was there, and was removed while memory was packed: pack it again, and let a prune keep what is younger than a day`,
        );
      });
    }
  }

  async #keep(id: string, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    const key = chunkKey(id);
    const written = await this.#store.writtenMs(key, signal);
    const isYoung = written !== undefined && written > Date.now() - REFRESHED_MS;
    if (isYoung || (written !== undefined && (await this.#store.refresh(key, signal)))) {
      this.#present.push(key);
      return;
    }
    const frame = await this.#compressor.compressLater(bytes, LEVEL_STORED);
    await this.#store.put(key, frame, signal);
    this.#storedChunks++;
    this.#storedBytes += frame.length;
  }
}
