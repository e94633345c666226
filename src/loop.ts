// Serves faults: a round reads everything, then tells the handler in the core's order; a wait strategy says
// when the next round is.
//
// Rules:
//  - One round at a time; callbacks never nest rounds.
//  - Between rounds something always leads to the next one: the descriptor, the delay of a deferred fault,
//    or a stop.
//  - `stop` inside a callback ends the loop when the callback returns; `close` and `release` take effect at once,
//    and `closed` is told when it returns. `start` and `poll` inside a callback are refused.

import type { Channel } from './channel.js';
import { MODES, Next } from './core.js';
import { Errno, UffdError } from './errors.js';
import type { FaultHandler } from './handler.js';
import type { Watch } from './kernel.js';
import type { Stopper } from './stopper.js';
import type { Userfaultfd } from './userfaultfd.js';

export const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

/**
 * How to wait for faults. `poll`: on Node's event loop; `start` returns at once. The others run in the calling
 * thread until stopped, and are meant for workers: `block` sleeps in poll(2); `spin` never sleeps; `adaptive`
 * spins while faults come fast and sleeps otherwise. Stop a loop before ending its worker: docs/serving.md.
 */
export type Wait = (typeof WAITS)[number];

/** What the loop needs of the object it serves. */
export interface Served {
  readonly channel: Channel;
  readonly stopper: Stopper;
  /** Still owns its descriptor. */
  isOpen(): boolean;
  /** The object that callbacks are given. */
  readonly face: Userfaultfd;
  /** Makes the child's object. */
  adopt(fd: number): Userfaultfd;
  /** Nothing will come any more: closes and tells the handler. */
  end(error?: UffdError): void;
  /** A round is over: tells `closed` if it ended the watch. */
  settle(): void;
}

/** Longest and first time that `adaptive` spins for the next message, in milliseconds. */
const SPIN_MOST_MS = 0.2;
const SPIN_FIRST_MS = 0.05;

/**
 * Longest sleep in one call: a thread in a system call hears nothing of `process.exit` or `terminate`. Also how
 * often a quiet userfaultfd is asked whether its process has called exec, which no descriptor tells.
 */
const SLEEP_MOST_MS = 200;

/** Rounds of `spin` in a row that brought nothing, until it looks after the watched process. */
const ROUNDS_A_LOOK = 1 << 15;

/** Rounds in a row, each of which brought something, until others on the event loop have their turn. */
const ROUNDS_A_TURN = 32;

export class Loop {
  readonly #served: Served;
  readonly handler: FaultHandler;
  /** A strategy is at work. */
  running = false;
  /** A round is under way: its callbacks are on the stack. */
  inRound = false;
  /** That round was asked for by `poll`, and no strategy is at work. */
  #single = false;
  #watches: Watch[] = [];
  /** The eventfd of the run that goes on. */
  #stopFd = -1;
  #timer: Watch | undefined;
  /** The next look after the watched process. */
  #look: Watch | undefined;

  constructor(served: Served, handler: FaultHandler) {
    this.#served = served;
    this.handler = handler;
  }

  /** Runs (or for `poll` starts) the loop. `stopFd`: the eventfd that wakes it up to stop. */
  run(wait: Wait, stopFd: number): void {
    this.running = true;
    this.#stopFd = stopFd;
    if (wait === 'poll') {
      this.#watch();
      return;
    }
    try {
      if (wait === 'block') this.#block();
      else if (wait === 'spin') this.#spin();
      else this.#adapt();
    } finally {
      this.#leave();
    }
  }

  /** Ends the loop after the callback it is in. */
  stop(): void {
    this.running = false;
    for (const watch of this.#watches.splice(0)) watch.close();
    this.#timer?.close();
    this.#timer = undefined;
    this.#look?.close();
    this.#look = undefined;
  }

  /** Sees to what a transfer outside a round brought: messages that were read, or the news that the process is gone. */
  follow(): void {
    if (this.inRound) return;
    const { channel } = this.#served;
    if (channel.exited) this.#endExited();
    else if (this.#watches.length > 0 && channel.core.exports.inboxWaiting() > 0) this.#schedule();
  }

  /** Reads everything, tells the handler. How many messages were handled. */
  round(): number {
    const { channel } = this.#served;
    const { exports } = channel.core;
    // Only what was put off needs the time, and nothing that this round puts off is due in it.
    const begun = exports.inboxPutOff() ? channel.port.now() : 0;
    let handled = 0;
    this.inRound = true;
    try {
      exports.inboxOpen();
      while (this.#served.isOpen()) {
        const next = exports.inboxNext(begun);
        if (next === Next.none) break;
        if (next === Next.read) {
          if (channel.drain()) continue;
          this.#served.end();
          break;
        }
        this.#tell(next);
        handled++;
        if (channel.exited) this.#endExited();
        if (this.#served.stopper.requested || !(this.running || this.#single)) break;
      }
    } catch (error) {
      if (error !== channel.broken) throw error;
      this.#served.end(channel.broken);
      throw error;
    } finally {
      this.inRound = false;
      this.#served.settle();
    }
    return handled;
  }

  /** One round without a strategy. */
  once(): number {
    this.#single = !this.running;
    try {
      const handled = this.round();
      if (handled === 0) this.#lookAfterProcess();
      return handled;
    } finally {
      this.#single = false;
      this.follow();
    }
  }

  /** Tells the handler of mapping changes that were read, and of nothing else. */
  tellChanges(): void {
    const { exports } = this.#served.channel.core;
    for (let next = exports.inboxNextEvent(); next !== Next.none; next = exports.inboxNextEvent())
      this.#tell(next);
  }

  #tell(next: number): void {
    const { core } = this.#served.channel;
    switch (next) {
      case Next.fault:
        this.#offer();
        break;
      case Next.removed:
        this.handler.removed?.(core.delivered(0), core.delivered(1));
        break;
      case Next.unmapped: {
        const start = core.delivered(0);
        const end = core.delivered(1);
        this.#served.channel.wake(start, Number(end - start));
        this.handler.unmapped?.(start, end);
        break;
      }
      case Next.remapped: {
        const from = core.delivered(0);
        const to = core.delivered(1);
        const length = Number(core.delivered(2));
        this.#served.channel.wake(from, length);
        this.handler.remapped?.(from, to, length);
        break;
      }
      case Next.forked:
        this.#fork(Number(core.delivered(0)));
        break;
      default:
        this.#served.channel.broken = new UffdError(Errno.ENOMEM as number, 'userfaultfd core');
        throw this.#served.channel.broken;
    }
  }

  #offer(): void {
    const { core, port } = this.#served.channel;
    const fault = {
      address: core.delivered(0),
      page: core.delivered(1),
      access: core.deliveredFault(1) ? 'write' : 'read',
      kind: MODES[core.deliveredFault(0)] as (typeof MODES)[number],
      tid: core.deliveredFault(2),
    } as const;
    let answered = false;
    try {
      answered = this.handler.pagefault(fault, this.#served.face) !== false;
    } finally {
      // After a throw the fault stays: nothing is lost for whoever starts again.
      if (core.exports.inboxAnswer(answered ? 1 : 0)) core.exports.inboxDefer(port.now());
    }
  }

  #endExited(): void {
    if (!this.#served.isOpen()) return;
    this.#served.end(new UffdError(Errno.ESRCH as number, 'userfaultfd'));
  }

  /** Asks whether the watched process has exited or called exec, and ends the watch if so. */
  #lookAfterProcess(): void {
    const { channel } = this.#served;
    if (channel.pidfd < 0) return;
    this.#pollAll(0);
    if (channel.core.exports.pollExited() || !channel.present()) this.#processGone();
  }

  /** Tells what the process has left behind, then the end. */
  #processGone(): void {
    if (!this.#served.isOpen()) return;
    this.round();
    this.#endExited();
  }

  #fork(fd: number): void {
    const child = this.#served.adopt(fd);
    if (!this.handler.forked) {
      child.close();
      return;
    }
    try {
      this.handler.forked(child);
    } catch (error) {
      child.close();
      throw error;
    }
  }

  // ---- strategies ----------------------------------------------------------------------------------------

  #watch(): void {
    const { port, fd } = this.#served.channel;
    if (this.#served.stopper.requested) {
      this.#leave();
      return;
    }
    try {
      this.#watches.push(port.watch(fd, () => this.#turn()));
      this.#watches.push(
        port.watch(this.#stopFd, () => {
          if (this.running) this.#leave();
        }),
      );
      this.#watchProcess();
    } catch (error) {
      this.stop();
      throw error;
    }
    // What was put off before a stop, or came in by a fill, has no message of its own.
    this.#schedule();
  }

  /** Sees the watched process exit at once, and exec soon. */
  #watchProcess(): void {
    const { port, pidfd } = this.#served.channel;
    if (pidfd < 0) return;
    this.#watches.push(port.watch(pidfd, () => this.#guarded(() => this.#processGone())));
    const look = (): void => {
      this.#look = port.after(SLEEP_MOST_MS, () => {
        this.#guarded(() => this.#lookAfterProcess());
        if (this.running) look();
      });
    };
    look();
  }

  /** One turn of the event loop. */
  #turn(): void {
    this.#guarded(() => {
      // Whoever was answered may have run and faulted again: reading costs less than a turn of the event loop.
      for (let rounds = 0; rounds < ROUNDS_A_TURN && this.#goes; rounds++) {
        if (this.round() === 0) break;
      }
      this.#schedule();
    });
  }

  /** Does something on the event loop. An error must not reach libuv's callback: it would end the process. */
  #guarded(body: () => void): void {
    if (!this.running || this.inRound) return;
    try {
      body();
    } catch (error) {
      this.#leave();
      if (error === this.#served.channel.broken && this.handler.closed) return;
      this.#served.channel.port.after(0, () => {
        throw error;
      });
    }
  }

  #schedule(): void {
    this.#timer?.close();
    this.#timer = undefined;
    if (!this.running) return;
    const delay = this.#delay();
    if (delay >= 0) this.#timer = this.#served.channel.port.after(delay, () => this.#turn());
  }

  /** Milliseconds until a waiting fault is due; −1: none waits. */
  #delay(): number {
    const { core, port } = this.#served.channel;
    return core.exports.inboxWaiting() === 0 ? -1 : core.exports.inboxDelay(port.now());
  }

  get #goes(): boolean {
    return this.running && this.#served.isOpen() && !this.#served.stopper.requested;
  }

  #block(): void {
    // Reads once more before it sleeps: whoever was answered may have run and faulted again meanwhile.
    while (this.#goes) {
      if (this.round() === 0 && this.#goes) this.#sleep();
    }
  }

  #spin(): void {
    let fruitless = 0;
    while (this.#goes) {
      fruitless = this.round() > 0 ? 0 : fruitless + 1;
      if (fruitless % ROUNDS_A_LOOK === ROUNDS_A_LOOK - 1) this.#lookAfterProcess();
    }
  }

  /** Spins as long as that keeps paying: the budget doubles when a message came in it, and halves when not. */
  #adapt(): void {
    const { port } = this.#served.channel;
    let budget = SPIN_FIRST_MS;
    let since = port.now();
    while (this.#goes) {
      if (this.round() > 0) {
        const now = port.now();
        if (now - since <= SPIN_MOST_MS) budget = Math.min(Math.max(budget * 2, SPIN_FIRST_MS), SPIN_MOST_MS);
        since = now;
      } else if (port.now() - since > budget) {
        budget = budget < SPIN_FIRST_MS / 8 ? 0 : budget / 2;
        this.#sleep();
      }
    }
  }

  /** Sleeps until there is a message, a stop, a fault due, or the end of the watched process. */
  #sleep(): void {
    const { channel } = this.#served;
    const delay = this.#delay();
    const ready = this.#pollAll(delay < 0 ? SLEEP_MOST_MS : Math.min(Math.ceil(delay), SLEEP_MOST_MS));
    if (channel.pidfd < 0) return;
    if (channel.core.exports.pollExited() || (ready === 0 && !channel.present())) this.#processGone();
  }

  /** poll(2) on all that can end a sleep: how many are ready. */
  #pollAll(timeoutMs: number): number {
    const { core, port, fd, pidfd } = this.#served.channel;
    core.exports.pollWatch(fd, this.#stopFd, pidfd);
    const result = port.poll(core.polled, 3, timeoutMs);
    if (result < 0 && result !== -(Errno.EINTR as number)) throw new UffdError(result, 'poll');
    return Math.max(result, 0);
  }

  /** The loop ends: a stop from another thread is used up with it. */
  #leave(): void {
    const { core, port } = this.#served.channel;
    this.stop();
    if (!this.#served.stopper.requested) return;
    this.#served.stopper.obeyed(() => {
      if (this.#served.isOpen()) port.read(this.#stopFd, core.messages, 8);
    });
  }
}
