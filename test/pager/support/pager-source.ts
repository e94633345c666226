// A source for tests of the pager, whose behaviour a test controls while it runs: `moduleSource(SOURCE, control)` runs it
// in the pager's thread, and a test can also use it in the program.

import { setTimeout as sleep } from 'node:timers/promises';
import type { CustomSource } from '../../../src/pager/index.js';

export const SOURCE = new URL('./pager-source.js', import.meta.url);

/** What the source does with each read. */
export enum Does {
  READ,
  /** Throws an error after which it is tried again. */
  FAIL,
  /** Throws an error with `permanent`. */
  FAIL_FOR_GOOD,
  /** Waits until it does something else. */
  STALL,
  /** Fills half of the bytes with garbage, and fails. */
  FAIL_HALFWAY,
  /** Throws nothing that is an error. */
  THROW_UNDEFINED,
}

/** Shared by the test and the source. */
export interface Control {
  readonly size: number;
  readonly parallel?: number;
  readonly words: Int32Array;
}

/** Words of a `Control`. */
export const DOES = 0;
export const READS = 1;
const UNDER_WAY = 2;
export const MOST_UNDER_WAY = 3;
export const ABORTED = 4;
export const CLOSED = 5;
/** Not 0: its `close` throws. */
export const CLOSE_THROWS = 6;

export function controlOf(size: number, parallel?: number): Control {
  const words = new Int32Array(new SharedArrayBuffer(64));
  return { size, words, ...(parallel !== undefined && { parallel }) };
}

/** The byte at an offset; never zero. */
export function byteAt(offset: number): number {
  return (Math.imul(offset ^ (offset >>> 11), 0x9e3779b1) >>> 24) | 1;
}

/** Fills bytes with those of the data from `offset` on. */
export function fillBytes(into: Uint8Array, offset: number): Uint8Array {
  for (let index = 0; index < into.length; index++) into[index] = byteAt(offset + index);
  return into;
}

/** The index of the first byte that is not as it should be; −1: all are right. */
export function wrongByte(bytes: Uint8Array, offset: number): number {
  for (let index = 0; index < bytes.length; index++) {
    if (bytes[index] !== byteAt(offset + index)) return index;
  }
  return -1;
}

export default function make({ size, parallel, words }: Control): CustomSource {
  return {
    size,
    ...(parallel !== undefined && { parallel }),
    async read(offset, into, signal) {
      Atomics.add(words, READS, 1);
      const now = Atomics.add(words, UNDER_WAY, 1) + 1;
      if (now > Atomics.load(words, MOST_UNDER_WAY)) Atomics.store(words, MOST_UNDER_WAY, now);
      signal.addEventListener('abort', () => Atomics.add(words, ABORTED, 1));
      try {
        await answer(words, offset, into, signal);
      } finally {
        Atomics.sub(words, UNDER_WAY, 1);
      }
    },
    close() {
      Atomics.store(words, CLOSED, 1);
      if (Atomics.load(words, CLOSE_THROWS)) throw new Error('the test closes badly');
    },
  };
}

async function answer(
  words: Int32Array,
  offset: number,
  into: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const does = (): Does => Atomics.load(words, DOES);
  while (does() === Does.STALL && !signal.aborted) await sleep(1);
  switch (does()) {
    case Does.FAIL:
      throw new Error('the test has said so');
    case Does.FAIL_FOR_GOOD:
      throw Object.assign(new Error('the test has said so for good'), { permanent: true });
    case Does.FAIL_HALFWAY:
      into.subarray(0, into.length / 2).fill(0xee);
      throw new Error('the test has said so halfway');
    case Does.THROW_UNDEFINED:
      throw undefined;
    default:
      fillBytes(into, offset);
  }
}
