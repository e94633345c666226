// The memory of a snapshot that is in a chunk store, or in a zstd file in the seekable format: its index, its image, and
// the sessions that wait for chunks of it.
//
// Rules:
//  - The index, or seek table, is read once, when the server begins.
//  - A session's thread asks for the chunks that its guest waits for, and is woken when they have come. A chunk that came
//    before it was asked for wakes the thread, too.
//  - Chunks are given up only when no session has the image.

import { wholePages } from '../memory/whole-pages.js';
import { chunkId, INDEX_BYTES_MOST, indexHash, parseIndex } from '../store/chunk-index.js';
import { ChunkReader } from '../store/chunk-reader.js';
import { openStore, readPlace } from '../store/open-store.js';
import { PARALLEL, type StoreOptions } from '../store/options.js';
import { isSeekableName, SeekableReader } from '../store/seekable-reader.js';
import { type Store, StoreError } from '../store/store.js';
import { parseWorkingSet, WORKING_SET_BYTES_MOST, workingSetPlace } from '../store/working-set-file.js';
import { ChunkCache } from './chunk-cache.js';
import { ChunkChecker } from './chunk-checker.js';
import { ChunkLoader, type LoadedImage, type LoaderCounts, type Trouble } from './chunk-loader.js';
import type { FileRange } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { ImageMapping } from './image-mapping.js';
import type { MappedImage } from './image-source.js';
import { MemoryFileError } from './memory-file.js';
import { identityOfIndex, type MemoryIdentity } from './memory-identity.js';

/** A session, as far as its chunks are concerned. */
export interface ChunkWaiter {
  chunkArrived(asked: boolean): void;
}

export interface RemoteOptions {
  /** Where the chunks of indexes are. Undefined: there are only files in the seekable format. */
  readonly store: string | undefined;
  readonly storeOptions?: StoreOptions;
  /** The folder of the cache, and its most bytes. */
  readonly cache: string;
  readonly cacheBytes: number;
  /** Reports a problem, or, without a reason, that it is over. */
  readonly report: (trouble: Trouble, reason: string | undefined) => void;
}

/** What a server has loaded from its cache and its store, since its start. */
export interface StorageCounts extends LoaderCounts {
  /** Chunks that are fetched now, and that are wanted and not there yet. */
  readonly fetching: number;
  readonly waiting: number;
  /** Files that were removed from the cache: to make room, and because they were damaged. */
  readonly evicted: number;
  readonly damaged: number;
  /** Bytes in the cache, by the last look. */
  readonly cacheBytes: number;
}

/** The cache, and the store, for all indexes and files in the seekable format of a server. */
export class RemoteStorage {
  readonly loader: ChunkLoader;
  readonly cache: ChunkCache;
  readonly #store: Store | undefined;
  readonly #checker: ChunkChecker;
  readonly #storeOptions: StoreOptions;
  readonly #readers: (ChunkReader | SeekableReader)[] = [];

  /** @throws StoreError; the errors of mkdir(2), TypeError, RangeError */
  static async open(options: RemoteOptions): Promise<RemoteStorage> {
    const store =
      options.store === undefined ? undefined : await openStore(options.store, options.storeOptions);
    try {
      const cache = new ChunkCache(options.cache, options.cacheBytes);
      return new RemoteStorage(options, store, cache, await ChunkChecker.open());
    } catch (error) {
      store?.close();
      throw error;
    }
  }

  private constructor(
    { storeOptions = {}, report }: RemoteOptions,
    store: Store | undefined,
    cache: ChunkCache,
    checker: ChunkChecker,
  ) {
    this.#store = store;
    this.#checker = checker;
    this.#storeOptions = storeOptions;
    this.cache = cache;
    this.loader = new ChunkLoader({
      ...{ cache, checker, report },
      parallel: store?.parallel ?? storeOptions.parallel ?? PARALLEL,
    });
  }

  get counts(): StorageCounts {
    const { loader, cache } = this;
    const { evicted, damaged, bytes } = cache.counts;
    return { ...loader.counts, ...loader.inFlight, evicted, damaged, cacheBytes: bytes };
  }

  /**
   * Reads an index and its working set, if it has one, or the seek table of a file.
   *
   * @param place of the index or the file, a path or a URL
   * @throws IndexError, StoreError, Node's errors for a path
   */
  async openMemory(place: string): Promise<RemoteMemory> {
    const name = place.replace(/\?.*/, '');
    if (isSeekableName(place)) {
      const reader = await SeekableReader.open(place, this.#storeOptions);
      this.#readers.push(reader);
      return new RemoteMemory(name, this, reader, reader.identity, []);
    }
    if (!this.#store)
      throw new StoreError('unable', `${name} is an index, and there is no store of its chunks`);
    const bytes = await readPlace(place, INDEX_BYTES_MOST, this.#storeOptions);
    const index = parseIndex(bytes, name);
    const reader = await ChunkReader.open(index, this.#store);
    this.#readers.push(reader);
    const beside = workingSetPlace(place);
    const recorded = await readIfThere(beside, this.#storeOptions);
    const ranges = recorded ? parseWorkingSet(recorded, bytes, beside.replace(/\?.*/, '')) : [];
    return new RemoteMemory(name, this, reader, indexHash(bytes), ranges);
  }

  /** No session may have an image any more. Resolves when no chunk is being decompressed. */
  async close(): Promise<void> {
    const closed = this.loader.close();
    this.#store?.close();
    await closed;
    await this.#checker.close();
    for (const reader of this.#readers) reader.close();
  }
}

/** The bytes at a place; undefined if there is nothing. Many S3 servers refuse what they do not have. */
async function readIfThere(place: string, options: StoreOptions): Promise<Uint8Array | undefined> {
  try {
    return await readPlace(place, WORKING_SET_BYTES_MOST, options);
  } catch (error) {
    const there =
      error instanceof StoreError
        ? error.kind !== 'missing' && error.kind !== 'refused'
        : (error as NodeJS.ErrnoException).code !== 'ENOENT';
    if (there) throw error;
    return undefined;
  }
}

/** An image that a session has. */
export interface HeldImage {
  readonly file: MappedImage;
  readonly identity: MemoryIdentity;
  /** Asks for chunks on behalf of the session. */
  want(session: ChunkWaiter, chunks: readonly number[]): void;
  /** The session exists from now on: it is woken when chunks come. */
  join(session: ChunkWaiter): void;
  release(): void;
}

export class RemoteMemory implements LoadedImage {
  readonly path: string;
  readonly bytes: number;
  readonly reader: ChunkReader | SeekableReader;
  readonly mapping: ImageMapping;
  readonly identity: MemoryIdentity;
  /** The working set that lies beside the index, in the order of installation. */
  readonly workingSet: readonly FileRange[];
  closed = false;
  readonly #storage: RemoteStorage;
  readonly #sessions = new Set<ChunkWaiter>();
  /** The sessions that have asked for a chunk. */
  readonly #asked = new Map<number, Set<ChunkWaiter>>();
  /** Sessions that have the image, and the server. */
  #holders = 1;

  constructor(
    path: string,
    storage: RemoteStorage,
    reader: ChunkReader | SeekableReader,
    hash: string,
    workingSet: readonly FileRange[],
  ) {
    const { size, chunkSize, count } = reader.index;
    this.path = path;
    this.bytes = size;
    this.reader = reader;
    this.workingSet = workingSet;
    this.identity = identityOfIndex(size, hash);
    this.#storage = storage;
    this.mapping = new ImageMapping(path, size, chunkSize, count, (chunk) => reader.isZero(chunk));
  }

  /** Bytes that a guest's regions may lie in. */
  refresh(): number {
    return this.bytes;
  }

  /** The image, for a session. @throws MemoryFileError if it is too short */
  take(least: number): HeldImage {
    if (wholePages(this.bytes, SYSTEM_PAGE) < least)
      throw new MemoryFileError(
        `the memory of ${this.path} has ${this.bytes} bytes, of which ${least} are to be served`,
      );
    this.#holders++;
    let session: ChunkWaiter | undefined;
    return {
      file: this.mapping.image,
      identity: this.identity,
      want: (its, chunks) => this.#want(its, chunks),
      join: (its) => {
        session = its;
        this.#sessions.add(its);
      },
      release: () => {
        if (session) this.#leave(session);
        this.#release();
      },
    };
  }

  #want(session: ChunkWaiter, chunks: readonly number[]): void {
    for (const chunk of chunks) {
      if (this.mapping.has(chunk)) session.chunkArrived(true);
      else {
        const asking = this.#asked.get(chunk) ?? new Set();
        this.#asked.set(chunk, asking.add(session));
        this.#storage.loader.want(this, chunk, true);
      }
    }
  }

  arrived(chunk: number): void {
    const asking = this.#asked.get(chunk);
    this.#asked.delete(chunk);
    for (const session of this.#sessions) session.chunkArrived(asking?.has(session) ?? false);
  }

  /** Loads ranges before a guest asks for them, in this order. */
  readAhead(ranges: readonly FileRange[]): void {
    const { chunkSize } = this.reader.index;
    for (const { offset, length } of ranges) {
      const end = Math.min(offset + length, this.bytes);
      for (let chunk = Math.floor(offset / chunkSize); chunk * chunkSize < end; chunk++)
        this.#storage.loader.want(this, chunk, false);
    }
  }

  /** Chunks are mapped when they come. */
  mapAhead(): void {}

  #leave(session: ChunkWaiter): void {
    this.#sessions.delete(session);
    for (const [chunk, asking] of this.#asked) {
      asking.delete(session);
      if (asking.size === 0) this.#asked.delete(chunk);
    }
  }

  #release(): void {
    this.#holders--;
    if (this.#holders === 0) {
      this.closed = true;
      this.mapping.close();
    } else if (this.#sessions.size === 0 && this.#holders === 1) {
      // What other servers have removed from the cache takes room on the disk for as long as it is mapped.
      const { cache } = this.#storage;
      this.mapping.trim((chunk) => cache.has(chunkId(this.reader.index, chunk)));
    }
  }

  /** No session may take it any more. */
  close(): void {
    this.#release();
  }
}
