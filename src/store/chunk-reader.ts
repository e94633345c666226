// Reads the chunks of an index from a store. Each is verified before a byte of it is handed over.

import { type ChunkIndex, chunkBytes, chunkId, chunkKey, frameMost, zeroIds } from './chunk-index.js';
import { checkFrame, type FrameCheck, type FrameTools, openFrameTools } from './frame-check.js';
import type { Room, Store } from './store.js';

/** A chunk whose bytes in the store are not those that its id stands for. */
export class DamagedChunkError extends Error {
  override readonly name = 'DamagedChunkError';
  readonly code = 'ERR_UFFD_DAMAGED_CHUNK';
}

export class ChunkReader {
  readonly index: ChunkIndex;
  readonly #store: Store;
  readonly #tools: FrameTools;
  readonly #zero: ReturnType<typeof zeroIds>;

  static async open(index: ChunkIndex, store: Store): Promise<ChunkReader> {
    return new ChunkReader(index, store, await openFrameTools());
  }

  private constructor(index: ChunkIndex, store: Store, tools: FrameTools) {
    this.index = index;
    this.#store = store;
    this.#tools = tools;
    this.#zero = zeroIds(index);
  }

  /** Whether a chunk is all zeros. It is then never fetched. */
  isZero(chunk: number): boolean {
    const { whole, last } = this.#zero;
    return chunkId(this.index, chunk) === (chunk === this.index.count - 1 ? last : whole);
  }

  /**
   * Fills `into` with a chunk. One that is damaged is fetched once more, and then from the store's fallback.
   *
   * @param into as many bytes as the chunk has; after an error its content is undefined
   * @throws StoreError, DamagedChunkError; the reason of the signal
   */
  async read(chunk: number, into: Uint8Array, signal?: AbortSignal): Promise<void> {
    if (this.isZero(chunk)) into.fill(0);
    else await this.fetch(chunk, () => into, signal);
  }

  /**
   * As `read`, also for chunks of zeros. `check`: what checks the frames; by default this thread. `room`: where frames
   * should go.
   */
  async fetch(
    chunk: number,
    into: () => Uint8Array,
    signal?: AbortSignal,
    check: FrameCheck = (frame, ...rest) => checkFrame(this.#tools, frame, ...rest),
    room?: Room,
  ): Promise<void> {
    const id = chunkId(this.index, chunk);
    const key = chunkKey(id);
    const { fallback } = this.#store;
    let why: string | undefined;
    for (const store of [this.#store, this.#store, ...(fallback ? [fallback] : [])]) {
      const frame = await store.get(key, frameMost(chunkBytes(this.index, chunk)), signal, room);
      why = await check(frame, into, this.index.digest, id);
      if (why === undefined) return;
    }
    throw new DamagedChunkError(`${this.#store.name}/${key} is damaged: ${why}`);
  }

  /** Memory for a chunk. */
  bufferFor(chunk: number): Buffer {
    return Buffer.allocUnsafeSlow(chunkBytes(this.index, chunk));
  }

  close(): void {
    this.#tools.decompressor.close();
  }
}
