// One round: everything is read, then the handler is told in the core's order. When rounds happen is for the
// loop to say; here is what happens in one, and how a watch ends in it.
//
// Rules:
//  - One round at a time; callbacks never nest rounds.
//  - `closed` is told when the round is over.
//  - A watch ends after everything that was read was told: of a process that is gone, the last mapping changes,
//    and the children it forked, are told first.

import type { Channel } from './channel.js';
import { MODES, Next } from './core.js';
import { Errno, UffdError } from './errors.js';
import { Failures, isPromise, promiseError, rejectionOf } from './failures.js';
import type { FaultHandler, Pagefault } from './handler.js';
import { Answer, Note } from './kernel.js';
import type { Stopper } from './stopper.js';
import type { Userfaultfd } from './userfaultfd.js';
import { warn } from './warning.js';

/** Nanoseconds as a whole number that V8 keeps without an object, which would be garbage of each fault. */
function small(ns: number): number {
  return Math.min(ns, 2 ** 31 - 1) | 0;
}

/** What a round needs of the object it serves. */
export interface Served {
  readonly channel: Channel;
  readonly stopper: Stopper;
  /** Whether another thread has asked the loop to stop, and none has obeyed. */
  stopRequested(): boolean;
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

export class Rounds {
  readonly handler: FaultHandler;
  /** One is under way: its callbacks are on the stack. */
  under = false;
  /** The wait that holds this thread: nothing behind an `await` of the handler's runs meanwhile. */
  blocking: string | undefined;
  readonly failures: Failures;
  readonly #served: Served;
  /** Whether to go on after a callback. */
  readonly #goesOn: () => boolean;
  #warned = false;
  /** The fault that is with the handler, and whether a call has seen to its page since. */
  #offered: Pagefault | undefined;
  #settled = false;
  /** Messages of this round that were handled. */
  #handled = 0;
  /**
   * When this round began, where that matters, and when its answers were given. In an array: elsewhere a number with a
   * fraction is an object, and so is one that a function returns which V8 does not inline.
   */
  readonly #times = new Float64Array(2);
  /** It was told. */
  #timed = false;
  /** Answers were given just now: that time will do for the beginning of the next round. */
  #just = false;

  /** `fail` ends the loop with an error that has no caller to go to. */
  constructor(served: Served, handler: FaultHandler, goesOn: () => boolean, fail: (error: unknown) => void) {
    this.#served = served;
    this.handler = handler;
    this.#goesOn = goesOn;
    this.failures = new Failures(served.channel, () => served.isOpen(), fail);
  }

  /** A call has resolved what waits in `length` bytes at `start`, or found it gone, or the core knows that it came short. */
  settles(start: bigint, length: number): void {
    const page = this.#offered?.page;
    if (page !== undefined && page >= start && page < start + BigInt(length)) this.#settled = true;
  }

  /** A round begins now; for whoever needs to know when. */
  begin(): number {
    this.#timed = true;
    if (this.#just) this.#times[0] = this.#times[1] as number;
    else this.#time(0);
    this.#just = false;
    return this.#times[0] as number;
  }

  /** Something else than a round comes now, and may take its time. */
  pause(): void {
    this.#just = false;
  }

  #time(index: 0 | 1): void {
    this.#times[index] = this.#served.channel.port.now();
  }

  /** Reads everything, tells the handler. How many messages were handled. */
  round(): number {
    const { channel } = this.#served;
    // What was put off needs the time, and nothing that this round puts off is due in it; and so does what is timed.
    if (!this.#timed) {
      if (channel.sourced || channel.core.exports.inboxPutOff()) this.begin();
      else this.#times[0] = 0;
    }
    this.#timed = false;
    return this.#within(this.#deliver);
  }

  /** Made once: what a round makes anew is garbage a million times. */
  readonly #deliver = (): number => {
    this.#handled = 0;
    const { channel } = this.#served;
    const { exports } = channel.core;
    const begun = this.#times[0] as number;
    exports.inboxOpen();
    while (this.#served.isOpen() && !this.#exited()) {
      const next = exports.roundNext(begun);
      if (next === Next.none) break;
      if (next === Next.read) {
        if (!channel.drain()) this.#served.end();
        if (!channel.starved) continue;
        this.#warnStarved();
        break;
      }
      if (next === Next.call) this.#answer();
      else this.#tell(next);
      if (!this.#goesOn()) break;
    }
    return this.#handled;
  };

  /** Tells the handler of mapping changes that were read, and of nothing else. */
  tellChanges(): void {
    const { exports } = this.#served.channel.core;
    for (let next = exports.inboxNextEvent(); next !== Next.none; next = exports.inboxNextEvent())
      this.#tell(next);
  }

  /** The watched process is gone: tells what it has left behind, then the end. How many messages that were. */
  processGone(): number {
    if (!this.#served.isOpen()) return 0;
    const handled = this.round();
    // Whoever stops the loop meanwhile hears the rest when it starts again.
    if (this.#goesOn()) this.#within(() => this.#end());
    return handled;
  }

  /** Ends the watch where a fill has found the process gone. */
  endExited(): void {
    this.#within(() => this.#exited());
  }

  /** Runs the body as a round: what breaks the descriptor ends the watch, and `closed` is told behind it. */
  #within<T>(body: () => T): T {
    const { channel } = this.#served;
    this.under = true;
    try {
      return body();
    } catch (error) {
      if (error === channel.broken) this.#served.end(channel.broken);
      throw error;
    } finally {
      this.under = false;
      this.#served.settle();
    }
  }

  #exited(): boolean {
    if (!this.#served.channel.exited) return false;
    this.#end();
    return true;
  }

  #end(): void {
    this.tellChanges();
    if (!this.#served.isOpen()) return;
    this.#served.end(new UffdError(Errno.ESRCH as number, 'userfaultfd'));
  }

  #tell(next: number): void {
    const { core } = this.#served.channel;
    this.#handled++;
    switch (next) {
      case Next.fault:
        this.#offer(this.#fault());
        break;
      case Next.removed:
        this.#call(() => this.handler.removed?.(core.delivered(0), core.delivered(1)));
        break;
      case Next.unmapped: {
        const start = core.delivered(0);
        const end = core.delivered(1);
        this.#served.channel.wake(start, Number(end - start));
        this.#served.channel.sources.letGo();
        this.#served.channel.past.add(start, end);
        this.#call(() => this.handler.unmapped?.(start, end));
        break;
      }
      case Next.remapped: {
        const from = core.delivered(0);
        const to = core.delivered(1);
        const length = Number(core.delivered(2));
        // Threads that sleep at either place wait for pages that are not there any more.
        this.#served.channel.wake(from, length);
        this.#served.channel.wake(to, length);
        this.#served.channel.sources.letGo();
        this.#served.channel.past.add(from, from + BigInt(length));
        this.#call(() => this.handler.remapped?.(from, to, length));
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

  /** Answers faults from sources, and offers the one behind them that has none. */
  #answer(): void {
    const { channel } = this.#served;
    const { core } = channel;
    // The handler may have named the first source in this very round.
    if (this.#times[0] === 0) this.#time(0);
    const fault = channel.answer() === Next.fault ? this.#fault() : undefined;
    const faults = core.answered(0);
    const putOff = core.answered(2);
    const bytes = core.answeredBytes;
    try {
      if (faults + putOff + bytes > 0) {
        this.#handled += faults + putOff;
        this.#time(1);
        this.#just = true;
        const ns = small(((this.#times[1] as number) - (this.#times[0] as number)) * 1e6);
        this.handler.answered?.(faults, core.answered(1), putOff, bytes, ns);
      }
    } catch (error) {
      if (fault) this.#putBack();
      throw error;
    }
    if (fault === undefined) return;
    this.#handled++;
    if (this.#goesOn()) this.#offer(fault);
    else this.#putBack();
  }

  /** Keeps the fault that is out, which the handler did not hear of. */
  #putBack(): void {
    const { core, port } = this.#served.channel;
    if (core.exports.inboxAnswer(0)) core.exports.inboxDefer(port.now());
  }

  /** The fault that was delivered. */
  #fault(): Pagefault {
    const { core } = this.#served.channel;
    return {
      address: core.delivered(0),
      page: core.delivered(1),
      access: core.deliveredFault(1) ? 'write' : 'read',
      kind: MODES[core.deliveredFault(0)] as (typeof MODES)[number],
      tid: core.deliveredFault(2),
      repeats: core.deliveredFault(3),
    };
  }

  #offer(fault: Pagefault): void {
    const { core, port } = this.#served.channel;
    this.#served.channel.offers(fault.page);
    let answered = false;
    let answer: bigint = Answer.threw;
    this.#offered = fault;
    this.#settled = false;
    try {
      const said = this.handler.pagefault(fault, this.#served.face);
      if (isPromise(said)) this.#later(said, fault);
      answered = said !== false;
      answer = answered ? Answer.answered : Answer.notNow;
    } catch (error) {
      this.failures.decide(error, fault);
      answered = this.#settled;
      answer = answered ? Answer.answered : Answer.notNow;
    } finally {
      this.#offered = undefined;
      this.#served.channel.note(Note.ANSWER, answer);
      // After a throw the fault stays: nothing is lost for whoever starts again.
      if (core.exports.inboxAnswer(answered ? 1 : 0)) core.exports.inboxDefer(port.now());
    }
  }

  /** The handler answers later. In a loop that holds the thread there is no later. */
  #later(promise: PromiseLike<unknown>, fault: Pagefault): void {
    const { blocking } = this;
    const rejected = blocking === undefined ? undefined : rejectionOf(promise);
    if (blocking === undefined || rejected === undefined) this.failures.follow(promise, fault);
    // What it rejected with is told by the error that is thrown here.
    else promise.then(undefined, () => {});
    if (blocking === undefined || !this.#served.isOpen()) return;
    if (rejected !== undefined || !this.#settled) throw promiseError(blocking, fault, rejected);
  }

  #fork(fd: number): void {
    const child = this.#served.adopt(fd);
    this.#call(() => {
      if (!this.handler.forked) return child.close();
      try {
        return this.handler.forked(child);
      } catch (error) {
        child.close();
        throw error;
      }
    });
  }

  /** Makes a callback that answers nothing. */
  #call(callback: () => unknown): void {
    let answer: bigint = Answer.threw;
    try {
      const said = callback();
      if (isPromise(said)) this.failures.follow(said, undefined);
      answer = Answer.returned;
    } catch (error) {
      this.failures.decide(error, undefined);
      answer = Answer.returned;
    } finally {
      this.#served.channel.note(Note.ANSWER, answer);
    }
  }

  #warnStarved(): void {
    if (this.#warned) return;
    this.#warned = true;
    warn(
      'a process forked, and there is no descriptor left for its child (ulimit -n): the fork, and every fill, ' +
        'waits until one is free',
    );
  }
}
