// How writes are detected. Both modes keep their state in the page tables alone: a page that is not write-protected
// was written, or is gone. `take` marks such pages and protects them again.
//
// Why no write is missed: a page is protected before it is reported, and read after it was reported. A write before the
// protection is in the bytes that are read. A write after it removes the protection again, and the next `take` sees
// that. There is no other state, and no lock.
//
//  - Asynchronous (Linux 6.7): the kernel removes the protection itself, and one PAGEMAP_SCAN finds pages and
//    protects them.
//  - Synchronous (Linux 5.14): a write waits until a thread of the tracker removes the protection. `take` reads
//    /proc/self/pagemap. If that thread reads a fault late, after a `take`, it removes the protection of a page that
//    is about to be written.
//
// The kernel does not report that a part of the memory was unmapped (PAGEMAP_SCAN skips holes), or that another
// userfaultfd has it now (WRITEPROTECT and PAGEMAP_SCAN act on that memory as well). So each `take` checks for both.

import { Scan } from '../bindings/core.js';
import '../kernel/linux.js';
import type { Worker } from 'node:worker_threads';
import { isMapped } from '../../shim/access.js';
import { readAt } from '../../shim/descriptors.js';
import { duplicate } from '../../shim/memory.js';
import { Errno, UffdError, UnsupportedError } from '../errors/errors.js';
import { system } from '../kernel/default-kernel.js';
import type { Kernel, KernelPort, LinearMemory } from '../kernel/port.js';
import type { Core } from '../uffd/core.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import { type DirtyRun, PageSet } from './pages.js';
import type { Target } from './target.js';
import type { UnprotectTask } from './unprotect-worker.js';

/** Memory that is registered and protected, in either mode. */
export interface WriteWatch {
  readonly mode: 'async' | 'sync';
  /** Bytes of a page of this memory. */
  readonly pageSize: number;
  readonly pages: PageSet;
  /**
   * Marks the pages that were written or removed since the last call, and protects them again.
   *
   * @throws UffdError if the memory is no longer the memory that was registered; then every page is marked
   */
  take(): void;
  /** Lets this thread write to whole pages without a fault. The next `take` marks them. */
  allow(run: DirtyRun): void;
  /** Ends tracking, and removes the protection. Idempotent. */
  close(): void;
}

/** Number of planes of a PageSet. Synchronous tracking has one more, for guard pages. */
const ASYNC_PLANES = 3;
const SYNC_PLANES = 4;

/**
 * Error codes of registering again, if another userfaultfd watches the memory, or if memory of this kind cannot be
 * watched.
 */
const NOT_OURS: ReadonlySet<string> = new Set(['EBUSY', 'EINVAL', 'EPERM']);

/** A userfaultfd that has registered and protected the memory, and its pagemap. */
abstract class RegisteredMemory {
  /** The name of the call in errors about the memory. */
  protected abstract get call(): string;
  readonly pageSize: number;
  readonly pages: PageSet;
  protected readonly uffd: Userfaultfd;
  protected readonly kernel: Kernel;
  protected readonly target: Target;
  #pagemap = -1;
  #port: KernelPort | undefined;

  protected constructor(target: Target, kernel: Kernel, uffd: Userfaultfd, planes: number) {
    this.target = target;
    this.kernel = kernel;
    this.uffd = uffd;
    try {
      uffd.register(target.address, target.length, 'write-protect');
      this.pageSize = uffd.ranges[0]?.pageSize ?? kernel.pageSize;
      const { address, length } = target;
      this.protect({ start: address, length });
      this.pages = new PageSet(address, length, this.pageSize, kernel.pageSize, planes);
    } catch (error) {
      uffd.close();
      throw error;
    }
  }

  /** The port, and the descriptor of pagemap, for the core in this memory. */
  protected pagemap(memory: LinearMemory): { port: KernelPort; fd: number } {
    this.#port ??= this.kernel.attach(memory);
    if (this.#pagemap < 0) {
      const fd = this.#port.openPagemap(0);
      if (fd < 0) throw new UffdError(fd, '/proc/PID/pagemap');
      this.#pagemap = fd;
    }
    return { port: this.#port, fd: this.#pagemap };
  }

  protected protect({ start, length }: DirtyRun): void {
    if (this.uffd.writeProtect(start, length, true) < length) throw this.replaced();
  }

  protected replaced(): UffdError {
    const { address, length } = this.target;
    return new UffdError(Errno.ENOENT as number, this.call, { address, length, tracked: true });
  }

  /**
   * Checks what the scan of `take` does not detect. The scan has already found that all mappings are registered for
   * this mode.
   */
  protected mustBeWhole(): void {
    const { address, length } = this.target;
    const mapped = isMapped(address, length);
    if (mapped < 0) throw new UffdError(mapped, 'msync', { address, length });
    if (mapped === 0) throw this.replaced();
    this.#mustBeOurs();
  }

  /**
   * Registers the memory again. That changes nothing if it is registered with this userfaultfd, and fails if it is
   * registered with another one. Memory that is registered with none (it was mapped anew a moment ago) is registered
   * now. Its pages are not protected, so the next `take` marks them.
   */
  #mustBeOurs(): void {
    const { address, length } = this.target;
    try {
      this.uffd.register(address, length, 'write-protect', { pageSize: this.pageSize });
    } catch (error) {
      if (error instanceof UffdError && NOT_OURS.has(error.code)) throw this.replaced();
      throw error;
    }
  }

  /** Marks everything if a part of `take` fails, because it is unknown which pages were protected by then. */
  protected markingAll(body: () => void): void {
    try {
      body();
    } catch (error) {
      this.pages.mark(this.pages.start, this.pages.length);
      throw error;
    }
  }

  close(): void {
    if (this.uffd.closed) return;
    try {
      // Before Linux 6.18 a userfaultfd could unregister memory of another userfaultfd, so check first. A closed
      // mapping has already unregistered its memory.
      if (this.uffd.ranges.length > 0) {
        this.#mustBeOurs();
        this.uffd.unregister(this.target.address, this.target.length);
      }
    } catch (error) {
      // Unmapped memory is no longer registered either.
      if (!(error instanceof UffdError)) throw error;
    }
    this.uffd.close();
    if (this.#pagemap >= 0) this.#port?.close(this.#pagemap);
    this.#pagemap = -1;
  }
}

export class AsyncWatch extends RegisteredMemory implements WriteWatch {
  readonly mode = 'async';

  protected get call(): string {
    return 'PAGEMAP_SCAN';
  }

  static open(target: Target, kernel: Kernel): AsyncWatch {
    const uffd = Userfaultfd.open({
      features: ['wp-async'],
      optional: ['wp-hugetlbfs-shmem'],
      kernel,
    });
    return new AsyncWatch(target, kernel, uffd, ASYNC_PLANES);
  }

  take(): void {
    this.markingAll(() => {
      // Check before the scan as well: if another userfaultfd watches the memory now, the scan would take its written
      // pages.
      this.#verify();
      this.#scan();
      this.#verify();
    });
  }

  #verify(): void {
    const { core } = this.pages;
    this.#pagemapScan(core, (buffer) => core.arguments(buffer).scanCheckRequest());
    this.mustBeWhole();
  }

  #scan(): void {
    const { core } = this.pages;
    core.exports.scanBegin();
    for (let next: number = Scan.MORE; next === Scan.MORE; ) {
      const regions = this.#pagemapScan(core, (buffer) => core.arguments(buffer).scanRequest());
      next = core.exports.scanTake(regions);
      if (next === Scan.NONSENSE) throw this.#failed(Errno.EIO as number);
    }
  }

  /** Performs one PAGEMAP_SCAN. Returns how many regions it found. */
  #pagemapScan(core: Core, request: (buffer: bigint) => number): number {
    const { port, fd } = this.pagemap(core.memory);
    const buffer = port.addressOf(new Uint8Array(core.memory.buffer, core.exports.scanBuffer()));
    for (;;) {
      const result = port.ioctl(fd, request(buffer) >>> 0, core.scan);
      if (result >= 0) return result;
      if (result === -(Errno.EPERM as number)) throw this.replaced();
      if (result !== -(Errno.EINTR as number)) throw this.#failed(result);
    }
  }

  #failed(errno: number): UffdError {
    const { address, length } = this.target;
    return new UffdError(errno, this.call, { address, length });
  }

  allow(): void {
    // The kernel removes the protection of a page when it is written.
  }
}

export class SyncWatch extends RegisteredMemory implements WriteWatch {
  readonly mode = 'sync';
  /**
   * Whether missing pages are installed by reading them. Before, they cannot be protected (anonymous memory before
   * Linux 6.4), or do not appear protected (huge pages before 6.11).
   */
  #populates = false;
  #unprotectThread: Worker | undefined;
  #stopHandle: SharedArrayBuffer | undefined;
  #failure: Error | undefined;

  protected get call(): string {
    return 'UFFDIO_WRITEPROTECT';
  }

  static async open(target: Target, kernel: Kernel): Promise<SyncWatch> {
    const uffd = Userfaultfd.open({
      features: ['pagefault-flag-wp'],
      optional: ['wp-hugetlbfs-shmem', 'wp-unpopulated'],
      kernel,
    });
    const watch = new SyncWatch(target, kernel, uffd, SYNC_PLANES);
    try {
      watch.#protectAll();
      await watch.#startUnprotectThread();
    } catch (error) {
      watch.close();
      throw error;
    }
    return watch;
  }

  take(): void {
    this.markingAll(() => {
      if (this.#failure) throw this.#failure;
      const protectedNow: DirtyRun[] = [];
      try {
        for (const run of this.#unprotected()) {
          this.pages.mark(run.start, run.length);
          protectedNow.push(run);
          this.#protectAgain(run);
        }
        this.mustBeWhole();
      } catch (error) {
        // Another userfaultfd may watch the memory now, and does not know of this protection, so remove it.
        for (const run of protectedNow) this.allow(run);
        throw error;
      }
    });
  }

  allow({ start, length }: DirtyRun): void {
    this.uffd.writeProtect(start, length, false);
  }

  #protectAgain(run: DirtyRun): void {
    if (this.#populates) this.#populate(run);
    this.protect(run);
  }

  /** Ensures at the start that every page is protected, and appears so. */
  #protectAll(): void {
    // The first pass finds the guard pages; the second one skips them.
    for (const _ of this.#unprotected());
    for (const run of this.#unprotected()) {
      this.#populates = true;
      this.#protectAgain(run);
    }
    if (!this.#populates) return;
    for (const run of this.#unprotected()) {
      // A page that cannot be read cannot be installed. Such a page counts as written each time.
      if (!this.#populate(run)) continue;
      throw new UnsupportedError(
        'this kernel does not tell in /proc/self/pagemap which pages are write-protected; Linux 5.14 does',
      );
    }
  }

  /** The runs of pages that are not protected. */
  *#unprotected(): Generator<DirtyRun> {
    const { core } = this.pages;
    const { exports } = core;
    const { fd } = this.pagemap(core.memory);
    exports.entriesBegin();
    for (;;) {
      const room = exports.entriesRoom();
      if (room === 0) return;
      const buffer = new Uint8Array(core.memory.buffer, exports.scanBuffer(), room);
      const read = readAt(fd, buffer, Number(core.start));
      if (read < 0) throw new UffdError(read, '/proc/PID/pagemap');
      if (read === 0) throw this.replaced();
      exports.entriesTake(read);
      while (exports.entriesNext()) yield this.pages.found();
    }
  }

  /**
   * Reads a byte of each page: memory that was never written gets its zero page.
   *
   * @returns whether every page could be read
   */
  #populate({ start, length }: DirtyRun): boolean {
    const offset = Number(start - this.target.address);
    let all = true;
    for (let at = offset; at < offset + length; at += this.pageSize) all = this.target.touch(at) && all;
    return all;
  }

  /**
   * The thread that removes the protection. The thread has a descriptor of its own, and does not depend on this thread.
   */
  async #startUnprotectThread(): Promise<void> {
    const fd = duplicate(this.uffd.fd);
    if (fd < 0) throw new UffdError(fd, 'fcntl');
    const { features, ranges } = this.uffd;
    const task: UnprotectTask = { fd, features, ranges };
    const worker = startThread('lifter', { workerData: task }, ENTRY);
    this.#unprotectThread = worker;
    this.#stopHandle = await new Promise<SharedArrayBuffer>((resolve, reject) => {
      worker.once('message', resolve);
      worker.on('error', (error) => {
        this.#failure = error;
        reject(error);
      });
    });
    // Call `unref` only now: if nothing else runs, some runtimes exit before an unreferenced worker begins.
    worker.unref();
  }

  override close(): void {
    super.close();
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    else this.#unprotectThread?.terminate();
  }
}

/** Opens the mode that this kernel has, or the requested one. */
export async function openWatch(
  target: Target,
  mode: 'auto' | 'async' | 'sync',
  kernel: Kernel | undefined,
): Promise<WriteWatch> {
  const chosen = kernel ?? system().kernel();
  const { features } = Userfaultfd.probe({ kernel: chosen });
  if (mode !== 'sync' && features.has('wp-async')) return AsyncWatch.open(target, chosen);
  if (mode === 'async') {
    throw new UnsupportedError(
      "this kernel has no asynchronous write-protection, which came with Linux 6.7; mode 'sync' does without",
    );
  }
  if (!features.has('pagefault-flag-wp')) {
    throw new UnsupportedError('this kernel cannot write-protect for user space; tracking needs Linux 5.14');
  }
  return SyncWatch.open(target, chosen);
}
