// One run of a handler against one simulated guest: starts the handler, hands the userfaultfd over, answers its calls
// until the guest's threads are finished or an invariant is broken, and ends it.

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { closeDescriptor } from '../../shim/descriptors.js';
import { send } from '../../shim/socket.js';
import { UffdError } from '../errors/errors.js';
import { handOffText } from '../serve/handoff-protocol.js';
import { type Chooser, Noted, Random, Script } from '../sim/chooser.js';
import type { Inject } from '../sim/index.js';
import type { Attempt } from '../testing/simulate.js';
import { patterned } from '../testing/world.js';
import type { TraceWriter } from '../trace/writer.js';
import { isAsleep } from './caller.js';
import { Guest } from './guest.js';
import { HandlerCalls } from './handler-calls.js';
import { Launcher } from './launcher.js';

export interface HandlerOptions {
  /** The handler and its arguments, with the placeholders {socket} and {memory}. */
  readonly command: readonly string[];
  /** Failures to inject; default: `INJECTED`. */
  readonly inject?: Inject;
  /** Most regions of a guest. Default 3. */
  readonly regions?: number;
  /** Whether some guests have 2 MiB pages. Default true. */
  readonly huge?: boolean;
  /** Threads of a guest, and the most actions of each. Default 3 and 8. */
  readonly threads?: number;
  readonly actions?: number;
  /** Whether one process of the handler gets many hand-offs, one after the other. Default false. */
  readonly reuse?: boolean;
  readonly syncWakeUp?: boolean;
}

/** What decides a run. */
export interface Decisions {
  readonly seed?: number;
  /** In place of a seed. After the end of the list `fallback` decides, or every choice is the plainest. */
  readonly choices?: readonly number[];
  readonly fallback?: Chooser | undefined;
  /** Most steps of threads. */
  readonly steps?: number | undefined;
  readonly schedule?: boolean;
  /** Records the run, which must have `choices`. */
  readonly record?: TraceWriter | undefined;
}

/** What the kernel may do at any time, and how likely it is at each opportunity. */
export const INJECTED: Inject = {
  eagain: 0.03,
  partial: 0.1,
  held: 0.1,
  repeat: 0.05,
  wake: 0.02,
  signal: 0.02,
  short: 0.05,
  dry: 0.01,
  exit: 0.002,
  split: 0.005,
};

/** A handler that cannot be tested: it does not start, or never listens. */
export class HandlerNotReady extends Error {
  override readonly name = 'HandlerNotReady';
}

const SMALL_PAGE = 4096;
const HUGE_PAGE = 2 ** 21;
const SMALL_PAGES = 64;
const HUGE_PAGES = 3;
/** One guest in this many has 2 MiB pages. */
const HUGE_ONE_IN = 16;
const STEPS_MOST = 20_000;
const START_MS = 10_000;
/** How long a handler may do nothing. */
const SILENT_MS = 5000;
/** How long a handler with threads or timers must be asleep before its wait counts as one for ever. */
const ASLEEP_MS = 500;
/** How long a handler must be asleep that does not wait for messages of a guest whose threads are finished. */
const ENDING_MS = 100;
/** How long to wait for a call, before it is looked what the handler's threads do. */
const LOOK_MS = 1000;
const IDLE_LOOK_MS = 20;
/** How long a handler that has served a guest may take to take the next one. */
const TAKEN_MS = 1000;
const ERRORS_SHOWN = 5;
const SIGNALLED = 128;
const ECONNREFUSED = -111;
const ENOENT = -2;

export class HandlerRuns {
  readonly #options: HandlerOptions;
  readonly #folder: string;
  readonly #launcher: Launcher;
  readonly #calls: HandlerCalls;
  #connection = -1;
  #runs = false;
  /** Whether the handler's process has served another guest before. */
  #again = false;
  #memory = 0;
  /** Whether one process gets many hand-offs. A handler that does not take a second one gets a process for each. */
  #reuse: boolean;

  /** @throws UffdError, UnsupportedError if calls cannot be trapped here */
  constructor(options: HandlerOptions) {
    this.#options = options;
    this.#reuse = options.reuse ?? false;
    this.#folder = mkdtempSync(join(tmpdir(), 'uffd-'));
    try {
      const { command, syncWakeUp = true } = options;
      const memories = [
        this.#memoryFile('memory', SMALL_PAGES, SMALL_PAGE),
        ...(options.huge === false ? [] : [this.#memoryFile('memory-huge', HUGE_PAGES, HUGE_PAGE)]),
      ];
      this.#launcher = new Launcher({ command, folder: this.#folder, memories, syncWakeUp });
    } catch (error) {
      rmSync(this.#folder, { recursive: true, force: true });
      throw error;
    }
    this.#calls = new HandlerCalls(this.#launcher);
  }

  /** What this machine can do. */
  get abilities(): Launcher['abilities'] {
    return this.#launcher.abilities;
  }

  /** From now on each run has a process of its own. Returns whether that is new. */
  forgoReuse(): boolean {
    const reused = this.#reuse;
    this.#reuse = false;
    return reused;
  }

  /** Whether the handler has tried to open a userfaultfd of its own, which is refused. */
  get ownUffd(): boolean {
    return this.#calls.ownUffd;
  }

  /** What the handler has written. */
  get said(): { stdout: string; stderr: string } {
    const { output, errors } = this.#launcher;
    return { stdout: readFileSync(output, 'utf8'), stderr: readFileSync(errors, 'utf8') };
  }

  /** The last lines that the handler has written to its standard error. */
  get lastErrors(): string[] {
    const text = this.said.stderr.trimEnd();
    return text === '' ? [] : text.split('\n').slice(-ERRORS_SHOWN);
  }

  #memoryFile(name: string, pages: number, pageSize: number): string {
    const path = join(this.#folder, name);
    const fd = openSync(path, 'w');
    for (let index = 0; index < pages; index++) writeSync(fd, patterned(index, pageSize));
    closeSync(fd);
    return path;
  }

  /**
   * Makes one run.
   *
   * @throws HandlerNotReady if the handler does not start or never listens
   */
  attempt({ seed = 1, choices, fallback, steps = STEPS_MOST, schedule, record }: Decisions): Attempt {
    const chooser = new Noted(choices ? new Script(choices, fallback) : new Random(seed));
    const { huge = true, inject = INJECTED, regions = 3, threads = 3, actions = 8 } = this.#options;
    const isHuge = huge && chooser.below(HUGE_ONE_IN) === HUGE_ONE_IN - 1;
    const [pages, pageSize] = isHuge ? [HUGE_PAGES, HUGE_PAGE] : [SMALL_PAGES, SMALL_PAGE];
    const { readCaller } = this.#calls;
    const options = { pageSize, pages, inject, regions, threads, actions, steps };
    const guest = new Guest(options, chooser, readCaller, {
      ...(schedule && { schedule }),
      ...(record && { record: { writer: record, choices: choices ?? [] } }),
    });
    const memory = isHuge ? 1 : 0;
    this.#prepare(memory);
    this.#handOver(guest);
    if (!this.#serve(guest)) {
      // Its process has served another guest before, and takes no further one.
      this.#reuse = false;
      closeDescriptor(this.#connection);
      this.#prepare(memory);
      this.#handOver(guest);
      this.#serve(guest);
    }
    this.#finish(guest);
    return {
      failure: guest.failure,
      planned: guest.planned,
      steps: guest.kernel.steps,
      faults: guest.faults,
      injected: guest.kernel.injector?.counts ?? new Map(),
      choices: chooser.choices,
      schedule: guest.schedule?.lines ?? [],
    };
  }

  /** Makes sure that a handler listens. */
  #prepare(memory: number): void {
    if (this.#runs && (!this.#reuse || memory !== this.#memory)) this.#end();
    this.#again = this.#runs;
    if (this.#runs) {
      const connection = this.#launcher.connect();
      if (connection !== undefined && connection >= 0) {
        this.#connection = connection;
        return;
      }
      this.#end();
      this.#again = false;
    }
    this.#memory = memory;
    this.#calls.begin(1);
    this.#launcher.start(memory);
    this.#runs = true;
    this.#connect();
  }

  /** Waits until the handler listens, and connects. */
  #connect(): void {
    let [listens, wasKilled] = [false, false];
    this.#calls.listens = () => {
      listens = true;
    };
    const until = performance.now() + START_MS;
    while (performance.now() < until) {
      // listen(2) itself runs after it was let through.
      const happened = this.#launcher.wait(listens ? 1 : 100);
      if (happened === 'call') this.#calls.handle();
      else if (happened === 'ended') throw this.#notReady('has ended before it listened');
      if (!listens) continue;
      const connection = this.#launcher.connect();
      if (connection !== undefined && connection >= 0) {
        this.#connection = connection;
        return;
      }
      // The handler of the run before may have killed the process that connects, when it panicked.
      if (connection === undefined && !wasKilled) wasKilled = true;
      else if (connection !== ECONNREFUSED && connection !== ENOENT)
        throw connection === undefined
          ? this.#notReady('has killed the process that connects to it')
          : new UffdError(connection, 'connect');
    }
    throw this.#notReady(`does not listen at {socket} after ${START_MS / 1000} s`);
  }

  #notReady(what: string): HandlerNotReady {
    const { status, notStarted } = this.#launcher;
    const why = notStarted ? 'cannot be executed' : what;
    const lines = this.lastErrors.map((line) => `\n  ${line}`).join('');
    const ended = status === undefined || notStarted ? '' : ` (${statusText(status)})`;
    this.#end();
    return new HandlerNotReady(`the handler ${why}${ended}${lines}`);
  }

  #handOver(guest: Guest): void {
    const fd = this.#calls.enter(guest);
    const sent = send(this.#connection, handOffText(guest.regions), [fd]);
    if (sent < 0) guest.fail({ invariant: 'ended', detail: 'the handler has closed the connection at once' });
  }

  /** Answers calls until the run is over. False: the handler's process does not take this further hand-off. */
  #serve(guest: Guest): boolean {
    const calls = this.#calls;
    let [lastUse, uses] = [performance.now(), 0];
    while (!guest.failure && !calls.over) {
      const { finished } = guest;
      const lookMs = calls.idle || finished ? IDLE_LOOK_MS : LOOK_MS;
      const happened = this.#launcher.wait(calls.idle && finished ? 0 : lookMs);
      if (happened === 'call') calls.handle();
      if (calls.uses !== uses) [lastUse, uses] = [performance.now(), calls.uses];
      const silentMs = performance.now() - lastUse;
      if (this.#again && uses === 0 && (happened === 'ended' || silentMs > TAKEN_MS)) return false;
      if (happened === 'ended') {
        this.#ended(guest);
        break;
      }
      // Calls on other descriptors are no sign of life.
      if (happened === 'nothing' || silentMs > SILENT_MS) this.#silent(guest, silentMs);
    }
    return true;
  }

  /** The handler makes no calls. */
  #silent(guest: Guest, forMs: number): void {
    const { idle, pid } = this.#calls;
    const asleep = (idle || guest.finished) && isAsleep(pid);
    // A handler need not wait for messages of a guest that has ended.
    if (asleep && guest.finished && (idle || forMs > ENDING_MS)) this.#calls.over = true;
    else if (asleep && idle && forMs > ASLEEP_MS)
      guest.stuck('asleep', 'the handler waits, and nothing wakes it');
    else if (forMs > SILENT_MS) guest.stuck('asleep', `the handler made no call for ${SILENT_MS / 1000} s`);
    else if (idle && guest.finished) this.#launcher.pause();
  }

  #ended(guest: Guest): void {
    this.#runs = false;
    const status = this.#launcher.status as number;
    // A handler may end when its guest has ended.
    if (status === 0 && guest.died) this.#calls.over = true;
    else guest.fail({ invariant: 'ended', detail: statusText(status) });
  }

  #finish(guest: Guest): void {
    if (this.#calls.killsPeer)
      guest.fail({ invariant: 'ended', detail: 'it has killed the process that connected' });
    if (!guest.failure) guest.compareAll();
    const keep = this.#runs && this.#reuse && !guest.failure;
    // Ended first: a handler may panic when its connection is closed, and kill the process that has connected.
    if (!keep) this.#end();
    closeDescriptor(this.#connection);
    this.#calls.leave();
  }

  /** Ends the handler. */
  #end(): void {
    if (this.#runs) this.#launcher.kill();
    this.#runs = false;
  }

  close(): void {
    this.#launcher.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** A shell's exit status in words. */
function statusText(status: number): string {
  return status > SIGNALLED ? `killed by signal ${status - SIGNALLED}` : `exit status ${status}`;
}
