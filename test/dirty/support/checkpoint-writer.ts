// A process that makes checkpoints. It reports each one until the test kills it, or with `full` stops when the file
// cannot grow: see crash.once.test.ts.
//
//   node writer.js FILE SEED [full]
//
// The memory at a checkpoint depends only on the seed and the checkpoint's number.

import { DirtyTracker } from '../../../src/dirty/index.js';
import { Mapping } from '../../../src/index.js';
import { P } from '../../support/real-kernel.js';
import { PAGES, paint } from './painting.js';

const [, , file = '', seed = '1', full] = process.argv;
const memory = Mapping.anonymous(PAGES * P);
const tracker = await DirtyTracker.open(memory);
process.stdout.write('ready\n');
if (full) {
  for (let index = 0; index < 1000; index++) {
    paint(memory.bytes, Number(seed), index);
    try {
      await tracker.checkpoint(file, { sync: false });
    } catch (error) {
      // The next checkpoint fails too, because the file still cannot grow.
      const { code } = error as { code?: string };
      const next = await tracker.checkpoint(file, { sync: false }).catch((again) => again.code);
      const kept = await DirtyTracker.checkpoints(file);
      process.stdout.write(`${JSON.stringify({ code, next, kept: kept.length, painted: index })}\n`);
      process.exit(0);
    }
  }
}
for (let index = 0; ; index++) {
  paint(memory.bytes, Number(seed), index);
  await tracker.checkpoint(file, { sync: index % 8 === 0 });
  process.stdout.write('.');
}
