// A monitor in C, written from the protocol's text alone, is served without a wrong page: by one thread and several,
// with a balloon and without, one page at a time and in windows, from a file with holes.

import * as assert from 'uvu/assert';
import { seed, suite } from '../harness.js';
import { compileProgram, needKernelFaults } from '../kernel/support.js';
import { memoryFile, P, type Stats, served } from './process.js';

const test = suite('c-monitor');

const PAGES = 2048;
const ROUNDS = 2;
const LIMIT_S = 100;

/** What monitor.c prints at its end. */
interface Told {
  pages: number;
  touched: number;
  removed: number;
  wrong: number;
}

let program: string | undefined;
const start = seed();

async function run(
  options: readonly string[],
  threads: number,
  balloon: boolean,
  hole?: (page: number) => boolean,
): Promise<{ told: Told; stats: Stats }> {
  needKernelFaults();
  program ??= compileProgram('../guest/monitor.c');
  const monitor = [program, '-t', `${threads}`, '-r', `${ROUNDS}`, '-s', `${start}`, '-l', `${LIMIT_S}`];
  const make = (path: string): void => memoryFile(path, PAGES, start, hole);
  const { monitor: ended, stats } = await served(options, make, (socket, memory) => [
    ...monitor,
    ...(balloon ? ['-b'] : []),
    socket,
    memory,
  ]);
  assert.is(ended.code, 0, `${ended.stdout}${ended.stderr}`);
  const told = JSON.parse(ended.stdout) as Told;
  assert.is(told.wrong, 0);
  assert.is(told.pages, PAGES);
  assert.is(told.touched, PAGES * threads * ROUNDS);
  const [session] = stats.sessions;
  assert.is(stats.sessions.length, 1);
  assert.is(session?.end, 'exited');
  assert.is(session?.regions, 2);
  assert.is(session?.bytes, PAGES * P);
  assert.is(session?.counts.taken, told.removed * P);
  assert.is(told.removed > 0, balloon);
  return { told, stats };
}

for (const threads of [1, 4]) {
  for (const window of [1, 16]) {
    const name = `${threads === 1 ? 'one thread' : `${threads} threads`}, window ${window}`;
    const options = ['--window', `${window}`];

    test(
      name,
      async () => {
        const { stats } = await run(options, threads, false);
        const counts = stats.sessions[0]?.counts ?? {};
        assert.is(counts.copied, PAGES * P, 'each page is copied once');
        assert.is(counts.hole, 0);
        assert.is(counts.removed, 0);
      },
      2 * LIMIT_S * 1000,
    );

    test(
      `${name}, with a balloon`,
      async () => {
        const { stats } = await run(options, threads, true);
        assert.ok((stats.sessions[0]?.counts.removed ?? 0) > 0, 'some were touched again');
      },
      2 * LIMIT_S * 1000,
    );

    test(
      `${name}, with a balloon, from a file with holes`,
      async () => {
        // Holes of one page, and of many that begin and end anywhere in a window.
        const { stats } = await run(options, threads, true, (page) => page % 7 === 3 || page % 101 > 60);
        assert.ok((stats.sessions[0]?.counts.hole ?? 0) > 0, 'holes were filled with zeros');
      },
      2 * LIMIT_S * 1000,
    );
  }
}

test.run();
