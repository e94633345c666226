// Reads the chunks of a zstd file in the seekable format: a file, or an object on a server that answers range requests.
//
// Rules:
//  - The seek table is read once. Every later read must be of the same version of the file, so two are never mixed.
//  - A file whose changes could not be noticed is refused: one whose server sends neither an ETag nor a date, if the
//    table has no checksums.
//  - Each chunk is verified before a byte of it is handed over (frame-check.ts).
//  - A checksum of the table is short, so bytes can be made to fit it. Therefore what was read from one place is never
//    taken, by way of a cache, for what another place has, even if version, length and table are the same.

import { createHash } from 'node:crypto';
import { resolve } from 'node:path';
import { type Chunks, chunkId, IndexError } from './chunk-index.js';
import { DamagedChunkError } from './chunk-reader.js';
import { type FrameCheck, hasOwnChecksum, isZstd } from './frame-check.js';
import { openPlace } from './open-store.js';
import { isUrl, type StoreOptions } from './options.js';
import { FOOTER_BYTES, SeekTable, seekTableBytes } from './seekable-table.js';
import type { ObjectRange, Store } from './store.js';

/** Most bytes of the table that are read with its footer, so that one request is enough. */
const END_BYTES = 64 << 10;
/** The bytes of a frame that say what it is. */
const FRAME_HEAD = 5;

/** A memory in the seekable format, by its name. */
export function isSeekableName(place: string): boolean {
  return /\.zst(\?|$)/.test(place);
}

export class SeekableReader {
  readonly index: Chunks;
  readonly table: SeekTable;
  /** SHA-256, in hexadecimal, of the table; if it has no checksums, also of what tells this version from others. */
  readonly identity: string;
  /** Bytes of the file. */
  readonly fileBytes: number;
  readonly #store: Store;
  readonly #key: string;
  readonly #version: unknown;

  /**
   * Reads the seek table.
   *
   * @param place the path or URL of the file
   * @throws IndexError, StoreError; TypeError, RangeError; the reason of the signal
   */
  static async open(place: string, options: StoreOptions, signal?: AbortSignal): Promise<SeekableReader> {
    const { store, key } = await openPlace(place, options);
    try {
      const name = place.replace(/\?.*/, '');
      // One byte tells how long the file is, and which version it is.
      const first = await store.range(key, 0, 1, undefined, signal);
      const read = (offset: number, length: number): Promise<ObjectRange> =>
        store.range(key, offset, length, first.version, signal);
      const length = Math.min(first.size, END_BYTES);
      let { bytes } = await read(first.size - length, length);
      const needed = seekTableBytes(bytes.subarray(-FOOTER_BYTES), first.size, name);
      if (needed > length) bytes = (await read(first.size - needed, needed)).bytes;
      const table = new SeekTable(bytes.slice(-needed), first.size, name);
      if (!table.checksums) {
        if (first.identity === undefined) {
          throw new IndexError(
            `${name}: its seek table has no checksums, and the server sends neither an ETag nor a date, so a change of the file could not be noticed; use a server that sends one of them`,
          );
        }
        const { offset, parts } = table.partsOf(0);
        const at = offset + (parts[0]?.at ?? 0);
        const head = (await read(at, Math.min(FRAME_HEAD, first.size - at))).bytes;
        if (isZstd(head) && !hasOwnChecksum(head)) {
          throw new IndexError(
            `${name}: neither its seek table nor its frames have checksums, so a damaged byte could not be noticed; make it with uffd pack --seekable, or let the other tool write checksums (ZSTD_c_checksumFlag)`,
          );
        }
      }
      const hash = (...about: (string | number | undefined)[]): string =>
        createHash('sha256').update(JSON.stringify(about)).update(bytes.subarray(-needed)).digest('hex');
      const from = isUrl(name) ? name : resolve(name);
      return new SeekableReader(store, key, first, table, {
        identity: table.checksums ? hash(first.size) : hash(first.size, first.identity),
        chunks: table.chunks(hash(options.endpoint, from, first.size, first.identity)),
      });
    } catch (error) {
      store.close();
      throw error;
    }
  }

  private constructor(
    store: Store,
    key: string,
    { version, size }: ObjectRange,
    table: SeekTable,
    { identity, chunks }: { identity: string; chunks: Chunks },
  ) {
    this.#store = store;
    this.#key = key;
    this.#version = version;
    this.fileBytes = size;
    this.table = table;
    this.identity = identity;
    this.index = chunks;
  }

  /** Which chunks are zeros is not known before they are decompressed. */
  isZero(): boolean {
    return false;
  }

  /**
   * Fills memory with a chunk. One that is damaged is fetched once more.
   *
   * @param check verifies the frames, and fills `into`
   * @throws StoreError, DamagedChunkError; the reason of the signal
   */
  async fetch(
    chunk: number,
    into: () => Uint8Array,
    signal: AbortSignal | undefined,
    check: FrameCheck,
  ): Promise<void> {
    const { offset, length, parts } = this.table.partsOf(chunk);
    let why: string | undefined;
    for (let tries = 0; tries < 2; tries++) {
      const { bytes } = await this.#store.range(this.#key, offset, length, this.#version, signal);
      why = await check(bytes, into, parts, chunkId(this.index, chunk));
      if (why === undefined) return;
    }
    throw new DamagedChunkError(
      `${this.#store.name}/${this.#key} is damaged in the ${length} bytes from ${offset} on: ${why}`,
    );
  }

  close(): void {
    this.#store.close();
  }
}
