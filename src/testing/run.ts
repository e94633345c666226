// One run: opens a world, lets its threads and its handler run until all threads have finished, and closes
// everything. A broken invariant ends the run.
//
// Rules:
//  - Only the chooser decides the run.
//  - A process whose threads have finished exits. The handler's own process, and a process that called exec, do not.
//  - After a callback, all promise callbacks run before the next step.

import type { Kernel, LinearMemory } from '../kernel/port.js';
import { E, MESSAGE_BYTES } from '../sim/abi.js';
import type { Noted } from '../sim/chooser.js';
import { type Program, type SimulatedProcess, type SimulatedThread, Stuck } from '../sim/index.js';
import type { AddressSpace } from '../sim/memory.js';
import type { TraceWriter } from '../trace/writer.js';
import type { Wait } from '../uffd/event-loop.js';
import { StopSignal } from '../uffd/stop-signal.js';
import { type FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import { checkHandler, checkPrograms } from './check.js';
import { eventLoopTurn } from './event-loop-turn.js';
import { EventOrder } from './event-order.js';
import type { Failure } from './failure.js';
import { type HandlerObserver, observeHandler } from './observed-handler.js';
import { type ObservedCall, observedPort } from './observed-port.js';
import { PageOracle } from './page-oracle.js';
import { Schedule } from './schedule.js';
import { workload } from './workload.js';
import { World, type WorldOptions } from './world.js';

export interface RunOptions extends WorldOptions {
  /** Makes the handler, anew for each run. */
  handler: (world: World) => FaultHandler;
  /** Programs of the threads of the watched process. Or a number of threads with random actions. Default 3. */
  threads?: number | ((world: World) => Iterable<Program>);
  /** The wait strategy of `start`; default 'poll'. A handler that answers later needs 'poll'. */
  wait?: Wait;
  /** Most steps. A run that reaches this number counts as a livelock. Default 100,000. */
  steps?: number;
  /**
   * Does the work of a program before it waits for faults. It is called before `start`, again and again between steps
   * of threads, until it returns false. Default: nothing.
   */
  prepare?: (world: World) => boolean;
  /** Whether the handler may close the userfaultfd while threads run. After that, missing pages read as zeros. */
  mayClose?: boolean;
  /** Records the run. */
  record?: TraceWriter;
}

const STEPS_MOST = 100_000;
/** Most steps for the work that is left at the end. */
const LAST_STEPS = 1000;

export class SimulationRun implements HandlerObserver {
  readonly world: World;
  failure: Failure | undefined;
  /** The error of an option that makes the handler or the threads: the option threw it, or returned a wrong result. */
  mistake: { readonly error: unknown } | undefined;
  answering = 0;
  note: ((line: string) => void) | undefined;
  /** How many faults were offered. */
  faults = 0;
  /** How many choices were made before the first step. */
  planned = 0;
  readonly schedule: Schedule | undefined;
  readonly #options: RunOptions;
  readonly #chooser: Noted;
  readonly #ledger: PageOracle;
  readonly #orders: EventOrder[] = [];
  readonly #watched: AddressSpace;
  #main: EventOrder | undefined;
  /** A thread that stands for the rest of the program. It lets finished processes exit, and stops a blocking loop. */
  #manager: SimulatedThread | undefined;
  #ending = false;

  constructor(options: RunOptions, chooser: Noted, withSchedule: boolean) {
    this.#options = options;
    this.#chooser = chooser;
    const world = new World(options, chooser, (it) => this.#listen(it));
    this.world = world;
    this.#watched = world.process.space;
    this.#ledger = new PageOracle(
      (index) => world.source(index),
      (failure) => this.fail(failure),
    );
    this.#ledger.watch(this.#watched, Number(world.address), world.pages, world.pageSize);
    if (withSchedule) this.schedule = this.#write();
  }

  get pageSize(): number {
    return this.world.pageSize;
  }

  get steps(): number {
    return this.world.kernel.steps;
  }

  /** Records a broken invariant. Only the first one counts. */
  fail(failure: Failure): void {
    if (this.failure) return;
    this.failure = { ...failure, detail: this.#readable(failure.detail) };
    this.world.kernel.halt(new Error(failure.detail));
  }

  latest(): EventOrder {
    return this.#orders.at(-1) as EventOrder;
  }

  async go(): Promise<void> {
    try {
      this.#open();
      await this.#serve();
      if (!this.failure) await this.#end();
    } catch (error) {
      if (error instanceof Stuck) this.fail(this.#stuck(error.how, error.message));
      else this.fail({ invariant: 'threw', detail: String(error), cause: error });
    } finally {
      this.#options.record?.close();
    }
    this.faults = this.#orders.reduce((sum, { offers }) => sum + offers, 0);
  }

  // ---- observation ---------------------------------------------------------------------------------------

  #listen({ kernel }: World): Kernel {
    return {
      pageSize: kernel.pageSize,
      elsewhere: true,
      attach: (memory) => {
        const order = new EventOrder(kernel.pageSize, (failure) => this.fail(failure));
        this.#orders.push(order);
        return observedPort(kernel.attach(memory), memory, {
          read: (fd, view, bytes) => this.#read(order, fd, view, bytes),
          answered: (fd, call) => this.#answered(order, fd, call),
        });
      },
    };
  }

  #read(order: EventOrder, fd: number, view: DataView, bytes: number): void {
    if (this.world.kernel.files.get(fd)?.is !== 'userfaultfd') return;
    const messages = bytes / MESSAGE_BYTES;
    this.note?.(`handler: reads ${messages} message${messages === 1 ? '' : 's'}`);
    order.said(view, bytes);
  }

  #answered(order: EventOrder, fd: number, call: ObservedCall): void {
    this.schedule?.call(call);
    if (call.resolved > 0) order.resolved(call.start, call.start + BigInt(call.resolved));
    const file = this.world.kernel.files.get(fd);
    if (file?.is !== 'userfaultfd') return;
    const start = Number(call.start);
    // EEXIST resolves the fault if the page is there, which it does not prove. A MOVE with EEXIST has moved nothing.
    if (call.result === E.EXIST && call.name !== 'MOVE' && file.context.space.holds(start))
      order.resolved(call.start, call.start + BigInt(this.pageSize));
    if (call.installed > 0)
      this.#ledger.compare(file.context.space, start, start + call.installed, `${call.name} has put`);
  }

  #write(): Schedule {
    const { world } = this;
    const schedule = new Schedule(world.kernel, world.pageSize);
    schedule.name(world.address, world.length, 'page');
    this.note = (line) => schedule.add(line);
    world.note = this.note;
    world.name = (...area) => schedule.name(...area);
    world.kernel.observer = (line) => {
      const silent = line.startsWith('event loop') || line.startsWith(`thread ${this.#manager?.tid}:`);
      if (!silent && !line.endsWith(': ends')) schedule.add(line);
    };
    return schedule;
  }

  // ---- the run -------------------------------------------------------------------------------------------

  #open(): void {
    const { world } = this;
    const { kernel, port, process, features, address, length, modes } = world;
    const { record } = this.#options;
    const options = { kernel: port, features, ...(record ? { record } : {}) };
    const own = process === kernel.process;
    // Another process opens the userfaultfd, and passes it to the handler's process.
    const inside = {
      pageSize: kernel.pageSize,
      elsewhere: true,
      attach: (memory: LinearMemory) => kernel.attach(memory, process),
    };
    const opened = Userfaultfd.open(own ? options : { kernel: inside, features });
    opened.register(address, length, modes);
    const passedOn = (): Userfaultfd => {
      const { ranges } = opened;
      return Userfaultfd.wrap(opened.release(), { ...options, ranges, pid: process.pid });
    };
    const uffd = own ? opened : passedOn();
    this.#main = this.latest();
    world.uffd = observeHandler(uffd, this.#main, this);
  }

  async #serve(): Promise<void> {
    const { world } = this;
    const { threads = 3, wait = 'poll' } = this.#options;
    const handler = this.#made(() => checkHandler(this.#options.handler(world)));
    const programs =
      typeof threads === 'number'
        ? workload(world, { threads })
        : this.#made(() => checkPrograms(threads(world)));
    for (const program of programs) world.kernel.thread(program, world.process);
    this.planned = this.#chooser.choices.length;
    this.#manager = world.kernel.thread(this.#manage(wait !== 'poll'));
    await this.#prepare();
    if (this.failure || world.uffd.closed) return;
    // With the wait strategy 'poll', `start` returns at once. With a blocking one it returns when the loop was stopped
    // or closed.
    if (!world.uffd.start(handler, { wait })) throw new Error('start: false');
    while (!this.failure && !this.#isThrough()) await this.#step();
  }

  /** Runs what the program does before it waits for faults. */
  async #prepare(): Promise<void> {
    const { prepare } = this.#options;
    const { kernel } = this.world;
    for (let turns = 0; !this.failure && prepare?.(this.world); turns++) {
      if (turns >= this.#mostSteps) this.fail(this.#stuck('busy', `${turns} turns were not enough`));
      else if (kernel.canStep()) await this.#step();
    }
  }

  get #mostSteps(): number {
    return this.#options.steps ?? STEPS_MOST;
  }

  /**
   * Calls an option that makes the handler or the threads. An error in it is a mistake, not a failure of a running
   * handler.
   */
  #made<T>(make: () => T): T {
    try {
      return make();
    } catch (error) {
      this.mistake = { error };
      throw error;
    }
  }

  /** One step of the world. */
  async #step(): Promise<void> {
    const { kernel } = this.world;
    const { turns } = kernel;
    if (!kernel.step()) this.fail(this.#stuck('asleep', 'nothing will ever happen any more'));
    else if (this.steps >= this.#mostSteps)
      this.fail(this.#stuck('busy', `${this.steps} steps were not enough`));
    if (kernel.turns !== turns) await eventLoopTurn();
    this.#notEarly();
  }

  /**
   * Checks that the handler has not closed too early. While threads run, it may close only if the watched memory is
   * gone.
   */
  #notEarly(): void {
    const allowed = this.#ending || this.#options.mayClose || !this.#watched.alive;
    if (!allowed && (this.#main as EventOrder).closings > 0 && !this.#threadsAreThrough()) {
      this.fail({ invariant: 'closed', detail: 'closed was called while threads run' });
    }
  }

  #threadsAreThrough(): boolean {
    return this.world.kernel.threads.every((thread) => thread === this.#manager || thread.idle);
  }

  /** Whether all threads have finished, all answers are given, and the end of each watched process was reported. */
  #isThrough(): boolean {
    const { world } = this;
    if (!this.#threadsAreThrough() || !this.#manager?.done) return false;
    if (world.pending > 0 || this.answering > 0) return false;
    const own = world.process === world.kernel.process;
    return this.#orders.every(
      (order) => !order.served || order.closings > 0 || (own && order === this.#main),
    );
  }

  /** The program of the manager thread. */
  *#manage(stops: boolean): Program {
    const run = this;
    const reapable = (): SimulatedProcess | undefined => run.#reapable();
    while (!this.#threadsAreThrough() || reapable()) {
      yield {
        text: 'reap',
        *steps() {
          yield { place: 'read', over: () => reapable() !== undefined || run.#threadsAreThrough() };
          reapable()?.exit();
          return 0;
        },
      };
    }
    // If another process is watched, its end stops the loop.
    if (!stops || this.world.process !== this.world.kernel.process) return;
    new StopSignal(this.world.uffd.stopHandle).request((fd) => this.world.kernel.signal(fd));
  }

  /**
   * A process that can exit: its threads have finished, and it has not called exec. (After an exec a process lives on.)
   */
  #reapable(): SimulatedProcess | undefined {
    const { kernel } = this.world;
    return kernel.processes.find(
      ({ exited, executed, threads, pid }) =>
        !exited &&
        !executed &&
        pid !== kernel.process.pid &&
        threads.length > 0 &&
        threads.every(({ idle }) => idle),
    );
  }

  /** Closes everything, and checks what is left. */
  async #end(): Promise<void> {
    const { kernel, uffd } = this.world;
    this.#ledger.compareAll('in the end there was');
    this.#ending = true;
    uffd.stop();
    uffd.close();
    for (let steps = 0; steps < LAST_STEPS && !this.failure && kernel.step(); steps++) await eventLoopTurn();
    for (const { served, closings } of this.#orders) {
      if (served && closings !== 1)
        this.fail({ invariant: 'closed', detail: `closed was called ${closings} times` });
    }
    if (kernel.files.count > 0) {
      const left = kernel.files.all().map(({ is }) => is);
      this.fail({ invariant: 'leak', detail: `at the end there are still open: ${left.join(', ')}` });
    }
  }

  // ---- threads without progress --------------------------------------------------------------------------

  #stuck(how: Stuck['how'], message: string): Failure {
    const { kernel } = this.world;
    const waiting = kernel.threads.filter((thread) => thread !== this.#manager && !thread.idle);
    const lines = waiting.map((thread) => `thread ${thread.tid} (${this.#readable(thread.describe())})`);
    return {
      invariant: how === 'busy' ? 'livelock' : 'asleep',
      detail: `${message}: ${lines.join('; ') || 'those of the handler'}`,
    };
  }

  #readable(text: string): string {
    return this.schedule?.readable(text) ?? text;
  }
}
