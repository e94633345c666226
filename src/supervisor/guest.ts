// The simulated guest of a real handler: its memory in one or more regions, its threads, the userfaultfd that it hands
// over, and the checks of what the handler does. The handler's calls come from outside, through `port`, and the guest's
// threads run only within them.

import { hex } from '../errors/format.js';
import type { KernelPort } from '../kernel/port.js';
import type { Region } from '../serve/handoff-protocol.js';
import { BIT, EVENT, FEATURE, MESSAGE_BYTES, MODE, OPEN, REQUEST, UFFD_API } from '../sim/abi.js';
import type { Noted } from '../sim/chooser.js';
import {
  type Action,
  type Inject,
  type Program,
  SimulatedKernel,
  type SimulatedProcess,
  type SimulatedThread,
  Stuck,
} from '../sim/index.js';
import type { Context } from '../sim/memory.js';
import { type Caller, resolve } from '../sim/resolve.js';
import type { Failure } from '../testing/failure.js';
import { type ObservedCall, observedPort } from '../testing/observed-port.js';
import { PageOracle } from '../testing/page-oracle.js';
import { Schedule } from '../testing/schedule.js';
import { type WorkloadWorld, workload } from '../testing/workload.js';
import { patterned } from '../testing/world.js';

export interface GuestOptions {
  /** Bytes of a page: 4096 or 2 MiB. */
  readonly pageSize: number;
  /** Pages of the memory file. */
  readonly pages: number;
  /** Failures to inject, with their probabilities. */
  readonly inject: Inject;
  /** Most regions. */
  readonly regions: number;
  readonly threads: number;
  readonly actions: number;
  /** Most steps of threads. */
  readonly steps: number;
}

/** Virtual milliseconds without progress of a thread after which its fault counts as lost. */
const PATIENCE_MS = 2000;
/** Bytes of the memory in which structs and messages are passed to the port; the first part is for structs. */
const SCRATCH_BYTES = 65_536;
export const MESSAGES_AT = 4096;
export const MESSAGES_MOST = (SCRATCH_BYTES - MESSAGES_AT) / MESSAGE_BYTES;
/** Offset of the features that are requested, in struct uffdio_api; of the length and the mode in struct uffdio_register. */
const FEATURES_AT = 8;
const LENGTH_AT = 8;
const MODE_AT = 16;
const SMALL_PAGE = 4096;
/** One guest in TEMPERS has many threads, and one has threads that run more often. */
const TEMPERS = 5;
const CROWD: Temper = { threads: 32, actions: 3, preemption: 0.97, pages: 64 };
const PAGES = 8;
const BUSY_PREEMPTION = 0.7;
const PREEMPTION = 0.3;
/** The monitor fills fewer pages than this. */
const MONITOR_FILLS = 3;

interface Temper {
  readonly threads: number;
  readonly actions: number;
  readonly preemption: number;
  readonly pages: number;
}

export class Guest implements WorkloadWorld {
  readonly kernel: SimulatedKernel;
  readonly process: SimulatedProcess;
  readonly chooser: Noted;
  /** Pages that threads use. They are neighbours in the memory file, so that threads meet. */
  readonly pages: number;
  readonly pageSize: number;
  readonly features = ['event-remove'] as const;
  readonly regions: readonly Region[];
  /** The port of the handler's process, the memory through which it passes structs, and the userfaultfd's number. */
  readonly port: KernelPort;
  readonly scratch = { buffer: new ArrayBuffer(SCRATCH_BYTES) };
  readonly fd: number;
  readonly schedule: Schedule | undefined;
  failure: Failure | undefined;
  /** Whether the guest has exited before its threads were finished. */
  get died(): boolean {
    return this.process.exited || this.process.executed;
  }
  faults = 0;
  /** How many choices were made before the first step. */
  readonly planned: number;
  readonly #oracle: PageOracle;
  readonly #context: Context;
  readonly #steps: number;
  readonly #firstPage: number;
  #monitorThread: SimulatedThread | undefined;

  constructor(options: GuestOptions, chooser: Noted, readCaller: Caller['read'], withSchedule: boolean) {
    const { pageSize, pages, inject } = options;
    const huge = pageSize > SMALL_PAGE;
    this.chooser = chooser;
    this.pageSize = pageSize;
    this.#steps = options.steps;
    const temper = this.#temper(options);
    this.pages = Math.min(pages, temper.pages);
    this.#firstPage = chooser.below(pages - this.pages + 1);
    this.kernel = new SimulatedKernel({
      chooser,
      inject,
      preemption: temper.preemption,
      patienceMs: PATIENCE_MS,
      ...(huge ? { hugePageSize: pageSize } : {}),
    });
    this.process = this.kernel.spawn();
    this.regions = this.#map(options, huge);
    this.#oracle = new PageOracle(
      (index) => patterned(index, pageSize),
      (failure) => this.fail(failure),
    );
    for (const { start, length, offset } of this.regions)
      this.#oracle.watch(this.process.space, Number(start), length / pageSize, pageSize, offset / pageSize);
    if (withSchedule) this.schedule = this.#write();
    const inner = this.kernel.attachForeign(this.scratch, readCaller);
    this.port = observedPort(inner, this.scratch, {
      read: (_, view, bytes) => this.#read(view, bytes),
      answered: (_, call) => this.#answered(call),
    });
    this.fd = this.#open();
    const file = this.kernel.files.get(this.fd);
    if (file?.is !== 'userfaultfd') throw new Error('the simulated userfaultfd is missing');
    this.#context = file.context;
    const fills = chooser.below(MONITOR_FILLS);
    if (fills > 0) this.#monitorThread = this.kernel.thread(this.#monitor(fills), this.process);
    for (const program of workload(this, temper)) this.kernel.thread(program, this.process);
    this.planned = chooser.choices.length;
  }

  /** How the guest's threads behave: how many there are, how much each does, and how often they run before a call. */
  #temper({ threads, actions }: GuestOptions): Temper {
    const kind = this.chooser.below(TEMPERS);
    if (kind === TEMPERS - 1) return CROWD;
    const preemption = kind === TEMPERS - 2 ? BUSY_PREEMPTION : PREEMPTION;
    return { threads, actions, preemption, pages: PAGES };
  }

  /**
   * The monitor, which has the userfaultfd, too: it fills pages for which threads wait, and does not wake them. That is
   * how a fill of the handler finds a page present while its thread sleeps.
   */
  *#monitor(fills: number): Program {
    for (let fill = 0; fill < fills; fill++) yield this.#monitorFill();
  }

  #monitorFill(): Action {
    const guest = this;
    let filled = 'nothing';
    return {
      get text() {
        return `the monitor fills ${filled}`;
      },
      *steps() {
        const context = guest.#context;
        const asleep = (): number[] =>
          [...context.pending, ...context.reading].map(({ address }) => context.space.startOf(address));
        yield { place: 'read', over: () => asleep().length > 0 || guest.#othersAreDone() };
        const waiting = asleep();
        const start = waiting[guest.chooser.below(waiting.length)];
        const bytes = start === undefined ? undefined : guest.#oracle.missing(context.space, start);
        if (start === undefined || !bytes) return 0;
        filled = `${hex(BigInt(start))}, without a wake`;
        const fill = {
          request: REQUEST.COPY,
          start,
          source: start,
          length: guest.pageSize,
          mode: BIT.DONTWAKE,
        };
        const page = (address: number, length: number): Uint8Array =>
          bytes.subarray(address - start, address - start + length);
        return resolve(context, { space: context.space, read: page }, fill).result === 0 ? 1 : 0;
      },
    };
  }

  #othersAreDone(): boolean {
    return this.kernel.threads.every((thread) => thread.idle || thread === this.#monitorThread);
  }

  /** The address of a page that threads use. */
  page(index: number): bigint {
    const offset = (this.#firstPage + index) * this.pageSize;
    const region = this.regions.find((one) => offset >= one.offset && offset < one.offset + one.length);
    if (!region) throw new RangeError(`there is no page ${index}`);
    return region.start + BigInt(offset - region.offset);
  }

  name(start: bigint, length: number, name: string): void {
    this.schedule?.name(start, length, name);
  }

  /** Adds a line to the schedule. */
  note(line: string): void {
    this.schedule?.add(line);
  }

  // ---- how it is made ------------------------------------------------------------------------------------

  /** Maps the memory in up to `most` regions, whose order in the file may differ from that of their addresses. */
  #map({ pages, regions: most }: GuestOptions, huge: boolean): Region[] {
    const { chooser, pageSize, process, kernel } = this;
    const count = 1 + chooser.below(Math.min(most, pages));
    const turned = count > 1 && chooser.below(2) === 1;
    const sizes = Array.from({ length: count }, (_, index) =>
      Math.floor((pages * (index + 1)) / count - Math.floor((pages * index) / count)),
    );
    let offset = 0;
    const regions = sizes.map((size): Region => {
      const start = kernel.mapMemory(size, { process, huge });
      return { start, length: size * pageSize, offset: 0, pageSize };
    });
    for (const region of turned ? regions.toReversed() : regions) {
      Object.assign(region, { offset });
      offset += region.length;
    }
    return regions;
  }

  /** Opens the userfaultfd in the guest's process, and registers the regions, as a monitor does. */
  #open(): number {
    const port = this.kernel.attach(this.scratch, this.process);
    const view = new DataView(this.scratch.buffer);
    const made = (result: number): number => {
      if (result < 0) throw new Error(`the simulated guest cannot open its userfaultfd: ${result}`);
      return result;
    };
    const fd = made(port.userfaultfd(OPEN.CLOEXEC | OPEN.NONBLOCK));
    view.setBigUint64(0, UFFD_API, true);
    view.setBigUint64(FEATURES_AT, BigInt(FEATURE.EVENT_REMOVE), true);
    made(port.ioctl(fd, REQUEST.API, 0));
    for (const { start, length } of this.regions) {
      view.setBigUint64(0, start, true);
      view.setBigUint64(LENGTH_AT, BigInt(length), true);
      view.setBigUint64(MODE_AT, BigInt(MODE.MISSING), true);
      made(port.ioctl(fd, REQUEST.REGISTER, 0));
    }
    return fd;
  }

  #write(): Schedule {
    const { kernel, pageSize } = this;
    const schedule = new Schedule(kernel, pageSize);
    for (const { start, length, offset } of this.regions)
      schedule.name(start, length, 'page', offset / pageSize);
    kernel.observer = (line) => {
      if (!line.endsWith(': ends')) schedule.add(line);
    };
    return schedule;
  }

  // ---- what happens --------------------------------------------------------------------------------------

  /** Records a broken invariant, and ends the run. Only the first one counts. */
  fail(failure: Failure): void {
    if (this.failure) return;
    const detail = this.schedule?.readable(failure.detail) ?? failure.detail;
    this.failure = { ...failure, detail };
    this.kernel.halt(new Error(detail));
  }

  #read(view: DataView, bytes: number): void {
    const messages = bytes / MESSAGE_BYTES;
    for (let at = 0; at < bytes; at += MESSAGE_BYTES)
      if (view.getUint8(at) === EVENT.PAGEFAULT) this.faults++;
    this.note(`handler: reads ${messages} message${messages === 1 ? '' : 's'}`);
  }

  #answered(call: ObservedCall): void {
    this.schedule?.call(call);
    const start = Number(call.start);
    if (call.installed > 0)
      this.#oracle.compare(this.process.space, start, start + call.installed, `${call.name} has put`);
  }

  /** Whether the userfaultfd has a message. */
  get readable(): boolean {
    return this.#context.readable;
  }

  /** Number of messages in the userfaultfd. */
  get messages(): number {
    return this.#context.pending.length + this.#context.events.length;
  }

  /** Whether all threads are finished. */
  get finished(): boolean {
    return this.kernel.threads.every((thread) => thread.idle);
  }

  /**
   * Does something that may let threads run. A broken invariant, or threads that make no progress, end the run: then it
   * returns undefined.
   */
  attempt<T>(act: () => T): T | undefined {
    if (this.failure) return undefined;
    try {
      const result = act();
      if (this.kernel.steps > this.#steps) this.stuck('busy', `${this.kernel.steps} steps were not enough`);
      return this.failure ? undefined : result;
    } catch (error) {
      if (error instanceof Stuck) this.stuck(error.how, error.message);
      else if (!this.failure) throw error;
      return undefined;
    }
  }

  /**
   * Lets threads run until the userfaultfd has a message, all threads are finished, or the time is up (−1: no limit).
   * Returns whether threads that are not finished can do nothing more, ever, unless the handler makes a call.
   */
  sleep(limitMs: number): boolean {
    try {
      this.kernel.sleep(() => this.readable || this.finished, limitMs);
      return false;
    } catch (error) {
      // The clock's own errors are about the whole run. This one is about this wait, which another thread may end.
      if (error instanceof Stuck && error.how === 'asleep' && !this.kernel.halted) return true;
      throw error;
    }
  }

  /** Lets threads run for virtual milliseconds. */
  pass(forMs: number): void {
    this.kernel.sleep(() => false, forMs);
  }

  /** Compares all pages, when the handler has nothing more to do. */
  compareAll(): void {
    this.#oracle.compareAll('in the end there was');
  }

  /** Records that threads make no progress. */
  stuck(how: Stuck['how'], message: string): void {
    const waiting = this.kernel.threads.filter((thread) => !thread.idle);
    const lines = waiting.map((thread) => `thread ${thread.tid} (${thread.describe()})`);
    this.fail({
      invariant: how === 'busy' ? 'livelock' : 'asleep',
      detail: `${message}: ${lines.join('; ') || 'those of the handler'}`,
    });
  }
}
