// What follows an error of a handler's: a callback that throws, a promise that rejects, a promise that comes too late.
//
// Rules:
//  - No error is silent. `onError` decides; by default the loop ends with the error, which reaches a caller or is an uncaught
//    exception.
//  - No fault is lost by one. A fault that is still with the handler is offered again. One whose promise rejects has left
//    the core's table: its thread is woken, faults anew, and the kernel tells it to the next round.
//  - Nothing is installed here: a thread that is woken finds its page as missing as before.

import type { Channel } from './channel.js';
import type { OnError, Pagefault } from './handler.js';
import { Note } from './kernel.js';
import { hex } from './names.js';

/** Delays of faults whose promises reject one after the other, while `onError` says 'continue': from 1 ms, doubled. */
const DELAYS = 7;

export class Failures {
  onError: OnError | undefined;
  /** Promises that have rejected, since the last one that did not. */
  #inARow = 0;
  readonly #channel: Channel;
  readonly #isOpen: () => boolean;
  readonly #end: (error: unknown) => void;

  /** `end` ends the loop, if one runs, with an error that has no caller to go to. */
  constructor(channel: Channel, isOpen: () => boolean, end: (error: unknown) => void) {
    this.#channel = channel;
    this.#isOpen = isOpen;
    this.#end = end;
  }

  /**
   * Returns if the loop is to go on.
   *
   * @throws the error that ends it
   */
  decide(error: unknown, fault: Pagefault | undefined): void {
    if (this.onError?.(error, fault) !== 'continue') throw error;
  }

  /** Hears of a promise that rejects. */
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
    const { port } = this.#channel;
    const delayMs = 2 ** Math.min(this.#inARow++, DELAYS - 1);
    // Not recorded: a replay knows of the WAKE alone.
    (port.unrecorded ?? port).after(delayMs, () => this.#offerAgain(fault));
  }

  #offerAgain({ page }: Pagefault): void {
    if (!this.#isOpen()) return;
    const channel = this.#channel;
    const size = channel.rangeAt(page)?.pageSize ?? channel.pageSize;
    channel.note(Note.WAKE, page, size);
    // Memory that is gone by now has nobody to wake.
    channel.wake(page, size);
  }
}

export function isPromise(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && typeof (value as PromiseLike<unknown> | null)?.then === 'function';
}

/** A promise under a wait that blocks, whose fault is not resolved; or which has rejected, as the runtime shows it. */
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

/** What a promise has rejected with, as text, where this runtime can tell at once; undefined: it has not, or may have. */
export function rejectionOf(promise: unknown): string | undefined {
  const { process } = globalThis;
  const shown = process?.getBuiltinModule?.('util')?.inspect(promise, { depth: 1 });
  return /^[^{]*\{\s*<rejected>\s*([\s\S]*?)\s*\}$/.exec(shown ?? '')?.[1];
}
