// A source that takes changes, for tests of the pager: `moduleSource(SINK, control)` runs it in the pager's thread.

import { setTimeout as sleep } from 'node:timers/promises';
import type { CustomSource, Sink } from '../../../src/pager/index.js';

export const SINK = new URL('./pager-sink.js', import.meta.url);

/** Shared by the test and the sink. */
export interface SinkControl {
  readonly data: Uint8Array;
  /** Words: whether writes fail, milliseconds that each takes, writes so far, calls of `sync`, bytes under way at most. */
  readonly words: Int32Array;
}

export const FAILS = 0;
export const TAKES_MS = 1;
export const WRITES = 2;
export const SYNCS = 3;
export const MOST_BYTES = 4;
export const ABORTED = 5;

export function sinkControl(size: number): SinkControl {
  return {
    data: new Uint8Array(new SharedArrayBuffer(size)),
    words: new Int32Array(new SharedArrayBuffer(64)),
  };
}

export default function make({ data, words }: SinkControl): CustomSource & Sink {
  let underWay = 0;
  return {
    size: data.length,
    identity: 'data of the test',
    read: (offset, into) => into.set(data.subarray(offset, offset + into.length)),
    async write(offset, bytes, signal) {
      signal.addEventListener('abort', () => Atomics.add(words, ABORTED, 1));
      underWay += bytes.length;
      Atomics.store(words, MOST_BYTES, Math.max(Atomics.load(words, MOST_BYTES), underWay));
      try {
        // Writes of one batch end in another order than they began in.
        await sleep(Atomics.load(words, TAKES_MS) * (1 + (offset % 5)));
        if (Atomics.load(words, FAILS))
          throw Object.assign(new Error('the test has said so'), { code: 'ENOSPC' });
        data.set(bytes, offset);
        Atomics.add(words, WRITES, 1);
      } finally {
        underWay -= bytes.length;
      }
    },
    async sync() {
      await sleep(1);
      Atomics.add(words, SYNCS, 1);
    },
  };
}
