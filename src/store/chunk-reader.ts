// Reads the chunks of an index from a store. Each is verified before a byte of it is handed over.

import { type ChunkIndex, chunkBytes, chunkId, chunkKey, type Digest, idOf, zeroIds } from './chunk-index.js';
import { type Decompressor, openDecompressor } from './compression.js';
import type { Room, Store } from './store.js';

/** A chunk whose bytes in the store are not those that its id stands for. */
export class DamagedChunkError extends Error {
  override readonly name = 'DamagedChunkError';
  readonly code = 'ERR_UFFD_DAMAGED_CHUNK';
}

/**
 * Decompresses a frame into as many bytes as its chunk has, and compares their hash. Returns what is wrong; undefined:
 * nothing is. `into` is called when the bytes are needed, because frames may wait for their check.
 */
export type FrameCheck = (
  frame: Uint8Array,
  into: () => Uint8Array,
  digest: Digest,
  id: string,
) => string | undefined | Promise<string | undefined>;

export class ChunkReader {
  readonly index: ChunkIndex;
  readonly #store: Store;
  readonly #decompressor: Decompressor;
  readonly #zero: ReturnType<typeof zeroIds>;

  static async open(index: ChunkIndex, store: Store): Promise<ChunkReader> {
    return new ChunkReader(index, store, await openDecompressor());
  }

  private constructor(index: ChunkIndex, store: Store, decompressor: Decompressor) {
    this.index = index;
    this.#store = store;
    this.#decompressor = decompressor;
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
    check: FrameCheck = (frame, ...rest) => checkFrame(this.#decompressor, frame, ...rest),
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
    this.#decompressor.close();
  }
}

/** A FrameCheck with a decompressor. */
export function checkFrame(
  decompressor: Decompressor,
  ...[frame, room, digest, id]: Parameters<FrameCheck>
): string | undefined {
  if (!isZstd(frame)) return 'it is no zstd frame (casync must make it with --compression=zstd)';
  const into = room();
  if (!decompressor.decompress(frame, into)) return `it cannot be decompressed to ${into.length} bytes`;
  if (idOf(into, digest) !== id) return 'its bytes have another hash';
  return undefined;
}

/** Most bytes of a zstd frame of a chunk: zstd's own bound, and room for the headers of many blocks. */
function frameMost(bytes: number): number {
  return bytes + (bytes >>> 7) + 1024;
}

function isZstd(frame: Uint8Array): boolean {
  return [0x28, 0xb5, 0x2f, 0xfd].every((byte, at) => frame[at] === byte);
}
