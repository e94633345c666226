// The thread of a pager: owns its memory, answers its faults, and reads its source. It never uses libuv's thread pool,
// whose four threads may all be asleep in faults that only this thread answers.
//
// Rules:
//  - If the source answers at once (a file, swap), the thread sleeps in poll(2) and not in the event loop, and takes its
//    messages itself. Otherwise faults come on the event loop.
//  - An error of this thread ends the pager: it is printed here, because the program's threads may all be asleep, and
//    the memory cannot be read any more. A thread that waits gets SIGSEGV, not zeros.

import '../kernel/linux.js';
import { writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parentPort, receiveMessageOnPort } from 'node:worker_threads';
import { drainEventfd, waitReadable } from '../../shim/watch.js';
import { outOfRange } from '../errors/arguments.js';
import { TraceWriter } from '../trace/writer.js';
import { BudgetShare } from './budget.js';
import { PagedMemory } from './memory.js';
import { Ending, type PagerCommand, type PagerPlan, type PagerReport, postedError } from './messages.js';
import { BLOCKS_MOST } from './options.js';
import { ProgramCalls } from './program-calls.js';
import { PagerServer, requestBytes } from './server.js';
import type { OpenSource, Target } from './source.js';
import { openSource, openTarget } from './sources.js';
import { SwapStore } from './swap-file.js';

const STDERR = 2;
/** The userfaultfd defers a fault if a page of its block was mapped already: it is polled again after this many ms. */
const DEFERRED_MS = 1;
/** `worker.terminate` of the program's thread does not interrupt poll(2): it waits at most as long. */
const SLEEP_MOST_MS = 1000;
/** Batches of faults after which messages are looked at, if faults come without a pause. */
const BATCHES_MOST = 32;

const now = (): number => performance.now();
const post = (report: PagerReport): void => parentPort?.postMessage(report);

/** The main function of the thread. */
export function servePager(): void {
  parentPort?.once('message', (command: PagerCommand) => {
    if (command.is === 'open') void open(command.plan);
  });
}

async function open(plan: PagerPlan): Promise<void> {
  const aborted = new AbortController();
  const early: PagerCommand[] = [];
  const keep = (command: PagerCommand): void => {
    early.push(command);
    if (command.is === 'close') aborted.abort(new Error('the pager was closed while it was opened'));
  };
  parentPort?.on('message', keep);
  let source: OpenSource | undefined;
  let share: BudgetShare | undefined;
  try {
    const calls = new ProgramCalls(post);
    source = await openSource(plan, calls, aborted.signal);
    aborted.signal.throwIfAborted();
    if (source.size / plan.blockSize > BLOCKS_MOST)
      throw outOfRange('blockSize', `larger, for ${source.size} bytes`, plan.blockSize);
    const { budget, blockSize } = plan;
    const wait = (ms: number): Promise<void> => sleep(ms, undefined, { signal: aborted.signal });
    share = budget && (await BudgetShare.join(budget, blockSize, now, wait));
    const thread = new PagerThread(plan, source, calls, share);
    parentPort?.off('message', keep);
    thread.run(early);
  } catch (error) {
    source?.close();
    share?.leave();
    post({ is: 'refused', error: postedError(error) });
    parentPort?.close();
  }
}

class PagerThread {
  readonly #source: OpenSource;
  readonly #program: ProgramCalls;
  readonly #share: BudgetShare | undefined;
  readonly #target: Target | undefined;
  readonly #memory: PagedMemory;
  readonly #server: PagerServer;
  readonly #eventfd: number;
  readonly #ending: Int32Array;
  /** The counts, where the program reads them. */
  readonly #published: Float64Array;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** @throws UffdError, UnsupportedError, RangeError; what opening the target throws */
  constructor(plan: PagerPlan, opened: OpenSource, program: ProgramCalls, share: BudgetShare | undefined) {
    const { blockSize, writable, record } = plan;
    const { source, target } = writable
      ? openTarget(plan, writable, opened, program)
      : { source: opened, target: undefined };
    this.#source = source;
    this.#target = target;
    this.#share = share;
    this.#program = program;
    this.#ending = new Int32Array(plan.ending);
    this.#eventfd = plan.eventfd;
    let recorder: TraceWriter | undefined;
    try {
      // A warning of Node's would be printed when this thread has nothing to do: for a file, at its end.
      if (record !== undefined) recorder = TraceWriter.toFile(record, { warn: (text) => void say(text) });
      this.#memory = new PagedMemory(source.size, requestBytes(blockSize), {
        writable: writable !== undefined,
        userModeOnly: plan.userModeOnly,
        immediate: source.immediate === true,
        ...(recorder && { record: recorder }),
      });
    } catch (error) {
      recorder?.close();
      if (target !== opened.target) target?.close();
      throw error;
    }
    this.#published = new Float64Array(plan.counts);
    this.#server = new PagerServer({
      ...plan,
      memory: this.#memory,
      share,
      source,
      target,
      flushMs: writable?.flushMs ?? 0,
      seed: Number(process.hrtime.bigint() & 0x7fffffffn),
      now,
      say,
      ...(plan.asks && {
        failing: (offset: number, length: number, message: string) =>
          post({ is: 'failing', offset, length, message }),
      }),
      broken: (error) => this.#fail(error),
      settled: () => {
        this.#publish();
        if (!source.immediate) this.#arm();
      },
    });
  }

  // ---- the loop ------------------------------------------------------------------------------------------

  /** `early`: commands that came while it was opened. */
  run(early: readonly PagerCommand[]): void {
    const { address, length, uffd } = this.#memory;
    post({
      is: 'opened',
      address,
      length,
      size: this.#source.size,
      userModeOnly: uffd.userModeOnly === true,
      compression: this.#source instanceof SwapStore && this.#source.compression !== 'none' ? 'zstd' : 'none',
    });
    for (const command of early) this.#command(command);
    if (this.#source.immediate) {
      this.#guarded(() => this.#loop());
      return;
    }
    parentPort?.on('message', (command: PagerCommand) => this.#guarded(() => this.#command(command)));
    uffd.start(this.#server.handler, {
      wait: 'poll',
      onError: (error) => {
        this.#fail(error);
        return 'continue';
      },
    });
    this.#arm();
  }

  /**
   * Serves until it is closed, or the process ends, which cannot interrupt poll(2). Looks at messages whenever it has
   * slept or read a part of the source, and after so many batches of faults: two calls for each fault would be a tenth
   * of its time.
   */
  #loop(): void {
    const { uffd } = this.#memory;
    const server = this.#server;
    let batches = 0;
    while (!this.#closed && Atomics.load(this.#ending, 0) === Ending.NONE) {
      const faults = uffd.poll(server.handler);
      if (server.hasJobs) server.slice();
      else if (faults === 0) waitReadable([uffd.fd, this.#eventfd], this.#untilDueMs());
      else if (++batches < BATCHES_MOST) continue;
      batches = 0;
      this.#takeCommands();
      if (!this.#closed && server.untilDueMs === 0) server.tick();
    }
  }

  /** Most milliseconds to sleep without a message. */
  #untilDueMs(): number {
    const { untilDueMs } = this.#server;
    const most = this.#memory.uffd.hasDeferred ? DEFERRED_MS : SLEEP_MOST_MS;
    return untilDueMs < 0 ? most : Math.min(untilDueMs, most);
  }

  #takeCommands(): void {
    if (!parentPort) return;
    drainEventfd(this.#eventfd);
    for (let got = receiveMessageOnPort(parentPort); got; got = receiveMessageOnPort(parentPort)) {
      this.#command(got.message as PagerCommand);
      if (this.#closed) return;
    }
  }

  /** Sets the timer of a pager on the event loop. */
  #arm(): void {
    clearTimeout(this.#timer);
    const ms = this.#server.untilDueMs;
    if (ms >= 0 && !this.#closed)
      this.#timer = setTimeout(() => this.#guarded(() => this.#server.tick()), ms);
  }

  #guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#fail(error);
    }
  }

  #publish(): void {
    this.#published.set(this.#server.counts);
  }

  /** Ends the pager because of an error in this thread. */
  #fail(error: unknown): void {
    if (this.#closed) return;
    const reason = error instanceof Error ? (error.stack ?? error.message) : String(error);
    say(`the pager has failed, and its memory cannot be read any more: ${reason}`);
    this.#end();
    post({ is: 'broken', error: postedError(error) });
    parentPort?.close();
  }

  #end(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    const { target } = this.#source;
    const ends = [
      () => this.#server.end(),
      () => this.#memory.close(),
      () => this.#share?.leave(),
      () => this.#program.close(),
      // These may be code of the program.
      () => this.#source.close(),
      () => this.#target !== target && this.#target?.close(),
    ];
    for (const end of ends) {
      try {
        end();
      } catch (error) {
        say(`the pager was closed, but not all of it: ${(error as Error)?.message ?? error}`);
      }
    }
    Atomics.store(this.#ending, 0, Ending.CLOSED);
    Atomics.notify(this.#ending, 0);
  }

  #command(command: PagerCommand): void {
    if (this.#closed) return;
    const server = this.#server;
    const answer = (id: number) => (error?: unknown) => {
      // First, because the program may look at them as soon as it has the answer.
      this.#publish();
      post({ is: 'done', id, ...(error !== undefined && { error: postedError(error) }) });
    };
    switch (command.is) {
      case 'ask':
        server.ask(command, command.pin, command.write, answer(command.id));
        break;
      case 'unpin':
        server.unpin(command);
        break;
      case 'evict':
        server.evict(command);
        answer(command.id)();
        break;
      case 'flush':
        server.flush(answer(command.id));
        break;
      case 'decided':
        if (command.poison) server.giveUp(command);
        break;
      case 'answer':
        this.#program.answer(command);
        break;
      case 'close':
        this.#end();
        answer(command.id)();
        parentPort?.close();
        break;
      default:
        throw new Error(`an unknown command: ${command.is}`);
    }
  }
}

/** Tells it on stderr, without the main thread, which may be asleep. False: not now; a pipe, too, needs memory. */
function say(text: string): boolean {
  try {
    writeSync(STDERR, `userfaultfd: ${text}\n`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // With another error there is no stderr.
    return code !== 'ENOMEM' && code !== 'EAGAIN' && code !== 'EINTR';
  }
  return true;
}
