// Injects failures into the simulated kernel: rare answers and events, at times that a seed or a script decides. Each
// of them may happen on Linux, too, and none breaks a promise of Linux.
//
// Rules:
//  - Each kind of failure has opportunities, counted from 0. A script lists the opportunities at which the failure
//    happens.
//  - A moment at which a failure is impossible is no opportunity for it. For example, a fill of one page cannot be
//    partial.

import { E, REQUEST } from './abi.js';
import type { Chooser } from './chooser.js';

/** What can be injected. */
export const INJECTIONS = [
  /** A call that resolves faults does nothing and answers EAGAIN, as during a mapping change. */
  'eagain',
  /** A fill installs only a part of its pages, and answers EAGAIN with the number of bytes installed. */
  'partial',
  /** A call is interrupted before it has an effect: any call, or only those of one kind. */
  'eintr',
  'eintr-read',
  'eintr-poll',
  'eintr-fill',
  'eintr-wake',
  /** A fill finds no memory. */
  'enomem',
  /** A fill finds no memory, because the memory has a limit. */
  'enospc',
  /** A COPY cannot read its source. */
  'efault',
  /** A COPY cannot read its source, because a disk fails. */
  'eio',
  /** A thread whose mapping change was read is held back for up to 262 ms. Until then, fills return EAGAIN. */
  'held',
  /** A second message arrives for a page fault that was read. */
  'repeat',
  /** Waiters of a page are woken without a resolved fault. */
  'wake',
  /** A signal reaches a thread that sleeps in a page fault. */
  'signal',
  /** A process other than the handler's exits, whatever its threads are doing. */
  'exit',
  /** A process other than the handler's calls exec. */
  'exec',
  /** A read returns fewer messages than are queued. */
  'short',
  /** A watched mapping gets a border at some page, or loses one, as by madvise(DONTDUMP), without a message. */
  'split',
  /** Another process takes all free huge pages, for up to 262 ms. */
  'dry',
] as const;
export type Injection = (typeof INJECTIONS)[number];

/** For each failure: its probability (0 to 1), or a script of the opportunities at which it happens, counted from 0. */
export type Inject = Readonly<Partial<Record<Injection, number | readonly number[]>>>;

/** Injected errors, and the calls that may return them. */
const FAILURES: readonly (readonly [Injection, number, readonly number[]])[] = [
  ['enomem', E.NOMEM, [REQUEST.COPY, REQUEST.ZEROPAGE, REQUEST.CONTINUE]],
  ['enospc', E.NOSPC, [REQUEST.COPY, REQUEST.ZEROPAGE]],
  ['efault', E.FAULT, [REQUEST.COPY]],
  ['eio', E.IO, [REQUEST.COPY]],
];

/** Kinds of calls that can be interrupted. */
export type Interrupted = 'read' | 'poll' | 'fill' | 'wake';

export class Injector {
  /** How often each injection happened. */
  readonly counts = new Map<Injection, number>();
  /**
   * Whether a failure may be injected now. If not, this is no opportunity for it.
   *
   * @internal
   */
  allows: (what: Injection) => boolean = () => true;
  readonly #rules: Inject;
  readonly #chooser: Chooser;
  readonly #report: (what: Injection) => void;
  readonly #opportunities = new Map<Injection, number>();

  constructor(rules: Inject, chooser: Chooser, report: (what: Injection) => void) {
    for (const name of Object.keys(rules)) {
      if (!(INJECTIONS as readonly string[]).includes(name))
        throw new TypeError(`inject: there is no '${name}'`);
    }
    this.#rules = rules;
    this.#chooser = chooser;
    this.#report = report;
  }

  /** Whether an injection may ever happen. */
  knows(what: Injection): boolean {
    return this.#rules[what] !== undefined;
  }

  /** Whether an injection happens at this opportunity. */
  happens(what: Injection): boolean {
    const rule = this.#rules[what];
    if (rule === undefined || !this.allows(what)) return false;
    const number = this.#opportunities.get(what) ?? 0;
    this.#opportunities.set(what, number + 1);
    const does = typeof rule === 'number' ? this.#chooser.chance(rule) : rule.includes(number);
    if (!does) return false;
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
    this.#report(what);
    return true;
  }

  /** An integer from 0 up to `end`, exclusive. */
  below(end: number): number {
    return this.#chooser.below(end);
  }

  /** Picks one of the candidates. */
  pick<T>(candidates: readonly T[]): T {
    return candidates[this.#chooser.below(candidates.length)] as T;
  }

  /** Whether a call is interrupted. `kind`: the kind of the call; undefined: none of `Interrupted`. */
  interrupts(kind?: Interrupted): boolean {
    return this.happens('eintr') || (kind !== undefined && this.happens(`eintr-${kind}`));
  }

  /** The errno injected into a call that resolves faults; undefined: none. */
  failure(request: number): number | undefined {
    if (this.happens('eagain')) return E.AGAIN;
    return FAILURES.find(([what, , requests]) => requests.includes(request) && this.happens(what))?.[1];
  }

  /** How many pages of a fill are done ('partial'), or how many of the queued messages a read returns ('short'). */
  partOf(count: number, what: 'partial' | 'short'): number {
    return count > 1 && this.happens(what) ? 1 + this.#chooser.below(count - 1) : count;
  }

  /**
   * For how many times STEP_MS a thread whose mapping change was read is held back ('held'), or the pool has no free
   * huge page ('dry'). 0: not at all.
   */
  stepsOf(what: 'held' | 'dry'): number {
    return this.happens(what) ? 4 ** (1 + this.#chooser.below(9)) : 0;
  }
}
