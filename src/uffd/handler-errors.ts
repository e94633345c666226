// Errors of a handler: a callback that throws, a promise that rejects, or a promise that is returned under a wait
// strategy that blocks the thread.
//
// Rules:
//  - No error is silent. `onError` decides what follows. By default the loop ends with the error, which reaches a
//    caller or becomes an uncaught exception.
//  - No error loses a fault. If `pagefault` throws, the core offers its fault again. If a promise rejects, its fault is
//    no longer in the core's table, so the faulting thread is woken. The thread faults again, and the next batch reads
//    the new message.
//  - This file installs no page: a woken thread finds its page still missing.

import { hex } from '../errors/format.js';
import { Note } from '../kernel/port.js';
import type { OnError, Pagefault } from './handler.js';
import type { Session } from './session.js';

/**
 * Number of delays after rejected promises in a row, if `onError` returns 'continue'. The first is 1 ms, and each is
 * twice the one before.
 */
const DELAYS = 7;

export class HandlerErrors {
  onError: OnError | undefined;
  /** Promises that rejected since the last one that fulfilled. */
  #inARow = 0;
  readonly #session: Session;
  readonly #isOpen: () => boolean;
  readonly #end: (error: unknown) => void;

  /** `end` ends the running loop, if any, with an error that no caller can catch. */
  constructor(session: Session, isOpen: () => boolean, end: (error: unknown) => void) {
    this.#session = session;
    this.#isOpen = isOpen;
    this.#end = end;
  }

  /**
   * Returns normally if the loop continues.
   *
   * @throws the error that ends the loop
   */
  decide(error: unknown, fault: Pagefault | undefined): void {
    if (this.onError?.(error, fault) !== 'continue') throw error;
  }

  /** Handles a rejection of the promise. */
  follow(promise: PromiseLike<unknown>, fault: Pagefault | undefined): void {
    Promise.resolve(promise).then(
      () => {
        this.#inARow = 0;
      },
      (error: unknown) => this.#rejected(error, fault),
    );
  }

  #rejected(error: unknown, fault: Pagefault | undefined): void {
    try {
      this.decide(error, fault);
    } catch (last) {
      this.#end(last);
      if (fault) this.#offerAgain(fault);
      return;
    }
    if (!fault) return;
    const { port } = this.#session;
    const delayMs = 2 ** Math.min(this.#inARow++, DELAYS - 1);
    // Not recorded: a replay needs only the WAKE.
    (port.unrecorded ?? port).after(delayMs, () => this.#offerAgain(fault));
  }

  #offerAgain({ page }: Pagefault): void {
    if (!this.#isOpen()) return;
    const session = this.#session;
    const size = session.pageSizeOf(page);
    session.note(Note.WAKE, page, size);
    // Memory that is gone by now has no waiters.
    session.wake(page, size);
  }
}

export function isPromise(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && typeof (value as PromiseLike<unknown> | null)?.then === 'function';
}

/**
 * The error for a promise that `pagefault` returned under a wait that blocks. `rejected`: why the promise has rejected.
 * If it is undefined, the fault is not resolved.
 */
export function promiseError(wait: string, { page }: Pagefault, rejected: string | undefined): TypeError {
  const what = rejected
    ? `pagefault returned a promise that is rejected, for the page at ${hex(page)}: ${rejected}`
    : `pagefault returned a promise and had not resolved the fault at ${hex(page)}`;
  const why = `nothing behind an await runs while wait: '${wait}' holds this thread`;
  const remedy = "serve with wait: 'poll', or resolve the fault before the first await";
  return Object.assign(new TypeError(rejected ? what : `${what}: ${why}; ${remedy}`), {
    code: 'ERR_INVALID_RETURN_VALUE',
  });
}

/**
 * The reason of a rejected promise, as text. Undefined if it has not rejected, or if this runtime cannot say that
 * synchronously.
 */
export function rejectionOf(promise: unknown): string | undefined {
  const { process } = globalThis;
  const shown = process?.getBuiltinModule?.('util')?.inspect(promise, { depth: 1 });
  return /^[^{]*\{\s*<rejected>\s*([\s\S]*?)\s*\}$/.exec(shown ?? '')?.[1];
}
