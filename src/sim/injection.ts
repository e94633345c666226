// What goes wrong on purpose: rare answers of the kernel, at a time that a seed or a script decides. Each is one that
// a real kernel may give, and none breaks a promise of its own.
//
// Rules:
//  - Each kind has its opportunities, which are counted from 0: a script names those at which it happens.
//  - Where it does not apply it has no opportunity: a fill of one page has no part of it to be done.

import { E, REQUEST } from './abi.js';
import type { Chooser } from './random.js';

/** What can be injected. */
export const INJECTIONS = [
  /** A call that resolves faults answers EAGAIN, with nothing done: a mapping is changing somewhere. */
  'eagain',
  /** A fill does a part of its pages, and answers EAGAIN with their number. */
  'partial',
  /** A call is interrupted before it did anything: any of them, or those of one kind. */
  'eintr',
  'eintr-read',
  'eintr-poll',
  'eintr-fill',
  'eintr-wake',
  /** A fill finds no memory. */
  'enomem',
  /** The same, of memory that somebody has put a limit to. */
  'enospc',
  /** A COPY cannot read its source. */
  'efault',
  /** The same, because a disk fails. */
  'eio',
  /** A thread whose mapping change was read is held back: "a mapping is changing" for longer, up to 262 ms. */
  'held',
  /** A second message comes for a page fault that was read. */
  'repeat',
  /** Sleepers of a page are woken, and nothing was resolved. */
  'wake',
  /** A signal reaches a thread asleep in a page fault. */
  'signal',
  /** A process other than the handler's exits, wherever its threads are. */
  'exit',
  /** It calls exec. */
  'exec',
  /** A read brings fewer messages than there are. */
  'short',
  /** A mapping that is watched gets a border at some page, or loses one, as by madvise(DONTDUMP): no message tells. */
  'split',
  /** Somebody else takes all huge pages that are free, for up to 262 ms. */
  'dry',
] as const;
export type Injection = (typeof INJECTIONS)[number];

/** By probability (0 to 1), or by script: the opportunities at which it happens, counted from 0. */
export type Inject = Readonly<Partial<Record<Injection, number | readonly number[]>>>;

/** Errors that a call gives of itself, and the calls that may. */
const FAILURES: readonly (readonly [Injection, number, readonly number[]])[] = [
  ['enomem', E.NOMEM, [REQUEST.COPY, REQUEST.ZEROPAGE]],
  ['enospc', E.NOSPC, [REQUEST.COPY, REQUEST.ZEROPAGE]],
  ['efault', E.FAULT, [REQUEST.COPY]],
  ['eio', E.IO, [REQUEST.COPY]],
];

/** Kinds of calls that can be interrupted. */
export type Interrupted = 'read' | 'poll' | 'fill' | 'wake';

export class Injector {
  /** How often each happened. */
  readonly counts = new Map<Injection, number>();
  /**
   * Whether something may happen now; elsewhere it has no opportunity.
   *
   * @internal
   */
  allows: (what: Injection) => boolean = () => true;
  readonly #rules: Inject;
  readonly #chooser: Chooser;
  readonly #told: (what: Injection) => void;
  readonly #opportunities = new Map<Injection, number>();

  constructor(rules: Inject, chooser: Chooser, told: (what: Injection) => void) {
    for (const name of Object.keys(rules)) {
      if (!(INJECTIONS as readonly string[]).includes(name))
        throw new TypeError(`inject: there is no '${name}'`);
    }
    this.#rules = rules;
    this.#chooser = chooser;
    this.#told = told;
  }

  /** Whether it may ever happen. */
  knows(what: Injection): boolean {
    return this.#rules[what] !== undefined;
  }

  /** Whether it happens at this opportunity. */
  happens(what: Injection): boolean {
    const rule = this.#rules[what];
    if (rule === undefined || !this.allows(what)) return false;
    const number = this.#opportunities.get(what) ?? 0;
    this.#opportunities.set(what, number + 1);
    const does = typeof rule === 'number' ? this.#chooser.chance(rule) : rule.includes(number);
    if (!does) return false;
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
    this.#told(what);
    return true;
  }

  /** An integer from 0 up to `end`, exclusive. */
  below(end: number): number {
    return this.#chooser.below(end);
  }

  /** One of several. */
  pick<T>(candidates: readonly T[]): T {
    return candidates[this.#chooser.below(candidates.length)] as T;
  }

  /** Whether a call is interrupted; `kind`: undefined for one that is of none of them. */
  interrupts(kind?: Interrupted): boolean {
    return this.happens('eintr') || (kind !== undefined && this.happens(`eintr-${kind}`));
  }

  /** The errno that a call which resolves faults gives of itself; undefined: none. */
  failure(request: number): number | undefined {
    if (this.happens('eagain')) return E.AGAIN;
    return FAILURES.find(([what, , requests]) => requests.includes(request) && this.happens(what))?.[1];
  }

  /** How many of a fill's pages are done. */
  partOf(pages: number): number {
    return pages > 1 && this.happens('partial') ? 1 + this.#chooser.below(pages - 1) : pages;
  }

  /** How many of the messages that there are a read brings. */
  messagesOf(count: number): number {
    return count > 1 && this.happens('short') ? 1 + this.#chooser.below(count - 1) : count;
  }

  /** For how many steps' time a thread is held back whose mapping change was read; 0: not at all. */
  heldSteps(): number {
    return this.happens('held') ? this.#longer() : 0;
  }

  /** For how many steps' time no huge page is free; 0: it goes on as it is. */
  drySteps(): number {
    return this.happens('dry') ? this.#longer() : 0;
  }

  #longer(): number {
    return 4 ** (1 + this.#chooser.below(9));
  }
}
