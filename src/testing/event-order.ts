// Checks the order of events: compares what the kernel reported to one userfaultfd with the calls of its handler.
//
// Rules:
//  - A mapping change that was read is delivered once, in the order of reading, and before any fault is offered.
//  - A fault is offered to the handler because of a message. Without a new message it is offered again only if it was
//    not answered, or if nothing was resolved at its page.
//  - `closed` is called once, and no other callback is called after it.

import type { Mode } from '../kernel/features.js';
import { EVENT, FAULT, MESSAGE_BYTES } from '../sim/abi.js';
import type { Failure } from './failure.js';

interface Change {
  readonly event: number;
  readonly words: readonly bigint[];
}

const NAMES: Readonly<Record<number, string>> = {
  [EVENT.FORK]: 'forked',
  [EVENT.REMAP]: 'remapped',
  [EVENT.REMOVE]: 'removed',
  [EVENT.UNMAP]: 'unmapped',
};

export class EventOrder {
  /** Whether the userfaultfd has a handler. */
  served = false;
  /** How often `closed` was called. */
  closings = 0;
  /** Whether the program has closed the userfaultfd. Then messages that were read and not delivered are given up. */
  givenUp = false;
  /** How many faults were offered. */
  offers = 0;
  readonly #fail: (failure: Failure) => void;
  readonly #pageSize: number;
  readonly #changes: Change[] = [];
  /**
   * Faults (by page and kind) that may be offered: reported by the kernel and not offered yet, or offered and not
   * resolved.
   */
  readonly #asked = new Set<string>();
  #resolved: { start: bigint; end: bigint }[] = [];

  constructor(pageSize: number, fail: (failure: Failure) => void) {
    this.#pageSize = pageSize;
    this.#fail = fail;
  }

  /** To call with messages that the kernel has returned to a reader. */
  said(view: DataView, bytes: number): void {
    for (let at = 0; at + MESSAGE_BYTES <= bytes; at += MESSAGE_BYTES) {
      const event = view.getUint8(at);
      const word = (index: number): bigint => view.getBigUint64(at + 8 + index * 8, true);
      if (event === EVENT.PAGEFAULT) this.#asked.add(this.#keyOf(word(1), word(0)));
      else if (event === EVENT.FORK) this.#changes.push({ event, words: [] });
      else if (event === EVENT.REMAP) this.#changes.push({ event, words: [word(0), word(1), word(2)] });
      else this.#changes.push({ event, words: [word(0), word(1)] });
    }
  }

  /** To call when faults in [start, end) were resolved. */
  resolved(start: bigint, end: bigint): void {
    this.#resolved.push({ start, end });
  }

  /** To call when the handler gets a mapping change. */
  change(event: number, words: readonly bigint[]): void {
    this.#notClosed(NAMES[event] as string);
    const next = this.#changes.shift();
    if (next?.event === event && next.words.every((word, index) => word === words[index])) return;
    const expected = next ? text(next) : 'nothing';
    this.#wrong(`the handler was called with ${text({ event, words })}, but the kernel reported ${expected}`);
  }

  /** To call when a fault is offered. Then call the returned function with whether the handler answered the fault. */
  offer(page: bigint, kind: Mode): (answered: boolean) => void {
    this.#notClosed('pagefault');
    this.offers++;
    const first = this.#changes[0];
    if (first) this.#wrong(`a fault was offered before ${text(first)}, which was read already`);
    const key = this.#keyOf(page, FLAGS[kind]);
    if (!this.#asked.delete(key)) {
      this.#wrong(`a fault at 0x${page.toString(16)} was offered again after its answer`);
    }
    this.#resolved = [];
    return (answered) => {
      const done = this.#resolved.some(({ start, end }) => page >= start && page < end);
      if (!answered || !done) this.#asked.add(key);
    };
  }

  closed(): void {
    this.closings++;
    if (this.closings > 1) this.#fail({ invariant: 'closed', detail: 'closed was called twice' });
    if (this.#changes[0] && !this.givenUp)
      this.#wrong(`${text(this.#changes[0])} was not delivered before closed`);
  }

  /** The key of a page and a kind. The library merges the faults that have the same key. */
  #keyOf(address: bigint, flags: bigint): string {
    return `${address / BigInt(this.#pageSize)} ${flags & KINDS}`;
  }

  #notClosed(what: string): void {
    if (this.closings > 0) this.#fail({ invariant: 'closed', detail: `${what} was called after closed` });
  }

  #wrong(detail: string): void {
    this.#fail({ invariant: 'told', detail });
  }
}

/** The flags that distinguish kinds of faults. */
const KINDS = BigInt(FAULT.WP | FAULT.MINOR);
const FLAGS = { missing: 0n, 'write-protect': BigInt(FAULT.WP), minor: BigInt(FAULT.MINOR) } as const;

function text({ event, words }: Change): string {
  const list = words.map((word) => `0x${word.toString(16)}`).join(', ');
  return `${NAMES[event] ?? `event ${event}`}(${list})`;
}
