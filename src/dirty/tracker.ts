// Which pages of some memory were written since somebody asked, and checkpoints of it that hold no more than that.
//
// Rules:
//  - Who asks with `collect`, and what checkpoints need, are two lists: neither takes anything from the other.
//  - A page is protected before it is told, and read after it was told, so a write is in what is read or is told the
//    next time, or both. None is missed.
//  - A checkpoint that fails takes nothing with it: its pages are in the next.

import { type FileHandle, open } from 'node:fs/promises';
import { checkInteger, invalidState } from '../arguments.js';
import { Plane } from '../core.js';
import type { Kernel } from '../kernel.js';
import type { Mapping } from '../mapping.js';
import {
  CHUNK_BYTES,
  type Checkpoint,
  CheckpointError,
  CheckpointWriter,
  type Contents,
  checkDigest,
  HEADER_BYTES,
  readContents,
  runsOf,
  type Shape,
  type Stored,
  writeHeader,
} from './file.js';
import { type DirtyRun, PageSet } from './pages.js';
import { type MemoryRange, Target } from './target.js';
import { openWatch, type Watch } from './watch.js';

export interface DirtyOptions {
  /**
   * How writes are seen: 'async' by the kernel alone (Linux 6.7), 'sync' by a thread that lets each first write
   * through (Linux 5.14). 'auto' (default): the first that this kernel has.
   */
  mode?: 'auto' | 'async' | 'sync';
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
}

export interface CheckpointOptions {
  /** Waits until everything is on the disk. Default true; without it a crash of the whole machine can lose it. */
  sync?: boolean;
}

export interface RestoreOptions {
  /** Which checkpoint; default: the last. */
  checkpoint?: number;
}

const PLANES = 3;

/** The checkpoint that the memory was equal to, but for what was written since. */
interface Base {
  readonly dev: number;
  readonly ino: number;
  readonly stored: Stored;
}

/** Says which pages of some memory were written, and keeps checkpoints of it: docs/dirty-tracking.md. */
export class DirtyTracker implements Disposable {
  /** How writes are seen. */
  readonly mode: 'async' | 'sync';
  /** Bytes of a page: what is told is whole pages. */
  readonly pageSize: number;
  readonly #target: Target;
  readonly #watch: Watch;
  readonly #pages: PageSet;
  #base: Base | undefined;
  #busy: string | undefined;
  #closed = false;

  private constructor(target: Target, watch: Watch, pages: PageSet) {
    this.mode = watch.mode;
    this.pageSize = watch.pageSize;
    this.#target = target;
    this.#watch = watch;
    this.#pages = pages;
  }

  /**
   * Begins to track. Nothing counts as written yet. Any thread of this process may write meanwhile, this one
   * included; no other userfaultfd may watch the memory for write-protection.
   *
   * @example
   * ```ts
   * import { Mapping } from 'userfaultfd';
   * import { DirtyTracker } from 'userfaultfd/dirty';
   *
   * const memory = Mapping.anonymous(100 * 4096);
   * const tracker = await DirtyTracker.open(memory);
   * memory.bytes[7 * 4096] = 1;
   * for (const { start, length } of tracker.collect()) console.log(start - memory.address, length);
   * tracker.close();
   * ```
   *
   * @param memory a mapping, or whole pages of this process that stay mapped as long as they are tracked
   * @throws UnsupportedError where the kernel has no write-protection of the kind; UffdError as `open` and
   *   `register`; TypeError, RangeError
   */
  static async open(memory: Mapping | MemoryRange, options: DirtyOptions = {}): Promise<DirtyTracker> {
    const target = new Target(memory);
    let pages: PageSet | undefined;
    const pagesOf = (pageSize: number, systemPageSize: number): PageSet => {
      pages ??= new PageSet(target.address, target.length, pageSize, systemPageSize, PLANES);
      return pages;
    };
    const watch = await openWatch(target, options.mode ?? 'auto', options.kernel, pagesOf);
    return new DirtyTracker(target, watch, pages as PageSet);
  }

  /**
   * The pages that were written since the last call, or were taken away (madvise) and are zero now: ascending,
   * disjoint, as long as can be. From here on they count as clean, from before this returns.
   *
   * @throws UffdError where a part of the memory is not what was registered any more; nothing is lost by that
   */
  collect(): DirtyRun[] {
    this.#mustBeOpen();
    this.#watch.take(this.#pages);
    const runs = [...this.#pages.runs(Plane.untold)];
    this.#pages.clear(Plane.untold);
    return runs;
  }

  /**
   * Appends a checkpoint to a file, which is made if need be: the pages that were written since the last one, or all
   * of them where this tracker has made or restored none there. What is written meanwhile may be in it or not, and is
   * in the next in any case: for a checkpoint of one moment nobody may write.
   *
   * @throws CheckpointError where the file is something else, or of other memory; Node's errors of files, after
   *   which the file is as it was, and the pages are in the next checkpoint
   */
  async checkpoint(path: string, { sync = true }: CheckpointOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('checkpoint', async () => {
      const file = await open(path, 'a+').then(async (made) => {
        // Appending would ignore positions.
        await made.close();
        return open(path, 'r+');
      });
      try {
        return told(await this.#append(file, path, sync));
      } finally {
        await file.close();
      }
    });
  }

  async #append(file: FileHandle, path: string, sync: boolean): Promise<Stored> {
    const { dev, ino } = await file.stat();
    const contents = await readContents(file, path);
    if (contents) this.#mustFit(contents.shape, path);
    const parent = this.#parentIn(contents, dev, ino);
    const end = contents?.end ?? HEADER_BYTES;
    const pages = this.#pages;
    if (parent === undefined) pages.set(Plane.unsaved, pages.start, pages.length);
    this.#watch.take(pages);
    pages.move(Plane.unsaved, Plane.saving);
    try {
      await file.truncate(contents ? end : 0);
      if (!contents) await writeHeader(file, { pageSize: this.pageSize, length: pages.length });
      const index = contents?.checkpoints.length ?? 0;
      const stored = await this.#write(file, end, index, parent, sync);
      pages.clear(Plane.saving);
      this.#base = { dev, ino, stored };
      return stored;
    } catch (error) {
      pages.move(Plane.saving, Plane.unsaved);
      await file.truncate(contents ? end : 0).catch(() => undefined);
      throw error;
    }
  }

  /** The checkpoint of this file that the memory builds on. */
  #parentIn(contents: Contents | undefined, dev: number, ino: number): number | undefined {
    const base = this.#base;
    if (!base || base.dev !== dev || base.ino !== ino) return undefined;
    const there = contents?.checkpoints[base.stored.index];
    return there?.digest.equals(base.stored.digest) ? base.stored.index : undefined;
  }

  /** Writes the pages that are being saved. */
  async #write(
    file: FileHandle,
    offset: number,
    index: number,
    parent: number | undefined,
    sync: boolean,
  ): Promise<Stored> {
    const runs = [...this.#pages.runs(Plane.saving)];
    const pages = runs.reduce((sum, { length }) => sum + length / this.pageSize, 0);
    const writer = await CheckpointWriter.begin(file, offset, index, { parent, time: new Date(), pages });
    const chunk = Buffer.alloc(Math.max(CHUNK_BYTES, this.pageSize));
    for (const { start, length } of runs) {
      const from = Number(start - this.#pages.start);
      for (let done = 0; done < length; done += chunk.length) {
        const some = Math.min(chunk.length, length - done);
        await this.#writeChunk(writer, from + done, chunk.subarray(0, some));
      }
    }
    return writer.commit(sync);
  }

  /** Copies a part of the memory, and writes it in pieces that are zero or not. */
  async #writeChunk(writer: CheckpointWriter, from: number, chunk: Buffer): Promise<void> {
    this.#target.read(from, chunk);
    const { pageSize } = this;
    const zero = (at: number): boolean => isZero(chunk.subarray(at, at + pageSize));
    for (let at = 0; at < chunk.length; ) {
      const zeros = zero(at);
      let end = at + pageSize;
      while (end < chunk.length && zero(end) === zeros) end += pageSize;
      const bytes = zeros ? undefined : chunk.subarray(at, end);
      await writer.run((from + at) / pageSize, (end - at) / pageSize, bytes);
      at = end;
    }
  }

  /**
   * Makes the memory what it was at a checkpoint. The file is checked first: where it is damaged nothing is written.
   * Nobody else may write meanwhile. The next checkpoint to this file builds on the restored one.
   *
   * @throws CheckpointError; RangeError for a checkpoint that is not there; Node's errors of files
   */
  async restore(path: string, options: RestoreOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('restore', async () => {
      const file = await open(path, 'r');
      try {
        const { dev, ino } = await file.stat();
        const contents = await readContents(file, path);
        const last = (contents?.checkpoints.length ?? 0) - 1;
        if (!contents || last < 0) throw new CheckpointError(`${path} holds no whole checkpoint`);
        this.#mustFit(contents.shape, path);
        const index = options.checkpoint ?? last;
        checkInteger(index, 'checkpoint', 0, last);
        const stored = contents.checkpoints[index] as Stored;
        const chain = chainOf(contents, stored);
        for (const link of chain) await checkDigest(file, link);
        await this.#bring(file, contents.shape, chain);
        this.#watch.take(this.#pages);
        this.#pages.clear(Plane.unsaved);
        this.#base = { dev, ino, stored };
        return told(stored);
      } finally {
        await file.close();
      }
    });
  }

  /** Brings back each page from the first of these checkpoints that holds it. */
  async #bring(file: FileHandle, shape: Shape, chain: readonly Stored[]): Promise<void> {
    const pages = this.#pages;
    try {
      for (const link of chain) {
        for await (const run of runsOf(file, shape, link)) {
          const start = pages.start + BigInt(run.firstPage * shape.pageSize);
          const length = run.pages * shape.pageSize;
          for (const part of pages.runs(Plane.saving, false, start, start + BigInt(length))) {
            const skipped = Number(part.start - start);
            await this.#bringRun(file, part, run.offset === undefined ? undefined : run.offset + skipped);
          }
          pages.set(Plane.saving, start, length);
        }
      }
    } finally {
      pages.clear(Plane.saving);
    }
  }

  /** Bytes from the file, or zeros. */
  async #bringRun(file: FileHandle, { start, length }: DirtyRun, offset: number | undefined): Promise<void> {
    const to = Number(start - this.#pages.start);
    const chunk = Buffer.alloc(Math.min(CHUNK_BYTES, length));
    for (let done = 0; done < length; done += chunk.length) {
      const some = chunk.subarray(0, Math.min(chunk.length, length - done));
      if (offset !== undefined) {
        const { bytesRead } = await file.read(some, 0, some.length, offset + done);
        if (bytesRead < some.length) throw new CheckpointError('the file became shorter while it was read');
      }
      this.#target.write(to + done, some);
    }
  }

  /**
   * The whole checkpoints of a file, in order. Their bytes are checked by `restore` alone.
   *
   * @throws CheckpointError where it is no such file; Node's errors of files
   */
  static async checkpoints(path: string): Promise<Checkpoint[]> {
    const file = await open(path, 'r');
    try {
      return ((await readContents(file, path))?.checkpoints ?? []).map(told);
    } finally {
      await file.close();
    }
  }

  /** Ends tracking: the memory is as any other. Idempotent. */
  close(): void {
    if (this.#closed) return;
    if (this.#busy) throw invalidState(`close: a ${this.#busy} is under way`);
    this.#closed = true;
    this.#watch.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** One of these at a time: they share a list of pages. */
  async #exclusive<T>(what: string, body: () => Promise<T>): Promise<T> {
    this.#mustBeOpen();
    if (this.#busy) throw invalidState(`${what}: a ${this.#busy} is under way`);
    this.#busy = what;
    try {
      return await body();
    } finally {
      this.#busy = undefined;
    }
  }

  #mustBeOpen(): void {
    if (this.#closed) throw invalidState('the tracker is closed');
    this.#target.mustBeMapped();
  }

  #mustFit({ pageSize, length }: Shape, path: string): void {
    if (pageSize === this.pageSize && length === this.#pages.length) return;
    throw new CheckpointError(
      `${path} is of ${length} bytes in pages of ${pageSize}; this memory has ${this.#pages.length} in pages of ` +
        `${this.pageSize}`,
    );
  }
}

/** A checkpoint and those that it builds on, back to one that holds everything. */
function chainOf({ checkpoints }: Contents, stored: Stored): Stored[] {
  const chain: Stored[] = [];
  for (let link: Stored | undefined = stored; link; ) {
    chain.push(link);
    link = link.parent === undefined ? undefined : checkpoints[link.parent];
  }
  return chain;
}

function told({ index, parent, time, pages, bytes }: Stored): Checkpoint {
  return { index, parent, time, pages, bytes };
}

const ZEROS = Buffer.alloc(1 << 16);

function isZero(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const some = bytes.subarray(at, at + ZEROS.length);
    if (some.compare(ZEROS, 0, some.length) !== 0) return false;
  }
  return true;
}
