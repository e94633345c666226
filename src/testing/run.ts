// One run: a world is opened, its threads and its handler go on until all threads are through, and everything is
// closed. What breaks an invariant ends it.
//
// Rules:
//  - The run is decided by its chooser alone.
//  - A process whose threads are through exits. The handler's own lives on, until it closes its userfaultfd.
//  - After a callback everything that waits for promises goes on before the next step.

import type { FaultHandler } from '../handler.js';
import type { Kernel, LinearMemory } from '../kernel.js';
import type { Wait } from '../loop.js';
import { E, MESSAGE_BYTES } from '../sim/abi.js';
import { type Program, type SimulatedProcess, type SimulatedThread, Stuck } from '../sim/index.js';
import type { AddressSpace } from '../sim/memory.js';
import type { Noted } from '../sim/random.js';
import { Stopper } from '../stopper.js';
import type { TraceWriter } from '../trace/writer.js';
import { Userfaultfd } from '../userfaultfd.js';
import { type Attendant, attend } from './attend.js';
import { checkHandler, checkPrograms } from './check.js';
import type { Failure } from './failure.js';
import { hop } from './hop.js';
import { Ledger } from './ledger.js';
import { type Call, listened } from './port.js';
import { Schedule } from './schedule.js';
import { Told } from './told.js';
import { workload } from './workload.js';
import { World, type WorldOptions } from './world.js';

export interface RunOptions extends WorldOptions {
  /** Makes the handler, anew for each run. */
  handler: (world: World) => FaultHandler;
  /** What the watched process's threads do; a number: so many that do random things. Default 3. */
  threads?: number | ((world: World) => Iterable<Program>);
  /** The wait strategy of `start`; default 'poll'. A handler that answers later needs that one. */
  wait?: Wait;
  /** Steps at most; reaching them is a livelock. Default 100,000. */
  steps?: number;
  /**
   * Called again and again before `start`, and others in between, until it answers false: what a program does while it
   * does not wait yet. By default nothing.
   */
  prepare?: (world: World) => boolean;
  /** The handler may close the userfaultfd while threads run: their pages are zeros then. */
  mayClose?: boolean;
  /** Records the run. */
  record?: TraceWriter;
}

const STEPS_MOST = 100_000;
/** Steps that what was due at the end may take. */
const LAST_STEPS = 1000;

export class Run implements Attendant {
  readonly world: World;
  failure: Failure | undefined;
  /** What an option that makes the handler or the threads has thrown, or is wrong in what it made. */
  mistake: { readonly error: unknown } | undefined;
  answering = 0;
  note: ((line: string) => void) | undefined;
  /** Faults that were offered. */
  faults = 0;
  /** Choices that were made before the first step. */
  planned = 0;
  readonly schedule: Schedule | undefined;
  readonly #options: RunOptions;
  readonly #chooser: Noted;
  readonly #ledger: Ledger;
  readonly #told: Told[] = [];
  readonly #watched: AddressSpace;
  #main: Told | undefined;
  /** The thread that stands for the rest of the program: it reaps processes, and stops a loop that blocks. */
  #manager: SimulatedThread | undefined;
  #ending = false;

  constructor(options: RunOptions, chooser: Noted, withSchedule: boolean) {
    this.#options = options;
    this.#chooser = chooser;
    const world = new World(options, chooser, (it) => this.#listen(it));
    this.world = world;
    this.#watched = world.process.space;
    this.#ledger = new Ledger(
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

  /** Notes what breaks an invariant; the first counts. */
  fail(failure: Failure): void {
    if (this.failure) return;
    this.failure = { ...failure, detail: this.#readable(failure.detail) };
    this.world.kernel.halt(new Error(failure.detail));
  }

  latest(): Told {
    return this.#told.at(-1) as Told;
  }

  async go(): Promise<void> {
    try {
      this.#open();
      await this.#serve();
      if (!this.failure) await this.#end();
    } catch (error) {
      this.#caught(error);
    } finally {
      this.#options.record?.close();
    }
    this.faults = this.#told.reduce((sum, { offers }) => sum + offers, 0);
  }

  #caught(error: unknown): void {
    if (error instanceof Stuck) this.fail(this.#stuck(error.how, error.message));
    else this.fail({ invariant: 'threw', detail: String(error), cause: error });
  }

  // ---- what is heard -------------------------------------------------------------------------------------

  #listen({ kernel }: World): Kernel {
    return {
      pageSize: kernel.pageSize,
      elsewhere: true,
      attach: (memory) => {
        const told = new Told(kernel.pageSize, (failure) => this.fail(failure));
        this.#told.push(told);
        return listened(kernel.attach(memory), memory, {
          read: (fd, view, bytes) => this.#heard(told, fd, view, bytes),
          answered: (fd, call) => this.#answered(told, fd, call),
        });
      },
    };
  }

  #heard(told: Told, fd: number, view: DataView, bytes: number): void {
    if (this.world.kernel.files.get(fd)?.is !== 'userfaultfd') return;
    const messages = bytes / MESSAGE_BYTES;
    this.note?.(`handler: reads ${messages} message${messages === 1 ? '' : 's'}`);
    told.said(view, bytes);
  }

  #answered(told: Told, fd: number, call: Call): void {
    this.schedule?.call(call);
    if (call.resolved > 0) told.resolved(call.start, call.start + BigInt(call.resolved));
    const file = this.world.kernel.files.get(fd);
    if (file?.is !== 'userfaultfd') return;
    const start = Number(call.start);
    // EEXIST does not say that a page is there; a MOVE says it of its target, and stays undone.
    if (call.result === E.EXIST && call.name !== 'MOVE' && file.context.space.holds(start))
      told.resolved(call.start, call.start + BigInt(this.pageSize));
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
    const uffd = world.process === world.kernel.process ? this.#openOwn() : this.#openOther();
    this.#main = this.latest();
    world.uffd = attend(uffd, this.#main, this);
  }

  #openOwn(): Userfaultfd {
    const { port, features, address, length, modes } = this.world;
    const { record } = this.#options;
    const uffd = Userfaultfd.open({ kernel: port, features, ...(record ? { record } : {}) });
    uffd.register(address, length, modes);
    return uffd;
  }

  /** The watched process opens it, and gives it to the handler's. */
  #openOther(): Userfaultfd {
    const { kernel, port, process, features, address, length, modes } = this.world;
    const { record } = this.#options;
    const inside = {
      pageSize: kernel.pageSize,
      elsewhere: true,
      attach: (memory: LinearMemory) => kernel.attach(memory, process),
    };
    const opened = Userfaultfd.open({ kernel: inside, features });
    opened.register(address, length, modes);
    const { ranges } = opened;
    const given = { kernel: port, features, ranges, pid: process.pid, ...(record ? { record } : {}) };
    return Userfaultfd.wrap(opened.release(), given);
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
    // Returns at once, or when it was stopped or closed.
    if (!world.uffd.start(handler, { wait })) throw new Error('start: false');
    while (!this.failure && !this.#isThrough()) await this.#step();
  }

  /** What the program does before it waits. */
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

  /** What an option makes. A mistake in it is not an error of a handler that runs. */
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
    if (kernel.turns !== turns) await hop();
    this.#notEarly();
  }

  /** Only the end of its memory is a reason to close while threads run. */
  #notEarly(): void {
    const allowed = this.#ending || this.#options.mayClose || !this.#watched.alive;
    if (!allowed && (this.#main as Told).closings > 0 && !this.#threadsAreThrough()) {
      this.fail({ invariant: 'closed', detail: 'it was told while threads run' });
    }
  }

  #threadsAreThrough(): boolean {
    return this.world.kernel.threads.every((thread) => thread === this.#manager || thread.idle);
  }

  /** All threads are through, all answers given, and whoever watches a process that is gone has heard of it. */
  #isThrough(): boolean {
    const { world } = this;
    if (!this.#threadsAreThrough() || !this.#manager?.done) return false;
    if (world.pending > 0 || this.answering > 0) return false;
    const own = world.process === world.kernel.process;
    return this.#told.every((told) => !told.served || told.closings > 0 || (own && told === this.#main));
  }

  /** The rest of the program. */
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
    // The end of a watched process ends the loop by itself.
    if (!stops || this.world.process !== this.world.kernel.process) return;
    new Stopper(this.world.uffd.stopHandle).request((fd) => this.world.kernel.signal(fd));
  }

  /** A process whose threads are through, and which has not called exec: that one lives on. */
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

  /** Closes everything, and looks at what is left. */
  async #end(): Promise<void> {
    const { kernel, uffd } = this.world;
    this.#ledger.compareAll('in the end there was');
    this.#ending = true;
    uffd.stop();
    uffd.close();
    for (let steps = 0; steps < LAST_STEPS && !this.failure && kernel.step(); steps++) await hop();
    for (const { served, closings } of this.#told) {
      if (served && closings !== 1)
        this.fail({ invariant: 'closed', detail: `it was told ${closings} times` });
    }
    if (kernel.files.count > 0) {
      const left = kernel.files.all().map(({ is }) => is);
      this.fail({ invariant: 'leak', detail: `at the end there are still open: ${left.join(', ')}` });
    }
  }

  // ---- who does not get on -------------------------------------------------------------------------------

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
