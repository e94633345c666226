// Which pages of some memory were written since somebody asked, and checkpoints of it that hold no more than that.
//
// Rules:
//  - Who asks with `collect`, and what checkpoints need, are two lists: neither takes anything from the other.
//  - A page is protected before it is told, and read after it was told, so a write is in what is read or is told the
//    next time, or both. None is missed.
//  - A checkpoint that fails takes nothing with it: its pages are in the next.
//  - What the page tables do not tell is the caller's to say, with `mark`.

import { type FileHandle, open } from 'node:fs/promises';
import { checkInteger, checkOneOf, invalidState } from '../arguments.js';
import { Plane } from '../core.js';
import type { Kernel } from '../kernel.js';
import type { Mapping } from '../mapping.js';
import { warn } from '../warning.js';
import { restorePages, savePages } from './copying.js';
import { checkChain, damageError, isDamaged, restorable } from './damage.js';
import {
  type Checkpoint,
  CheckpointError,
  CheckpointWriter,
  type Contents,
  HEADER_BYTES,
  readContents,
  runsOf,
  type Shape,
  type Stored,
  writeHeader,
} from './file.js';
import { type DirtyRun, PageSet } from './pages.js';
import { syncFolder, withFileToWrite } from './storage.js';
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

const MODES = ['auto', 'async', 'sync'] as const;

/** Ends the watch of a tracker that nobody has any more: its descriptors, its thread and the protection of the memory. */
const dropped = new FinalizationRegistry<Watch>((watch) => watch.close());

/** The checkpoint that the memory was equal to, but for what was written since. */
interface Base {
  readonly dev: number;
  readonly ino: number;
  readonly stored: Stored;
}

/**
 * Reports which pages of some memory were written, and writes incremental checkpoints of them
 * (docs/dirty-tracking.md). It sees every write to the tracked addresses that goes through the page tables: by any
 * thread, and by a system call that copies.
 *
 * The kernel cannot report other writes: into pinned pages (O_DIRECT, io_uring with registered buffers, RDMA, VFIO),
 * through another mapping of the same memory (`Mapping.alias`, another process), and to the file behind it (`pwrite`,
 * `ftruncate`). Call `mark` once such a write is done.
 */
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
   *   `register` (EBUSY: another tracker or userfaultfd has the memory); TypeError, RangeError
   */
  static async open(memory: Mapping | MemoryRange, options: DirtyOptions = {}): Promise<DirtyTracker> {
    const target = new Target(memory);
    let pages: PageSet | undefined;
    const makePages = (pageSize: number, systemPageSize: number, planes: number): PageSet => {
      pages = new PageSet(target.address, target.length, pageSize, systemPageSize, planes);
      return pages;
    };
    const { mode = 'auto' } = options;
    checkOneOf(mode, 'mode', MODES);
    const watch = await openWatch(target, mode, options.kernel, makePages);
    return DirtyTracker.#begin(target, watch, pages as unknown as PageSet);
  }

  static #begin(target: Target, watch: Watch, pages: PageSet): DirtyTracker {
    try {
      // Guard pages, and what was written before this returns, are no news.
      watch.take(pages);
      pages.clear(Plane.untold);
      pages.clear(Plane.unsaved);
    } catch (error) {
      watch.close();
      throw error;
    }
    const tracker = new DirtyTracker(target, watch, pages);
    dropped.register(tracker, watch, tracker);
    return tracker;
  }

  /**
   * The pages that were written since the last call, or were taken away (madvise) and are zero now, or were marked:
   * ascending, disjoint, as long as can be. From here on they count as clean, from before this returns.
   *
   * @throws UffdError ENOENT if a part of the memory was unmapped, moved or mapped anew: the tracker is of no use then
   */
  collect(): DirtyRun[] {
    this.#mustBeOpen();
    this.#take();
    const runs = [...this.#pages.runs(Plane.untold)];
    this.#pages.clear(Plane.untold);
    return runs;
  }

  /**
   * Says that bytes were written in a way that the kernel cannot report: see above. The next `collect` reports the
   * whole pages that cover them, and the next checkpoint contains them. Call it when the write is done: a page that
   * `collect` reports while the device still writes may change afterwards.
   *
   * @param start the first byte's address, a bigint; it need not be page-aligned
   * @param length bytes, at least 1
   * @throws RangeError for bytes outside of the tracked memory; TypeError
   */
  mark(start: bigint, length: number): void {
    this.#mustBeOpen();
    const pages = this.#target.covering(start, length, this.pageSize);
    this.#pages.mark(pages.start, pages.length);
  }

  /**
   * Appends a checkpoint to a file, which is made if need be: the pages that were written since the last one, or all
   * of them where this tracker has made or restored none there. What is written meanwhile may be in it or not, and is
   * in the next in any case: for a checkpoint of one moment nobody may write.
   *
   * The bytes of a checkpoint that was never finished (a crash) are cut off, with a warning. A file that is damaged is
   * left alone.
   *
   * @throws CheckpointError if the file is something else, of other memory, damaged, or being written by another
   *   tracker; UffdError EFAULT for a page that cannot be read (a guard page, PROT_NONE), ENOENT as `collect`; Node's
   *   errors of files. The file is as it was then, and the pages are in the next checkpoint
   */
  async checkpoint(path: string, { sync = true }: CheckpointOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('checkpoint', () =>
      withFileToWrite(path, async (file) => told(await this.#append(file, path, sync))),
    );
  }

  async #append(file: FileHandle, path: string, sync: boolean): Promise<Stored> {
    const { dev, ino } = await file.stat();
    const contents = await readContents(file, path);
    if (contents) {
      this.#mustFit(contents.shape, path);
      await mustBeExtendable(file, path, contents);
    }
    const parent = this.#parentIn(contents, dev, ino);
    const end = contents?.end ?? HEADER_BYTES;
    const pages = this.#pages;
    if (parent === undefined) pages.set(Plane.unsaved, pages.start, pages.length);
    this.#take();
    pages.move(Plane.unsaved, Plane.saving);
    try {
      await file.truncate(contents ? end : 0);
      if (!contents) await writeHeader(file, { pageSize: this.pageSize, length: pages.length });
      if (sync) await syncFolder(path);
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

  /** Marks what was written since the last time. */
  #take(): void {
    this.#target.mustBeMapped();
    this.#watch.take(this.#pages);
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
    await savePages(this.#target, this.pageSize, runs, writer);
    // Memory that was replaced meanwhile would be in the file as if it were this.
    this.#take();
    return writer.commit(sync);
  }

  /**
   * Makes the memory what it was at a checkpoint. The file is checked first: if it is damaged no memory is written, and
   * the error says which checkpoint is damaged and which can be restored. Nobody else may write meanwhile. The next
   * checkpoint to this file builds on the restored one.
   *
   * @throws CheckpointError; RangeError for a checkpoint that is not there; UffdError EFAULT for a page that cannot be
   *   written (read-only, a guard page): pages before it are restored, and count as written; Node's errors of files
   */
  async restore(path: string, options: RestoreOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('restore', async () => {
      const file = await open(path, 'r');
      try {
        const { dev, ino } = await file.stat();
        const contents = await readContents(file, path);
        if (contents) this.#mustFit(contents.shape, path);
        const { stored, chain } = await chosen(file, path, contents, options.checkpoint);
        // Not into memory that has become something else.
        this.#take();
        await this.#bring(file, contents?.shape as Shape, chain);
        this.#take();
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
            const offset = run.offset === undefined ? undefined : run.offset + skipped;
            await restorePages(this.#target, this.#watch, file, part, offset);
          }
          pages.set(Plane.saving, start, length);
        }
      }
    } finally {
      pages.clear(Plane.saving);
    }
  }

  /**
   * The whole checkpoints of a file, in order. Their bytes are checked by `restore` alone. One that was never finished
   * (a crash) is not among them.
   *
   * @throws CheckpointError if it is no such file, or damaged: its `checkpoints` are those before the damage; Node's
   *   errors of files
   */
  static async checkpoints(path: string): Promise<Checkpoint[]> {
    const file = await open(path, 'r');
    try {
      const contents = await readContents(file, path);
      if (!contents) return [];
      if (await isDamaged(file, contents)) {
        throw damageError(path, contents, "This error's property `checkpoints` lists those that do");
      }
      return contents.checkpoints.map(told);
    } finally {
      await file.close();
    }
  }

  /** Ends tracking: the memory is as any other. Idempotent. */
  close(): void {
    if (this.#closed) return;
    if (this.#busy) throw invalidState(`close: a ${this.#busy} is under way`);
    this.#closed = true;
    dropped.unregister(this);
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

/** Makes sure that what lies behind the whole checkpoints may be cut off, and says that it is. */
async function mustBeExtendable(file: FileHandle, path: string, contents: Contents): Promise<void> {
  const { end, size, checkpoints } = contents;
  if (await isDamaged(file, contents)) {
    throw damageError(
      path,
      contents,
      `Nothing was written. Write to another file; or drop checkpoint ${checkpoints.length} and all after it: ` +
        `truncate -s ${end} ${path}`,
    );
  }
  if (end < size)
    warn(`${path}: the last ${size - end} bytes are of a checkpoint that was not finished, and are cut off`);
}

/** The checkpoint that is to be restored, and those that it builds on, every byte of which was checked. */
async function chosen(
  file: FileHandle,
  path: string,
  contents: Contents | undefined,
  index: number | undefined,
): Promise<{ stored: Stored; chain: Stored[] }> {
  const count = contents?.checkpoints.length ?? 0;
  const isThere = index !== undefined && index < count;
  if (contents && !isThere && (await isDamaged(file, contents))) {
    throw damageError(path, contents, await restorable(file, path, contents));
  }
  if (!contents || count === 0) throw new CheckpointError(`${path} holds no whole checkpoint`);
  const wanted = index ?? count - 1;
  checkInteger(wanted, 'checkpoint', 0, count - 1);
  const stored = contents.checkpoints[wanted] as Stored;
  return { stored, chain: await checkChain(file, path, contents, stored) };
}

function told({ index, parent, time, pages, bytes }: Stored): Checkpoint {
  return { index, parent, time, pages, bytes };
}
