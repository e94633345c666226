// The public face of a userfaultfd: checks what callers pass, does the calls through a Channel, and owns the
// descriptor. Exactly one object owns a descriptor at any time, and closes or gives it away exactly once.

import {
  checkAddress,
  checkBoolean,
  checkDescriptor,
  checkFunction,
  checkInteger,
  checkIterable,
  checkMethod,
  checkOneOf,
  checkOptions,
  checkPageAddress,
  checkRange,
  checkView,
  invalidState,
  outOfRange,
  wrongType,
} from './arguments.js';
import { type Ahead, Channel } from './channel.js';
import { instantiate, Op, Option, PAGE_STATES } from './core.js';
import { Errno, UffdError } from './errors.js';
import {
  type Feature,
  featureBits,
  featureNames,
  type Mode,
  modeBits,
  modeNames,
  type Operation,
  operationBits,
  operationNames,
} from './features.js';
import type { FaultHandler, RegisteredRange } from './handler.js';
import { Answer, type Kernel, Note } from './kernel.js';
import { Loop, WAITS } from './loop.js';
import { handshake, openDescriptor, probe, type Way, waysToOpen } from './open.js';
import {
  type CopyOptions,
  checkWindow,
  type FillOptions,
  fillBits,
  type MoveOptions,
  type OpenOptions,
  type PageState,
  type PollOptions,
  type Probe,
  type ProbeOptions,
  type RegisterOptions,
  type SourceOptions,
  type StartOptions,
  type StartOptionsFor,
  type Window,
  type WrapOptions,
  windowBits,
} from './options.js';
import { PageRecords, recordedChunks } from './page-record.js';
import { checkPlacement } from './placement.js';
import { enroll, isOwned, strike, unregistered } from './registry.js';
import type { Served } from './rounds.js';
import { isStopHandle, Stopper } from './stopper.js';
import { system } from './system.js';
import { type Origin, toldChunk, toldRange } from './trace/origin.js';
import { recordingKernel } from './trace/recording.js';
import type { TraceWriter } from './trace/writer.js';
import { explained, noveltiesOf, noveltiesOfModes } from './versions.js';
import { warn } from './warning.js';

/**
 * A userfaultfd: which memory is watched, what is put there, and the loop that tells a handler of each fault. It
 * belongs to one thread; `release` and `wrap` take it to another.
 *
 * Close it. One that is dropped is closed when it is collected, if nothing is registered with it; otherwise it stays open,
 * with a warning, because closing it would let threads that wait read zeros. A loop that runs on the event loop keeps it.
 */
export class Userfaultfd implements Disposable {
  /** How it was opened; undefined after `wrap`, which cannot know. */
  readonly via: 'syscall' | 'device' | undefined;
  /** Whether only faults of user mode are served; undefined after `wrap`. */
  readonly userModeOnly: boolean | undefined;
  /** The features that are on. */
  readonly features: ReadonlySet<Feature>;
  /** Bytes of a page, a power of two. */
  readonly pageSize: number;
  readonly #channel: Channel;
  readonly #kernel: Kernel;
  readonly #way: Way | undefined;
  readonly #stopper = new Stopper();
  readonly #recorder: TraceWriter | undefined;
  readonly #served: Served;
  /** What is known of the pages, for the next owner of the descriptor. */
  readonly #records = new PageRecords();
  #stopFd = -1;
  #state: 'open' | 'released' | 'closed' = 'open';
  #loop: Loop | undefined;
  /** What to tell `closed` once the callback that is on the stack has returned. */
  #farewell: { error?: UffdError } | undefined;

  private constructor(
    channel: Channel,
    kernel: Kernel,
    features: bigint,
    ranges: readonly RegisteredRange[],
    chunks: Iterable<Uint8Array>,
    way?: Way,
    recorder?: TraceWriter,
  ) {
    this.#channel = channel;
    this.#recorder = recorder;
    this.#kernel = kernel;
    this.features = featureNames(features);
    this.pageSize = kernel.pageSize;
    this.#way = way;
    this.via = way?.via;
    this.userModeOnly = way?.userModeOnly;
    this.#served = {
      channel,
      stopper: this.#stopper,
      stopRequested: () => {
        const { requested } = this.#stopper;
        return channel.port.sense?.(requested) ?? requested;
      },
      face: this,
      isOpen: () => this.#state === 'open',
      adopt: (fd) => this.#child(fd),
      end: (error) => this.#end(error),
      settle: () => this.#sayFarewell(),
    };
    channel.core.exports.start(Math.log2(kernel.pageSize), features);
    for (const range of ranges) this.#adoptRange(range);
    channel.loadPages(chunks);
    // Where no descriptor is left, closing this one makes room for the child of a fork that waits for a close.
    if (this.features.has('event-fork')) this.#takeEventfd();
    // No closure here: it would keep this object.
    if (!kernel.elsewhere)
      enroll(this, { channel, stopper: this.#stopper, features: this.features, recorder });
  }

  /**
   * Whether this system has userfaultfd. Asks with flags that no kernel takes, so no descriptor comes into
   * being; says nothing of permission. Never throws.
   */
  static isSupported(): boolean {
    try {
      return system().trySyscall(0x7fffffff) !== -(Errno.ENOSYS as number);
    } catch {
      return false;
    }
  }

  /**
   * Opens a userfaultfd: non-blocking, close-on-exec, its features fixed for life.
   *
   * @example
   * ```ts
   * import { Userfaultfd } from 'userfaultfd';
   *
   * const uffd = Userfaultfd.open({ optional: ['event-remove', 'thread-id'] });
   * console.log(uffd.via, uffd.userModeOnly, [...uffd.features]);
   * uffd.close();
   * ```
   *
   * @throws UnsupportedError where this is not Linux, koffi is missing, or the kernel lacks a feature
   * @throws UffdError EPERM (no privilege), ENOSYS, EMFILE; what to do is in the message
   */
  static open(options: OpenOptions = {}): Userfaultfd {
    checkOpening(options);
    const { userModeOnly = 'auto', via = 'auto' } = options;
    checkWay(via, userModeOnly);
    checkPid(options.pid);
    const features = featureBits(options.features ?? [], 'features');
    const optional = featureBits(options.optional ?? [], 'optional');
    const kernel = recorded(options.kernel ?? system().kernel(), options.record, () => ({
      how: 'open',
      options: { via, userModeOnly, ...given(options.pid) },
      features: [...featureNames(features)],
      optional: [...featureNames(optional)],
    }));
    const core = instantiate();
    const port = kernel.attach(core.memory);
    const { fd, way } = openDescriptor(core, port, waysToOpen(via, userModeOnly));
    const channel = new Channel(core, port, fd, kernel.pageSize);
    try {
      const granted = handshake(channel, way, features, optional);
      if (options.pid !== undefined) channel.watchProcess(options.pid);
      return new Userfaultfd(channel, kernel, granted, [], [], way, options.record);
    } catch (error) {
      channel.leaveProcess();
      port.close(fd);
      throw error;
    }
  }

  /**
   * What this kernel offers this user: asked with a descriptor of its own, which is closed again.
   *
   * @throws UnsupportedError, UffdError as `open` does
   */
  static probe(options: ProbeOptions = {}): Probe {
    checkOpening(options);
    const { via = 'auto', userModeOnly = 'auto', kernel = system().kernel() } = options;
    checkWay(via, userModeOnly);
    const core = instantiate();
    const { way, features, operations } = probe(
      core,
      kernel.attach(core.memory),
      waysToOpen(via, userModeOnly),
    );
    return {
      ...way,
      pageSize: kernel.pageSize,
      features: featureNames(features),
      operations: operationNames(operations),
    };
  }

  /**
   * Adopts a descriptor whose handshake is done: one received over a socket, or released on another thread.
   * It belongs to the new object from then on; where this throws it still belongs to the caller.
   *
   * @example
   * ```ts
   * import { Mapping, Userfaultfd } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(16 * 4096);
   * const first = Userfaultfd.open();
   * first.register(memory.address, memory.length);
   *
   * // All three can be posted to another thread.
   * const { ranges, features } = first;
   * const fd = first.release();
   *
   * const second = Userfaultfd.wrap(fd, { ranges, features });
   * console.log(second.ranges.length);
   * second.close();
   * ```
   *
   * @throws UffdError EBADF, ENOTTY (no userfaultfd), EINVAL (its handshake is not done), ESRCH (no such process)
   */
  static wrap(fd: number, options: WrapOptions = {}): Userfaultfd {
    checkDescriptor(fd, 'fd');
    checkOpening(options);
    if (options.ranges !== undefined) checkIterable(options.ranges, 'ranges', 'a list of ranges');
    if (!options.kernel?.elsewhere && isOwned(fd)) {
      throw invalidState(`fd ${fd} belongs to another Userfaultfd of this thread; release it first`);
    }
    checkPid(options.pid);
    const features = featureBits(options.features ?? [], 'features');
    const ranges = [...(options.ranges ?? [])];
    const real = options.kernel ?? system().kernel();
    for (const range of ranges) checkRegistered(range, real.pageSize);
    const chunks = recordedChunks(ranges);
    if (!chunks) {
      throw invalidState(
        'ranges: more memory was registered after they were read; read `ranges` again, right before `release`',
      );
    }
    const kernel = recorded(real, options.record, () => ({
      how: 'wrap',
      fd,
      options: given(options.pid),
      features: [...featureNames(features)],
      ranges: ranges.map(toldRange),
      ...(chunks.length > 0 ? { pages: chunks.map(toldChunk) } : {}),
    }));
    const core = instantiate();
    const channel = new Channel(core, kernel.attach(core.memory), fd, kernel.pageSize);
    const probed = channel.probe();
    if (probed < 0) throw new UffdError(probed, 'wrap');
    channel.knowsAll = options.ranges !== undefined;
    try {
      if (options.pid !== undefined) channel.watchProcess(options.pid);
      channel.unblock();
      return new Userfaultfd(channel, kernel, features, ranges, chunks, undefined, options.record);
    } catch (error) {
      channel.leaveProcess();
      throw error;
    }
  }

  /**
   * Asks a loop on another thread to stop. `handle` is the `stopHandle` of the object that runs it. The loop
   * ends after the callback it is in; where none runs yet, the next one ends at once.
   */
  static stop(handle: SharedArrayBuffer): void {
    if (!isStopHandle(handle)) throw wrongType('handle', "a Userfaultfd's stopHandle", handle);
    new Stopper(handle).request(system().eventfdSignal());
  }

  /** To be posted to another thread, for `Userfaultfd.stop`. */
  get stopHandle(): SharedArrayBuffer {
    return this.#stopper.shared;
  }

  /** The descriptor; −1 once it was closed or released. */
  get fd(): number {
    return this.#state === 'open' ? this.#channel.fd : -1;
  }

  /** Whether it was closed or released: nothing but `close` does anything any more. */
  get closed(): boolean {
    return this.#state !== 'open';
  }

  /** Whether a loop serves faults now. */
  get waiting(): boolean {
    return this.#loop?.running ?? false;
  }

  /**
   * What is registered, in ascending order; neighbours that are alike are one. It follows unmap and remap as
   * far as the handler has been told, and stays readable after `release` and `close`.
   */
  get ranges(): readonly RegisteredRange[] {
    const ranges = this.#channel.ranges();
    if (this.closed) return ranges;
    const pages = this.#records.of(ranges, this.pageSize);
    return ranges.map((range) => ({ ...range, pages }));
  }

  /**
   * Watches `length` bytes from `start` on, whole pages; holes are allowed. Registering again with some of
   * the modes a range has changes nothing; with others it replaces them (the kernel's rule).
   *
   * Memory in huge pages takes whole huge pages here and in every fill. Neighbours of different page sizes are
   * registered each by itself.
   *
   * @returns the operations that the range allows (huge pages have no zero page, for one)
   * @throws RangeError, TypeError; UffdError EINVAL, EBUSY, EPERM, ENOMEM; of huge pages whose size cannot be seen in
   *   /proc/PID/smaps, that file's error: nothing is registered then, and `options.pageSize` is the way out
   */
  register(
    start: bigint,
    length: number,
    mode: Mode | readonly Mode[] = 'missing',
    options: RegisterOptions = {},
  ): ReadonlySet<Operation> {
    checkOptions(options, 'options');
    if (options.pageSize !== undefined) checkPageSize(options.pageSize, 'pageSize', this.pageSize);
    checkRange(start, length, options.pageSize ?? this.pageSize);
    const modes = modeBits(mode);
    this.#mustBeOpen('UFFDIO_REGISTER');
    this.#channel.note(Note.REGISTER, start, length, modes, BigInt(options.pageSize ?? 0));
    const { core } = this.#channel;
    const result = this.#channel.ioctl(core.arguments(start, length).requestRegister(modes));
    if (result < 0) {
      const names = modeNames(modes);
      const error = new UffdError(result, 'UFFDIO_REGISTER', { address: start, length, modes: names });
      throw explained(error, noveltiesOfModes(names), this.#channel);
    }
    const bits = BigInt.asUintN(64, core.exports.registerOperations());
    const operations = operationNames(bits);
    try {
      const pageSize = options.pageSize ?? this.#channel.pageSizeAt(start, operations);
      if (!core.arguments(start, length, bits).rangePut(modes, Math.log2(pageSize))) throw noMemory();
    } catch (error) {
      this.unregister(start, length);
      throw error;
    }
    return operations;
  }

  /**
   * Stops watching, and lets every kind of waiter go: missing pages become zeros. (The kernel alone leaves
   * those who wait for write-protect and minor faults asleep.) That pages were removed is remembered, in case the memory is
   * registered again; if other memory is mapped there by then, say so with `forget`.
   *
   * @throws RangeError, TypeError; UffdError EINVAL, ENOMEM
   */
  unregister(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_UNREGISTER');
    this.#channel.note(Note.UNREGISTER, start, length);
    this.#channel.unregister(start, length);
    this.#loop?.settles(start, length);
    unregistered();
  }

  /**
   * Forgets what is known of the pages from `start` on: other memory is mapped there than before, though no event said so.
   * All are missing then. (`Mapping.close` does this by itself.)
   *
   * @throws RangeError, TypeError
   */
  forget(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('forget');
    this.#channel.forget(start, length);
  }

  /**
   * Installs pages with the bytes of `src` (any alignment) at `dst`, and wakes who waits for them. Pages of which the kernel
   * says that they are there already (EEXIST) are woken and counted, and keep what they hold. A page that is write-protected
   * stays so.
   *
   * Nothing is noted of a page after EEXIST: the kernel also says it if the pool of huge pages is empty. If such a page
   * faults again, its fault comes after a delay, with `repeats` set.
   *
   * `src` is read by the kernel on this thread: it must not lie in memory that this thread serves. Into huge pages
   * it should be in memory already: the kernel takes a page more from the pool for a moment otherwise, or says ENOMEM.
   *
   * @example
   * ```ts
   * import { Mapping, Userfaultfd } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(4 * 4096);
   * const uffd = Userfaultfd.open();
   * uffd.register(memory.address, memory.length);
   *
   * // Nobody has to wait for a page to fill it.
   * const done = uffd.copy(memory.address, new Uint8Array(2 * 4096).fill(7));
   * console.log(done, uffd.pageState(memory.address), uffd.pageState(memory.address + 8192n));
   * uffd.close();
   * ```
   *
   * @param length whole pages; default: all of `src`, which must then be whole pages
   * @returns bytes resolved. Fewer than `length`: a mapping change came first, a page is not mapped or not registered, or
   *   the process is gone. The pages in front of it were resolved; in a handler, the page of the fault was, if it is mapped.
   *   If that page was not resolved return `false`, and the fault comes again if it still stands.
   * @throws RangeError, TypeError; UffdError EFAULT (source), ENOMEM, EINVAL with `transferred`; ENOENT where nothing is
   *   registered and nothing ever was, as far as this object was told (register, `ranges` of wrap, a fork, a move)
   */
  copy(dst: bigint, src: ArrayBufferView | bigint, length?: number, options: CopyOptions = {}): number {
    if (typeof src === 'bigint') {
      checkAddress(src, 'src');
      // Without a length it is refused there, like any other wrong length.
      return this.#transfer(Op.copy, dst, length as number, fillBits(options), src, 'dst');
    }
    checkView(src, 'src');
    const bytes = length ?? src.byteLength;
    if (bytes > src.byteLength) {
      throw outOfRange('length', `at most what src holds, ${src.byteLength} bytes`, bytes);
    }
    return this.#transfer(Op.copy, dst, bytes, fillBits(options), src, 'dst');
  }

  /**
   * Installs zero pages. Returns and throws like `copy`; EINVAL for huge pages, which have no zero page. A page that is
   * write-protected gets a copy of zeros, still protected.
   */
  zero(start: bigint, length: number, options: FillOptions = {}): number {
    return this.#transfer(Op.zero, start, length, fillBits(options));
  }

  /**
   * Maps pages that are in the page cache of a shared mapping: the answer to minor faults. Returns like
   * `copy`; throws UffdError EFAULT (not in the page cache), EINVAL (memory that is not shared).
   */
  continue(start: bigint, length: number, options: CopyOptions = {}): number {
    return this.#transfer(Op.continue, start, length, fillBits(options));
  }

  /** Makes touching the pages SIGBUS (a system call gets EFAULT): for data that cannot be had. Linux 6.6. */
  poison(start: bigint, length: number, options: FillOptions = {}): number {
    return this.#transfer(Op.poison, start, length, fillBits(options));
  }

  /**
   * Moves pages from `src` to `dst` without a copy: same process, private anonymous memory. Linux 6.8.
   * Returns like `copy`; throws UffdError EBUSY (shared after a fork), EEXIST (a page is there already: the
   * source keeps the rest), ENOENT (a hole in the source).
   */
  move(dst: bigint, src: bigint, length: number, options: MoveOptions = {}): number {
    checkPageAddress(src, 'src', this.pageSize);
    const bits = fillBits(options) | (options.allowHoles ? Option.allowHoles : 0);
    return this.#transfer(Op.move, dst, length, bits, src, 'dst');
  }

  /**
   * Write-protects pages, or lifts that again. Lifting wakes every waiter in the range, unless `dontWake`.
   * `dontWake` means nothing where `on` is true. Linux 5.7; the range must be registered for write-protect.
   */
  writeProtect(start: bigint, length: number, on: boolean, options: FillOptions = {}): number {
    checkBoolean(on, 'on');
    const bits = on ? Option.writeProtect : fillBits(options);
    return this.#transfer(Op.writeProtect, start, length, bits);
  }

  /** Lets the sleepers of a range try again; nothing is installed. A missing page posts a new message. */
  wake(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_WAKE');
    this.#channel.note(Note.WAKE, start, length);
    const result = this.#channel.wake(start, length);
    if (result < 0) throw new UffdError(result, 'UFFDIO_WAKE', { address: start, length });
    this.#loop?.settles(start, length);
  }

  /**
   * What this object knows of the page that holds `address`: `missing`; `present`, installed by it; `removed`,
   * taken away by madvise, so zeros are due and never the source's data; `in-flight`, claimed by `claim`. One that was
   * removed, was filled since, and faults, is `removed` again: the kernel takes pages away after the event was read, and
   * with them what was filled in between. One that is `present` and faults without that is to be filled as if it were
   * missing. What others did to the memory is not known here; nor is what was removed without 'event-remove'.
   *
   * What is known goes with the memory: to the object of a forked child, over mremap, and with `ranges` to the object that
   * wraps a released descriptor.
   */
  pageState(address: bigint): PageState {
    checkAddress(address, 'address');
    return PAGE_STATES[this.#channel.core.arguments(address).pageAt() & 3] as PageState;
  }

  /** Whether this object has write-protected the page that holds `address`. */
  isWriteProtected(address: bigint): boolean {
    checkAddress(address, 'address');
    return (this.#channel.core.arguments(address).pageAt() & 4) !== 0;
  }

  /**
   * Claims the missing pages of a range for data that is being fetched. A removal takes the claim away: look
   * at `pageState` again before installing what was fetched, and zero-fill where it says `removed`.
   *
   * @returns how many pages were missing, and are now `in-flight`
   */
  claim(start: bigint, length: number): number {
    checkRange(start, length, this.pageSize);
    this.#channel.note(Note.CLAIM, start, length);
    return this.#channel.core.arguments(start, length).pageClaim();
  }

  /**
   * What to fill at once for a fault: the pages around it that are in its state (missing, or removed), inside
   * its range and inside the aligned window of `pages` pages, huge ones where the range has them; or, for `'adaptive'`,
   * as many as the run of faults has come to that it goes on with: to be asked once for each fault, then. A page that
   * should be there comes alone: somebody else may have taken it away, and a fill of one that is there wakes. Length 0:
   * `claim` has it.
   */
  window(page: bigint, pages: Window): { start: bigint; length: number } {
    checkAddress(page, 'page');
    checkWindow(pages, 'pages');
    const count = this.#channel.core.arguments(page).pageWindow(windowBits(pages));
    const start = BigInt.asUintN(64, this.#channel.core.exports.pagesWindowStart());
    return { start, length: count * this.#channel.core.exports.pagesWindowSize() };
  }

  /**
   * Says where the data of missing pages lies: their faults are answered from there, with what is missing of the window
   * around them, and `handler.pagefault` is not asked (`handler.answered` is told). A shortcut, no promise. The handler
   * is asked where the page was removed or claimed, where the copy fails, where a source was forgotten (16,384 are
   * known at a time: then a new one takes the place of another), and, so that a trace shows each fault and its answer,
   * while this is recorded. It has to answer in the same way.
   *
   * `src` must stay what it is until the memory is unregistered, unmapped or moved, or has another source. A view is kept
   * until then; an address keeps nothing.
   *
   * @example
   * ```ts
   * import { Mapping, Userfaultfd } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(64 * 4096);
   * const snapshot = new Uint8Array(memory.length).fill(1);
   * const uffd = Userfaultfd.open();
   * uffd.register(memory.address, memory.length);
   * console.log(uffd.answerFrom(memory.address, memory.length, snapshot, { window: 16 }));
   * console.log(uffd.fillAhead(memory.address, 16 * 4096));
   * uffd.close();
   * ```
   *
   * @param start whole pages, registered
   * @param length in bytes
   * @param src where the data of the page at `start` lies
   * @returns whether the shortcut is taken; false while this is recorded
   * @throws RangeError, TypeError
   */
  answerFrom(
    start: bigint,
    length: number,
    src: ArrayBufferView | bigint,
    options: SourceOptions = {},
  ): boolean {
    checkOptions(options, 'options');
    const { window = 1 } = options;
    checkRange(start, length, this.pageSize);
    checkWindow(window, 'window');
    const channel = this.#channel;
    if (typeof src === 'bigint') checkAddress(src, 'src');
    else {
      checkView(src, 'src');
      if (length > src.byteLength)
        throw outOfRange('length', `at most what src holds, ${src.byteLength} bytes`, length);
    }
    this.#mustBeOpen('answerFrom');
    if (channel.port.note) return false;
    const data = typeof src === 'bigint' ? src : channel.port.addressOf(src);
    const kept = typeof src === 'bigint' ? undefined : src;
    channel.sources.put(start, length, data, windowBits(window), kept);
    channel.sourced = true;
    return true;
  }

  /** Forgets what `answerFrom` was told: the handler is asked for everything. */
  forgetSources(): void {
    this.#channel.sources.clear();
    this.#channel.sourced = false;
  }

  /**
   * Installs the first run of missing pages of a range from its source (`answerFrom`), before they are asked for.
   *
   * @returns in bytes from `start` on: `passed` over, not being missing; `installed` behind them; and `leftOut` behind those,
   *   since the kernel said EEXIST, or they are not mapped. Undefined: the first page that is missing has no source
   * @throws what `copy` throws
   */
  fillAhead(start: bigint, length: number, options: FillOptions = {}): Ahead | undefined {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_COPY');
    if (!this.#channel.sourced) return undefined;
    try {
      const done = this.#channel.ahead(start, length, fillBits(options));
      if (done && !options.dontWake) this.#loop?.settles(start + BigInt(done.passed), done.installed);
      return done;
    } finally {
      this.#loop?.follow();
    }
  }

  /** Whether any part of `length` bytes at `start` is registered here. */
  watches(start: bigint, length: number): boolean {
    checkAddress(start, 'start');
    checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
    return this.#channel.core.arguments(start, length).rangeMeets() !== 0;
  }

  /**
   * Serves faults. With `wait: 'poll'` (default) on the event loop: returns at once, and keeps the process
   * alive. With 'block', 'spin' or 'adaptive' in this thread: returns when stopped.
   *
   * If the handler throws, or a promise that it returned rejects, `onError` decides. By default the loop ends with the
   * error. It reaches the caller of `start`, or with 'poll' it is an uncaught exception. The fault it was about
   * stays, for the next `start`; `close` lets every thread go. Behind an uncaught exception the process ends although
   * threads of it sleep in page faults; nobody reads zeros meanwhile.
   *
   * A handler may return a promise under 'poll' only. Under the other waits the loop ends with a TypeError,
   * code ERR_INVALID_RETURN_VALUE, if the fault is not resolved when `pagefault` returns.
   *
   * @example
   * ```ts
   * import { Worker } from 'node:worker_threads';
   * import { Mapping, Userfaultfd } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(4 * 4096);
   * const uffd = Userfaultfd.open();
   * uffd.register(memory.address, memory.length);
   * const content = new Uint8Array(uffd.pageSize).fill(42);
   * uffd.start({
   *   pagefault({ page, access }) {
   *     console.log(access);
   *     // Fewer bytes: a change of the memory came first. The fault is offered again.
   *     return uffd.copy(page, content) === content.length;
   *   },
   *   closed: () => console.log('closed'),
   * });
   *
   * // Whoever touches the memory has to be another thread.
   * const toucher = new Worker(
   *   `import { workerData } from 'node:worker_threads';
   *    import { Mapping } from 'userfaultfd';
   *    console.log(Mapping.attach(workerData).bytes[0]);`,
   *   { eval: true, workerData: memory.share() },
   * );
   * toucher.on('exit', () => uffd.close());
   * ```
   *
   * @returns false for a descriptor that is closed or released, and without a handler. A second call while a
   *   loop runs is true, warns, and keeps the first handler.
   * @throws UffdError where reading fails; the object is closed then, and `closed` was told. What the handler throws
   */
  start<Handler extends FaultHandler>(handler: Handler, options?: StartOptionsFor<Handler>): boolean;
  start(handler: FaultHandler, options: StartOptions = {}): boolean {
    checkOptions(options, 'options');
    const { wait = 'poll', placement = 'none', onError } = options;
    checkOneOf(wait, 'wait', WAITS);
    checkPlacement(placement);
    if (onError !== undefined) checkFunction(onError, 'onError');
    if (this.closed || !handler) return false;
    this.#channel.note(Note.START, 0n, WAITS.indexOf(wait));
    if (!this.#channel.isOpen()) return false;
    checkFunction(handler.pagefault, 'handler.pagefault');
    if (this.#loop?.running) {
      warn('a loop is running already; it keeps its handler');
      return true;
    }
    if (this.#loop?.inRound)
      throw invalidState('start: called from inside a callback of the same userfaultfd');
    const stopFd = this.#stopEventfd();
    this.#useHandler(handler).run(wait, stopFd, placement, onError);
    return true;
  }

  /** Ends the loop, after the callback it is in. The descriptor stays open, and `start` goes on with what is left. */
  stop(): void {
    if (this.closed || !this.#loop) return;
    this.#channel.note(Note.STOP);
    this.#loop.stop();
  }

  /**
   * One round without a loop: reads what is there, tells the handler, returns. Does not wait.
   *
   * A handler may return a promise: it goes on when the event loop does. If that rejects, and `onError` does not say
   * 'continue', the error is an uncaught exception; the fault is offered again by the next round.
   *
   * @param handler default: the one of the last `start` or `poll`
   * @returns how many messages were handled
   */
  poll(handler?: FaultHandler, options: PollOptions = {}): number {
    checkOptions(options, 'options');
    const { onError } = options;
    if (onError !== undefined) checkFunction(onError, 'onError');
    this.#mustBeOpen('read');
    this.#channel.note(Note.POLL, 0n, handler === undefined ? 0 : 1);
    if (handler !== undefined) {
      checkFunction(handler?.pagefault, 'handler.pagefault');
      if (this.#loop?.running) throw invalidState('poll: a loop is running; it has a handler of its own');
      if (!this.#loop?.inRound) this.#useHandler(handler);
    }
    if (!this.#loop) throw invalidState('poll: there is no handler; pass one');
    if (this.#loop.inRound) throw invalidState('poll: called from inside a callback of the same userfaultfd');
    return this.#loop.once(onError);
  }

  /**
   * Gives the descriptor away, and stops watching it. What was read and not answered is woken, so that the
   * next owner hears of it; mapping changes that were read are told to the handler first, then `closed`.
   *
   * A callback that throws meanwhile is an uncaught exception: the descriptor is given away all the same.
   *
   * To hand it to another thread: post `fd`, `ranges` and `features` there, and `wrap` them.
   *
   * @throws UffdError EBADF where it was closed or released before
   */
  release(): number {
    this.#mustBeOpen('release');
    this.#channel.note(Note.RELEASE);
    const { fd } = this.#channel;
    this.#loop?.stop();
    this.#state = 'released';
    this.#evenIfItThrows(() => this.#loop?.tellChanges());
    this.#channel.giveUpChanges();
    this.#channel.evict();
    this.#channel.leaveProcess();
    this.#records.fill(() => this.#channel.savePages());
    this.#evenIfItThrows(() => this.#leave());
    return fd;
  }

  /** Calls the handler where something must reach its end: what it throws is an uncaught exception, later. */
  #evenIfItThrows(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#channel.port.after(0, () => {
        throw error;
      });
    }
  }

  /**
   * Closes it: every thread that waits goes on, and missing pages become zeros. Where that would lose data,
   * fill or poison first. Idempotent; inside a callback it takes effect at once, and `closed` is told when
   * the callback has returned.
   */
  close(): void {
    if (this.#state === 'open') this.#channel.note(Note.CLOSE);
    this.#end();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #end(error?: UffdError): void {
    const state = this.#state;
    if (state === 'closed') return;
    this.#state = 'closed';
    if (state === 'released') return;
    this.#loop?.stop();
    // First, because reading a fork's event needs a free descriptor.
    this.#closeStopEventfd();
    this.#channel.close();
    this.#leave(error);
  }

  /** The end of this object's watch. */
  #leave(error?: UffdError): void {
    strike(this);
    this.#channel.sources.clear();
    this.#closeStopEventfd();
    if (!this.#loop) {
      this.#recorder?.close();
      return;
    }
    this.#farewell = error ? { error } : {};
    if (!this.#loop.inRound) this.#sayFarewell();
  }

  #closeStopEventfd(): void {
    if (this.#stopFd < 0) return;
    this.#stopper.publish(-1);
    this.#channel.port.close(this.#stopFd);
    this.#stopFd = -1;
  }

  #sayFarewell(): void {
    const farewell = this.#farewell;
    if (!farewell) return;
    this.#farewell = undefined;
    let answer: bigint = Answer.threw;
    try {
      this.#loop?.handler.closed?.(farewell.error);
      answer = Answer.returned;
    } finally {
      this.#channel.note(Note.ANSWER, answer);
      this.#recorder?.close();
    }
  }

  #useHandler(handler: FaultHandler): Loop {
    if (this.#loop?.handler !== handler) this.#loop = new Loop(this.#served, handler);
    return this.#loop;
  }

  /** The eventfd that other threads signal; made when a loop first runs. */
  #stopEventfd(): number {
    const fd = this.#takeEventfd();
    if (fd < 0) throw new UffdError(fd, 'eventfd');
    return fd;
  }

  /** That eventfd, or −errno. */
  #takeEventfd(): number {
    if (this.#stopFd >= 0) return this.#stopFd;
    const fd = this.#channel.port.eventfd();
    if (fd < 0) return fd;
    this.#stopFd = fd;
    this.#stopper.publish(fd);
    return fd;
  }

  #transfer(
    operation: Op,
    start: bigint,
    length: number,
    options: number,
    source: ArrayBufferView | bigint = 0n,
    name = 'start',
  ): number {
    checkRange(start, length, this.pageSize, name);
    this.#mustBeOpen(Channel.nameOf(operation));
    const told = typeof source === 'bigint';
    this.#channel.note(operation, start, length, options, told ? source : 0n);
    const address = told ? source : this.#channel.port.addressOf(source);
    try {
      const done = this.#channel.transfer(operation, options, start, length, address);
      if (wakes(operation, options)) this.#loop?.settles(start, length);
      return done;
    } catch (error) {
      if (!(error instanceof UffdError)) throw error;
      throw explained(error, noveltiesOf(operation, options), this.#channel);
    } finally {
      this.#loop?.follow();
    }
  }

  #adoptRange(range: RegisteredRange): void {
    const { start, length, modes, operations, pageSize } = range;
    const { core } = this.#channel;
    const bits = operationBits(operations);
    if (!core.arguments(start, length, bits).rangePut(modeBits([...modes]), Math.log2(pageSize)))
      throw noMemory();
  }

  /** The object of a child that a fork event brought: it watches what this one watched at the fork. */
  #child(fd: number): Userfaultfd {
    try {
      const core = instantiate();
      const channel = new Channel(core, this.#kernel.attach(core.memory), fd, this.pageSize);
      // Nobody says which process it is, but its memory can be asked.
      channel.watched = true;
      channel.knowsAll = this.#channel.knowsAll;
      return new Userfaultfd(
        channel,
        this.#kernel,
        featureBits(this.features, 'features'),
        this.#channel.ranges(),
        this.#channel.savePages(),
        this.#way,
      );
    } catch (error) {
      this.#channel.port.close(fd);
      throw error;
    }
  }

  #mustBeOpen(syscall: string): void {
    if (this.closed) throw new UffdError(Errno.EBADF as number, syscall);
  }
}

/** Whether a fill lets go who waits: not with `dontWake`, and not by protecting. */
function wakes(operation: Op, options: number): boolean {
  if (options & Option.dontWake) return false;
  return operation !== Op.writeProtect || !(options & Option.writeProtect);
}

/** The kernel, with a recorder between, if there is one. */
function recorded(kernel: Kernel, record: TraceWriter | undefined, origin: () => Origin): Kernel {
  return record ? recordingKernel(kernel, record, { origin: origin() }) : kernel;
}

function given(pid: number | undefined): { pid?: number } {
  return pid === undefined ? {} : { pid };
}

/** What `open`, `probe` and `wrap` are given, where it is more than a name. */
function checkOpening(options: OpenOptions | WrapOptions): void {
  checkOptions(options, 'options');
  const { kernel, record } = options;
  if (kernel !== undefined) checkMethod(kernel, 'kernel', 'attach', 'a kernel to run on');
  if (record !== undefined) checkMethod(record, 'record', 'start', 'a TraceWriter');
}

function checkWay(via: unknown, userModeOnly: unknown): void {
  checkOneOf(via, 'via', ['auto', 'syscall', 'device']);
  checkOneOf(userModeOnly, 'userModeOnly', [true, false, 'auto']);
}

function checkPid(pid: number | undefined): void {
  if (pid !== undefined) checkInteger(pid, 'pid', 1, 0x7fffffff);
}

function checkPageSize(pageSize: number, argument: string, least: number): void {
  checkInteger(pageSize, argument, least, 2 ** 40);
  if (!Number.isInteger(Math.log2(pageSize))) throw outOfRange(argument, 'a power of two', pageSize);
}

function noMemory(): UffdError {
  return new UffdError(Errno.ENOMEM as number, 'userfaultfd core');
}

/** One element of `WrapOptions.ranges`. */
function checkRegistered(range: RegisteredRange, pageSize: number): void {
  checkOptions(range, 'ranges: each');
  checkPageSize(range.pageSize, 'ranges: pageSize', pageSize);
  checkRange(range.start, range.length, range.pageSize, 'ranges: start');
  modeBits([...range.modes]);
  operationBits(range.operations);
}
