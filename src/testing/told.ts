// What the kernel said to one userfaultfd, and what its handler was told of it.
//
// Rules:
//  - A mapping change that was read is told once, in its order, before any fault is offered.
//  - A fault is offered for a message. It is offered again without a new one only where it was not answered, or where
//    nothing was resolved at its page.
//  - Nothing is told after `closed`, which is told once.

import type { Mode } from '../features.js';
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

export class Told {
  /** It has a handler. */
  served = false;
  /** How often `closed` was told. */
  closings = 0;
  /** The program closes it: what was read and not told is given up. */
  givenUp = false;
  /** Faults that were offered, to be counted. */
  offers = 0;
  readonly #fail: (failure: Failure) => void;
  readonly #pageSize: number;
  readonly #changes: Change[] = [];
  /** Faults by page and kind: said by the kernel and not offered yet, or offered and owed. */
  readonly #asked = new Set<string>();
  #resolved: { start: bigint; end: bigint }[] = [];

  constructor(pageSize: number, fail: (failure: Failure) => void) {
    this.#pageSize = pageSize;
    this.#fail = fail;
  }

  /** The kernel gave messages to a reader. */
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

  /** What was asked for in [start, end) is there. */
  resolved(start: bigint, end: bigint): void {
    this.#resolved.push({ start, end });
  }

  /** The handler is told of a mapping change. */
  change(event: number, words: readonly bigint[]): void {
    this.#notClosed(NAMES[event] as string);
    const next = this.#changes.shift();
    if (next?.event === event && next.words.every((word, index) => word === words[index])) return;
    const expected = next ? text(next) : 'nothing';
    this.#wrong(`it was told ${text({ event, words })}, and the kernel said ${expected}`);
  }

  /** A fault is offered; what comes back is told how it was answered. */
  offer(page: bigint, kind: Mode): (answered: boolean) => void {
    this.#notClosed('pagefault');
    this.offers++;
    const first = this.#changes[0];
    if (first) this.#wrong(`it was offered a fault before ${text(first)}, which was read already`);
    const key = this.#keyOf(page, FLAGS[kind]);
    if (!this.#asked.delete(key)) {
      this.#wrong(`it was offered a fault at 0x${page.toString(16)} that it has answered`);
    }
    this.#resolved = [];
    return (answered) => {
      const done = this.#resolved.some(({ start, end }) => page >= start && page < end);
      if (!answered || !done) this.#asked.add(key);
    };
  }

  closed(): void {
    this.closings++;
    if (this.closings > 1) this.#fail({ invariant: 'closed', detail: 'it was told twice' });
    if (this.#changes[0] && !this.givenUp)
      this.#wrong(`it was not told ${text(this.#changes[0])} before it was closed`);
  }

  /** Faults of one page and kind are one. */
  #keyOf(address: bigint, flags: bigint): string {
    return `${address / BigInt(this.#pageSize)} ${flags & KINDS}`;
  }

  #notClosed(what: string): void {
    if (this.closings > 0) this.#fail({ invariant: 'closed', detail: `${what} was told behind it` });
  }

  #wrong(detail: string): void {
    this.#fail({ invariant: 'told', detail });
  }
}

/** What tells kinds of faults apart. */
const KINDS = BigInt(FAULT.WP | FAULT.MINOR);
const FLAGS = { missing: 0n, 'write-protect': BigInt(FAULT.WP), minor: BigInt(FAULT.MINOR) } as const;

function text({ event, words }: Change): string {
  const list = words.map((word) => `0x${word.toString(16)}`).join(', ');
  return `${NAMES[event] ?? `event ${event}`}(${list})`;
}
