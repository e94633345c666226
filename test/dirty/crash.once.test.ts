// After a crash in the middle of a checkpoint, the last complete checkpoint is readable, and new ones can be appended.
// If the file may not grow, no earlier checkpoint is lost.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, suite } from '../support/harness.js';
import { needKernel, P } from '../support/real-kernel.js';
import { PAGES, painted } from './support/painting.js';

const test = suite('dirty/crash');

const KILLS = 80;
/** Processes at a time. The test runs several, because it spends most of its time starting them. */
const LANES = 2;
const WRITER = fileURLToPath(new URL('./support/checkpoint-writer.js', import.meta.url));

/** Starts a process, and kills it `delayMs` after it has reported `checkpoints` checkpoints. */
async function killed(file: string, painting: number, checkpoints: number, delayMs: number): Promise<void> {
  const child = spawn(process.execPath, [WRITER, file, `${painting}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  // Do not stop reading: a writer without a reader would end by itself.
  await new Promise<void>((resolve) => {
    let reported = 0;
    child.stdout.on('data', (bytes: Buffer) => {
      reported += bytes.length;
      if (reported >= 'ready\n'.length + checkpoints) resolve();
    });
  });
  await sleep(delayMs);
  child.kill('SIGKILL');
  await once(child, 'exit');
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
  let reported = 0;
  let made = 0;
  await inDirectory(async (directory) => {
    let next = 0;
    const lane = async (): Promise<void> => {
      const memory = Mapping.anonymous(PAGES * P);
      while (next < KILLS) {
        const turn = next++;
        const file = join(directory, `${turn}`);
        const checkpoints = random(4);
        reported += checkpoints;
        await killed(file, first + turn, checkpoints, random(10));
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
  console.log(`${made} whole checkpoints, ${reported} of them reported, ${torn} torn tails`);
  assert.ok(made >= reported, 'what was reported is there');
  assert.ok(torn > 0, 'some kills came in the middle of a checkpoint');
}, 240_000);

test('a file that may not grow: the error is reported, the file is unchanged, and nothing is lost', async () => {
  needKernel();
  await inDirectory((directory) => {
    const file = join(directory, 'checkpoints');
    // In blocks of 512 bytes: enough for the first checkpoint and some more.
    const script = `trap '' XFSZ; ulimit -f 800; exec "$@"`;
    const ran = spawnSync('sh', ['-c', script, 'sh', process.execPath, WRITER, file, '5', 'full'], {
      encoding: 'utf8',
    });
    assert.is(ran.status, 0, ran.stderr);
    const printed = JSON.parse(ran.stdout.split('\n')[1] as string);
    assert.is(printed.code, 'EFBIG');
    assert.is(printed.next, 'EFBIG');
    assert.is(printed.kept, printed.painted, 'all before it are whole');
    assert.ok(printed.kept > 1);
  });
});

test.run();
