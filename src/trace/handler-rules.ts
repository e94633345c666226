// Compares the calls of a foreign handler with what the kernel's rules allow (docs/kernel.md), because such a handler
// cannot be run again. Used as the replay of a trace that `recordHandler` has written.
//
// Rules:
//  - The output of a fill agrees with its result.
//  - A fill does not succeed twice on a page unless a change was read in between. Changes that the userfaultfd does not
//    report make pages unknown, so this is checked only if it reports removals.

import { hex } from '../errors/format.js';
import { type Message, MessageDecoder } from '../uffd/messages.js';
import { Kind } from './codec.js';
import type { OpenParameters } from './open-parameters.js';
import type { ReplayKernel } from './replay-port.js';

const EAGAIN = -11;
const EINVAL = -22;
const ESRCH = -3;
const EFAULT = -14;
/** The result of a call that was not seen (ENODATA). */
const UNSEEN = -61;
/** Errors that leave a fill's output as it was. */
const UNTOUCHED: ReadonlySet<number> = new Set([EINVAL, ESRCH, EFAULT, UNSEEN]);
/** The fields of an ioctl's record: the result, and its struct before the call. */
const RESULT = 2;
const GIVEN = 3;
const REGISTER = Kind.IOCTL;
const UNREGISTER = Kind.IOCTL + 1;
const MOVE = Kind.IOCTL + 5;
const API = Kind.IOCTL + 15;
const EVENT_REMOVE = 1n << 3n;
/** Fills by kind: the words of the struct, which of them is the length, and whether the pages have contents then. */
const FILLS: Readonly<Record<number, { words: number; length: number; fills: boolean }>> = {
  [Kind.IOCTL + 3]: { words: 5, length: 2, fills: true },
  [Kind.IOCTL + 4]: { words: 4, length: 1, fills: true },
  [MOVE]: { words: 5, length: 2, fills: true },
  [Kind.IOCTL + 7]: { words: 4, length: 1, fills: true },
  // COPY replaces the marker of a poisoned page.
  [Kind.IOCTL + 8]: { words: 4, length: 1, fills: false },
};

export class HandlerRules {
  faults = 0;
  readonly #playback: ReplayKernel;
  readonly #pageSize: bigint;
  readonly #decoder = new MessageDecoder();
  /** The number of the call that has filled each page, as far as that is known. */
  readonly #filled = new Map<bigint, number>();
  #reportsRemovals: boolean;

  constructor(playback: ReplayKernel, { features }: OpenParameters) {
    this.#playback = playback;
    this.#pageSize = BigInt(playback.pageSize);
    this.#reportsRemovals = features.includes('event-remove');
  }

  /** Compares all calls, up to the first one that breaks a rule. */
  go(): void {
    const playback = this.#playback;
    for (let kind = playback.peek(); kind >= 0; kind = playback.peek()) {
      const broken = this.#broken(kind);
      if (broken !== undefined) {
        playback.differ(broken);
        return;
      }
      playback.take();
    }
  }

  /** What the kernel would have done instead. Undefined: the call keeps the rules. */
  #broken(kind: number): string | undefined {
    const { codec } = this.#playback;
    if (kind === Kind.READ) return this.#read(codec.payloadRead);
    if (kind < Kind.IOCTL || kind >= Kind.NOTE) return undefined;
    const { words } = codec;
    const result = codec.number(RESULT);
    const given = (index: number): bigint => words[GIVEN + index] as bigint;
    if (kind === API && result === 0) this.#reportsRemovals = (given(1) & EVENT_REMOVE) !== 0n;
    if (kind === REGISTER || kind === UNREGISTER) this.#forget(given(0), given(0) + given(1));
    const shape = FILLS[kind];
    if (!shape) return undefined;
    const length = given(shape.length);
    const done = BigInt.asIntN(64, given(2 * shape.words - 1));
    if (!agrees(result, done, length)) return `an output that agrees with the result: it is ${done}`;
    if (done <= 0n || (result < 0 && result !== EAGAIN)) return undefined;
    if (kind === MOVE) this.#forget(given(1), given(1) + done);
    return shape.fills ? this.#fill(given(0), done) : undefined;
  }

  #read(payload: Uint8Array): string | undefined {
    if (payload.length % 32 !== 0) return 'a read of whole messages';
    for (const message of this.#decoder.decode(payload)) {
      if (message.event === 'unknown') return `a message that it knows, not one of kind ${message.code}`;
      if (message.event === 'pagefault') this.faults++;
      else this.#changed(message);
    }
    return undefined;
  }

  #changed(message: Exclude<Message, { event: 'pagefault' | 'unknown' }>): void {
    if (message.event === 'remove' || message.event === 'unmap') this.#forget(message.start, message.end);
    if (message.event !== 'remap') return;
    for (const start of [message.from, message.to]) this.#forget(start, start + BigInt(message.length));
  }

  /** What the pages from `start` to `end` hold is not known any more. */
  #forget(start: bigint, end: bigint): void {
    if (end - start > BigInt(this.#filled.size) * this.#pageSize) {
      for (const page of this.#filled.keys()) if (page >= start && page < end) this.#filled.delete(page);
    } else for (let page = start; page < end; page += this.#pageSize) this.#filled.delete(page);
  }

  #fill(start: bigint, bytes: bigint): string | undefined {
    for (let page = start; page < start + bytes; page += this.#pageSize) {
      const by = this.#filled.get(page);
      if (by !== undefined && this.#reportsRemovals)
        return `EEXIST: call ${by} has filled the page at ${hex(page)}, and no removal was read since`;
      this.#filled.set(page, this.#playback.used);
    }
    return undefined;
  }
}

/** Whether a fill's output agrees with its result. */
function agrees(result: number, done: bigint, length: bigint): boolean {
  if (result === 0) return done === length;
  if (UNTOUCHED.has(result)) return true;
  // Before Linux 6.15, EAGAIN may leave the output as it was.
  return result === EAGAIN ? done < length : done === BigInt(result);
}
