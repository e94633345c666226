// Threads for sessions. One is always ready, so that a guest does not wait for its thread to start; it has warmed up, and
// serves its first faults as fast as later ones (warm-up.ts). A thread that has served is kept for the next guest.
//
// Rules:
//  - If a thread cannot be made (a limit of tasks: pids.max, ulimit -u), that is an error if a guest needs it; for a
//    spare thread the failure is ignored.
//  - No thread is ended before it has reported that it is idle. A thread that is ended while it loads koffi ends the
//    whole process (koffi 3.3: napi_throw), and one that warms up has a reader that would sleep.
//  - A spare thread takes no processor time from a guest: while guests are served it starts and warms up with the lowest
//    priority, or, if the process may not raise a priority again, it is made later and does not warm up.

import { getPriority, setPriority } from 'node:os';
import type { Worker } from 'node:worker_threads';
import { descriptorsLeft } from '../../shim/descriptors.js';
import { mayRaisePriority, threadIds } from '../../shim/process.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { takeThread } from '../workers/launcher.js';
import type { SharedRanges } from './extents.js';
import type { FileMapping } from './memory-file.js';
import { SESSION_THREAD } from './session-thread.js';
import type { SessionCommand, SessionReport, ThreadData } from './worker-messages.js';

/**
 * Most idle threads that are kept, for a while and after that. Guests that arrived together may do so again, and
 * starting a thread costs more than serving a thousand faults. An idle thread has some 12 MiB of private memory.
 */
export const IDLE_MOST = 32;
const IDLE_FEW = 2;
const IDLE_MS = 30_000;
/**
 * Milliseconds after one thread was taken until the next is made, if its priority cannot be lowered: a guest that was
 * just handed over needs the processors first.
 */
const SPARE_AFTER_MS = 500;
/** The lowest priority: what nice(1) calls 19. */
const LOWEST = 19;
/** A thread is made only if this many descriptors are free: Node leaks some if a thread cannot get its own. */
const SPARE_DESCRIPTORS = 64;

/** No thread can be made for a guest. */
export class ThreadError extends Error {
  override readonly name = 'ThreadError';
  readonly code = 'ERR_UFFD_THREAD';
}

/** A thread that serves sessions, one after the other. */
export class SessionThread {
  readonly worker: Worker;
  /** Resolves when it can take a task, or has ended. */
  readonly ready: Promise<void>;
  /** Resolves when it has warmed up, or has ended. */
  readonly idle: Promise<void>;
  readonly #wanted: Int32Array;
  /** Interrupts its warm-up. */
  #stopHandle: SharedArrayBuffer | undefined;
  /** Its thread IDs while it has the lowest priority. */
  #lowered: readonly number[];
  /** Whether a guest has it. */
  taken = false;

  /** `lowered`: thread IDs that have the lowest priority until this thread is wanted. */
  constructor(worker: Worker, wanted: Int32Array, lowered: readonly number[]) {
    this.worker = worker;
    this.#wanted = wanted;
    this.#lowered = lowered;
    const reported = (what: SessionReport['is']): Promise<void> =>
      new Promise((resolve) => {
        worker
          .on('message', ({ is }: SessionReport) => is === what && resolve())
          .once('exit', () => resolve());
      });
    this.ready = reported('ready');
    this.idle = reported('idle');
    worker.on('message', (report: SessionReport) => {
      if (report.is === 'warming') this.#stopHandle = report.stopHandle;
      if (Atomics.load(wanted, 0) !== 0) this.want();
    });
  }

  /** It is needed now: it stops warming up. */
  want(): void {
    Atomics.store(this.#wanted, 0, 1);
    for (const tid of this.#lowered) setPriorityOf(tid, getPriority());
    this.#lowered = [];
    if (this.#stopHandle) Userfaultfd.stop(this.#stopHandle);
    this.#stopHandle = undefined;
  }
}

export class WorkerPool {
  readonly #idle: SessionThread[] = [];
  readonly #options: Omit<ThreadData, 'wanted'>;
  /** Whether a spare thread gets the lowest priority. */
  readonly #lowers = mayRaisePriority();
  /** Threads that guests have. */
  #serving = 0;
  #spareTimer: NodeJS.Timeout | undefined;
  #shrinkTimer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;
  /** Whether more than one thread may be needed. */
  readonly #more: boolean;

  /** `options`: how guests are served, for the warm-up. */
  constructor(more: boolean, options: Omit<ThreadData, 'wanted'>) {
    this.#more = more;
    this.#options = options;
  }

  /** Makes a spare thread, if none is there and there is room. Resolves when it can take a task. */
  async prepare(): Promise<void> {
    this.#spareTimer = undefined;
    if (this.#idle.length > 0 || this.#closing || descriptorsLeft() < SPARE_DESCRIPTORS) return;
    try {
      const thread = this.#create(this.#serving > 0);
      this.#idle.push(thread);
      // The caller waits.
      thread.worker.ref();
      await thread.ready;
      if (!thread.taken && !this.#closing) thread.worker.unref();
    } catch (error) {
      // The next guest may find room.
      if (!(error instanceof ThreadError)) throw error;
    }
  }

  /** Has a thread map ranges of a memory file ahead, if one is idle. */
  mapAhead(mapping: FileMapping, ranges: SharedRanges): void {
    const worker = this.#idle.at(-1)?.worker;
    if (!worker || ranges.length === 0) return;
    mapping.hold();
    const release = (): void => {
      worker.off('message', received).off('exit', release);
      mapping.release();
    };
    const received = (report: SessionReport): void => {
      if (report.is === 'mapped' && report.address === mapping.file.address) release();
    };
    worker.on('message', received).on('exit', release);
    worker.postMessage({ is: 'map', file: mapping.file, ranges } satisfies SessionCommand);
  }

  /** A guest may come soon: the thread that it will get stops warming up. */
  expect(): void {
    this.#idle.at(-1)?.want();
  }

  /**
   * Takes a thread that waits for its task (a message): the one that served last, if any.
   *
   * @throws ThreadError if there is none, and none can be made
   */
  take(): SessionThread {
    const thread = this.#idle.pop() ?? this.#create(false);
    thread.want();
    thread.worker.ref();
    this.#takes(thread, true);
    const afterMs = this.#lowers ? 0 : SPARE_AFTER_MS;
    if (this.#more) this.#spareTimer ??= setTimeout(() => void this.prepare(), afterMs).unref();
    return thread;
  }

  /** Takes back a thread that has served, and may serve again. */
  giveBack(thread: SessionThread): void {
    this.#takes(thread, false);
    thread.worker.unref();
    if (this.#closing || this.#idle.length >= IDLE_MOST) {
      void this.#end(thread);
      return;
    }
    this.#idle.push(thread);
    clearTimeout(this.#shrinkTimer);
    this.#shrinkTimer = setTimeout(() => this.#shrink(), IDLE_MS).unref();
  }

  #takes(thread: SessionThread, taken: boolean): void {
    if (thread.taken === taken) return;
    thread.taken = taken;
    this.#serving += taken ? 1 : -1;
  }

  /** Ends idle threads, after no guest has ended for a while. */
  #shrink(): void {
    for (const thread of this.#idle.splice(0, this.#idle.length - IDLE_FEW)) void this.#end(thread);
  }

  /** Ends the threads that are not needed. Idempotent. */
  close(): Promise<void> {
    clearTimeout(this.#spareTimer);
    clearTimeout(this.#shrinkTimer);
    this.#closing ??= Promise.all(this.#idle.splice(0).map((thread) => this.#end(thread))).then(() => {});
    return this.#closing;
  }

  async #end(thread: SessionThread): Promise<void> {
    // Until then it keeps the process alive.
    thread.worker.ref();
    thread.want();
    await thread.idle;
    await thread.worker.terminate();
  }

  /** `spare`: guests are served, and it must take no processor time from them. */
  #create(spare: boolean): SessionThread {
    const wanted = new Int32Array(new SharedArrayBuffer(4));
    const lowers = spare && this.#lowers;
    if (spare && !lowers) wanted[0] = 1;
    const before = lowers ? threadIds() : [];
    const worker = startedThread({ ...this.#options, wanted });
    // Another thread that began at the same moment may be among them, and gets its priority back with this one.
    const begun = lowers ? threadIds().filter((tid) => !before.includes(tid)) : [];
    const lowered = begun.filter((tid) => setPriorityOf(tid, LOWEST));
    const thread = new SessionThread(worker, wanted, lowered);
    // An idle thread does not keep the process alive; one that ends, for whatever reason, is not used again.
    worker.unref();
    const gone = (): void => {
      const index = this.#idle.indexOf(thread);
      if (index >= 0) this.#idle.splice(index, 1);
      this.#takes(thread, false);
    };
    worker.on('error', gone).on('exit', gone);
    return thread;
  }
}

function startedThread(data: ThreadData): Worker {
  try {
    const worker = takeThread(SESSION_THREAD);
    worker.postMessage({ is: 'begin', data } satisfies SessionCommand);
    return worker;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_WORKER_INIT_FAILED') throw error;
    throw new ThreadError(
      `no thread can be made for a guest: ${(error as Error).message}; raise the limit of tasks (TasksMax=, pids.max, ulimit -u)`,
    );
  }
}

/** Sets the priority of a thread of this process. False: it has ended, or a filter of system calls refuses that. */
function setPriorityOf(tid: number, priority: number): boolean {
  try {
    setPriority(tid, priority);
    return true;
  } catch {
    return false;
  }
}
