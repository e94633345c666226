// `embed({ serves: true })` starts the first serving thread before `serve` is called: `serve` uses that thread, a program
// that ends without it ends as usual, and a thread that cannot be started is an error of `serve` alone.

import { strict as assert } from 'node:assert';
import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { memoryFile } from './support/server.js';

const test = suite('serve/early-thread');

const EMBED = JSON.stringify(new URL('../../src/embed.js', import.meta.url));
const SERVE = JSON.stringify(new URL('../../src/serve/index.js', import.meta.url));
const ENTRY = new URL('../../src/workers/entry.js', import.meta.url).href;

interface Embedding {
  readonly serves: boolean;
  /** The file that threads are started with. */
  readonly entry?: string;
}

/** Runs a program that embeds the library. Its `nextThread` returns the ID of a thread that it starts. */
function run(
  directory: string,
  { serves, entry = ENTRY }: Embedding,
  body: string,
): SpawnSyncReturns<string> {
  // Threads inherit the options of Node, so that a program from the command line would not do.
  const file = join(directory, 'program.mjs');
  const program = `
    import { setTimeout as sleep } from 'node:timers/promises';
    import { Worker } from 'node:worker_threads';
    import { embed } from ${EMBED};
    const nextThread = () => new Worker('', { eval: true }).threadId;
    embed(${JSON.stringify({ serves, entry })});
    ${body}`;
  writeFileSync(file, program);
  return spawnSync(process.execPath, [file], { encoding: 'utf8', timeout: 30_000 });
}

/** The lines of a program that serves, and prints the ID of a thread that it starts before, and of one after that. */
function serving(directory: string): string {
  const vms = [{ socket: join(directory, 'socket'), memory: memoryFile(directory, 1) }];
  return `
    const before = nextThread();
    const { serve } = await import(${SERVE});
    const server = await serve({ vms: ${JSON.stringify(vms)}, once: true });
    console.log(before, nextThread());
    await server.close();`;
}

test('serve uses the thread that was started early, and starts no other', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    for (const [serves, ids] of [
      [true, '2 3\n'],
      [false, '1 3\n'],
    ] as const) {
      const { stdout, stderr, status } = run(directory, { serves }, `await sleep(150);${serving(directory)}`);
      assert.deepEqual([status, stdout], [0, ids], stderr);
    }
  });
});

test('a program that serves nothing after all ends at once, with its own exit code', async () => {
  await inDirectory(async (directory) => {
    for (const [ends, code] of [
      ['', 0],
      ['process.exitCode = 3;', 3],
      ['process.exit(3);', 3],
    ] as const) {
      const { stdout, stderr, status } = run(directory, { serves: true }, `console.log('over'); ${ends}`);
      assert.deepEqual([status, stdout, stderr], [code, 'over\n', '']);
    }
  });
});

test('a program that ends with an error of serve has exit code 1, whatever its early thread does', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const vms = JSON.stringify([{ socket: join(directory, 'socket'), memory: '/none' }]);
    const body = `
      const { serve } = await import(${SERVE});
      await sleep(150);
      await serve({ vms: ${vms} });`;
    for (let round = 0; round < 5; round++) {
      const { stderr, status } = run(directory, { serves: true }, body);
      assert.equal(status, 1, stderr);
      assert.match(stderr, /ENOENT.*\/none/);
    }
  });
});

test('an early thread that fails ends nothing; one that cannot be started is an error of serve', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const body = `
      await sleep(300);
      try { ${serving(directory)} } catch ({ code }) { console.log('caught', code); }`;
    for (const [entry, printed] of [
      ['none.js', /^caught ERR_WORKER_PATH$/m],
      ['/nowhere/none.js', /^2 \d$/m],
    ] as const) {
      const { stdout, stderr, status } = run(directory, { entry, serves: true }, body);
      assert.equal(status, 0, stderr);
      assert.match(stdout, printed, stderr);
    }
  });
});

test.run();
