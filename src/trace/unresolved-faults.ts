// The faults that a replayed handler was offered and has not resolved itself. They distinguish a handler that answers
// later from a handler that does nothing, in whose place the trace would answer.
//
// Rules:
//  - A call of the handler that covers the page, or `false`, settles the fault. A call that the trace makes does not.
//  - If the trace answers in place of a handler that has finished with the fault, that is a difference at once. A
//    handler whose promise is pending may still answer; if it has not when the trace ends, that is a difference.

import type { Pagefault } from '../uffd/handler.js';
import { isPromise } from '../uffd/handler-errors.js';
import type { Difference } from './replay-port.js';

/** The recorded call, as a difference shows it. */
type Expected = Omit<Difference, 'came'>;

interface UnresolvedFault {
  readonly fault: Pagefault;
  /** Whether the handler's promise for this fault has not settled yet. */
  pending: boolean;
  /** The first call by which the trace answered the fault. */
  inPlace?: Expected;
}

export class UnresolvedFaults {
  /** The fault that a difference is about. */
  blamed: Pagefault | undefined;
  /** The faults, by page. */
  readonly #faults = new Map<bigint, UnresolvedFault>();

  /** To call when a fault is offered. */
  begin(fault: Pagefault): UnresolvedFault {
    const unresolved = { fault, pending: true };
    this.#faults.set(fault.page, unresolved);
    return unresolved;
  }

  /** To call with the result of the handler. */
  returned(unresolved: UnresolvedFault, returned: unknown): void {
    if (returned === false) this.#forget(unresolved);
    if (!isPromise(returned)) unresolved.pending = false;
    else {
      const settled = (): void => {
        unresolved.pending = false;
      };
      returned.then(settled, settled);
    }
  }

  #forget(unresolved: UnresolvedFault): void {
    if (this.#faults.get(unresolved.fault.page) === unresolved) this.#faults.delete(unresolved.fault.page);
  }

  /** The handler, not the trace, resolved `length` bytes at `start`. */
  answered(start: bigint, length: number): void {
    for (const unresolved of this.#within(start, length)) this.#forget(unresolved);
  }

  /** Whether `length` bytes at `start` hold an unresolved fault. */
  covers(start: bigint, length: number): boolean {
    return !this.#within(start, length).next().done;
  }

  *#within(start: bigint, length: number): Generator<UnresolvedFault, void> {
    const end = start + BigInt(length);
    for (const unresolved of this.#faults.values()) {
      if (unresolved.fault.page >= start && unresolved.fault.page < end) yield unresolved;
    }
  }

  /**
   * To call before a call from the trace is made. Returns false if that call would answer a fault in place of a handler
   * that has finished with the fault.
   */
  answerInPlace(start: bigint, length: number, expected: Expected): boolean {
    for (const unresolved of this.#within(start, length)) {
      if (!unresolved.pending) {
        this.blamed = unresolved.fault;
        return false;
      }
      unresolved.inPlace ??= expected;
    }
    return true;
  }

  /** At the end of the trace: the fault that the trace has answered in place of the handler. */
  answeredInPlace(): Difference | undefined {
    const all = [...this.#faults.values()].filter(({ inPlace }) => inPlace);
    const first = all.sort((a, b) => (a.inPlace as Expected).index - (b.inPlace as Expected).index)[0];
    if (!first) return undefined;
    this.blamed = first.fault;
    return { ...(first.inPlace as Expected), came: 'nothing: the handler has not answered this fault' };
  }
}
