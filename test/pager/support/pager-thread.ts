// A thread that touches the memory of a pager for a test, because it may sleep in a fault: see `pager-tools.ts`.

import { createHash } from 'node:crypto';
import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { libc } from '../../../shim/libc.js';
import { PagerMemory, type SharedPager } from '../../../src/pager/index.js';
import { generator } from '../../support/harness.js';
import { wrongByte } from './pager-source.js';

const memory = PagerMemory.attach(workerData as SharedPager);

/** What a thread may be asked to do. */
const actions = {
  /** The offset of the first byte that is wrong; −1: all are right. */
  wrong(offset: number, length: number): number {
    const index = wrongByte(memory.view(offset, length), offset);
    return index < 0 ? -1 : offset + index;
  },
  /** As `wrong`, of `count` random places, up to `most` bytes each. */
  wrongAtRandom(first: number, count: number, most: number): number {
    const random = generator(first);
    for (let done = 0; done < count; done++) {
      const offset = random(memory.size);
      const found = actions.wrong(offset, Math.min(1 + random(most), memory.size - offset));
      if (found >= 0) return found;
    }
    return -1;
  },
  bytes: (offset: number, length: number): Uint8Array => memory.view(offset, length).slice(),
  hash: (offset: number, length: number): string =>
    createHash('sha256').update(memory.view(offset, length)).digest('hex'),
  fill: (offset: number, length: number, value: number): void => void memory.view(offset, length).fill(value),
  /** Lets the kernel read the bytes: what write(2) has returned, or the code of its error. */
  send(fd: number, offset: number, length: number): number | string {
    try {
      return writeSync(fd, memory.view(offset, length));
    } catch (error) {
      return (error as NodeJS.ErrnoException).code as string;
    }
  },
  /**
   * Reads and writes bytes at random for a time. The thread owns each `threads`th byte, and knows what they should be.
   * Returns the bytes that it owns, and how many it has found wrong.
   */
  hammer({ first, threads, own, ms, random: places = false }: Hammering): {
    shadow: Uint8Array;
    wrong: number;
    writes: number;
  } {
    const all = memory.bytes;
    const random = generator(first);
    const count = Math.ceil((memory.size - own) / threads);
    const shadow = new Uint8Array(count);
    const known = new Uint8Array(count);
    const until = performance.now() + ms;
    let [wrong, writes, at] = [0, 0, random(count)];
    while (performance.now() < until) {
      // Some steps near the last place, so that a block is used more than once.
      at = places || random(8) === 0 ? random(count) : (at + random(600)) % count;
      const place = at * threads + own;
      if (known[at] && all[place] !== shadow[at]) wrong++;
      if (random(2) === 0) {
        shadow[at] = random(256);
        known[at] = 1;
        all[place] = shadow[at] as number;
        writes++;
      }
    }
    // What it has never written is as it was.
    for (let index = 0; index < count; index++) {
      if (!known[index]) shadow[index] = all[index * threads + own] as number;
      else if (all[index * threads + own] !== shadow[index]) wrong++;
    }
    return { shadow, wrong, writes };
  },
  /** Forks with the compiled fork.c; the child touches the first page. Returns the child's wait status. */
  forkTouch: (library: string, page: number): number =>
    libc().koffi.load(library).func('int fork_touch(uint64_t, uint64_t, uint64_t)')(memory.address, page, 1),
  tid: (): number => libc().syscall(process.arch === 'x64' ? 186 : 178, 0),
};

export interface Hammering {
  first: number;
  threads: number;
  own: number;
  ms: number;
  random?: boolean;
}

export type PagerActions = typeof actions;

parentPort?.on(
  'message',
  ({ id, action, args }: { id: number; action: keyof PagerActions; args: never[] }) => {
    try {
      const result = (actions[action] as (...args: never[]) => unknown)(...args);
      parentPort?.postMessage({ id, result });
    } catch (error) {
      parentPort?.postMessage({ id, error });
    }
  },
);
