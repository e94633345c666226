// The simulated guest of a real handler: its memory in one or more regions, its threads, the userfaultfd that it hands
// over, and the checks of what the handler does. The handler's calls come from outside, through `port`, and the guest's
// threads run only within them: the same calls on an equal guest have the same results.

import type { KernelPort } from '../kernel/port.js';
import type { Region } from '../serve/handoff-protocol.js';
import { E, EVENT, FEATURE, MESSAGE_BYTES, MODE, OPEN, POLL, REQUEST, UFFD_API } from '../sim/abi.js';
import type { Noted } from '../sim/chooser.js';
import {
  type Inject,
  SimulatedKernel,
  type SimulatedProcess,
  type SimulatedThread,
  Stuck,
} from '../sim/index.js';
import type { Context } from '../sim/memory.js';
import type { Caller } from '../sim/resolve.js';
import type { Failure } from '../testing/failure.js';
import { type ObservedCall, observedPort } from '../testing/observed-port.js';
import { PageOracle } from '../testing/page-oracle.js';
import { Schedule } from '../testing/schedule.js';
import { type WorkloadWorld, workload } from '../testing/workload.js';
import { patterned } from '../testing/world.js';
import type { TraceWriter } from '../trace/writer.js';
import { monitorFills } from './monitor-fills.js';
import { recordingPort } from './recording.js';

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
/** Offsets in struct pollfd: what is wanted, and what has happened. */
const EVENTS_AT = 4;
const REVENTS_AT = 6;
/** The longest time limit of poll(2), in milliseconds. */
const POLL_MOST_MS = 2 ** 31 - 1;
const SMALL_PAGE = 4096;
/** One guest in TEMPERS has many threads, and one has threads that run more often. */
const TEMPERS = 5;
const CROWD: Temper = { threads: 32, actions: 3, preemption: 0.97, pages: 64 };
const PAGES = 8;
const BUSY_PREEMPTION = 0.7;
const PREEMPTION = 0.3;
/** The monitor fills fewer pages than this. */
const MONITOR_FILLS = 3;

/** What is kept of a run. */
export interface GuestOutput {
  /** Whether a schedule is written. */
  readonly schedule?: boolean;
  /** Records the handler's calls. `choices`: all that decide the run. */
  readonly record?: { readonly writer: TraceWriter; readonly choices: readonly number[] } | undefined;
}

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
  /** Whether the last wait ended because threads can do nothing more, ever, unless the handler makes a call. */
  #dry = false;
  /** The time limit of the next wait, if poll(2) cannot express it. */
  #exactMs: number | undefined;
  /** Where COPY has read last in the handler's memory. */
  #readAt = 0;

  constructor(
    options: GuestOptions,
    chooser: Noted,
    readCaller: Caller['read'],
    { schedule = false, record }: GuestOutput = {},
  ) {
    const { pageSize, pages, inject } = options;
    const made = chooser.choices.length;
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
    if (schedule) this.schedule = this.#write();
    this.fd = this.#open();
    const file = this.kernel.files.get(this.fd);
    if (file?.is !== 'userfaultfd') throw new Error('the simulated userfaultfd is missing');
    this.#context = file.context;
    const fills = chooser.below(MONITOR_FILLS);
    const monitor = monitorFills(fills, {
      ...{ context: this.#context, chooser, pageSize },
      missing: (start) => this.#oracle.missing(this.process.space, start),
      othersAreDone: () => this.#othersAreDone(),
    });
    if (fills > 0) this.#monitorThread = this.kernel.thread(monitor, this.process);
    for (const program of workload(this, temper)) this.kernel.thread(program, this.process);
    this.planned = chooser.choices.length;
    if (!record) {
      this.port = this.#attach(readCaller);
      return;
    }
    const port = this.#attach((address, length) => this.#noteRead(address, readCaller(address, length)));
    const choices = record.choices.slice(made);
    this.port = recordingPort(port, this, record.writer, { ...options, choices });
  }

  /** The handler's port. A call that breaks an invariant, or in which threads make no progress, ends the run. */
  #attach(readCaller: Caller['read']): KernelPort {
    const port = this.kernel.attachForeign(this.scratch, readCaller);
    const observed = observedPort(port, this.scratch, {
      read: (_, view, bytes) => this.#read(view, bytes),
      answered: (_, call) => this.#answered(call),
    });
    const { ioctl, read } = observed;
    return Object.assign(observed, {
      ioctl: (fd, request, at) => this.#guarded(() => ioctl(fd, request, at)) ?? E.SRCH,
      read: (fd, at, length) => this.#guarded(() => read(fd, at, length)) ?? E.AGAIN,
      poll: (at, count, timeoutMs) => this.#guarded(() => this.#poll(at, count, timeoutMs)) ?? 0,
      after: (delayMs) => {
        this.#exactMs = delayMs;
        return { close() {} };
      },
      addressOf: () => BigInt(this.#readAt),
    } satisfies Pick<KernelPort, 'ioctl' | 'read' | 'poll' | 'after' | 'addressOf'>);
  }

  /** Records bytes that COPY has read from the handler's memory. */
  #noteRead(address: number, bytes: Uint8Array | undefined): Uint8Array | undefined {
    this.#readAt = address;
    if (bytes) this.port.addressOf(bytes);
    return bytes;
  }

  /** How the guest's threads behave: how many there are, how much each does, and how often they run before a call. */
  #temper({ threads, actions }: GuestOptions): Temper {
    const kind = this.chooser.below(TEMPERS);
    if (kind === TEMPERS - 1) return CROWD;
    const preemption = kind === TEMPERS - 2 ? BUSY_PREEMPTION : PREEMPTION;
    return { threads, actions, preemption, pages: PAGES };
  }

  /** Whether all threads but the monitor's are finished. */
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
    const result = this.#guarded(act);
    if (this.kernel.steps > this.#steps) this.stuck('busy', `${this.kernel.steps} steps were not enough`);
    return this.failure ? undefined : result;
  }

  #guarded<T>(act: () => T): T | undefined {
    try {
      return act();
    } catch (error) {
      if (error instanceof Stuck) this.stuck(error.how, error.message);
      else if (!this.failure) throw error;
      return undefined;
    }
  }

  /**
   * Lets threads run until the userfaultfd has a message, all threads are finished, or the time is up (−1: no limit).
   * Returns whether threads that are not finished can do nothing more, ever, unless the handler makes a call. Undefined:
   * the run is over.
   */
  wait(limitMs: number): boolean | undefined {
    const view = new DataView(this.scratch.buffer);
    view.setInt32(0, this.fd, true);
    view.setInt16(EVENTS_AT, POLL.IN, true);
    return this.attempt(() => this.#waitBy(1, limitMs)) === undefined ? undefined : this.#dry;
  }

  /** Lets threads run for virtual milliseconds. */
  pass(forMs: number): void {
    this.attempt(() => this.#waitBy(0, forMs));
  }

  /** Waits by a poll of the first descriptors of the scratch memory. */
  #waitBy(count: number, limitMs: number): number {
    const timeoutMs = Math.min(Math.ceil(limitMs), POLL_MOST_MS);
    if (timeoutMs !== limitMs) this.port.after(limitMs, () => {});
    return this.port.poll(0, count, timeoutMs);
  }

  #poll(at: number, count: number, timeoutMs: number): number {
    const limitMs = this.#exactMs ?? timeoutMs;
    this.#exactMs = undefined;
    this.#dry = false;
    if (count === 0) {
      this.kernel.sleep(() => false, limitMs);
      return 0;
    }
    this.kernel.preempt();
    if (limitMs !== 0) this.#sleep(limitMs);
    new DataView(this.scratch.buffer).setInt16(at + REVENTS_AT, this.readable ? POLL.IN : 0, true);
    return this.readable ? 1 : 0;
  }

  #sleep(limitMs: number): void {
    try {
      this.kernel.sleep(() => this.readable || this.finished, limitMs);
    } catch (error) {
      // The clock's own errors are about the whole run. This one is about this wait, which another thread may end.
      if (!(error instanceof Stuck) || error.how !== 'asleep' || this.kernel.halted) throw error;
      this.#dry = true;
    }
  }

  /** Compares all pages, when the handler has nothing more to do. */
  compareAll(): void {
    this.#oracle.compareAll('in the end there was');
  }

  /** The handler makes no more calls: all pages are compared, or threads that are not finished sleep for ever. */
  conclude(): void {
    if (!this.finished && this.wait(-1)) this.stuck('asleep', 'the handler waits, and nothing wakes it');
    if (!this.failure && this.finished) this.compareAll();
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
