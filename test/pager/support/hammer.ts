// Threads that read and write a pager's memory at random, each beside a copy of what its bytes should be: a short run in
// the tests, a long one in `npm run soak`.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileSource, Pager } from '../../../src/pager/index.js';
import { inDirectory } from '../../cli/support/command.js';
import { dataOf, mostBytes, type PagerUser, withPager } from './pager-tools.js';

const THREADS = 8;
/** The fewest blocks that a pager keeps in memory. */
const BLOCKS_LEAST = 16;

export interface HammerOptions {
  first: number;
  /** Bytes of the data. */
  size: number;
  blockSize: number;
  /** Milliseconds. */
  ms: number;
  /** Whether each step is to a random place; false: most are near the last one. */
  random: boolean;
}

/** What each thread knows, and how much it did. */
interface Hammered {
  shadow: Uint8Array;
  wrong: number;
  writes: number;
}

/** Runs the threads with the smallest limit, and checks that memory stays within it. Returns a line about the run. */
async function hammered(
  pager: Pager,
  users: PagerUser[],
  { first, ms, random }: HammerOptions,
): Promise<{ results: Hammered[]; line: string }> {
  let results: Hammered[] = [];
  let flushes = 0;
  let running = true;
  const most = await mostBytes(async () => {
    const flushing = (async () => {
      for (; running; flushes++) {
        await pager.flush();
        await sleep(50);
      }
    })();
    results = await Promise.all(
      users.map((user, own) => user.hammer({ first: first + own, threads: THREADS, own, ms, random })),
    );
    running = false;
    await flushing;
  });
  assert.deepEqual(
    results.map(({ wrong }) => wrong),
    results.map(() => 0),
  );
  assert.ok(most <= pager.resident, `${most} bytes in memory`);
  const { evictedBytes } = pager.stats;
  assert.ok(evictedBytes > 0);
  const writes = results.reduce((sum, result) => sum + result.writes, 0);
  return {
    results,
    line: `${writes} writes, ${flushes} flushes, ${evictedBytes / pager.blockSize} evictions, none lost`,
  };
}

/** Each byte must be as the thread that owns it knows. */
function check(bytes: Uint8Array, results: Hammered[]): void {
  for (let at = 0; at < bytes.length; at++) {
    const { shadow } = results[at % THREADS] as Hammered;
    if (bytes[at] !== shadow[Math.floor(at / THREADS)]) throw new Error(`byte ${at} is wrong`);
  }
}

/** A file that is written in place: after a flush, it has what the threads have written. */
export async function hammerFile(options: HammerOptions & { flushMs: number }): Promise<string> {
  const { size, blockSize, flushMs } = options;
  let line = '';
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, dataOf(size));
    const resident = BLOCKS_LEAST * blockSize;
    const pager = { source: fileSource(path), resident, blockSize, writable: { flushMs } };
    await withPager(pager, THREADS, async (pager, ...users) => {
      const run = await hammered(pager, users, options);
      await pager.flush();
      assert.equal(pager.stats.dirtyBytes, 0);
      const file = readFileSync(path);
      assert.equal(file.length, size);
      check(file, run.results);
      line = run.line;
    });
  });
  return line;
}

/** Anonymous memory: its swap file is all that keeps what the threads have written. */
export async function hammerSwap(
  options: HammerOptions & { compress: 'auto' | 'none'; encrypt: boolean },
): Promise<string> {
  const { size, blockSize, compress, encrypt } = options;
  let line = '';
  await inDirectory(async (swap) => {
    const resident = BLOCKS_LEAST * blockSize;
    const pager = Pager.anonymous(size, { resident, blockSize, swap, compress, encrypt });
    await withPager(pager, THREADS, async (pager, ...users) => {
      const run = await hammered(pager, users, options);
      check((await users[0]?.bytes(0, size)) as Uint8Array, run.results);
      line = run.line;
    });
  });
  return line;
}
