// Which pages of some memory were written since the last call, and checkpoints that hold only those.
//
// Rules:
//  - `collect` and checkpoints have separate lists, so neither takes pages from the other.
//  - A page is protected before it is reported, and read after it was reported. So each write is in the bytes that are
//    read, or is reported the next time, or both.
//  - A checkpoint that fails loses nothing: its pages are in the next one.
//  - The caller reports writes that the page tables do not show, with `mark`.

import { type FileHandle, open } from 'node:fs/promises';
import { Plane } from '../bindings/core.js';
import { checkInteger, checkOneOf, invalidState } from '../errors/arguments.js';
import { warn } from '../errors/warning.js';
import type { Kernel } from '../kernel/port.js';
import type { Mapping } from '../memory/mapping.js';
import {
  type Checkpoint,
  CheckpointError,
  CheckpointWriter,
  type Contents,
  HEADER_BYTES,
  type MemoryShape,
  readContents,
  runsOf,
  type StoredCheckpoint,
  writeHeader,
} from './checkpoint-file.js';
import { restorePages, savePages } from './copying.js';
import { checkChain, damageError, isDamaged, restorable } from './damage.js';
import type { DirtyRun, PageSet } from './pages.js';
import { syncFolder, withFileToWrite } from './storage.js';
import { type MemoryRange, Target } from './target.js';
import { openWatch, type WriteWatch } from './watch.js';

export interface DirtyOptions {
  /**
   * How writes are detected: 'async' by the kernel alone (Linux 6.7), 'sync' by a thread that lets each first write
   * through (Linux 5.14). 'auto' (default): the first of these that this kernel has.
   */
  mode?: 'auto' | 'async' | 'sync';
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
}

export interface CheckpointOptions {
  /** Wait until the checkpoint is on disk. Default true; otherwise a crash of the whole machine can lose it. */
  sync?: boolean;
}

export interface RestoreOptions {
  /** The number of the checkpoint; default: the last. */
  checkpoint?: number;
}

const MODES = ['auto', 'async', 'sync'] as const;

/**
 * Ends the watch of a tracker that was garbage-collected: its descriptors, its thread and the protection of the
 * memory.
 */
const dropped = new FinalizationRegistry<WriteWatch>((watch) => watch.close());

/** The checkpoint that was written or restored last: except for later writes, the memory is equal to it. */
interface Base {
  readonly dev: number;
  readonly ino: number;
  readonly stored: StoredCheckpoint;
}

/**
 * Reports which pages of some memory were written, and writes incremental checkpoints of them
 * (docs/dirty-tracking.md). It sees every write to the tracked addresses that goes through the page tables: by any
 * thread, and by a system call that copies.
 *
 * The kernel cannot report other writes: into pinned pages (O_DIRECT, io_uring with registered buffers, RDMA, VFIO),
 * through another mapping of the same memory (`Mapping.alias`, another process), and to the mapped file itself (`pwrite`,
 * `ftruncate`). Call `mark` when such a write is done.
 */
export class DirtyTracker implements Disposable {
  /** How writes are detected. */
  readonly mode: 'async' | 'sync';
  /** Bytes of a page: whole pages are reported. */
  readonly pageSize: number;
  readonly #target: Target;
  readonly #watch: WriteWatch;
  readonly #pages: PageSet;
  #base: Base | undefined;
  #busy: string | undefined;
  #closed = false;

  private constructor(target: Target, watch: WriteWatch) {
    this.mode = watch.mode;
    this.pageSize = watch.pageSize;
    this.#target = target;
    this.#watch = watch;
    this.#pages = watch.pages;
  }

  /**
   * Begins to track. Nothing counts as written yet. Every thread of this process may write meanwhile, this one
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
   * @throws UnsupportedError if the kernel lacks this kind of write-protection; UffdError as `open` and `register`
   *   (EBUSY: another tracker or userfaultfd watches the memory); TypeError, RangeError
   */
  static async open(memory: Mapping | MemoryRange, options: DirtyOptions = {}): Promise<DirtyTracker> {
    const target = new Target(memory);
    const { mode = 'auto' } = options;
    checkOneOf(mode, 'mode', MODES);
    const watch = await openWatch(target, mode, options.kernel);
    try {
      // Guard pages, and writes before this returns, do not count as written.
      watch.take();
      watch.pages.clear(Plane.UNTOLD);
      watch.pages.clear(Plane.UNSAVED);
    } catch (error) {
      watch.close();
      throw error;
    }
    const tracker = new DirtyTracker(target, watch);
    dropped.register(tracker, watch, tracker);
    return tracker;
  }

  /**
   * The pages that were written, marked, or removed by madvise (they are zeros now) since the last call: ascending,
   * disjoint, maximal runs. They count as clean again before this returns.
   *
   * @throws UffdError ENOENT if a part of the memory was unmapped, moved or mapped anew; close the tracker then
   */
  collect(): DirtyRun[] {
    this.#mustBeOpen();
    this.#take();
    const runs = [...this.#pages.runs(Plane.UNTOLD)];
    this.#pages.clear(Plane.UNTOLD);
    return runs;
  }

  /**
   * Reports bytes that were written in a way that the kernel cannot see (listed above). The next `collect` reports
   * the whole pages that cover them, and the next checkpoint contains them. Call it when the write is done: a page
   * that `collect` reports while a device still writes may change afterwards.
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
   * Appends a checkpoint to a file, which is made if it is missing: the pages that were written since the last
   * checkpoint, or all pages if this tracker has made or restored none in this file. A write during the call may be in
   * it or not, and is in the next checkpoint in any case. To save the state of one moment, pause all writers.
   *
   * If the last checkpoint of the file is incomplete (a crash), its bytes are cut off, with a warning. A damaged file
   * is not written to.
   *
   * @throws CheckpointError if the file is something else, of other memory, damaged, or being written by another
   *   tracker; UffdError EFAULT for a page that cannot be read (a guard page, PROT_NONE), ENOENT as `collect`; Node's
   *   errors of files. Then the file is unchanged, and the pages are in the next checkpoint
   */
  async checkpoint(path: string, { sync = true }: CheckpointOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('checkpoint', () =>
      withFileToWrite(path, async (file) => told(await this.#append(file, path, sync))),
    );
  }

  async #append(file: FileHandle, path: string, sync: boolean): Promise<StoredCheckpoint> {
    const { dev, ino } = await file.stat();
    const contents = await readContents(file, path);
    if (contents) {
      this.#mustFit(contents.shape, path);
      await mustBeExtendable(file, path, contents);
    }
    const parent = this.#parentIn(contents, dev, ino);
    const end = contents?.end ?? HEADER_BYTES;
    const pages = this.#pages;
    if (parent === undefined) pages.set(Plane.UNSAVED, pages.start, pages.length);
    this.#take();
    pages.move(Plane.UNSAVED, Plane.SAVING);
    try {
      await file.truncate(contents ? end : 0);
      if (!contents) await writeHeader(file, { pageSize: this.pageSize, length: pages.length });
      if (sync) await syncFolder(path);
      const index = contents?.checkpoints.length ?? 0;
      const stored = await this.#write(file, end, index, parent, sync);
      pages.clear(Plane.SAVING);
      this.#base = { dev, ino, stored };
      return stored;
    } catch (error) {
      pages.move(Plane.SAVING, Plane.UNSAVED);
      await file.truncate(contents ? end : 0).catch(() => undefined);
      throw error;
    }
  }

  /** Marks the pages that were written since the last call. */
  #take(): void {
    this.#target.mustBeMapped();
    this.#watch.take();
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
  ): Promise<StoredCheckpoint> {
    const runs = [...this.#pages.runs(Plane.SAVING)];
    const pages = runs.reduce((sum, { length }) => sum + length / this.pageSize, 0);
    const writer = await CheckpointWriter.begin(file, offset, index, { parent, time: new Date(), pages });
    await savePages(this.#target, this.pageSize, runs, writer);
    // Memory that was mapped here meanwhile must not be saved in place of the tracked memory.
    this.#take();
    return writer.commit(sync);
  }

  /**
   * Restores the memory to a checkpoint. The file is checked first: if it is damaged, no memory is written, and the
   * error says which checkpoint is damaged and which can be restored. Pause all writers meanwhile. The next
   * checkpoint to this file builds on the restored one.
   *
   * @throws CheckpointError; RangeError for a checkpoint that does not exist; UffdError EFAULT for a page that cannot
   *   be written (read-only, a guard page): the pages before it are restored, and count as written; Node's errors of
   *   files
   */
  async restore(path: string, options: RestoreOptions = {}): Promise<Checkpoint> {
    return this.#exclusive('restore', async () => {
      const file = await open(path, 'r');
      try {
        const { dev, ino } = await file.stat();
        const contents = await readContents(file, path);
        if (contents) this.#mustFit(contents.shape, path);
        const { stored, chain } = await chosen(file, path, contents, options.checkpoint);
        // Do not write to memory that was replaced.
        this.#take();
        await this.#bring(file, contents?.shape as MemoryShape, chain);
        this.#take();
        this.#pages.clear(Plane.UNSAVED);
        this.#base = { dev, ino, stored };
        return told(stored);
      } finally {
        await file.close();
      }
    });
  }

  /** Restores each page from the first of these checkpoints that holds it. */
  async #bring(file: FileHandle, shape: MemoryShape, chain: readonly StoredCheckpoint[]): Promise<void> {
    const pages = this.#pages;
    try {
      for (const link of chain) {
        for await (const run of runsOf(file, shape, link)) {
          const start = pages.start + BigInt(run.firstPage * shape.pageSize);
          const length = run.pages * shape.pageSize;
          for (const part of pages.runs(Plane.SAVING, false, start, start + BigInt(length))) {
            const skipped = Number(part.start - start);
            const offset = run.offset === undefined ? undefined : run.offset + skipped;
            await restorePages(this.#target, this.#watch, file, part, offset);
          }
          pages.set(Plane.SAVING, start, length);
        }
      }
    } finally {
      pages.clear(Plane.SAVING);
    }
  }

  /**
   * The whole checkpoints of a file, in order. Only `restore` checks their bytes. An incomplete checkpoint (after a
   * crash) is not among them.
   *
   * @throws CheckpointError if the file holds no checkpoints, or is damaged: its `checkpoints` are those before the
   *   damage; Node's errors of files
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

  /** Ends tracking. Idempotent. */
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

  /** Runs one checkpoint or restore at a time, because they share a list of pages. */
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

  #mustFit({ pageSize, length }: MemoryShape, path: string): void {
    if (pageSize === this.pageSize && length === this.#pages.length) return;
    throw new CheckpointError(
      `${path} is of ${length} bytes in pages of ${pageSize}; this memory has ${this.#pages.length} in pages of ` +
        `${this.pageSize}`,
    );
  }
}

/** Checks that the bytes after the valid checkpoints may be cut off, and warns. */
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

/** The checkpoint to restore, and those that it builds on, all of whose bytes were checked. */
async function chosen(
  file: FileHandle,
  path: string,
  contents: Contents | undefined,
  index: number | undefined,
): Promise<{ stored: StoredCheckpoint; chain: StoredCheckpoint[] }> {
  const count = contents?.checkpoints.length ?? 0;
  const isThere = index !== undefined && index < count;
  if (contents && !isThere && (await isDamaged(file, contents))) {
    throw damageError(path, contents, await restorable(file, path, contents));
  }
  if (!contents || count === 0) throw new CheckpointError(`${path} holds no whole checkpoint`);
  const wanted = index ?? count - 1;
  checkInteger(wanted, 'checkpoint', 0, count - 1);
  const stored = contents.checkpoints[wanted] as StoredCheckpoint;
  return { stored, chain: await checkChain(file, path, contents, stored) };
}

function told({ index, parent, time, pages, bytes }: StoredCheckpoint): Checkpoint {
  return { index, parent, time, pages, bytes };
}
