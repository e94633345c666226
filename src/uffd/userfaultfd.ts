// The public class of a userfaultfd: checks arguments, performs calls through a Session, and owns the
// descriptor. Exactly one object owns a descriptor at any time, and closes it or gives it away exactly once.

import { Operation as Op, Option, SourceKind } from '../bindings/core.js';
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
} from '../errors/arguments.js';
import { Errno, UffdError } from '../errors/errors.js';
import { warn } from '../errors/warning.js';
import { system } from '../kernel/default-kernel.js';
import { explained, requirementsOf, requirementsOfModes } from '../kernel/feature-diagnosis.js';
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
} from '../kernel/features.js';
import { CallbackResult, type Kernel, Note } from '../kernel/port.js';
import { checkPlacement } from '../scheduling/affinity.js';
import { encodeChunk, encodeRange, type OpenParameters } from '../trace/open-parameters.js';
import { recordingKernel } from '../trace/recording-port.js';
import type { TraceWriter } from '../trace/writer.js';
import { instantiate, PAGE_STATES } from './core.js';
import type { LoopHost } from './dispatcher.js';
import { EventLoop, WAITS } from './event-loop.js';
import type { HandlerOf, Pagefault } from './handler.js';
import { handshake, type OpenMethod, openDescriptor, openMethods, probe } from './open.js';
import { addOpenUffd, deleteOpenUffd, isOwned, unregistered } from './open-uffds.js';
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
  sourceBits,
  sourceWindow,
  type Window,
  type WrapOptions,
  windowBits,
} from './options.js';
import { PageRecords, recordedChunks } from './page-states.js';
import type { RegisteredRange } from './registered-range.js';
import { type Ahead, OPERATION_NAMES, Session } from './session.js';
import { isStopHandle, StopSignal } from './stop-signal.js';

/**
 * What a program implements to answer faults. The loop calls it on the loop's thread, one call at a time. A mapping
 * change is delivered before all faults that were read before the change or together with it. If a callback throws, or
 * a promise that it returned rejects, the loop ends with the error, unless `onError` of `start` decides otherwise. The
 * next loop offers the fault again.
 *
 * A handler of this type may return a promise and answer later, under the wait 'poll' only. If a handler always answers
 * before it returns, declare it as a `SyncFaultHandler`.
 */
export interface FaultHandler extends HandlerOf<Userfaultfd> {}

/** A handler that answers each fault before it returns: it serves under every wait. */
export interface SyncFaultHandler extends FaultHandler {
  /** As in `FaultHandler`, without a promise. */
  pagefault(fault: Pagefault, uffd: Userfaultfd): boolean | void;
}

/**
 * A userfaultfd. It registers memory, installs pages there, and runs the loop that calls a handler for each fault. It
 * belongs to one thread; `release` and `wrap` move it to another.
 *
 * Always call `close`. If an object is garbage-collected without it, the descriptor is closed only if no memory is
 * registered with it. Otherwise the descriptor stays open, with a warning, because closing it would let waiting threads
 * read zeros. An object that serves on the event loop is not collected.
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
  readonly #session: Session;
  readonly #kernel: Kernel;
  readonly #method: OpenMethod | undefined;
  readonly #stopper = new StopSignal();
  readonly #recorder: TraceWriter | undefined;
  readonly #host: LoopHost<Userfaultfd>;
  /** Records of the page states, for the next owner of the descriptor. */
  readonly #records = new PageRecords();
  #stopFd = -1;
  #state: 'open' | 'released' | 'closed' = 'open';
  #loop: EventLoop<Userfaultfd> | undefined;
  /** The argument for `closed`, which is called once the current callback has returned. */
  #pendingClosed: { error?: UffdError } | undefined;

  private constructor(
    session: Session,
    kernel: Kernel,
    features: bigint,
    ranges: readonly RegisteredRange[],
    chunks: Iterable<Uint8Array>,
    method?: OpenMethod,
    recorder?: TraceWriter,
  ) {
    this.#session = session;
    this.#recorder = recorder;
    this.#kernel = kernel;
    this.features = featureNames(features);
    this.pageSize = kernel.pageSize;
    this.#method = method;
    this.via = method?.via;
    this.userModeOnly = method?.userModeOnly;
    this.#host = {
      session,
      stopper: this.#stopper,
      stopRequested: () => {
        const { requested } = this.#stopper;
        return session.port.sense?.(requested) ?? requested;
      },
      owner: this,
      isOpen: () => this.#state === 'open',
      adopt: (fd) => this.#child(fd),
      end: (error) => this.#end(error),
      settle: () => this.#callClosed(),
    };
    session.core.arguments(0n, 0, features).start(Math.log2(kernel.pageSize));
    for (const range of ranges) this.#adoptRange(range);
    session.loadPages(chunks);
    // Make the eventfd now: if no descriptor is free later, `close` closes the eventfd first, to make room for a forked
    // child's descriptor.
    if (this.features.has('event-fork')) this.#takeEventfd();
    // No closure here, because it would keep this object alive.
    if (!kernel.elsewhere)
      addOpenUffd(this, { session, stopper: this.#stopper, features: this.features, recorder });
  }

  /**
   * Whether this system has userfaultfd. Makes the system call with flags that no kernel accepts, so no descriptor is
   * made. The result says nothing about permission. Never throws.
   */
  static isSupported(): boolean {
    try {
      return system().trySyscall(0x7fffffff) !== -(Errno.ENOSYS as number);
    } catch {
      return false;
    }
  }

  /**
   * Opens a userfaultfd: non-blocking, close-on-exec, with features that are fixed for its life.
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
   * @throws UnsupportedError if this is not Linux, koffi is missing, or the kernel lacks a feature
   * @throws UffdError EPERM (no privilege), ENOSYS, EMFILE; the message says what to do
   */
  static open(options: OpenOptions = {}): Userfaultfd {
    checkOpening(options);
    const { userModeOnly = 'auto', via = 'auto' } = options;
    checkOpenMethod(via, userModeOnly);
    checkPid(options.pid);
    const features = featureBits(options.features ?? [], 'features');
    const optional = featureBits(options.optional ?? [], 'optional');
    const kernel = recorded(options.kernel ?? system().kernel(), options.record, () => ({
      how: 'open',
      options: { via, userModeOnly, ...pidOption(options.pid) },
      features: [...featureNames(features)],
      optional: [...featureNames(optional)],
    }));
    const core = instantiate();
    const port = kernel.attach(core.memory);
    const { fd, method } = openDescriptor(core, port, openMethods(via, userModeOnly));
    const session = new Session(core, port, fd, kernel.pageSize);
    try {
      const granted = handshake(session, method, features, optional);
      if (options.pid !== undefined) session.watchProcess(options.pid);
      return new Userfaultfd(session, kernel, granted, [], [], method, options.record);
    } catch (error) {
      session.unwatchProcess();
      port.close(fd);
      throw error;
    }
  }

  /**
   * What this kernel offers this user. Opens a descriptor to ask the kernel, and closes it again.
   *
   * @throws UnsupportedError, UffdError as `open` does
   */
  static probe(options: ProbeOptions = {}): Probe {
    checkOpening(options);
    const { via = 'auto', userModeOnly = 'auto', kernel = system().kernel() } = options;
    checkOpenMethod(via, userModeOnly);
    const core = instantiate();
    const { method, features, operations } = probe(
      core,
      kernel.attach(core.memory),
      openMethods(via, userModeOnly),
    );
    return {
      ...method,
      pageSize: kernel.pageSize,
      features: featureNames(features),
      operations: operationNames(operations),
    };
  }

  /**
   * Adopts a descriptor whose handshake is done: one received over a socket, or released on another thread.
   * It then belongs to the new object; if this throws, it still belongs to the caller.
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
   * @throws UffdError EBADF, ENOTTY (not a userfaultfd), EINVAL (its handshake is not done), ESRCH (no such process)
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
      options: pidOption(options.pid),
      features: [...featureNames(features)],
      ranges: ranges.map(encodeRange),
      ...(chunks.length > 0 ? { pages: chunks.map(encodeChunk) } : {}),
    }));
    const core = instantiate();
    const session = new Session(core, kernel.attach(core.memory), fd, kernel.pageSize);
    const probed = session.probe();
    if (probed < 0) throw new UffdError(probed, 'wrap');
    session.knowsAllRanges = options.ranges !== undefined;
    try {
      if (options.pid !== undefined) session.watchProcess(options.pid);
      session.unblock();
      return new Userfaultfd(session, kernel, features, ranges, chunks, undefined, options.record);
    } catch (error) {
      session.unwatchProcess();
      throw error;
    }
  }

  /**
   * Requests a loop on another thread to stop. `handle` is the `stopHandle` of the object that runs it. The loop
   * ends after the current callback; if none runs yet, the next one ends at once.
   */
  static stop(handle: SharedArrayBuffer): void {
    if (!isStopHandle(handle)) throw wrongType('handle', "a Userfaultfd's stopHandle", handle);
    new StopSignal(handle).request(system().eventfdSignal());
  }

  /** Post this to another thread, for `Userfaultfd.stop`. */
  get stopHandle(): SharedArrayBuffer {
    return this.#stopper.shared;
  }

  /** The descriptor; −1 once closed or released. */
  get fd(): number {
    return this.#state === 'open' ? this.#session.fd : -1;
  }

  /** Whether it was closed or released: then only `close` may be called. */
  get closed(): boolean {
    return this.#state !== 'open';
  }

  /** Whether a loop serves faults now. */
  get waiting(): boolean {
    return this.#loop?.running ?? false;
  }

  /**
   * Whether faults were read that are not answered yet: the next `poll`, or one soon after it, offers them without a new
   * message.
   *
   * @internal
   */
  get hasDeferred(): boolean {
    return !this.closed && this.#session.core.waiting > 0;
  }

  /**
   * The registered ranges, in ascending order; adjacent ranges that are alike are merged. The list reflects unmaps and
   * remaps that were delivered to the handler, and stays readable after `release` and `close`.
   */
  get ranges(): readonly RegisteredRange[] {
    const ranges = this.#session.ranges();
    if (this.closed) return ranges;
    const pages = this.#records.of(ranges, this.pageSize);
    return ranges.map((range) => ({ ...range, pages }));
  }

  /**
   * Registers `length` bytes at `start`, whole pages. The memory may have holes. If it is registered already and has
   * all of these modes, nothing changes; otherwise the kernel replaces its modes.
   *
   * For memory in huge pages, ranges here and in every fill must be whole huge pages. Register neighbouring ranges of
   * different page sizes separately.
   *
   * @returns the operations that the range allows (huge pages, for example, have no zero page)
   * @throws RangeError, TypeError; UffdError EINVAL, EBUSY, EPERM, ENOMEM; the error of /proc/PID/smaps if the size of
   *   huge pages cannot be read there. Nothing is registered then; pass `options.pageSize`
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
    this.#session.note(Note.REGISTER, start, length, modes, BigInt(options.pageSize ?? 0));
    const { core } = this.#session;
    const result = this.#session.ioctl(core.arguments(start, length).requestRegister(modes));
    if (result < 0) {
      const names = modeNames(modes);
      const error = new UffdError(result, 'UFFDIO_REGISTER', { address: start, length, modes: names });
      throw explained(error, requirementsOfModes(names), this.#session);
    }
    core.exports.registerGranted();
    const bits = core.third;
    const operations = operationNames(bits);
    try {
      const pageSize = options.pageSize ?? this.#session.registeredPageSize(start, operations);
      if (!core.arguments(start, length, bits).rangePut(modes, Math.log2(pageSize))) throw noMemory();
    } catch (error) {
      this.unregister(start, length);
      throw error;
    }
    return operations;
  }

  /**
   * Unregisters a range, and wakes waiters of every kind. Missing pages become zeros. (The kernel itself does not wake
   * waiters of write-protect and minor faults.) The object remembers which pages were removed, in case the memory is
   * registered again. If other memory is mapped there by then, call `forget`.
   *
   * @throws RangeError, TypeError; UffdError EINVAL, ENOMEM
   */
  unregister(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_UNREGISTER');
    this.#session.note(Note.UNREGISTER, start, length);
    this.#session.unregister(start, length);
    unregistered();
  }

  /**
   * Forgets the states of the pages in a range. Call it if other memory is mapped there now and no event reported that.
   * All pages of the range then count as missing. (`Mapping.close` calls it.)
   *
   * @throws RangeError, TypeError
   */
  forget(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('forget');
    this.#session.forget(start, length);
  }

  /**
   * Installs pages with the bytes of `src` (any alignment) at `dst`, and wakes their waiters. If the kernel reports
   * that a page is there already (EEXIST), its waiters are woken, it counts as resolved, and its contents stay. A
   * write-protected page stays write-protected.
   *
   * EEXIST does not change a page's recorded state: the kernel also reports it if the pool of huge pages is empty. If
   * such a page faults again, its fault is offered after a delay, with `repeats` set.
   *
   * The kernel reads `src` on this thread, so `src` must not lie in memory that this thread serves. For huge pages,
   * touch `src` before: otherwise the kernel takes one more page from the pool for a moment, or fails with ENOMEM.
   *
   * @example
   * ```ts
   * import { Mapping, Userfaultfd } from 'userfaultfd';
   *
   * const memory = Mapping.anonymous(4 * 4096);
   * const uffd = Userfaultfd.open();
   * uffd.register(memory.address, memory.length);
   *
   * // A page can be filled before any thread waits for it.
   * const done = uffd.copy(memory.address, new Uint8Array(2 * 4096).fill(7));
   * console.log(done, uffd.pageState(memory.address), uffd.pageState(memory.address + 8192n));
   * uffd.close();
   * ```
   *
   * @param length whole pages; default: all of `src`, which must then be whole pages
   * @returns bytes resolved. They are fewer than `length` if a mapping change came first, a page is not mapped or not
   *   registered, or the process is gone. The pages before that point were resolved. If a handler fills around an
   *   unmapped page, the page of its fault is resolved too. If the page of the fault was not resolved, return `false`:
   *   the fault is offered again if its thread still waits.
   * @throws RangeError, TypeError; UffdError EFAULT (source), ENOMEM, EINVAL with `transferred`; ENOENT if the range is
   *   not registered and never was, as far as this object knows (register, `ranges` of wrap, a fork, a move)
   */
  copy(dst: bigint, src: ArrayBufferView | bigint, length?: number, options: CopyOptions = {}): number {
    if (typeof src === 'bigint') {
      checkAddress(src, 'src');
      // A missing length is refused there, like any other wrong length.
      return this.#transfer(Op.COPY, dst, length as number, fillBits(options), src, 'dst');
    }
    checkView(src, 'src');
    const bytes = length ?? src.byteLength;
    if (bytes > src.byteLength) {
      throw outOfRange('length', `at most what src holds, ${src.byteLength} bytes`, bytes);
    }
    return this.#transfer(Op.COPY, dst, bytes, fillBits(options), src, 'dst');
  }

  /**
   * Installs zero pages. Returns and throws like `copy`; EINVAL for huge pages, which have no zero page. A write-protected
   * page gets a copy of zeros, and stays write-protected.
   */
  zero(start: bigint, length: number, options: FillOptions = {}): number {
    return this.#transfer(Op.ZEROPAGE, start, length, fillBits(options));
  }

  /**
   * Maps pages that are in the page cache of a shared mapping: the answer to minor faults. Returns like
   * `copy`; throws UffdError EFAULT (not in the page cache), EINVAL (memory that is not shared).
   */
  continue(start: bigint, length: number, options: CopyOptions = {}): number {
    return this.#transfer(Op.CONTINUE, start, length, fillBits(options));
  }

  /**
   * Poisons pages whose data is lost: a thread that touches them gets SIGBUS, and a system call gets EFAULT. Linux 6.6.
   */
  poison(start: bigint, length: number, options: FillOptions = {}): number {
    return this.#transfer(Op.POISON, start, length, fillBits(options));
  }

  /**
   * Moves pages from `src` to `dst` without a copy: same process, private anonymous memory. Linux 6.8.
   * Returns like `copy`; throws UffdError EBUSY (shared after a fork), EEXIST (the target has a page already: the
   * source keeps the rest), ENOENT (the source has a hole).
   */
  move(dst: bigint, src: bigint, length: number, options: MoveOptions = {}): number {
    checkPageAddress(src, 'src', this.pageSize);
    const bits = fillBits(options) | (options.allowHoles ? Option.ALLOW_HOLES : 0);
    return this.#transfer(Op.MOVE, dst, length, bits, src, 'dst');
  }

  /**
   * Write-protects pages, or removes the protection. Removing it wakes every waiter in the range, unless `dontWake`.
   * `dontWake` has no effect if `on` is true. Linux 5.7; the range must be registered for write-protect.
   */
  writeProtect(start: bigint, length: number, on: boolean, options: FillOptions = {}): number {
    checkBoolean(on, 'on');
    const bits = on ? Option.WRITE_PROTECT : fillBits(options);
    return this.#transfer(Op.WRITEPROTECT, start, length, bits);
  }

  /** Wakes the waiters of a range without installing anything. A thread whose page is still missing faults again. */
  wake(start: bigint, length: number): void {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_WAKE');
    this.#session.note(Note.WAKE, start, length);
    const result = this.#session.wake(start, length);
    if (result < 0) throw new UffdError(result, 'UFFDIO_WAKE', { address: start, length });
  }

  /**
   * The state of the page that holds `address`, as far as this object knows: `missing`; `present`, installed by this
   * object; `removed`, removed by madvise, so it needs zeros and never the source's data; `in-flight`, claimed by
   * `claim`. A page that was removed, was then filled, and faults again, is `removed` again: the kernel removes pages
   * only after the event was read, including those that were filled in between. If a page is `present` and faults
   * without a removal, fill it as if it were missing. This object does not know of changes by other programs, or of
   * removals without 'event-remove'.
   *
   * If mremap moves the memory, the library moves the states too. It copies them to the object of a forked child, and
   * with `ranges` to the object that wraps a released descriptor.
   */
  pageState(address: bigint): PageState {
    checkAddress(address, 'address');
    return PAGE_STATES[this.#session.core.arguments(address).pageAt() & 3] as PageState;
  }

  /** Whether this object has write-protected the page that holds `address`. */
  isWriteProtected(address: bigint): boolean {
    checkAddress(address, 'address');
    return (this.#session.core.arguments(address).pageAt() & 4) !== 0;
  }

  /**
   * Claims the missing pages of a range while you fetch their data. A removal ends the claim of a page: check
   * `pageState` again before you install the data, and install zeros if the page is `removed`.
   *
   * @returns how many pages were missing, and are now `in-flight`
   */
  claim(start: bigint, length: number): number {
    checkRange(start, length, this.pageSize);
    this.#session.note(Note.CLAIM, start, length);
    return this.#session.core.arguments(start, length).pageClaim();
  }

  /**
   * Returns the pages to fill together for a fault: the pages around it that have the same state (missing or removed),
   * in its registered range and in the aligned window of `pages` pages of that range's page size. With `'adaptive'` the
   * window grows with the length of the sequential run; then call this once for each fault. A page that is `present` is
   * returned alone: another program may have removed it, and if none has, filling it wakes its waiters. Length 0 means
   * that the page is claimed.
   */
  window(page: bigint, pages: Window): { start: bigint; length: number } {
    checkAddress(page, 'page');
    checkWindow(pages, 'pages');
    if (pages === 'adaptive') this.#session.note(Note.WINDOW, page, 0, windowBits(pages) | 0);
    const count = this.#session.core.arguments(page).pageWindow(windowBits(pages));
    const { start, pageShift } = this.#session.core;
    return { start, length: count * 2 ** pageShift };
  }

  /**
   * Sets the source of missing pages. The loop answers their faults from it, and also installs the missing pages of the
   * window around each fault. It calls `handler.answered` instead of `handler.pagefault`. This is a shortcut, not a
   * guarantee. The handler is still called for claimed pages, for removed pages unless `options.removed` is 'zeros',
   * for huge pages of zeros, if the copy fails, and if a source was forgotten. (At most 16,384 sources are kept: a
   * further one replaces another.) So the handler must give the same answers.
   *
   * `src` must not change until the memory is unregistered, unmapped or moved, or has another source. A view is kept
   * alive until then; an address keeps nothing alive.
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
   * @param src where the data of the page at `start` lies; or 'zeros'
   * @returns true
   * @throws RangeError, TypeError
   */
  answerFrom(
    start: bigint,
    length: number,
    src: ArrayBufferView | bigint | 'zeros',
    options: SourceOptions = {},
  ): boolean {
    checkOptions(options, 'options');
    const { window = 1, removed = 'ask', zeroRuns = false } = options;
    checkRange(start, length, this.pageSize);
    checkWindow(window, 'window');
    checkOneOf(removed, 'removed', ['ask', 'zeros']);
    checkBoolean(zeroRuns, 'zeroRuns');
    const view = typeof src === 'object' ? src : undefined;
    if (typeof src === 'bigint') checkAddress(src, 'src');
    else if (src !== 'zeros') {
      checkView(src, 'src');
      if (length > src.byteLength)
        throw outOfRange('length', `at most what src holds, ${src.byteLength} bytes`, length);
    }
    this.#mustBeOpen('answerFrom');
    const session = this.#session;
    let kind: SourceKind = SourceKind.ZEROS;
    if (src !== 'zeros') kind = removed === 'zeros' ? SourceKind.DATA_OR_REMOVED : SourceKind.DATA;
    // A source may be a whole snapshot, so a trace holds only its address, even if it holds the contents of copies.
    const port = session.port.unrecorded ?? session.port;
    const address = typeof src === 'bigint' ? src : view ? port.addressOf(view) : 0n;
    const bits = sourceWindow(window, zeroRuns);
    session.note(Note.SOURCE, start, length, sourceBits(kind, bits), address);
    session.sources.put(start, length, kind, address, bits, view);
    return true;
  }

  /** Forgets all sources that `answerFrom` has set. From then on, the handler is called for every fault. */
  forgetSources(): void {
    if (!this.closed) this.#session.note(Note.SOURCE);
    this.#session.sources.clear();
  }

  /**
   * Installs the first run of missing pages of a range from its source (`answerFrom`), before a thread touches them.
   *
   * @returns three numbers of bytes, which follow one another from `start` on: `passed` (skipped, because they are not
   *   missing), `installed`, and `leftOut` (because of EEXIST, or because they are not mapped). Undefined: the first
   *   missing page has no source
   * @throws what `copy` throws
   */
  fillAhead(start: bigint, length: number, options: FillOptions = {}): Ahead | undefined {
    checkRange(start, length, this.pageSize);
    this.#mustBeOpen('UFFDIO_COPY');
    const bits = fillBits(options);
    this.#session.note(Note.AHEAD, start, length, bits);
    try {
      return this.#session.fillAhead(start, length, bits);
    } finally {
      this.#loop?.follow();
    }
  }

  /** Whether any part of `length` bytes at `start` is registered here. */
  watches(start: bigint, length: number): boolean {
    checkAddress(start, 'start');
    checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
    return this.#session.core.arguments(start, length).rangeMeets() !== 0;
  }

  /**
   * Serves faults. With `wait: 'poll'` (default), it serves on the event loop: it returns at once, and keeps the
   * process alive. With 'block', 'spin' or 'adaptive', it serves in this thread, and returns when it is stopped.
   *
   * If the handler throws, or a promise that it returned rejects, `onError` decides. By default the loop ends with the
   * error. The error reaches the caller of `start`; with 'poll' it is an uncaught exception. The next `start` offers
   * the fault again; `close` wakes every thread. After an uncaught exception the process ends even if its threads sleep
   * in page faults; no thread reads zeros meanwhile.
   *
   * A handler may return a promise under 'poll' only. Under the other waits the loop ends with a TypeError, code
   * ERR_INVALID_RETURN_VALUE, if the fault is not resolved when `pagefault` returns.
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
   *     // Fewer bytes: a mapping change came first. The fault is offered again.
   *     return uffd.copy(page, content) === content.length;
   *   },
   *   closed: () => console.log('closed'),
   * });
   *
   * // Touch the memory from another thread than the one that serves it.
   * const toucher = new Worker(
   *   `import { workerData } from 'node:worker_threads';
   *    import { Mapping } from 'userfaultfd';
   *    console.log(Mapping.attach(workerData).bytes[0]);`,
   *   { eval: true, workerData: memory.share() },
   * );
   * toucher.on('exit', () => uffd.close());
   * ```
   *
   * @returns false if the descriptor is closed or released, or if there is no handler. A second call while a loop runs
   *   returns true, warns, and keeps the first handler.
   * @throws UffdError if reading fails: the object is closed then, and `closed` was called; or what the handler throws
   */
  start<Handler extends FaultHandler>(handler: Handler, options?: StartOptionsFor<Handler>): boolean;
  start(handler: FaultHandler, options: StartOptions = {}): boolean {
    checkOptions(options, 'options');
    const { wait = 'poll', placement = 'none', onError } = options;
    checkOneOf(wait, 'wait', WAITS);
    checkPlacement(placement);
    if (onError !== undefined) checkFunction(onError, 'onError');
    if (this.closed || !handler) return false;
    this.#session.note(Note.START, 0n, WAITS.indexOf(wait));
    if (!this.#session.isOpen()) return false;
    checkFunction(handler.pagefault, 'handler.pagefault');
    if (this.#loop?.running) {
      warn('a loop is running already; it keeps its handler');
      return true;
    }
    if (this.#loop?.inBatch)
      throw invalidState('start: called from inside a callback of the same userfaultfd');
    const stopFd = this.#takeEventfd();
    if (stopFd < 0) throw new UffdError(stopFd, 'eventfd');
    this.#useHandler(handler).run(wait, stopFd, placement, onError);
    return true;
  }

  /** Ends the loop after the current callback. The descriptor stays open, and `start` continues with what is left. */
  stop(): void {
    if (this.closed || !this.#loop) return;
    this.#session.note(Note.STOP);
    this.#loop.stop();
  }

  /**
   * Runs one batch without a loop: reads the messages that are queued, calls the handler and returns. It does not wait.
   *
   * A handler may return a promise, which settles when the event loop runs. If it rejects, and `onError` does not
   * return 'continue', the error is an uncaught exception; the next batch offers the fault again.
   *
   * @param handler default: the one of the last `start` or `poll`
   * @returns how many messages were handled
   */
  poll(handler?: FaultHandler, options: PollOptions = {}): number {
    checkOptions(options, 'options');
    const { onError } = options;
    if (onError !== undefined) checkFunction(onError, 'onError');
    this.#mustBeOpen('read');
    this.#session.note(Note.POLL, 0n, handler === undefined ? 0 : 1);
    if (handler !== undefined) {
      checkFunction(handler?.pagefault, 'handler.pagefault');
      if (this.#loop?.running) throw invalidState('poll: a loop is running; it has a handler of its own');
      if (!this.#loop?.inBatch) this.#useHandler(handler);
    }
    if (!this.#loop) throw invalidState('poll: there is no handler; pass one');
    if (this.#loop.inBatch) throw invalidState('poll: called from inside a callback of the same userfaultfd');
    return this.#loop.once(onError);
  }

  /**
   * Gives the descriptor away, and stops watching it. Threads whose faults were read and not answered are woken and
   * fault again, so the next owner reads their faults. Mapping changes that were read are delivered to the handler
   * first; then `closed` is called.
   *
   * If one of these callbacks throws, the descriptor is still given away, and the error is an uncaught exception.
   *
   * To hand it to another thread: post `fd`, `ranges` and `features` there, and `wrap` them.
   *
   * @throws UffdError EBADF if it was closed or released before
   */
  release(): number {
    this.#mustBeOpen('release');
    this.#session.note(Note.RELEASE);
    const { fd } = this.#session;
    this.#loop?.stop();
    this.#state = 'released';
    const loop = this.#loop;
    this.#session.end(false, loop && ((change) => this.#throwingLater(() => loop.deliver(change))));
    this.#session.unwatchProcess();
    this.#records.fill(() => this.#session.savePages());
    this.#throwingLater(() => this.#endWatch());
    return fd;
  }

  /** Calls the handler in a sequence that must complete: what it throws becomes an uncaught exception later. */
  #throwingLater(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#session.port.after(0, () => {
        throw error;
      });
    }
  }

  /**
   * Closes the userfaultfd: every waiting thread is woken, and missing pages become zeros. If that would lose data,
   * fill or poison these pages first. Idempotent; inside a callback it takes effect at once, and `closed` is called
   * when the callback has returned.
   */
  close(): void {
    if (this.#state === 'open') this.#session.note(Note.CLOSE);
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
    this.#session.close();
    this.#endWatch(error);
  }

  /** Ends this object's watch. */
  #endWatch(error?: UffdError): void {
    deleteOpenUffd(this);
    this.#session.sources.clear();
    this.#closeStopEventfd();
    if (!this.#loop) {
      this.#recorder?.close();
      return;
    }
    this.#pendingClosed = error ? { error } : {};
    if (!this.#loop.inBatch) this.#callClosed();
  }

  #closeStopEventfd(): void {
    if (this.#stopFd < 0) return;
    this.#stopper.publish(-1);
    this.#session.port.close(this.#stopFd);
    this.#stopFd = -1;
  }

  #callClosed(): void {
    const pending = this.#pendingClosed;
    if (!pending) return;
    this.#pendingClosed = undefined;
    let result: bigint = CallbackResult.threw;
    try {
      this.#loop?.handler.closed?.(pending.error);
      result = CallbackResult.returned;
    } finally {
      this.#session.note(Note.ANSWER, result);
      this.#recorder?.close();
    }
  }

  #useHandler(handler: FaultHandler): EventLoop<Userfaultfd> {
    if (this.#loop?.handler !== handler) this.#loop = new EventLoop(this.#host, handler);
    return this.#loop;
  }

  /** The eventfd that other threads signal, made if there is none; −errno if it cannot be made. */
  #takeEventfd(): number {
    if (this.#stopFd >= 0) return this.#stopFd;
    const fd = this.#session.port.eventfd();
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
    this.#mustBeOpen(OPERATION_NAMES[operation] as string);
    const isAddress = typeof source === 'bigint';
    this.#session.note(operation, start, length, options, isAddress ? source : 0n);
    const address = isAddress ? source : this.#session.port.addressOf(source);
    try {
      return this.#session.fill(operation, options, start, length, address);
    } catch (error) {
      if (!(error instanceof UffdError)) throw error;
      throw explained(error, requirementsOf(operation, options), this.#session);
    } finally {
      this.#loop?.follow();
    }
  }

  #adoptRange(range: RegisteredRange): void {
    const { start, length, modes, operations, pageSize } = range;
    const { core } = this.#session;
    const bits = operationBits(operations);
    if (!core.arguments(start, length, bits).rangePut(modeBits([...modes]), Math.log2(pageSize)))
      throw noMemory();
  }

  /** The object of a child that a fork event brought: it watches what this one watched at the fork. */
  #child(fd: number): Userfaultfd {
    try {
      const core = instantiate();
      const session = new Session(core, this.#kernel.attach(core.memory), fd, this.pageSize);
      // The event does not identify the child process, but whether its memory still exists can be checked.
      session.watched = true;
      session.knowsAllRanges = this.#session.knowsAllRanges;
      return new Userfaultfd(
        session,
        this.#kernel,
        featureBits(this.features, 'features'),
        this.#session.ranges(),
        this.#session.savePages(),
        this.#method,
      );
    } catch (error) {
      this.#session.port.close(fd);
      throw error;
    }
  }

  #mustBeOpen(syscall: string): void {
    if (this.closed) throw new UffdError(Errno.EBADF as number, syscall);
  }
}

/** The kernel, wrapped in a recorder if there is a writer. */
function recorded(kernel: Kernel, record: TraceWriter | undefined, origin: () => OpenParameters): Kernel {
  return record ? recordingKernel(kernel, record, { origin: origin() }) : kernel;
}

function pidOption(pid: number | undefined): { pid?: number } {
  return pid === undefined ? {} : { pid };
}

/** Checks the options of `open`, `probe` and `wrap` that are objects. */
function checkOpening(options: OpenOptions | WrapOptions): void {
  checkOptions(options, 'options');
  const { kernel, record } = options;
  if (kernel !== undefined) checkMethod(kernel, 'kernel', 'attach', 'a kernel to run on');
  if (record !== undefined) checkMethod(record, 'record', 'start', 'a TraceWriter');
}

function checkOpenMethod(via: unknown, userModeOnly: unknown): void {
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
