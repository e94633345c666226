// A crash in the middle of a checkpoint leaves the last whole one readable, and the file good for more; a file that
// may not grow takes nothing with it.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { inDirectory } from '../cli/command.js';
import { generator, seed, suite } from '../harness.js';
import { needKernel, P } from '../kernel/support.js';
import { PAGES, painted } from './painting.js';

const test = suite('dirty/crash');

const KILLS = 200;
/** Processes at a time: starting one takes longest. */
const LANES = 2;
const WRITER = fileURLToPath(new URL('./writer.js', import.meta.url));

/** Lets a process make checkpoints, and kills it after a while. */
async function killed(file: string, painting: number, delayMs: number): Promise<void> {
  const child = spawn(process.execPath, [WRITER, file, `${painting}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  await sleep(delayMs);
  child.kill('SIGKILL');
  await once(child, 'close');
}

async function checkFile(memory: Mapping, file: string, painting: number, random: (below: number) => number) {
  const checkpoints = await DirtyTracker.checkpoints(file);
  const tracker = await DirtyTracker.open(memory);
  try {
    const last = checkpoints.length - 1;
    for (const checkpoint of new Set([random(last + 1), last])) {
      await tracker.restore(file, { checkpoint });
      assert.is(Buffer.compare(memory.bytes, painted(painting, checkpoint)), 0, `checkpoint ${checkpoint}`);
    }
    memory.bytes[0] = 77;
    const { index, parent } = await tracker.checkpoint(file, { sync: false });
    assert.equal([index, parent], [last + 1, last], 'the file goes on');
  } finally {
    tracker.close();
  }
  return checkpoints.length;
}

test(`kill -9 at ${KILLS} random moments: every whole checkpoint comes back, and the file goes on`, async () => {
  needKernel();
  const first = seed();
  const random = generator(first);
  let torn = 0;
  let made = 0;
  await inDirectory(async (directory) => {
    let next = 0;
    const lane = async (): Promise<void> => {
      const memory = Mapping.anonymous(PAGES * P);
      while (next < KILLS) {
        const turn = next++;
        const file = join(directory, `${turn}`);
        await killed(file, first + turn, random(40));
        const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
        if (size === 0) continue;
        const whole = (await DirtyTracker.checkpoints(file).catch(() => [])).reduce(
          (sum, { bytes }) => sum + bytes,
          32,
        );
        if (whole !== size) torn++;
        if (whole === 32) continue;
        made += await checkFile(memory, file, first + turn, random);
      }
      memory.close();
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  });
  console.log(`${made} whole checkpoints, ${torn} torn tails`);
  assert.ok(made > KILLS && torn > 0, 'the kills came while checkpoints were made');
}, 240_000);

test('a file that may not grow: the error is told, the file is as it was, and nothing is lost', async () => {
  needKernel();
  await inDirectory((directory) => {
    const file = join(directory, 'checkpoints');
    // In units of 512 bytes: room for the first and some more.
    const script = `trap '' XFSZ; ulimit -f 800; exec "$@"`;
    const ran = spawnSync('sh', ['-c', script, 'sh', process.execPath, WRITER, file, '5', 'full'], {
      encoding: 'utf8',
    });
    assert.is(ran.status, 0, ran.stderr);
    const told = JSON.parse(ran.stdout.split('\n')[1] as string);
    assert.is(told.code, 'EFBIG');
    assert.is(told.next, 'EFBIG');
    assert.is(told.kept, told.painted, 'all before it are whole');
    assert.ok(told.kept > 1);
  });
});

test.run();
