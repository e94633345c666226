// Faults that a handler was offered in a replay and has not resolved itself: what tells a handler that answers later from one
// that does nothing, whose faults the trace would answer in its place.
//
// Rules:
//  - A call of the handler's that covers the page, or `false`, ends the debt. A call that the trace makes does not.
//  - If the trace answers in the place of a handler that has finished with the fault, that is a difference at once. One whose promise is
//    pending may still answer; it is a difference if it has not when the trace ends.

import { isPromise } from '../failures.js';
import type { Pagefault } from '../handler.js';
import type { Difference } from './replaying.js';

/** A record, as a difference tells it. */
type Expected = Omit<Difference, 'came'>;

interface Debt {
  readonly fault: Pagefault;
  /** The promise for it has not settled. */
  pending: boolean;
  /** The call by which the trace answered it first. */
  inPlace?: Expected;
}

export class Owed {
  /** The fault that a difference is about. */
  blamed: Pagefault | undefined;
  /** By page. */
  readonly #debts = new Map<bigint, Debt>();

  /** A fault is offered. */
  begin(fault: Pagefault): Debt {
    const debt = { fault, pending: true };
    this.#debts.set(fault.page, debt);
    return debt;
  }

  /** What the handler said of it. */
  said(debt: Debt, said: unknown): void {
    if (said === false) this.#forget(debt);
    if (!isPromise(said)) debt.pending = false;
    else {
      const settled = (): void => {
        debt.pending = false;
      };
      said.then(settled, settled);
    }
  }

  #forget(debt: Debt): void {
    if (this.#debts.get(debt.fault.page) === debt) this.#debts.delete(debt.fault.page);
  }

  /** The handler itself has made a call for `length` bytes at `start`. */
  answered(start: bigint, length: number): void {
    for (const debt of this.#within(start, length)) this.#forget(debt);
  }

  /** Whether there is a debt in `length` bytes at `start`. */
  covers(start: bigint, length: number): boolean {
    return !this.#within(start, length).next().done;
  }

  *#within(start: bigint, length: number): Generator<Debt, void> {
    const end = start + BigInt(length);
    for (const debt of this.#debts.values()) {
      if (debt.fault.page >= start && debt.fault.page < end) yield debt;
    }
  }

  /** The trace is about to make a call. False: in the place of a handler that will not. */
  answerInPlace(start: bigint, length: number, expected: Expected): boolean {
    for (const debt of this.#within(start, length)) {
      if (!debt.pending) {
        this.blamed = debt.fault;
        return false;
      }
      debt.inPlace ??= expected;
    }
    return true;
  }

  /** The trace is at its end: what it has answered in the place of the handler. */
  left(): Difference | undefined {
    const all = [...this.#debts.values()].filter(({ inPlace }) => inPlace);
    const first = all.sort((a, b) => (a.inPlace as Expected).index - (b.inPlace as Expected).index)[0];
    if (!first) return undefined;
    this.blamed = first.fault;
    return { ...(first.inPlace as Expected), came: 'nothing: the handler has not answered this fault' };
  }
}
