// Dispatches one batch: reads all messages, then calls the handler in the order that the core decides. The event loop
// decides when a batch runs. This file decides what happens in a batch, and how a watch ends.
//
// Rules:
//  - One batch runs at a time. A callback never begins another batch.
//  - `closed` is called after the batch.
//  - A watch ends only after all messages that were read are delivered. If the watched process is gone, the handler
//    first gets its last mapping changes and the children that it forked.

import { Action } from '../bindings/core.js';
import { Errno, UffdError } from '../errors/errors.js';
import { warn } from '../errors/warning.js';
import { MODES } from '../kernel/features.js';
import { CallbackResult, Note } from '../kernel/port.js';
import type { HandlerOf, Pagefault } from './handler.js';
import { HandlerErrors, isPromise, promiseError, rejectionOf } from './handler-errors.js';
import type { Session } from './session.js';
import type { StopSignal } from './stop-signal.js';

/** What the event loop and the dispatcher need from the userfaultfd's object. */
export interface LoopHost<Owner extends { close(): void }> {
  readonly session: Session;
  readonly stopper: StopSignal;
  /** Whether another thread has requested a stop, and the loop has not stopped yet. */
  stopRequested(): boolean;
  /** Whether the object still owns its descriptor. */
  isOpen(): boolean;
  /** The object that callbacks get. */
  readonly owner: Owner;
  /** Makes the object of a forked child from the child's descriptor. */
  adopt(fd: number): Owner;
  /** Closes the object and calls `closed`, because the kernel will send no more messages. */
  end(error?: UffdError): void;
  /** To call after a batch. Calls `closed` if the batch ended the watch. */
  settle(): void;
}

export class Dispatcher<Owner extends { close(): void }> {
  readonly handler: HandlerOf<Owner>;
  /** Whether a batch is running: its callbacks are then on the stack. */
  inBatch = false;
  /** The wait strategy, if it blocks this thread. Code of the handler after an `await` does not run then. */
  blocking: string | undefined;
  readonly failures: HandlerErrors;
  readonly #host: LoopHost<Owner>;
  /** Whether the batch continues after a callback. */
  readonly #shouldContinue: () => boolean;
  #warned = false;
  /** How many messages this batch has handled. */
  #handled = 0;
  /**
   * The times at which this batch began and its last faults were answered. A typed array holds them, because V8
   * allocates an object for each fractional number in a field, and for each that a function returns without being
   * inlined.
   */
  readonly #times = new Float64Array(2);
  /** Whether the time at which the batch began is known. */
  #timed = false;
  /** Whether faults were answered just now. If so, the time of the answer is the beginning of the next batch. */
  #justAnswered = false;

  /** `fail` ends the loop with an error that no caller can catch. */
  constructor(
    host: LoopHost<Owner>,
    handler: HandlerOf<Owner>,
    shouldContinue: () => boolean,
    fail: (error: unknown) => void,
  ) {
    this.#host = host;
    this.handler = handler;
    this.#shouldContinue = shouldContinue;
    this.failures = new HandlerErrors(host.session, () => host.isOpen(), fail);
  }

  /** Returns the time at which the next batch begins, for wait strategies that measure time. */
  begin(): number {
    this.#timed = true;
    const { core, port } = this.#host.session;
    if (this.#justAnswered) this.#times[0] = this.#times[1] as number;
    // If a deferred fault waits, the core asks for the time before it reads, because that fault may be due.
    else if (core.waiting === 0 && port.timeOfRead) this.#times[0] = port.timeOfRead();
    else this.#time(0);
    this.#justAnswered = false;
    return this.#times[0] as number;
  }

  /** To call before work that may take long. The time of the last answer is then too old for the next batch. */
  pause(): void {
    this.#justAnswered = false;
  }

  #time(index: 0 | 1): void {
    this.#times[index] = this.#host.session.port.now();
  }

  /** The time for the core: the time at which the batch began, if it is known and no callback ran since. */
  readonly #clock = (): number => {
    const times = this.#times;
    if (this.#timed) this.#timed = false;
    else if (this.#justAnswered) times[0] = times[1] as number;
    else {
      const now = this.#host.session.port.now();
      if (times[0] === 0) times[0] = now;
      return now;
    }
    this.#justAnswered = false;
    return times[0] as number;
  };

  /** Reads all messages, and calls the handler. Returns how many messages were handled. */
  dispatchBatch(): number {
    this.#handled = 0;
    if (!this.#timed) {
      this.#times[0] = 0;
      if (this.#host.session.core.sourced !== 0) this.begin();
    }
    this.#within(this.#dispatch);
    this.#timed = false;
    return this.#handled;
  }

  /** Made once, because a closure for each batch would be garbage. */
  readonly #dispatch = (): void => {
    this.#follow(this.#host.session.core.exports.begin(), this.#shouldContinue);
  };

  /** Performs the core's actions until the batch ends. */
  #follow(first: number, shouldContinue: () => boolean): void {
    const host = this.#host;
    const { core } = host.session;
    host.session.clock = this.#clock;
    for (let next = first; ; ) {
      const action = host.session.drive(next);
      const reports = core.answered > 0 || core.deferred > 0 || core.answeredBytes > 0;
      if (reports) this.#report(action);
      switch (action) {
        case Action.FAULT:
          this.#handled++;
          next =
            reports && !(shouldContinue() && host.isOpen()) ? this.#putBack() : this.#offer(shouldContinue);
          break;
        case Action.ANSWERED:
          if (!shouldContinue()) return;
          next = core.exports.next();
          break;
        case Action.DONE:
          return;
        case Action.STARVED:
          this.#warnStarved();
          return;
        case Action.ENDED:
          host.end();
          return;
        case Action.GONE:
          host.end(new UffdError(Errno.ESRCH as number, 'userfaultfd'));
          return;
        default:
          this.#handled++;
          this.deliver(action);
          if (!shouldContinue() || !host.isOpen()) return;
          next = core.exports.next();
      }
    }
  }

  /** The watched process is gone: delivers its last messages, then ends the watch. Returns how many messages there were. */
  processGone(): number {
    if (!this.#host.isOpen()) return 0;
    const handled = this.dispatchBatch();
    // If the loop was stopped in the meantime, the rest is delivered when it starts again.
    if (this.#shouldContinue() && this.#host.isOpen()) {
      this.#host.session.core.exports.handleExit();
      this.endExited();
    }
    return handled;
  }

  /** Ends the watch of a process that is gone. */
  endExited(): void {
    this.#within(() => this.#follow(this.#host.session.core.exports.next(), () => true));
  }

  /** Runs the body as a batch: an error that breaks the descriptor ends the watch, and `closed` is called afterwards. */
  #within(body: () => void): void {
    const host = this.#host;
    this.inBatch = true;
    try {
      body();
    } catch (error) {
      if (error === host.session.broken) host.end(host.session.broken);
      throw error;
    } finally {
      this.inBatch = false;
      host.settle();
    }
  }

  /** Reports faults that were answered from sources. */
  #report(action: Action): void {
    const { core } = this.#host.session;
    const { answered, writes, deferred, answeredBytes, holeBytes, removedBytes } = core;
    this.#handled += answered + deferred;
    this.#time(1);
    this.#justAnswered = true;
    const ms = (this.#times[1] as number) - (this.#times[0] as number);
    // V8 stores a small integer without an object; otherwise each fault would leave garbage.
    const ns = Math.min(ms * 1e6, 2 ** 31 - 1) | 0;
    let result: bigint = CallbackResult.threw;
    try {
      this.handler.answered?.(answered, writes, deferred, answeredBytes, ns, holeBytes, removedBytes);
      result = CallbackResult.returned;
    } finally {
      const { session } = this.#host;
      session.note(Note.ANSWER, result);
      if (result === CallbackResult.threw && action === Action.FAULT) session.drive(this.#putBack());
    }
  }

  /** Keeps the current fault, because the handler was not called with it. */
  #putBack(): number {
    return this.#host.session.core.exports.handleAnswer(false, false);
  }

  #fault(): Pagefault {
    const { core } = this.#host.session;
    return {
      address: core.third,
      page: core.start,
      access: core.write ? 'write' : 'read',
      kind: MODES[core.kind] as (typeof MODES)[number],
      tid: core.tid,
      repeats: core.tries,
    };
  }

  /** Calls the handler with the current fault. */
  #offer(shouldContinue: () => boolean): number {
    const { session, owner } = this.#host;
    const { core } = session;
    const fault = this.#fault();
    this.#timed = false;
    this.#justAnswered = false;
    let resolved = false;
    let result: bigint = CallbackResult.threw;
    let action = 0;
    try {
      const returned = this.handler.pagefault(fault, owner);
      if (isPromise(returned)) this.#handlePromise(returned, fault);
      resolved = returned !== false;
      result = resolved ? CallbackResult.answered : CallbackResult.notNow;
    } catch (error) {
      this.failures.decide(error, fault);
      resolved = core.settled !== 0;
      result = resolved ? CallbackResult.answered : CallbackResult.notNow;
    } finally {
      session.note(Note.ANSWER, result);
      // If the handler has just set the first source, the batch is timed from now on.
      if (core.sourced !== 0 && this.#times[0] === 0) this.#time(0);
      // If the handler threw, the fault is kept, and offered again when a loop starts.
      const threw = result === CallbackResult.threw;
      action = core.exports.handleAnswer(resolved, !threw && shouldContinue());
      if (threw) session.drive(action);
    }
    return action;
  }

  /** Handles a promise that `pagefault` returned. While a loop blocks the thread, the promise cannot settle. */
  #handlePromise(promise: PromiseLike<unknown>, fault: Pagefault): void {
    const { blocking } = this;
    const rejected = blocking === undefined ? undefined : rejectionOf(promise);
    if (blocking === undefined || rejected === undefined) this.failures.follow(promise, fault);
    // The error thrown here already contains the rejection.
    else promise.then(undefined, () => {});
    if (blocking === undefined || !this.#host.isOpen()) return;
    if (rejected !== undefined || this.#host.session.core.settled === 0)
      throw promiseError(blocking, fault, rejected);
  }

  /** Calls the handler's callback for a mapping change that the core has delivered. */
  deliver(change: Action): void {
    const { session } = this.#host;
    const { start, end, third } = session.core;
    this.#timed = false;
    this.#justAnswered = false;
    switch (change) {
      case Action.REMOVED:
        this.#call(() => this.handler.removed?.(start, end));
        break;
      case Action.UNMAPPED:
        session.unwatched(start, end);
        this.#call(() => this.handler.unmapped?.(start, end));
        break;
      case Action.REMAPPED:
        session.unwatched(start, start + third);
        this.#call(() => this.handler.remapped?.(start, end, Number(third)));
        break;
      case Action.FORKED:
        this.#fork(Number(start));
    }
  }

  #fork(fd: number): void {
    const child = this.#host.adopt(fd);
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

  /** Calls a callback whose result is not an answer. */
  #call(callback: () => unknown): void {
    let result: bigint = CallbackResult.threw;
    try {
      const returned = callback();
      if (isPromise(returned)) this.failures.follow(returned, undefined);
      result = CallbackResult.returned;
    } catch (error) {
      this.failures.decide(error, undefined);
      result = CallbackResult.returned;
    } finally {
      this.#host.session.note(Note.ANSWER, result);
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
