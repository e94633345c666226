// How writes are seen. Both ways keep what they know in the page tables alone: a page whose entry is not
// write-protected was written, or is gone. `take` marks such pages and protects them again.
//
// Why nothing is missed: a page is protected before it is told, and read after it was told. A write before the
// protection is in what is read; a write after it takes the protection away once more, and the next `take` sees
// that. Nothing else is recorded anywhere, so there is nothing to get out of step, and no lock.
//
//  - Asynchronous (Linux 6.7): the kernel lifts the protection itself, and one PAGEMAP_SCAN finds and protects.
//  - Synchronous (Linux 5.14): a write waits until a thread of the tracker's own lifts the protection. `take` reads
//    /proc/self/pagemap. A thread that is told of a page late, after a `take`, lifts the protection of a page that
//    its writer is about to write.
//
// What the kernel does not say by itself: that a part of the memory was unmapped (PAGEMAP_SCAN passes over holes), and
// that it is another userfaultfd's now (WRITEPROTECT and PAGEMAP_SCAN serve that one as well). So each `take` asks for both.

import '../linux.js';
import type { Worker } from 'node:worker_threads';
import { isMapped } from '../../shim/access.js';
import { readAt } from '../../shim/descriptors.js';
import { duplicate } from '../../shim/memory.js';
import { type Core, Scan } from '../core.js';
import { Errno, UffdError, UnsupportedError } from '../errors.js';
import type { Kernel, KernelPort, LinearMemory } from '../kernel.js';
import { startThread } from '../parts.js';
import { system } from '../system.js';
import { Userfaultfd } from '../userfaultfd.js';
import type { LifterTask } from './lifter.js';
import type { DirtyRun, PageSet } from './pages.js';
import type { Target } from './target.js';

/** What is common to both ways: memory that is registered and protected. */
export interface Watch {
  readonly mode: 'async' | 'sync';
  /** Bytes of a page there. */
  readonly pageSize: number;
  /**
   * Marks the pages that were written or went since the last call, and protects them again.
   *
   * @throws UffdError where the memory is no longer what was registered; every page is marked then
   */
  take(pages: PageSet): void;
  /** Lets this thread write to whole pages without a fault. The next `take` marks them. */
  allow(run: DirtyRun): void;
  /** Ends it: the memory is as it was before. Idempotent. */
  close(): void;
}

/** Planes of a PageSet. Synchronous tracking remembers guard pages as well. */
const ASYNC_PLANES = 3;
const SYNC_PLANES = 4;

/** Makes the set of pages once their size is known. */
type MakePages = (pageSize: number, systemPageSize: number, planes: number) => PageSet;

/** Why memory cannot be registered again: it is another userfaultfd's, or of a kind that cannot be watched. */
const FOREIGN: ReadonlySet<string> = new Set(['EBUSY', 'EINVAL', 'EPERM']);

/** A userfaultfd that has registered and protected the memory, and its pagemap. */
abstract class Registered {
  /** The call that an error about the memory names. */
  protected abstract get call(): string;
  readonly pageSize: number;
  protected readonly uffd: Userfaultfd;
  protected readonly kernel: Kernel;
  protected readonly target: Target;
  #pagemap = -1;
  #port: KernelPort | undefined;

  protected constructor(target: Target, kernel: Kernel, uffd: Userfaultfd) {
    this.target = target;
    this.kernel = kernel;
    this.uffd = uffd;
    try {
      uffd.register(target.address, target.length, 'write-protect');
      this.pageSize = uffd.ranges[0]?.pageSize ?? kernel.pageSize;
      this.protect({ start: target.address, length: target.length });
    } catch (error) {
      uffd.close();
      throw error;
    }
  }

  /** The port, and the pagemap's descriptor, for the core that lies in this memory. */
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

  /** What `take` itself does not notice. It has found already that all mappings are registered for what it does. */
  protected mustBeWhole(): void {
    const { address, length } = this.target;
    const mapped = isMapped(address, length);
    if (mapped < 0) throw new UffdError(mapped, 'msync', { address, length });
    if (mapped === 0) throw this.replaced();
    this.#mustBeOurs();
  }

  /**
   * Registering again changes nothing where the memory is registered here, and is refused where it is another
   * userfaultfd's. Memory that no one had (mapped anew a moment ago) becomes ours: its pages are not protected, so the
   * next `take` marks them.
   */
  #mustBeOurs(): void {
    const { address, length } = this.target;
    try {
      this.uffd.register(address, length, 'write-protect', { pageSize: this.pageSize });
    } catch (error) {
      if (error instanceof UffdError && FOREIGN.has(error.code)) throw this.replaced();
      throw error;
    }
  }

  /** Marks everything if a part of `take` fails: what it had protected until then is not known. */
  protected markingAll(pages: PageSet, body: () => void): void {
    try {
      body();
    } catch (error) {
      pages.mark(pages.start, pages.length);
      throw error;
    }
  }

  close(): void {
    if (this.uffd.closed) return;
    try {
      // Before Linux 6.18 any userfaultfd could unregister the memory of another one. A mapping that was closed has
      // taken its memory out of this one.
      if (this.uffd.ranges.length > 0) {
        this.#mustBeOurs();
        this.uffd.unregister(this.target.address, this.target.length);
      }
    } catch (error) {
      // Memory that was unmapped is not registered any more either.
      if (!(error instanceof UffdError)) throw error;
    }
    this.uffd.close();
    if (this.#pagemap >= 0) this.#port?.close(this.#pagemap);
    this.#pagemap = -1;
  }
}

export class AsyncWatch extends Registered implements Watch {
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
    return new AsyncWatch(target, kernel, uffd);
  }

  take(pages: PageSet): void {
    this.markingAll(pages, () => {
      // Before the scan as well: it would take from another userfaultfd what was written to its memory.
      this.#verify(pages);
      this.#scan(pages);
      this.#verify(pages);
    });
  }

  #verify({ core }: PageSet): void {
    this.#ask(core, (buffer) => core.arguments(buffer).scanCheckRequest());
    this.mustBeWhole();
  }

  #scan({ core }: PageSet): void {
    core.exports.scanBegin();
    for (let verdict: number = Scan.more; verdict === Scan.more; ) {
      const regions = this.#ask(core, (buffer) => core.arguments(buffer).scanRequest());
      verdict = core.exports.scanTake(regions);
      if (verdict === Scan.nonsense) throw this.#failed(Errno.EIO as number);
    }
  }

  /** One PAGEMAP_SCAN; the regions that it found. */
  #ask(core: Core, request: (buffer: bigint) => number): number {
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
    // The kernel lifts the protection of a page when it is written.
  }
}

export class SyncWatch extends Registered implements Watch {
  readonly mode = 'sync';
  /**
   * Pages that are not there cannot be protected (anonymous memory before Linux 6.4), or do not look it (huge
   * pages before 6.11): they are made to be there by reading them.
   */
  #populates = false;
  #lifter: Worker | undefined;
  #stopHandle: SharedArrayBuffer | undefined;
  #failure: Error | undefined;

  protected get call(): string {
    return 'UFFDIO_WRITEPROTECT';
  }

  static async open(target: Target, kernel: Kernel, makePages: MakePages): Promise<SyncWatch> {
    const uffd = Userfaultfd.open({
      features: ['pagefault-flag-wp'],
      optional: ['wp-hugetlbfs-shmem', 'wp-unpopulated'],
      kernel,
    });
    const watch = new SyncWatch(target, kernel, uffd);
    try {
      watch.#protectAll(makePages(watch.pageSize, kernel.pageSize, SYNC_PLANES));
      await watch.#startLifter();
    } catch (error) {
      watch.close();
      throw error;
    }
    return watch;
  }

  take(pages: PageSet): void {
    this.markingAll(pages, () => {
      if (this.#failure) throw this.#failure;
      const protectedNow: DirtyRun[] = [];
      try {
        for (const run of this.#unprotected(pages)) {
          pages.mark(run.start, run.length);
          protectedNow.push(run);
          this.#protectAgain(run);
        }
        this.mustBeWhole();
      } catch (error) {
        // The memory may be another userfaultfd's now, which knows nothing of this protection.
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

  /** Makes sure at the start that every page is protected, and is seen to be. */
  #protectAll(pages: PageSet): void {
    // The first look finds the guard pages; the second one passes over them.
    for (const _ of this.#unprotected(pages));
    for (const run of this.#unprotected(pages)) {
      this.#populates = true;
      this.#protectAgain(run);
    }
    if (!this.#populates) return;
    for (const run of this.#unprotected(pages)) {
      // A page that cannot be read cannot be made to be there. It counts as written each time.
      if (!this.#populate(run)) continue;
      throw new UnsupportedError(
        'this kernel does not tell in /proc/self/pagemap which pages are write-protected; Linux 5.14 does',
      );
    }
  }

  /** The runs of pages that are not protected. */
  *#unprotected(pages: PageSet): Generator<DirtyRun> {
    const { core } = pages;
    const { exports } = core;
    const { fd } = this.pagemap(core.memory);
    exports.entriesBegin();
    for (;;) {
      const room = exports.entriesRoom();
      if (room === 0) return;
      const buffer = new Uint8Array(core.memory.buffer, exports.scanBuffer(), room);
      const read = readAt(fd, buffer, Number(BigInt.asUintN(64, exports.entriesOffset())));
      if (read < 0) throw new UffdError(read, '/proc/PID/pagemap');
      if (read === 0) throw this.replaced();
      exports.entriesTake(read);
      while (exports.entriesNext()) yield pages.found();
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

  /** The thread that lifts the protection. It has a descriptor of its own, and asks nothing of this thread. */
  async #startLifter(): Promise<void> {
    const fd = duplicate(this.uffd.fd);
    if (fd < 0) throw new UffdError(fd, 'fcntl');
    const { features, ranges } = this.uffd;
    const task: LifterTask = { fd, features, ranges };
    const lifter = startThread(
      'lifter',
      { workerData: task },
      { file: '../part.js', module: import.meta.url },
    );
    this.#lifter = lifter;
    this.#stopHandle = await new Promise<SharedArrayBuffer>((resolve, reject) => {
      lifter.once('message', resolve);
      lifter.on('error', (error) => {
        this.#failure = error;
        reject(error);
      });
    });
    // Not before: where nothing else goes on, some runtimes end without waiting for it to begin.
    lifter.unref();
  }

  override close(): void {
    super.close();
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    else this.#lifter?.terminate();
  }
}

/** Opens the way that this kernel has, or the one that is asked for. */
export async function openWatch(
  target: Target,
  mode: 'auto' | 'async' | 'sync',
  kernel: Kernel | undefined,
  makePages: MakePages,
): Promise<Watch> {
  const chosen = kernel ?? system().kernel();
  const { features } = Userfaultfd.probe({ kernel: chosen });
  if (mode !== 'sync' && features.has('wp-async')) {
    const watch = AsyncWatch.open(target, chosen);
    makePages(watch.pageSize, chosen.pageSize, ASYNC_PLANES);
    return watch;
  }
  if (mode === 'async') {
    throw new UnsupportedError(
      "this kernel has no asynchronous write-protection, which came with Linux 6.7; mode 'sync' does without",
    );
  }
  if (!features.has('pagefault-flag-wp')) {
    throw new UnsupportedError('this kernel cannot write-protect for user space; tracking needs Linux 5.14');
  }
  return SyncWatch.open(target, chosen, makePages);
}
