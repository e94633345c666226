// When rounds happen: by hand, or by a wait strategy.
//
// Rules:
//  - Between rounds something always leads to the next one: the descriptor, the delay of a deferred fault or of a
//    read that found no descriptor for a child, the end of the watched process, or a stop.
//  - `stop` inside a callback ends the loop when the callback returns; `close` and `release` take effect at once,
//    and `closed` is told when it returns. `start` and `poll` inside a callback are refused.

import { Errno, UffdError } from './errors.js';
import type { FaultHandler, OnError } from './handler.js';
import { Note, type Watch } from './kernel.js';
import { type Placement, Placer } from './placement.js';
import { Rounds, type Served } from './rounds.js';
import { Spin } from './spin.js';

export const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

/**
 * How to wait for faults. `poll`: on Node's event loop; `start` returns at once. The others run in the calling
 * thread until stopped, and are meant for workers: `block` sleeps in poll(2); `spin` never sleeps; `adaptive`
 * spins while faults come fast and sleeps otherwise. Stop a loop before ending its worker: docs/serving.md.
 *
 * @useDeclaredType
 */
export type Wait = (typeof WAITS)[number];

/**
 * Longest sleep in one call: a thread in a system call hears nothing of `process.exit` or `terminate`. Also how
 * often a quiet userfaultfd is asked whether its process has called exec, which no descriptor tells.
 */
const SLEEP_MOST_MS = 200;

/** Nothing for so long is a pause. */
const PAUSE_MS = 20;

/** Rounds of `spin` in a row that brought nothing, until it lets others run, and until it looks after the watched process. */
const ROUNDS_A_YIELD = 1 << 5;
const ROUNDS_A_LOOK = 1 << 15;

/** Rounds in a row that followed another one at once and brought nothing, until `block` sleeps first; and how often it does. */
const AGAIN_MOST = 8;
const SKIPS_MOST = 64;

/** How long a read that found no descriptor for a forked child waits until it is tried again. */
const STARVED_MS = 20;

/** Rounds in a row, each of which brought something, until others on the event loop have their turn. */
const ROUNDS_A_TURN = 32;

export class Loop {
  readonly #served: Served;
  readonly #rounds: Rounds;
  /** A strategy is at work. */
  running = false;
  /** A round was asked for by `poll`, and no strategy is at work. */
  #single = false;
  /** Of the descriptor. */
  #source: Watch | undefined;
  /** Of the eventfd and the process. */
  #watches: Watch[] = [];
  /** The eventfd of the run that goes on. */
  #stopFd = -1;
  #timer: Watch | undefined;
  /** Where this thread runs, while the loop does; undefined: that is the scheduler's. */
  #placer: Placer | undefined;
  /** The last sleep brought nothing. */
  #paused = false;
  /** Sees, on the event loop, whether something comes while processors are kept awake; and whether it did. */
  #pause: Watch | undefined;
  #came = false;
  /** The next look after the watched process. */
  #look: Watch | undefined;
  /** The last poll said that something is there, and no message has been read since. */
  #vain = false;

  constructor(served: Served, handler: FaultHandler) {
    this.#served = served;
    const goesOn = (): boolean => !served.stopRequested() && (this.running || this.#single);
    this.#rounds = new Rounds(served, handler, goesOn, (error) => this.#fail(error));
  }

  get handler(): FaultHandler {
    return this.#rounds.handler;
  }

  /** A round is under way: its callbacks are on the stack. */
  get inRound(): boolean {
    return this.#rounds.under;
  }

  /** Runs (or for `poll` starts) the loop. `stopFd`: the eventfd that wakes it up to stop. */
  run(wait: Wait, stopFd: number, placement: Placement, onError?: OnError): void {
    const { port, pid } = this.#served.channel;
    if (placement !== 'none' && port.processors) this.#placer = new Placer(port.processors, pid, placement);
    this.running = true;
    this.#rounds.failures.onError = onError;
    this.#rounds.blocking = wait === 'poll' ? undefined : wait;
    this.#rounds.pause();
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

  /** Ends the loop after the callback it is in. What another thread has asked of this loop is done with it. */
  stop(): void {
    const { running } = this;
    this.#halt();
    if (running) this.#obey();
  }

  /** Ends the loop with an error that no caller is there for: a handler's promise has rejected. */
  #fail(error: unknown): void {
    const { channel } = this.#served;
    if (this.running) {
      channel.note(Note.STOP);
      this.stop();
    }
    channel.raise(error);
  }

  #halt(): void {
    this.running = false;
    this.#rounds.blocking = undefined;
    this.#placer?.leave();
    this.#placer = undefined;
    this.#source?.close();
    this.#source = undefined;
    for (const watch of this.#watches.splice(0)) watch.close();
    this.#timer?.close();
    this.#timer = undefined;
    this.#pause?.close();
    this.#pause = undefined;
    this.#look?.close();
    this.#look = undefined;
  }

  /** A call has seen to [start, start + length): see `Rounds`. */
  settles(start: bigint, length: number): void {
    this.#rounds.settles(start, length);
  }

  /** Sees to what a transfer outside a round brought: messages that were read, or the news that the process is gone. */
  follow(): void {
    if (this.inRound) return;
    const { channel } = this.#served;
    if (channel.exited) this.#rounds.endExited();
    else if (this.#source && channel.core.exports.inboxWaiting() > 0) this.#schedule();
  }

  /** One round without a strategy. How many messages were handled. */
  once(onError?: OnError): number {
    this.#single = !this.running;
    if (this.#single) this.#rounds.failures.onError = onError;
    this.#rounds.pause();
    try {
      const handled = this.#rounds.round();
      return handled > 0 ? handled : this.#lookAfterProcess();
    } finally {
      this.#single = false;
      this.follow();
    }
  }

  /** Tells the handler of mapping changes that were read, and of nothing else. */
  tellChanges(): void {
    this.#rounds.tellChanges();
  }

  /** Asks whether the watched process has exited or called exec, and ends the watch if so. Messages handled. */
  #lookAfterProcess(): number {
    const { channel } = this.#served;
    if (!channel.watched) return 0;
    if (channel.pidfd >= 0) this.#pollAll(0);
    return this.#gone() ? this.#rounds.processGone() : 0;
  }

  /** Whether the last poll, or its memory, says that the process is gone. */
  #gone(): boolean {
    const { channel } = this.#served;
    return (channel.pidfd >= 0 && channel.core.exports.pollExited() !== 0) || !channel.present();
  }

  // ---- strategies ----------------------------------------------------------------------------------------

  #watch(): void {
    const { port } = this.#served.channel;
    if (this.#served.stopRequested()) {
      this.#leave();
      return;
    }
    try {
      this.#watches.push(
        port.watch(this.#stopFd, () => {
          if (this.running) this.#leave();
        }),
      );
      this.#watchProcess();
      // What was put off before a stop, or came in by a fill, has no message of its own.
      this.#schedule();
    } catch (error) {
      this.#halt();
      throw error;
    }
  }

  /** Sees the watched process exit at once, and exec soon. */
  #watchProcess(): void {
    const { port, pidfd, watched } = this.#served.channel;
    if (!watched) return;
    const gone = (): void => this.#guarded(() => void this.#rounds.processGone());
    if (pidfd >= 0) this.#watches.push(port.watch(pidfd, gone));
    const look = (): void => {
      this.#look = port.after(SLEEP_MOST_MS, () => {
        this.#guarded(() => void this.#lookAfterProcess());
        if (this.running) look();
      });
    };
    look();
  }

  /** One turn of the event loop. */
  #turn(): void {
    this.#guarded(() => {
      this.#rounds.pause();
      // Whoever was answered may have run and faulted again: reading costs less than a turn of the event loop.
      let rounds = 0;
      while (rounds < ROUNDS_A_TURN && this.#goes && this.#round() > 0) rounds++;
      if (rounds > 0) this.#came = true;
      else if (this.#goes) this.#served.channel.unblock();
      this.#watchForPause();
      this.#schedule();
    });
  }

  /** While processors are kept awake; not by the port, whose calls are recorded. */
  #watchForPause(): void {
    const placer = this.#placer;
    if (!placer?.keepsAwake || this.#pause) return;
    this.#came = false;
    this.#pause = this.#served.channel.port.processors?.after(PAUSE_MS, () => {
      this.#pause = undefined;
      if (this.#came) this.#watchForPause();
      else placer.pause();
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

  /** Sees to the next round: when the descriptor is readable, or something is due. */
  #schedule(): void {
    this.#timer?.close();
    this.#timer = undefined;
    if (!this.running) return;
    this.#listen();
    const delay = this.#delay();
    if (delay >= 0) this.#timer = this.#served.channel.port.after(delay, () => this.#turn());
  }

  /** Watches the descriptor; not while it holds an event that cannot be read, which would be told without end. */
  #listen(): void {
    const { port, fd, starved } = this.#served.channel;
    if (!starved) {
      this.#source ??= port.watch(fd, () => this.#turn());
      return;
    }
    this.#source?.close();
    this.#source = undefined;
  }

  /** Milliseconds until a round is due even if no message comes; −1: there is no need for one. */
  #delay(): number {
    const { core, port, exited, starved } = this.#served.channel;
    if (exited) return 0;
    if (starved) return STARVED_MS;
    return core.exports.inboxWaiting() === 0 ? -1 : core.exports.inboxDelay(port.now());
  }

  /** A round of a strategy. How many messages were handled. */
  #round(): number {
    const handled = this.#rounds.round();
    if (handled > 0) {
      this.#vain = false;
      this.#placer?.answered(handled, this.#served.channel.core.deliveredFault(2));
    }
    return handled;
  }

  get #goes(): boolean {
    return this.running && this.#served.isOpen() && !this.#served.stopRequested();
  }

  #block(): void {
    // Whoever was answered may have run and faulted again meanwhile. Reading once more spares a sleep then, and is a call
    // too many otherwise (where toucher and loop share a processor, always). So it is done while it pays, and tried now
    // and then.
    let pays = AGAIN_MOST;
    let skipped = 0;
    let again = false;
    while (this.#goes) {
      const brought = this.#round() > 0;
      if (again) pays = brought ? AGAIN_MOST : pays - 1;
      if (pays === 0 && ++skipped === SKIPS_MOST) {
        pays = 1;
        skipped = 0;
      }
      again = brought && pays > 0;
      if (!again && this.#goes) this.#sleep();
    }
  }

  #spin(): void {
    let fruitless = 0;
    while (this.#goes) {
      fruitless = this.#round() > 0 ? 0 : fruitless + 1;
      // Whom it waits for may want this very processor.
      if (fruitless % ROUNDS_A_YIELD === ROUNDS_A_YIELD - 1) this.#served.channel.port.processors?.yield();
      if (fruitless % ROUNDS_A_LOOK !== ROUNDS_A_LOOK - 1) continue;
      this.#placer?.pause();
      this.#lookAfterProcess();
    }
  }

  /** Spins for as long as that pays, and sleeps then. */
  #adapt(): void {
    const spin = new Spin();
    while (this.#goes) {
      const now = this.#rounds.begin();
      if (spin.ms > 0) spin.looks(now);
      if (this.#round() > 0) spin.came();
      else if (spin.goesOn) {
        // Whoever wants this processor has it; that this took a while is seen at the next look.
        if (spin.isTry) this.#served.channel.port.processors?.yield();
      } else if (this.#goes) {
        this.#sleep();
        spin.slept();
      }
    }
  }

  /** Sleeps until there is a message, a stop, a round due, or the end of the watched process. */
  #sleep(): void {
    const { channel } = this.#served;
    this.#rounds.pause();
    if (this.#vain) this.#lookInVain();
    if (!this.#goes) return;
    const delay = this.#delay();
    const most = this.#paused ? SLEEP_MOST_MS : PAUSE_MS;
    const ready = this.#pollAll(delay < 0 ? most : Math.min(Math.ceil(delay), most));
    this.#vain = ready > 0;
    this.#paused = ready === 0 && delay < 0;
    if (this.#paused) this.#placer?.pause();
    if (!channel.watched || (ready > 0 && !channel.core.exports.pollExited())) return;
    if (this.#gone()) this.#rounds.processGone();
  }

  /**
   * A wake-up brought no message. Without O_NONBLOCK, which whoever shares the file can clear, poll(2) says POLLERR all the
   * time; then neither the end of the watched process would be noticed, nor would the loop ever sleep.
   */
  #lookInVain(): void {
    this.#vain = false;
    this.#served.channel.unblock();
    this.#lookAfterProcess();
  }

  /** poll(2) on all that can end a sleep: how many are ready. */
  #pollAll(timeoutMs: number): number {
    const { core, port, fd, pidfd, starved } = this.#served.channel;
    core.exports.pollWatch(starved ? -1 : fd, this.#stopFd, pidfd);
    const result = port.poll(core.polled, 3, timeoutMs);
    if (result < 0 && result !== -(Errno.EINTR as number)) throw new UffdError(result, 'poll');
    return Math.max(result, 0);
  }

  #leave(): void {
    this.#halt();
    this.#obey();
  }

  /** A stop from another thread is used up. */
  #obey(): void {
    const { core, port } = this.#served.channel;
    if (!this.#served.stopRequested()) return;
    this.#served.stopper.obeyed(() => {
      if (this.#served.isOpen()) port.read(this.#stopFd, core.messages, 8);
    });
  }
}
