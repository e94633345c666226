// A simulated Linux: processes, threads, userfaultfds and a scheduler whose every decision comes from a chooser. It
// is a `Kernel` like the real one, so the real `Userfaultfd` and a real handler run on it unchanged.
//
// Rules:
//  - One thing happens at a time: a step of a thread, or a callback on the handler's event loop. Which one is
//    chosen. Before a call of the port, threads may run as well: the handler is interrupted there, and nowhere else.
//  - Time is virtual. It passes with each step, and jumps where everybody sleeps.
//  - Nothing here is random or depends on the machine: the same choices give the same run.

import { type Feature, featureBits } from '../features.js';
import type { Kernel, KernelPort, Watch } from '../kernel.js';
import { PROT } from './abi.js';
import { drop, type File, Files } from './files.js';
import { AddressSpace } from './memory.js';
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
  /** Whether the user may do all: CAP_SYS_PTRACE. Default true. */
  privileged?: boolean;
  /** Probability that a thread runs before a call of the port is made, and again after that. Default 0.3. */
  preemption?: number;
  /** How many descriptors there may be. Default 1024. */
  descriptors?: number;
}

/** Where the first mapping lies, and what mappings are apart: so much that no two share a page table. */
const FIRST_ADDRESS = 0x7f00_0000_0000;
const STRIDE = 2 ** 21;
const PAGE_SIZE = 4096;
const NEWEST = '6.18';
/** The traits of memory that is never backed by huge pages, and not reserved. */
const SMALL_PAGES = 1;
/** Virtual milliseconds that a step takes. */
const STEP_MS = 0.001;

/** Everybody sleeps, and nothing will ever wake them. */
export class Stuck extends Error {
  override readonly name = 'Stuck';
  readonly code = 'ERR_UFFD_STUCK';
}

interface Timer {
  at: number;
  due(): void;
}

interface Readiness {
  fd: number;
  ready(): void;
}

/** Something that can happen next. */
interface Candidate {
  readonly name: string;
  happen(): void;
}

export class SimulatedKernel implements Kernel {
  readonly pageSize = PAGE_SIZE;
  readonly elsewhere = true;
  readonly version: string;
  /** The bits of the features that it has. */
  readonly offered: bigint;
  readonly files: Files;
  readonly chooser: Chooser;
  readonly processes: SimulatedProcess[] = [];
  readonly threads: SimulatedThread[] = [];
  /** The process that the handler runs in. */
  readonly process: SimulatedProcess;
  /** Steps so far. */
  steps = 0;
  /** Called with what happens, one line at a time. */
  observer: ((line: string) => void) | undefined;
  readonly #preemption: number;
  readonly #timers = new Set<Timer>();
  readonly #watches = new Set<Readiness>();
  readonly #copies = new Map<SimulatedProcess, File[]>();
  #now = 0;
  #nextAddress = FIRST_ADDRESS;
  #lastId = 0;

  constructor(options: SimulationOptions = {}) {
    const { version = NEWEST, seed = 1, chooser = new Random(seed) } = options;
    this.version = version;
    this.chooser = chooser;
    this.offered = featureBits(options.features ?? featuresOf(version), 'features');
    this.files = new Files(options.descriptors ?? 1024);
    this.#preemption = options.preemption ?? 0.3;
    this.process = this.#process(new AddressSpace(PAGE_SIZE), options.privileged ?? true);
  }

  /** Whether it is as new as a version. */
  isAtLeast(version: string | undefined): boolean {
    return version !== undefined && compareVersions(this.version, version) >= 0;
  }

  /** The port, as a process has it; default: the handler's. */
  attach(memory: WebAssembly.Memory, process: SimulatedProcess = this.process): KernelPort {
    return new SimulatedPort(this, memory, process);
  }

  // ---- what there is -------------------------------------------------------------------------------------

  /** Private anonymous memory of the handler's process; nothing is mapped beside it. */
  map(pages: number, protection: number = PROT.READ | PROT.WRITE): bigint {
    const address = this.place(pages * PAGE_SIZE);
    this.process.space.map(address, pages * PAGE_SIZE, protection, SMALL_PAGES);
    return BigInt(address);
  }

  /** A place where `length` bytes can be mapped in every process. */
  place(length: number): number {
    const address = this.#nextAddress;
    this.#nextAddress += (Math.ceil(length / STRIDE) + 1) * STRIDE;
    return address;
  }

  /** A thread of a process; default: of the handler's. */
  thread(program?: Program, process: SimulatedProcess = this.process): SimulatedThread {
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
        const child = this.#process(new AddressSpace(PAGE_SIZE), parent.privileged);
        if (descriptors === 'copied') this.#copyFiles(child);
        return child;
      },
      thread: (program, process) => this.thread(program, process),
      ended: (process) => this.dropFiles(process),
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
    return this.#now;
  }

  after(delayMs: number, due: () => void): Watch {
    const timer = { at: this.#now + delayMs, due };
    this.#timers.add(timer);
    return { close: () => void this.#timers.delete(timer) };
  }

  watch(fd: number, ready: () => void): Watch {
    const watch = { fd, ready };
    this.#watches.add(watch);
    return { close: () => void this.#watches.delete(watch) };
  }

  readable(fd: number): boolean {
    const file = this.files.get(fd);
    if (file?.is === 'userfaultfd') return file.context.readable;
    if (file?.is === 'eventfd') return file.count > 0;
    return file?.is === 'pidfd' && file.process.exited;
  }

  // ---- the scheduler -------------------------------------------------------------------------------------

  #runnable(): Candidate[] {
    return this.threads
      .filter((thread) => thread.runnable)
      .map((thread) => ({ name: `thread ${thread.tid}`, happen: () => thread.step() }));
  }

  #callbacks(): Candidate[] {
    const ready = [...this.#watches].filter(({ fd }) => this.readable(fd));
    const due = [...this.#timers].filter(({ at }) => at <= this.#now);
    return [
      ...ready.map((watch) => ({ name: `readable ${watch.fd}`, happen: () => watch.ready() })),
      ...due.map((timer) => ({
        name: 'timer',
        happen: () => {
          this.#timers.delete(timer);
          timer.due();
        },
      })),
    ];
  }

  /** One of these happens. */
  #choose(candidates: readonly Candidate[]): void {
    const chosen = candidates[this.chooser.below(candidates.length)] as Candidate;
    this.steps++;
    this.#now += STEP_MS;
    this.observer?.(chosen.name);
    chosen.happen();
  }

  /** Something happens: a thread does a step, or the event loop calls back. False: everybody sleeps for good. */
  step(): boolean {
    let candidates = [...this.#runnable(), ...this.#callbacks()];
    if (candidates.length === 0) {
      if (!this.#jump()) return false;
      candidates = this.#callbacks();
    }
    this.#choose(candidates);
    return true;
  }

  /** Time goes on to the next timer, or to `most`. False: there is none. */
  #jump(most = Number.POSITIVE_INFINITY): boolean {
    const next = Math.min(most, ...[...this.#timers].map(({ at }) => at));
    if (next === Number.POSITIVE_INFINITY) return false;
    this.#now = Math.max(this.#now, next);
    return true;
  }

  /** Threads may run here, before a call of the port. */
  preempt(): void {
    while (this.#preemption > 0 && this.chooser.chance(this.#preemption)) {
      const candidates = this.#runnable();
      if (candidates.length === 0) return;
      this.#choose(candidates);
    }
  }

  /**
   * The caller of the port sleeps until something is so, or until its time is up; threads run meanwhile. Without a
   * limit, and with nobody to run, it would sleep for ever: that is an error.
   */
  sleep(over: () => boolean, limitMs: number): void {
    const until = limitMs < 0 ? Number.POSITIVE_INFINITY : this.#now + limitMs;
    while (!over() && this.#now < until) {
      const candidates = this.#runnable();
      if (candidates.length > 0) this.#choose(candidates);
      else if (until < Number.POSITIVE_INFINITY) this.#now = until;
      else throw new Stuck('the handler sleeps without a limit, and nobody is left to wake it');
    }
  }
}
