// A simulated Linux: processes, threads, userfaultfds and a scheduler whose every decision comes from a chooser. It
// is a `Kernel` like the real one, so the real `Userfaultfd` and a real handler run on it unchanged.
//
// Rules:
//  - One thing happens at a time: a step of a simulated thread, or a callback on the handler's event loop. The chooser
//    decides which. Threads may also run before a call of the port. The handler is preempted there, and nowhere else.
//  - Time is virtual (src/sim/clock.ts).
//  - The plainest choice is the thread that has waited longest, so a run of plain choices is fair.
//  - Nothing in the simulation is random or depends on the machine: the same choices give the same run.

import { checkInteger, checkMethod, checkOneOf, checkOptions, outOfRange } from '../errors/arguments.js';
import { type Feature, featureBits } from '../kernel/features.js';
import type { Kernel, KernelPort, LinearMemory, Watch } from '../kernel/port.js';
import { ADVICE, FEATURE, PROT } from './abi.js';
import { type Chooser, Random } from './chooser.js';
import { Clock, STEP_MS, Stuck } from './clock.js';
import { drop, type File, Files } from './files.js';
import { type Inject, Injector } from './injection.js';
import type { Context, EventMessage } from './memory.js';
import { AddressSpace, NEXT_OBJECT, NOT_DUMPED, PRIVATE, tableSpan, type Vma } from './memory.js';
import { madvise } from './memory-syscalls.js';
import { HugePool } from './pool.js';
import { SimulatedPort } from './port.js';
import type { Caller } from './resolve.js';
import { SharedMemory } from './shared-memory.js';
import { type ProcessHost, type Program, SimulatedProcess, SimulatedThread } from './thread.js';
import { compareVersions, featuresOf } from './versions.js';

export interface SimulationOptions {
  /** Seed of the random choices, which decides the run; default 1. */
  seed?: number;
  /** Makes the random choices, in place of a seed. */
  chooser?: Chooser;
  /** The kernel version to simulate: '4.14', '6.1'. Default: the newest that is known. */
  version?: string;
  /** The features of the kernel; default: those of its version. */
  features?: Iterable<Feature>;
  /** Bytes of a page: 4096 (default), 16384 or 65536. */
  pageSize?: number;
  /** Whether the user has the privilege CAP_SYS_PTRACE. Default true. */
  privileged?: boolean;
  /**
   * Probability that a thread runs before a call of the port is made. After that, another one may run with the same
   * probability, and so on. Default 0.3.
   */
  preemption?: number;
  /** Most descriptors that may be open. Default 1024. */
  descriptors?: number;
  /** Huge pages in the system's pool. Default: more than any run needs. */
  hugePages?: number;
  /** Bytes of a huge page: 65536 (default) or 2 MiB. */
  hugePageSize?: number;
  /** Failures to inject; default: none. */
  inject?: Inject;
  /** If no thread makes progress for this many virtual milliseconds, the run fails. Default: no limit. */
  patienceMs?: number;
}

/** The address of the first mapping. */
const FIRST_ADDRESS = 0x7f00_0000_0000;
const PAGE_SIZE = 4096;
/** The page sizes that Linux has. */
const PAGE_SIZES = [4096, 16384, 65536];
const NEWEST = '6.18';
/** The traits of memory in small pages: it never has transparent huge pages, and is not reserved (MAP_NORESERVE). */
const SMALL_PAGES = 1;
/** Bytes of a huge page of a pool: the smallest that Linux has with pages of 4 KiB (on arm64), and that of x86-64. */
const HUGE_PAGE = 65536;
const HUGE_PAGES = [HUGE_PAGE, 2 ** 21];

/** Most pages that an injected split turns into a mapping of their own. */
const SPLIT_MOST = 4;
/** After so many calls of the port in a row in which no thread has run, one does: a thread that can run is not starved. */
const ALONE_MOST = 128;

/** Options of mapping memory. */
export interface SimulatedMemory {
  /** PROT_READ 1 | PROT_WRITE 2; both by default. */
  protection?: number;
  /** The process that maps it; default: the handler's. */
  process?: SimulatedProcess;
  /**
   * Whether it is in huge pages (`hugePageSize`), from a pool that may be empty. Such memory is private, and not reserved
   * (MAP_NORESERVE).
   */
  huge?: boolean;
  /** Indexes of the pages at which another memory object (such as a memfd) begins, adjacent to the one before. */
  objects?: readonly number[];
}

/** Options of mapping a memory object. */
export interface SharedMapping {
  /** PROT_READ 1 | PROT_WRITE 2; both by default. */
  protection?: number;
  /** The process that maps it; default: the handler's. */
  process?: SimulatedProcess;
  /** The page of the object that is mapped first; default 0. */
  firstPage?: number;
  /**
   * Whether the mapping is private (MAP_PRIVATE): it shows the object's pages, and a page that is written becomes a copy
   * of its own. Default: shared (MAP_SHARED).
   */
  private?: boolean;
  /**
   * Pages of the mapping; default: up to the end of the object. A touch of a page beyond the end of the object raises
   * SIGBUS.
   */
  pages?: number;
}

interface Readiness {
  fd: number;
  turn: number;
  ready(): void;
}

/** A step that can happen next. */
interface Candidate {
  /** The step at which it had its last turn. */
  turn: number;
  happen(): void;
}

/**
 * A simulated Linux to run a `Userfaultfd` on. It runs on any machine, one step at a time, and the same run can be
 * repeated.
 *
 * @example
 * ```ts
 * import { type Program, read, SimulatedKernel, Userfaultfd } from 'userfaultfd/sim';
 *
 * const kernel = new SimulatedKernel({ seed: 7, version: '6.1' });
 * const memory = kernel.map(2);
 * const uffd = Userfaultfd.open({ kernel });
 * uffd.register(memory, 2 * kernel.pageSize);
 * uffd.start({
 *   pagefault({ page }) {
 *     uffd.copy(page, new Uint8Array(kernel.pageSize).fill(65));
 *   },
 * });
 *
 * function* reader(): Program {
 *   console.log(yield read(memory));
 *   uffd.close();
 * }
 * kernel.thread(reader());
 * while (kernel.step());
 * ```
 */
export class SimulatedKernel implements Kernel {
  readonly pageSize: number;
  readonly elsewhere = true;
  readonly version: string;
  /** The bits of the features of this kernel. */
  readonly offered: bigint;
  /** @internal */
  readonly files: Files;
  readonly chooser: Chooser;
  readonly processes: SimulatedProcess[] = [];
  readonly threads: SimulatedThread[] = [];
  /** The process in which the handler runs. */
  readonly process: SimulatedProcess;
  /** Steps so far. */
  steps = 0;
  /** Callbacks of the event loop so far. */
  turns = 0;
  /**
   * Injects failures.
   *
   * @internal
   */
  readonly injector: Injector | undefined;
  readonly #clock: Clock;
  /** Called for each event, with one line. */
  observer: ((line: string) => void) | undefined;
  /** The pool of huge pages. */
  readonly hugePool: HugePool;
  readonly #preemption: number;
  /** Calls of the port in a row during which no thread has run. */
  #alone = 0;
  readonly #hugePageSize: number;
  readonly #watches = new Set<Readiness>();
  /** Cached results of `isAtLeast`, which every call needs. */
  readonly #isAtLeast = new Map<string, boolean>();
  readonly #copies = new Map<SimulatedProcess, File[]>();
  /** Whether huge pages were ever mapped. */
  #hasHuge = false;
  #nextAddress = FIRST_ADDRESS;
  #lastId = 0;

  constructor(options: SimulationOptions = {}) {
    checkOptions(options, 'options');
    const { version = NEWEST, seed = 1, chooser = new Random(seed) } = options;
    if (!/^\d+\.\d+/.test(String(version)))
      throw outOfRange('version', "a kernel's version, like '6.1'", version);
    checkInteger(seed, 'seed', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
    this.version = version;
    this.pageSize = options.pageSize ?? PAGE_SIZE;
    checkOneOf(this.pageSize, 'pageSize', PAGE_SIZES);
    this.#hugePageSize = options.hugePageSize ?? HUGE_PAGE;
    checkOneOf(this.#hugePageSize, 'hugePageSize', HUGE_PAGES);
    this.chooser = chooser;
    this.offered = featureBits(options.features ?? featuresOf(version), 'features');
    this.files = new Files(options.descriptors ?? 1024);
    this.hugePool = new HugePool(options.hugePages ?? Number.MAX_SAFE_INTEGER);
    this.#preemption = options.preemption ?? 0.3;
    this.#clock = new Clock(options.patienceMs ?? Number.POSITIVE_INFINITY);
    if (options.inject) {
      this.injector = new Injector(options.inject, chooser, (what) => this.observer?.(`injected: ${what}`));
    }
    this.process = this.#process(new AddressSpace(this.pageSize), options.privileged ?? true);
  }

  /** Whether the kernel is at least as new as a version. */
  isAtLeast(version: string | undefined): boolean {
    if (version === undefined) return false;
    const known = this.#isAtLeast.get(version) ?? compareVersions(this.version, version) >= 0;
    this.#isAtLeast.set(version, known);
    return known;
  }

  /** The port through which a process calls this kernel; default: the handler's process. */
  attach(memory: LinearMemory, process: SimulatedProcess = this.process): KernelPort {
    return new SimulatedPort(this, memory, process);
  }

  /**
   * The port for the calls of a real process, which stands for the handler's process. `memory` holds the structs of its
   * calls, and `readCaller` reads its memory.
   *
   * @internal
   */
  attachForeign(memory: LinearMemory, readCaller: Caller['read']): KernelPort {
    return new SimulatedPort(this, memory, this.process, readCaller);
  }

  // ---- what there is -------------------------------------------------------------------------------------

  /** Maps private anonymous memory, by default in the handler's process. No other mapping is adjacent to it. */
  map(
    pages: number,
    protection: number = PROT.READ | PROT.WRITE,
    process: SimulatedProcess = this.process,
  ): bigint {
    return this.mapMemory(pages, { protection, process });
  }

  /** As `map`, with options: in huge pages, from several objects, or in another process. */
  mapMemory(pages: number, options: SimulatedMemory = {}): bigint {
    const { protection = PROT.READ | PROT.WRITE, process = this.process, huge, objects = [] } = options;
    const { space } = process;
    const pageSize = huge ? this.hugePageSize : this.pageSize;
    const bytes = pages * pageSize;
    const address = huge ? this.#placeHuge(bytes) : this.place(bytes);
    space.pool = this.hugePool;
    this.#hasHuge ||= huge === true;
    space.map(address, pages * pageSize, protection, huge ? 0 : SMALL_PAGES, pageSize);
    for (const page of objects) {
      space.change(address + page * pageSize, address + pages * pageSize, (vma) => {
        vma.traits += NEXT_OBJECT;
      });
    }
    return BigInt(address);
  }

  /**
   * memfd_create(2) and ftruncate(2): makes a shared memory object of `pages` pages. Its page cache is empty. Each call
   * of `mapShared` maps it once more.
   *
   * @example
   * ```ts
   * import { SimulatedKernel } from 'userfaultfd/sim';
   *
   * const object = new SimulatedKernel().memfd(16);
   * object.write(4096, new Uint8Array(4096).fill(65));
   * console.log(object.length, object.resident, object.holds(1));
   * ```
   */
  memfd(pages: number): SharedMemory {
    checkInteger(pages, 'pages', 1, Number.MAX_SAFE_INTEGER);
    const spaces = () => this.processes.map(({ space }) => space);
    return new SharedMemory(pages, this.pageSize, { spaces, preempt: () => this.preempt() });
  }

  /** Maps a shared memory object. No other mapping is adjacent to it. */
  mapShared(object: SharedMemory, options: SharedMapping = {}): bigint {
    const { protection = PROT.READ | PROT.WRITE, process = this.process, firstPage = 0 } = options;
    const { pages = object.pages - firstPage, private: copies = false } = options;
    checkInteger(firstPage, 'firstPage', 0, Number.MAX_SAFE_INTEGER);
    checkInteger(pages, 'pages', 1, Number.MAX_SAFE_INTEGER);
    const address = this.place(pages * this.pageSize);
    const traits = copies ? PRIVATE : 0;
    process.space.mapObject(address, pages * this.pageSize, protection, object, firstPage, traits);
    return BigInt(address);
  }

  /**
   * madvise(MADV_DONTNEED) that the handler calls itself; threads may run before it. On shared memory it removes the
   * entries of the mapping, and the object keeps its pages. Returns 0 or −errno. It throws if a userfaultfd with the
   * feature `event-remove` watches a part of the range: on Linux the handler would sleep until it reads its own message.
   */
  dontNeed(address: bigint, length: number, process: SimulatedProcess = this.process): number {
    this.preempt();
    const start = Number(address);
    const { space } = process;
    if (space.within(start, start + length).some(({ context }) => context?.has(FEATURE.EVENT_REMOVE))) {
      throw new Stuck('the handler waits in madvise until it reads its own message', 'asleep');
    }
    const { value } = madvise(space, start, length, ADVICE.DONTNEED).next();
    return value as number;
  }

  /** A free address at the start of a huge page. */
  #placeHuge(length: number): number {
    const size = this.#hugePageSize;
    return Math.ceil(this.place(length + size) / size) * size;
  }

  /** Bytes of a huge page of the pool. */
  get hugePageSize(): number {
    if (this.pageSize >= this.#hugePageSize)
      throw new RangeError('huge pages: only beside pages that are smaller');
    return this.#hugePageSize;
  }

  /** Makes a process other than the handler's, with memory of its own. */
  spawn(): SimulatedProcess {
    return this.#process(new AddressSpace(this.pageSize), this.process.privileged);
  }

  /** An address at which `length` bytes are free in every process. */
  place(length: number): number {
    const address = this.#nextAddress;
    // The distance ensures that no page table covers two of these areas.
    const span = tableSpan(this.pageSize);
    this.#nextAddress += (Math.ceil(length / span) + 1) * span;
    return address;
  }

  /** Makes a thread of a process; default: of the handler's. */
  thread(program?: Program, process: SimulatedProcess = this.process): SimulatedThread {
    if (program !== undefined) checkMethod(program, 'program', 'next', 'a generator that was called');
    // The first thread of a process has the number of the process.
    const tid = process.threads.length === 0 ? process.pid : ++this.#lastId;
    const thread = new SimulatedThread(tid, process, program);
    this.threads.push(thread);
    return thread;
  }

  #process(space: AddressSpace, privileged: boolean): SimulatedProcess {
    const surroundings: ProcessHost = {
      place: (length) => this.place(length),
      process: (parent, descriptors) => {
        const child = this.#process(new AddressSpace(this.pageSize), parent.privileged);
        if (descriptors === 'shared') return child;
        const files = this.files.all();
        for (const file of files) file.holders++;
        this.#copies.set(child, files);
        return child;
      },
      thread: (program, process) => this.thread(program, process),
      ended: (process) => this.dropFiles(process),
      progressed: () => this.#clock.progressed(),
    };
    const process = new SimulatedProcess(++this.#lastId, surroundings, space, privileged);
    this.processes.push(process);
    return process;
  }

  /** Drops the descriptors that a process copied. */
  dropFiles(process: SimulatedProcess): void {
    for (const file of this.#copies.get(process) ?? []) drop(file);
    this.#copies.delete(process);
  }

  // ---- time and callbacks --------------------------------------------------------------------------------

  /** Virtual milliseconds. */
  get now(): number {
    return this.#clock.now;
  }

  /**
   * To call after a call that resolves faults.
   *
   * @internal
   */
  filled(installed: boolean): void {
    this.#clock.filled(installed);
  }

  /** Ends the run: the next step, or the handler's next call, throws this error. */
  halt(error: Error): void {
    this.#clock.halted ??= error;
  }

  /** Whether the run was ended by an error, which the next step or call throws. */
  get halted(): boolean {
    return this.#clock.halted !== undefined;
  }

  after(delayMs: number, due: () => void): Watch {
    return this.#clock.after(delayMs, this.steps, due);
  }

  watch(fd: number, ready: () => void): Watch {
    const watch = { fd, turn: this.steps, ready };
    this.#watches.add(watch);
    return { close: () => void this.#watches.delete(watch) };
  }

  readable(fd: number): boolean {
    const file = this.files.get(fd);
    if (file?.is === 'userfaultfd') return file.context.readable;
    if (file?.is === 'eventfd') return file.count > 0;
    return file?.is === 'pidfd' && file.process.exited;
  }

  /** Signals an eventfd, as another thread does to stop a loop. */
  signal(fd: number): void {
    const file = this.files.get(fd);
    if (file?.is === 'eventfd') file.count++;
  }

  /**
   * To call when the message of a mapping change was read. The thread that makes the change continues, unless it is
   * held back.
   *
   * @internal
   */
  release(notice: EventMessage): void {
    const release = (): void => {
      notice.read = true;
    };
    const steps = this.injector?.stepsOf('held') ?? 0;
    if (steps > 0) this.#clock.hold(steps * STEP_MS, release);
    else release();
  }

  // ---- the scheduler -------------------------------------------------------------------------------------

  #runnable(): Candidate[] {
    this.#clock.releaseDue();
    const found: Candidate[] = [];
    for (const thread of this.threads) {
      if (!thread.runnable) continue;
      const happen = (): void => {
        this.#clock.attempted();
        thread.turn = this.steps;
        thread.step();
        this.observer?.(`thread ${thread.tid}: ${thread.describe()}`);
      };
      found.push({ turn: thread.turn, happen });
    }
    return found;
  }

  #callbacks(): Candidate[] {
    const found: Candidate[] = [];
    for (const watch of this.#watches) {
      if (!this.readable(watch.fd)) continue;
      const happen = (): void => {
        watch.turn = this.steps;
        this.#callBack('readable', () => watch.ready());
      };
      found.push({ turn: watch.turn, happen });
    }
    for (const timer of this.#clock.due()) {
      const happen = (): void => {
        this.#clock.remove(timer);
        this.#callBack('timer', () => timer.due());
      };
      found.push({ turn: timer.turn, happen });
    }
    return found;
  }

  #callBack(why: string, callback: () => void): void {
    this.turns++;
    this.observer?.(`event loop: ${why}`);
    callback();
  }

  /** Chooses one of the candidates, and runs it. */
  #choose(candidates: Candidate[]): void {
    if (candidates.length > 1) candidates.sort((a, b) => a.turn - b.turn);
    const chosen = candidates[this.chooser.below(candidates.length)] as Candidate;
    this.steps++;
    this.#clock.step();
    chosen.happen();
    if (this.injector) this.#disturb(this.injector);
  }

  /** Injects the events that may come at any step. */
  #disturb(injector: Injector): void {
    const asleep = this.threads.filter(({ wait }) => wait?.place === 'fault' && !wait.over());
    if (asleep.length > 0 && injector.happens('signal')) injector.pick(asleep).signals++;
    this.#disturbMemory(injector);
    const contexts = this.#contexts().filter(({ pending, reading }) => pending.length + reading.length > 0);
    if (contexts.length > 0 && injector.happens('wake')) {
      const context = injector.pick(contexts);
      const { address } = injector.pick([...context.pending, ...context.reading]);
      const page = context.space.startOf(address);
      context.wake(page, page + context.space.sizeAt(address));
    }
    const others = this.processes.filter(
      (one) => one !== this.process && !one.exited && one.threads.some(({ done }) => !done),
    );
    if (others.length > 0 && injector.happens('exit')) injector.pick(others).exit();
    else if (others.length > 0 && injector.happens('exec')) injector.pick(others).exec();
  }

  /** Injects borders of mappings or removes them, and lets another process empty the pool of huge pages. */
  #disturbMemory(injector: Injector): void {
    const watched = injector.knows('split') ? this.#watched() : [];
    if (watched.length > 0 && injector.happens('split')) {
      const { start, end, pageSize, context } = injector.pick(watched);
      const from = start + injector.below((end - start) / pageSize) * pageSize;
      const to = from + (1 + injector.below(SPLIT_MOST)) * pageSize;
      context.space.change(from, to, (vma) => {
        vma.traits ^= NOT_DUMPED;
      });
    }
    const steps = this.#hasHuge && this.hugePool.free > 0 ? injector.stepsOf('dry') : 0;
    if (steps === 0) return;
    this.hugePool.drain();
    this.#clock.hold(steps * STEP_MS, () => this.hugePool.refill());
  }

  /** Mappings that are watched. */
  #watched(): (Vma & { context: Context })[] {
    return this.#contexts().flatMap((context) =>
      context.space.vmas.filter((vma) => vma.context === context).map((vma) => ({ ...vma, context })),
    );
  }

  #contexts(): Context[] {
    return this.files.all().flatMap((file) => (file.is === 'userfaultfd' ? [file.context] : []));
  }

  /** Whether something can happen now, without time passing. */
  canStep(): boolean {
    return this.#runnable().length > 0 || this.#callbacks().length > 0;
  }

  /** Runs one step of a thread, or one callback of the event loop. False: nothing can ever happen any more. */
  step(): boolean {
    for (;;) {
      const candidates = [...this.#runnable(), ...this.#callbacks()];
      if (candidates.length > 0) {
        this.#choose(candidates);
        return true;
      }
      const { next } = this.#clock;
      if (next === Number.POSITIVE_INFINITY) return false;
      this.#clock.jump(next);
    }
  }

  /** Lets threads run before a call of the port. A thread that can run does, sooner or later, whatever is chosen. */
  preempt(): void {
    this.#clock.call(false);
    const stepped = this.steps;
    this.#preemptWhileChosen();
    if (this.steps !== stepped) this.#alone = 0;
    else if (this.#preemption > 0 && ++this.#alone >= ALONE_MOST) {
      this.#alone = 0;
      const candidates = this.#runnable();
      if (candidates.length > 0) this.#choose(candidates);
    }
  }

  #preemptWhileChosen(): void {
    while (this.#preemption > 0 && this.chooser.chance(this.#preemption)) {
      const candidates = this.#runnable();
      if (candidates.length === 0) {
        this.#clock.call(true);
        return;
      }
      this.#choose(candidates);
    }
  }

  /**
   * Lets the caller of the port sleep until a condition holds, or until its time is up. Threads run meanwhile. If there
   * is no time limit, and no thread can run, it would sleep forever, so this is an error.
   */
  sleep(over: () => boolean, limitMs: number): void {
    const until = limitMs < 0 ? Number.POSITIVE_INFINITY : this.now + limitMs;
    while (!over() && this.now < until) {
      const candidates = this.#runnable();
      const next = Math.min(until, this.#clock.nextRelease);
      if (candidates.length > 0) {
        this.#choose(candidates);
      } else if (next < Number.POSITIVE_INFINITY) {
        this.#clock.jump(next);
      } else {
        throw new Stuck('the handler sleeps without a limit, and no thread is left to wake it', 'asleep');
      }
    }
  }
}
