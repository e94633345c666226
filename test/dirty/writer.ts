// A process that makes checkpoints until it is killed, or until the file may not grow: see crash.once.test.ts.
//
//   node writer.js FILE SEED [full]
//
// What the memory holds at a checkpoint depends on the seed and the checkpoint's number alone.

import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { P } from '../kernel/support.js';
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
      // The pages are in the next, which goes to where there is room.
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
}
