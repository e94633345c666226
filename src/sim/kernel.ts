// A simulated Linux: processes, threads, userfaultfds and a scheduler whose every decision comes from a chooser. It
// is a `Kernel` like the real one, so the real `Userfaultfd` and a real handler run on it unchanged.
//
// Rules:
//  - One thing happens at a time: a step of a thread, or a callback on the handler's event loop. Which one is
//    chosen. Before a call of the port, threads may run as well: the handler is interrupted there, and nowhere else.
//  - Time is virtual: src/sim/clock.ts.
//  - Who has waited longest is the plainest choice: a run of plain choices is fair.
//  - Nothing here is random or depends on the machine: the same choices give the same run.

import { checkInteger, checkMethod, checkOneOf, checkOptions, outOfRange } from '../arguments.js';
import { type Feature, featureBits } from '../features.js';
import type { Kernel, KernelPort, LinearMemory, Watch } from '../kernel.js';
import { PROT } from './abi.js';
import { Clock, STEP_MS, Stuck } from './clock.js';
import type { Context, Notice } from './context.js';
import { drop, type File, Files } from './files.js';
import { type Inject, Injector } from './injection.js';
import { AddressSpace, NEXT_OBJECT, NOT_DUMPED, tableSpan, type Vma } from './memory.js';
import { HugePool } from './pool.js';
import { SimulatedPort } from './port.js';
import { type Chooser, Random } from './random.js';
import { type Program, SimulatedProcess, SimulatedThread, type Surroundings } from './thread.js';
import { compareVersions, featuresOf } from './versions.js';

export interface SimulationOptions {
  /** Decides the run; default 1. */
  seed?: number;
  /** Decides the run in place of a seed. */
  chooser?: Chooser;
  /** The kernel to be like: '4.14', '6.1'. Default: the newest that is known. */
  version?: string;
  /** The features it has; default: those of its version. */
  features?: Iterable<Feature>;
  /** Bytes of a page: 4096 (default), 16384 or 65536. */
  pageSize?: number;
  /** Whether the user may do all: CAP_SYS_PTRACE. Default true. */
  privileged?: boolean;
  /** Probability that a thread runs before a call of the port is made, and again after that. Default 0.3. */
  preemption?: number;
  /** How many descriptors there may be. Default 1024. */
  descriptors?: number;
  /** Huge pages in the system's pool. Default: more than anybody needs. */
  hugePages?: number;
  /** What goes wrong on purpose; default: nothing. */
  inject?: Inject;
  /** Virtual milliseconds after which it is an error that no thread has got on. Default: for ever. */
  patienceMs?: number;
}

/** Where the first mapping lies. */
const FIRST_ADDRESS = 0x7f00_0000_0000;
const PAGE_SIZE = 4096;
/** The page sizes that Linux has. */
const PAGE_SIZES = [4096, 16384, 65536];
const NEWEST = '6.18';
/** The traits of memory that is never backed by huge pages, and not reserved. */
const SMALL_PAGES = 1;
/** Bytes of a huge page of a pool: the smallest that Linux has beside pages of 4 KiB (on arm64). */
const HUGE_PAGE = 65536;

/** Pages that get another mapping than those beside them, at most. */
const SPLIT_MOST = 4;

/** How memory is mapped. */
export interface SimulatedMemory {
  /** PROT_READ 1 | PROT_WRITE 2; both by default. */
  protection?: number;
  /** Whose it is; default: the handler's. */
  process?: SimulatedProcess;
  /** Pages of a pool that may run dry: private, not reserved (MAP_NORESERVE), 64 KiB each. */
  huge?: boolean;
  /** Pages at which another object begins, mapped side by side with the one before: two memfds, for one. */
  objects?: readonly number[];
}

interface Readiness {
  fd: number;
  turn: number;
  ready(): void;
}

/** Something that can happen next. */
interface Candidate {
  /** When it was its turn last. */
  turn: number;
  happen(): void;
}

/**
 * A simulated Linux to run a `Userfaultfd` on: anywhere, the same each time, one step after the other.
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
  /** The bits of the features that it has. */
  readonly offered: bigint;
  /** @internal */
  readonly files: Files;
  readonly chooser: Chooser;
  readonly processes: SimulatedProcess[] = [];
  readonly threads: SimulatedThread[] = [];
  /** The process that the handler runs in. */
  readonly process: SimulatedProcess;
  /** Steps so far. */
  steps = 0;
  /** Callbacks of the event loop so far. */
  turns = 0;
  /**
   * What goes wrong on purpose.
   *
   * @internal
   */
  readonly injector: Injector | undefined;
  readonly #clock: Clock;
  /** Called with what happens, one line at a time. */
  observer: ((line: string) => void) | undefined;
  /** Where huge pages come from. */
  readonly hugePool: HugePool;
  readonly #preemption: number;
  readonly #watches = new Set<Readiness>();
  /** What was asked for before, which is asked at every call. */
  readonly #isAtLeast = new Map<string, boolean>();
  readonly #copies = new Map<SimulatedProcess, File[]>();
  /** Somebody has mapped huge pages. */
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

  /** Whether it is as new as a version. */
  isAtLeast(version: string | undefined): boolean {
    if (version === undefined) return false;
    const known = this.#isAtLeast.get(version) ?? compareVersions(this.version, version) >= 0;
    this.#isAtLeast.set(version, known);
    return known;
  }

  /** The port, as a process has it; default: the handler's. */
  attach(memory: LinearMemory, process: SimulatedProcess = this.process): KernelPort {
    return new SimulatedPort(this, memory, process);
  }

  // ---- what there is -------------------------------------------------------------------------------------

  /** Private anonymous memory, of the handler's process by default; nothing is mapped beside it. */
  map(
    pages: number,
    protection: number = PROT.READ | PROT.WRITE,
    process: SimulatedProcess = this.process,
  ): bigint {
    return this.mapMemory(pages, { protection, process });
  }

  /** The same, in huge pages or from several objects. */
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

  /** A place that begins with a whole huge page. */
  #placeHuge(length: number): number {
    const address = this.place(length + HUGE_PAGE);
    return Math.ceil(address / HUGE_PAGE) * HUGE_PAGE;
  }

  /** Bytes of a huge page of the pool. */
  get hugePageSize(): number {
    if (this.pageSize >= HUGE_PAGE) throw new RangeError('huge pages: only beside pages that are smaller');
    return HUGE_PAGE;
  }

  /** A process beside the handler's, with memory of its own. */
  spawn(): SimulatedProcess {
    return this.#process(new AddressSpace(this.pageSize), this.process.privileged);
  }

  /** A place where `length` bytes can be mapped in every process. */
  place(length: number): number {
    const address = this.#nextAddress;
    // So far apart that no two share a table.
    const span = tableSpan(this.pageSize);
    this.#nextAddress += (Math.ceil(length / span) + 1) * span;
    return address;
  }

  /** A thread of a process; default: of the handler's. */
  thread(program?: Program, process: SimulatedProcess = this.process): SimulatedThread {
    if (program !== undefined) checkMethod(program, 'program', 'next', 'a generator that was called');
    // The first thread of a process has its number.
    const tid = process.threads.length === 0 ? process.pid : ++this.#lastId;
    const thread = new SimulatedThread(tid, process, program);
    this.threads.push(thread);
    return thread;
  }

  #process(space: AddressSpace, privileged: boolean): SimulatedProcess {
    const surroundings: Surroundings = {
      place: (length) => this.place(length),
      process: (parent, descriptors) => {
        const child = this.#process(new AddressSpace(this.pageSize), parent.privileged);
        if (descriptors === 'copied') this.#copyFiles(child);
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

  #copyFiles(child: SimulatedProcess): void {
    const files = this.files.all();
    for (const file of files) file.holders++;
    this.#copies.set(child, files);
  }

  /** A process lets go of the descriptors that it copied. */
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
   * A call was made that resolves faults.
   *
   * @internal
   */
  filled(installed: boolean): void {
    this.#clock.filled(installed);
  }

  /** Ends the run: the next step, or the handler's next call, throws this. */
  halt(error: Error): void {
    this.#clock.halted ??= error;
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

  /** Whatever sleeps on an eventfd goes on: what another thread does to stop a loop. */
  signal(fd: number): void {
    const file = this.files.get(fd);
    if (file?.is === 'eventfd') file.count++;
  }

  /**
   * A mapping change was read: its thread goes on, if nothing holds it back.
   *
   * @internal
   */
  release(notice: Notice): void {
    const release = (): void => {
      notice.read = true;
    };
    const steps = this.injector?.heldSteps() ?? 0;
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
        this.#clock.tried();
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

  /** One of these happens. */
  #choose(candidates: Candidate[]): void {
    if (candidates.length > 1) candidates.sort((a, b) => a.turn - b.turn);
    const chosen = candidates[this.chooser.below(candidates.length)] as Candidate;
    this.steps++;
    this.#clock.step();
    chosen.happen();
    if (this.injector) this.#disturb(this.injector);
  }

  /** What may come from outside at any step. */
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

  /** Mappings that get a border or lose one, and a pool of huge pages that others empty. */
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
    const steps = this.#hasHuge && this.hugePool.free > 0 ? injector.drySteps() : 0;
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

  /** Something happens: a thread does a step, or the event loop calls back. False: everybody sleeps for good. */
  step(): boolean {
    let candidates = [...this.#runnable(), ...this.#callbacks()];
    while (candidates.length === 0) {
      const { next } = this.#clock;
      if (next === Number.POSITIVE_INFINITY) return false;
      this.#clock.jump(next);
      candidates = [...this.#runnable(), ...this.#callbacks()];
    }
    this.#choose(candidates);
    return true;
  }

  /** Threads may run here, before a call of the port. */
  preempt(): void {
    this.#clock.call(false);
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
   * The caller of the port sleeps until something is so, or until its time is up; threads run meanwhile. Without a
   * limit, and with nobody to run, it would sleep for ever: that is an error.
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
        throw new Stuck('the handler sleeps without a limit, and nobody is left to wake it', 'asleep');
      }
    }
  }
}
