// Decides when batches run: on request (`poll`), or by a wait strategy.
//
// Rules:
//  - After each batch something always triggers the next batch: a readable descriptor, the delay of a deferred fault,
//    the delay of a read that failed because no descriptor was free for a forked child, the end of the watched process,
//    or a stop.
//  - `stop` inside a callback ends the loop when the callback returns; `close` and `release` take effect at once, and
//    `closed` is called when the callback returns. `start` and `poll` inside a callback are refused.

import type { Action } from '../bindings/core.js';
import { Errno, UffdError } from '../errors/errors.js';
import { Note, type Watch } from '../kernel/port.js';
import { AdaptiveSpin } from '../scheduling/adaptive-spin.js';
import { Affinity, type Placement } from '../scheduling/affinity.js';
import { Dispatcher, type LoopHost } from './dispatcher.js';
import type { HandlerOf, OnError } from './handler.js';

/**
 * The wait strategies. Traces store the index of a strategy, so add a new one at the end. Add it in `run` and in
 * src/cli/arguments.ts too.
 */
export const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

/**
 * How to wait for faults. `poll` waits on Node's event loop: `start` returns at once. The other strategies run in the
 * calling thread until they are stopped, and are meant for workers: `block` sleeps in poll(2); `spin` never sleeps;
 * `adaptive` spins while faults come fast and sleeps otherwise. Stop a loop before ending its worker: docs/serving.md.
 *
 * @useDeclaredType
 */
export type Wait = (typeof WAITS)[number];

/**
 * Longest sleep in one system call, during which `process.exit` and `terminate` cannot end the thread. Also how
 * often an idle userfaultfd checks whether its process has called exec, which no descriptor reports.
 */
const SLEEP_MOST_MS = 200;

/** Milliseconds without a message that count as a pause. */
const PAUSE_MS = 20;

/** After this many empty batches in a row, `spin` yields the processor (first constant) or pauses (second). */
const BATCHES_A_YIELD = 1 << 5;
const BATCHES_A_PAUSE = 1 << 15;
/**
 * After this many batches, empty or not, `spin` checks the watched process. A deferred fault is offered again and again,
 * and on a busy machine a yield takes milliseconds: then few empty batches follow each other.
 */
const BATCHES_A_CHECK = 1 << 12;

/**
 * Before it sleeps, `block` reads once more after a batch. If AGAIN_MOST of these reads in a row found nothing, it
 * makes only one in SKIPS_MOST batches.
 */
const AGAIN_MOST = 8;
const SKIPS_MOST = 64;

/** Milliseconds until the loop retries a read that failed because no descriptor was free for a forked child. */
const STARVED_MS = 20;

/** Non-empty batches in a row until other callbacks of the event loop get their turn. */
const BATCHES_A_TURN = 32;

export class EventLoop<Owner extends { close(): void }> {
  readonly #host: LoopHost<Owner>;
  readonly #dispatcher: Dispatcher<Owner>;
  /** Whether a wait strategy is running. */
  running = false;
  /** Whether the method `poll` is running a batch, and no wait strategy is running. */
  #single = false;
  /** The watch of the descriptor. */
  #source: Watch | undefined;
  /** The watches of the eventfd and of the process. */
  #watches: Watch[] = [];
  /** The eventfd of the current run. */
  #stopFd = -1;
  /**
   * The pidfd in the core's poll set, besides the descriptor and the eventfd. Undefined: the set was not written yet.
   */
  #polls: number | undefined;
  #timer: Watch | undefined;
  /** Chooses the processors of this thread while the loop runs. Undefined: the scheduler chooses them. */
  #placer: Affinity | undefined;
  /** Whether the last sleep ended without a message. */
  #paused = false;
  /**
   * The timer that detects pauses under the wait 'poll' while processors are kept awake. `#active`: whether a message
   * came since it was set.
   */
  #pause: Watch | undefined;
  #active = false;
  /** The next check of the watched process. */
  #check: Watch | undefined;
  /** Whether the last poll reported something, and no message has been read since. */
  #nothingRead = false;

  constructor(host: LoopHost<Owner>, handler: HandlerOf<Owner>) {
    this.#host = host;
    const shouldContinue = (): boolean => !host.stopRequested() && (this.running || this.#single);
    this.#dispatcher = new Dispatcher(host, handler, shouldContinue, (error) => this.#fail(error));
  }

  get handler(): HandlerOf<Owner> {
    return this.#dispatcher.handler;
  }

  /** Whether a batch is running, that is, its callbacks are on the stack. */
  get inBatch(): boolean {
    return this.#dispatcher.inBatch;
  }

  /**
   * Runs the loop until it ends; for `poll`, starts it and returns. `stopFd`: the eventfd that wakes the loop up to
   * stop.
   */
  run(wait: Wait, stopFd: number, placement: Placement, onError?: OnError): void {
    const { port, pid } = this.#host.session;
    if (placement !== 'none' && port.processors) this.#placer = new Affinity(port.processors, pid, placement);
    this.running = true;
    this.#dispatcher.failures.onError = onError;
    this.#dispatcher.blocking = wait === 'poll' ? undefined : wait;
    this.#dispatcher.pause();
    this.#stopFd = stopFd;
    this.#polls = undefined;
    if (wait === 'poll') {
      this.#watch();
      return;
    }
    try {
      if (wait === 'block') this.#block();
      if (wait === 'spin') this.#spin();
      if (wait === 'adaptive') this.#adapt();
    } finally {
      this.#finish();
    }
  }

  /** Ends the loop after the current callback. This also consumes a stop that another thread requested. */
  stop(): void {
    const { running } = this;
    this.#halt();
    if (running) this.#consumeStop();
  }

  /** Ends the loop because a promise of the handler has rejected. No caller can catch this error. */
  #fail(error: unknown): void {
    const { session } = this.#host;
    if (this.running) {
      session.note(Note.STOP);
      this.stop();
    }
    session.raise(error);
  }

  #halt(): void {
    this.running = false;
    this.#dispatcher.blocking = undefined;
    this.#placer?.restore();
    this.#placer = undefined;
    this.#source?.close();
    this.#source = undefined;
    for (const watch of this.#watches.splice(0)) watch.close();
    this.#timer?.close();
    this.#timer = undefined;
    this.#pause?.close();
    this.#pause = undefined;
    this.#check?.close();
    this.#check = undefined;
  }

  /** To call after a fill outside a batch. The fill may have read messages, or found that the process is gone. */
  follow(): void {
    if (this.inBatch) return;
    const { session } = this.#host;
    if (session.core.exited !== 0) this.#dispatcher.endExited();
    else if (this.#source && session.core.waiting > 0) this.#schedule();
  }

  /** One batch without a strategy. Returns how many messages were handled. */
  once(onError?: OnError): number {
    this.#single = !this.running;
    if (this.#single) this.#dispatcher.failures.onError = onError;
    this.#dispatcher.pause();
    try {
      const handled = this.#dispatcher.dispatchBatch();
      return handled > 0 ? handled : this.#checkProcess();
    } finally {
      this.#single = false;
      this.follow();
    }
  }

  /** Calls the handler's callback for a mapping change that the core has delivered. */
  deliver(change: Action): void {
    this.#dispatcher.deliver(change);
  }

  /** Checks whether the watched process has exited or called exec, and ends the watch if so. Returns messages handled. */
  #checkProcess(): number {
    const { session } = this.#host;
    if (!session.watched) return 0;
    if (session.pidfd >= 0) this.#pollAll(0);
    return this.#gone() ? this.#dispatcher.processGone() : 0;
  }

  /** Whether the process is gone, by the last poll or by a check of its memory. */
  #gone(): boolean {
    const { session } = this.#host;
    return (session.pidfd >= 0 && session.core.exports.pollExited() !== 0) || !session.memoryExists();
  }

  // ---- strategies ----------------------------------------------------------------------------------------

  #watch(): void {
    const { port } = this.#host.session;
    if (this.#host.stopRequested()) {
      this.#finish();
      return;
    }
    try {
      this.#watches.push(
        port.watch(this.#stopFd, () => {
          if (this.running) this.#finish();
        }),
      );
      this.#watchProcess();
      // Faults deferred before a stop, and messages read by a fill, trigger no event of the descriptor.
      this.#schedule();
    } catch (error) {
      this.#halt();
      throw error;
    }
  }

  /** Detects an exit of the watched process at once, and an exec soon. */
  #watchProcess(): void {
    const { port, pidfd, watched } = this.#host.session;
    if (!watched) return;
    const gone = (): void => this.#guarded(() => void this.#dispatcher.processGone());
    if (pidfd >= 0) this.#watches.push(port.watch(pidfd, gone));
    const check = (): void => {
      this.#check = port.after(SLEEP_MOST_MS, () => {
        this.#guarded(() => void this.#checkProcess());
        if (this.running) check();
      });
    };
    check();
  }

  /** One turn of the event loop. */
  #turn(): void {
    this.#guarded(() => {
      this.#dispatcher.pause();
      // Threads that were answered may have run and faulted again: reading costs less than a turn of the event loop.
      let batches = 0;
      while (batches < BATCHES_A_TURN && this.#shouldContinue && this.#runBatch() > 0) batches++;
      if (batches > 0) this.#active = true;
      else if (this.#shouldContinue) this.#host.session.unblock();
      this.#watchForPause();
      this.#schedule();
    });
  }

  /**
   * Checks for a pause while processors are kept awake. The timer is that of `processors`, because calls of the port's
   * own timer are recorded.
   */
  #watchForPause(): void {
    const placer = this.#placer;
    if (!placer?.keepsAwake || this.#pause) return;
    this.#active = false;
    this.#pause = this.#host.session.port.processors?.after(PAUSE_MS, () => {
      this.#pause = undefined;
      if (this.#active) this.#watchForPause();
      else placer.pause();
    });
  }

  /** Runs the body on the event loop. An error must not reach libuv's callback: that would end the process. */
  #guarded(body: () => void): void {
    if (!this.running || this.inBatch) return;
    try {
      body();
    } catch (error) {
      this.#finish();
      if (error === this.#host.session.broken && this.handler.closed) return;
      this.#host.session.port.after(0, () => {
        throw error;
      });
    }
  }

  /** Schedules the next batch: when the descriptor is readable, or when a deferred fault or a retry is due. */
  #schedule(): void {
    this.#timer?.close();
    this.#timer = undefined;
    if (!this.running) return;
    this.#listen();
    const delay = this.#delay();
    if (delay >= 0) this.#timer = this.#host.session.port.after(delay, () => this.#turn());
  }

  /**
   * Watches the descriptor, unless its next event cannot be read now. The descriptor would then be reported as readable
   * endlessly.
   */
  #listen(): void {
    const { core, port, fd } = this.#host.session;
    if (core.starved === 0) {
      this.#source ??= port.watch(fd, () => this.#turn());
      return;
    }
    this.#source?.close();
    this.#source = undefined;
  }

  /** Milliseconds until a batch is due without a new message; −1: none is due. */
  #delay(): number {
    const { core, port } = this.#host.session;
    if (core.exited !== 0) return 0;
    if (core.starved !== 0) return STARVED_MS;
    return core.waiting === 0 ? -1 : core.exports.delay(port.now());
  }

  /** One batch of a strategy. Returns how many messages were handled. */
  #runBatch(): number {
    const handled = this.#dispatcher.dispatchBatch();
    if (handled > 0) {
      this.#nothingRead = false;
      this.#placer?.answered(handled, this.#host.session.core.tid);
    }
    return handled;
  }

  get #shouldContinue(): boolean {
    return this.running && this.#host.isOpen() && !this.#host.stopRequested();
  }

  #block(): void {
    // Threads that were answered may have run and faulted again in the meantime. One more read then saves a sleep;
    // otherwise it is a wasted call (always, if the faulting thread and the loop share a processor). So the loop reads
    // once more as long as that finds messages, and otherwise probes now and then.
    let pays = AGAIN_MOST;
    let skipped = 0;
    let again = false;
    while (this.#shouldContinue) {
      const received = this.#runBatch() > 0;
      if (again) pays = received ? AGAIN_MOST : pays - 1;
      if (pays === 0 && ++skipped === SKIPS_MOST) {
        pays = 1;
        skipped = 0;
      }
      again = received && pays > 0;
      if (!again && this.#shouldContinue) this.#sleep();
    }
  }

  #spin(): void {
    let fruitless = 0;
    let unchecked = 0;
    while (this.#shouldContinue) {
      fruitless = this.#runBatch() > 0 ? 0 : fruitless + 1;
      unchecked++;
      // The thread that is about to fault may need this processor.
      if (fruitless % BATCHES_A_YIELD === BATCHES_A_YIELD - 1) this.#host.session.port.processors?.yield();
      if (fruitless % BATCHES_A_PAUSE === BATCHES_A_PAUSE - 1) this.#placer?.pause();
      if (unchecked < BATCHES_A_CHECK) continue;
      unchecked = 0;
      this.#checkProcess();
    }
  }

  /** Spins as long as that pays, then sleeps. */
  #adapt(): void {
    const spin = new AdaptiveSpin();
    while (this.#shouldContinue) {
      const now = this.#dispatcher.begin();
      if (spin.ms > 0) spin.polledAt(now);
      if (this.#runBatch() > 0) spin.messageArrived();
      else if (this.#readsAgain(spin.shouldContinue)) {
        // Yields to threads that need this processor; the next poll notices the interruption.
        if (spin.isProbing) this.#host.session.port.processors?.yield();
      } else if (this.#shouldContinue) {
        this.#sleep();
        spin.slept();
      }
    }
  }

  /** Whether to read again instead of sleeping. A replay does what the recorded loop did. */
  #readsAgain(byTime: boolean): boolean {
    const { port } = this.#host.session;
    return port.readsAgain ? port.readsAgain(byTime) : byTime;
  }

  /** Sleeps until a message or a stop arrives, a batch is due, or the watched process ends. */
  #sleep(): void {
    const { session } = this.#host;
    this.#dispatcher.pause();
    if (this.#nothingRead) this.#afterEmptyWakeUp();
    if (!this.#shouldContinue) return;
    const delay = this.#delay();
    const most = this.#paused ? SLEEP_MOST_MS : PAUSE_MS;
    const ready = this.#pollAll(delay < 0 ? most : Math.min(Math.ceil(delay), most));
    this.#nothingRead = ready > 0;
    this.#paused = ready === 0 && delay < 0;
    if (this.#paused) this.#placer?.pause();
    if (!session.watched || (ready > 0 && !session.core.exports.pollExited())) return;
    if (this.#gone()) this.#dispatcher.processGone();
  }

  /**
   * To call after a wake-up without a message. Any process that shares the open file can clear O_NONBLOCK. Then poll(2)
   * always reports POLLERR, so the loop would never sleep, nor notice the end of the watched process.
   */
  #afterEmptyWakeUp(): void {
    this.#nothingRead = false;
    this.#host.session.unblock();
    this.#checkProcess();
  }

  /** poll(2) on everything that can end a sleep. Returns how many descriptors are ready. */
  #pollAll(timeoutMs: number): number {
    const { core, port, fd, pidfd } = this.#host.session;
    if (this.#polls !== pidfd) core.exports.pollWatch(fd, this.#stopFd, pidfd);
    this.#polls = pidfd;
    const result = port.poll(core.polled, 3, timeoutMs);
    if (result < 0 && result !== -(Errno.EINTR as number)) throw new UffdError(result, 'poll');
    return Math.max(result, 0);
  }

  #finish(): void {
    this.#halt();
    this.#consumeStop();
  }

  /** Consumes a stop that another thread requested. */
  #consumeStop(): void {
    const { core, port } = this.#host.session;
    if (!this.#host.stopRequested()) return;
    this.#host.stopper.obeyed(() => {
      if (this.#host.isOpen()) port.read(this.#stopFd, core.messages, 8);
    });
  }
}
