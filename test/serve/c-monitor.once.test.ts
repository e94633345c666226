// A monitor in C, written from the protocol's text alone, is served without a wrong page: by one thread and several,
// with a balloon and without, one page at a time and in windows, from a file with holes.

import { closeSync, copyFileSync, openSync, writeSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { seed, suite } from '../support/harness.js';
import { compileProgram, needKernelFaults } from '../support/real-kernel.js';
import { P, served, writeMemory } from './support/serve-process.js';

const test = suite('c-monitor');

const PAGES = 2048;
const ROUNDS = 2;
const LIMIT_S = 100;

/** What monitor.c prints at its end. */
interface Outcome {
  pages: number;
  touched: number;
  removed: number;
  wrong: number;
}

let program: string | undefined;
const start = seed();

/** Runs the monitor to its end; it must find no wrong page. Returns the server's counts. */
async function run(
  options: readonly string[],
  threads: number,
  balloon: boolean,
  hole?: (page: number) => boolean,
): Promise<Readonly<Record<string, number>>> {
  needKernelFaults();
  program ??= compileProgram('guest/monitor.c');
  const monitor = [program, '-t', `${threads}`, '-r', `${ROUNDS}`, '-s', `${start}`, '-l', `${LIMIT_S}`];
  const make = (path: string): void => writeMemory(path, PAGES, start, hole);
  const { monitor: ended, stats } = await served(options, make, (socket, memory) => [
    ...monitor,
    ...(balloon ? ['-b'] : []),
    socket,
    memory,
  ]);
  assert.is(ended.code, 0, `${ended.stdout}${ended.stderr}`);
  const outcome = JSON.parse(ended.stdout) as Outcome;
  assert.is(outcome.wrong, 0);
  assert.is(outcome.pages, PAGES);
  assert.is(outcome.touched, PAGES * threads * ROUNDS);
  const [session] = stats.sessions;
  assert.is(stats.sessions.length, 1);
  assert.is(session?.end, 'exited');
  assert.is(session?.regions, 2);
  assert.is(session?.bytes, PAGES * P);
  assert.is(session?.counts.taken, outcome.removed * P);
  assert.is(outcome.removed > 0, balloon);
  return session?.counts ?? {};
}

// Holes of one page, and longer ones that begin and end anywhere in a window.
const isHole = (page: number): boolean => page % 7 === 3 || page % 101 > 60;
const HOLES = Array.from({ length: PAGES }, (_, page) => page).filter(isHole).length;

for (const threads of [1, 4]) {
  for (const window of [1, 16, 'adaptive'] as const) {
    for (const holes of [0, HOLES]) {
      const name =
        `${threads === 1 ? 'one thread' : `${threads} threads`}, window ${window}, ` +
        `${holes ? 'a file with holes' : 'a dense file'}`;
      const options = ['--window', `${window}`];
      const hole = holes ? isHole : undefined;

      test(
        name,
        async () => {
          const { copied, hole: zeroed } = await run(options, threads, false, hole);
          assert.is(copied, (PAGES - holes) * P, 'every page with data is copied once');
          assert.is(zeroed, holes * P, 'every other is filled with zeros');
        },
        2 * LIMIT_S * 1000,
      );

      test(
        `${name}, a balloon`,
        async () => {
          const { removed = 0 } = await run(options, threads, true, hole);
          assert.ok(removed > 0, 'pages were touched after their removal');
        },
        2 * LIMIT_S * 1000,
      );
    }
  }
}

test('the monitor finds the one page that is not the file’s', async () => {
  needKernelFaults();
  program ??= compileProgram('guest/monitor.c');
  const make = (path: string): void => {
    writeMemory(path, PAGES, start);
    copyFileSync(path, `${path}.other`);
    const fd = openSync(`${path}.other`, 'r+');
    writeSync(fd, Buffer.from([1, 2, 3, 4]), 0, 4, (PAGES - 2) * P + 1000);
    closeSync(fd);
  };
  const { monitor } = await served([], make, (socket, memory) => [
    ...[program as string, '-r', '1', socket, `${memory}.other`],
  ]);
  assert.is(monitor.code, 1, `${monitor.stdout}${monitor.stderr}`);
  assert.ok((JSON.parse(monitor.stdout) as Outcome).wrong > 0, 'wrong pages are reported');
  assert.match(monitor.stderr, new RegExp(`^(page ${PAGES - 2}, .*\n)+$`));
});

test.run();
