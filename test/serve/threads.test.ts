// Threads of sessions: how many are kept when no guest needs them.

import { strict as assert } from 'node:assert';
import type { Worker } from 'node:worker_threads';
import { Threads } from '../../src/serve/threads.js';
import { suite } from '../harness.js';
import { needKernel } from '../kernel/support.js';

const test = suite('serve/threads');

/** As src/serve/threads.ts has it. */
const KEPT = 16;

/** Resolves once a thread has said that it is ready. */
function isReady(worker: Worker): Promise<void> {
  return new Promise((resolve) => worker.once('message', () => resolve()));
}

test(`of ${KEPT + 2} threads that are given back ${KEPT} are kept, and serve again`, async () => {
  needKernel();
  const threads = new Threads(false);
  const taken = Array.from({ length: KEPT + 2 }, () => threads.take());
  await Promise.all(taken.map(isReady));
  const ends = taken.map(
    (worker) => new Promise<Worker>((resolve) => worker.once('exit', () => resolve(worker))),
  );
  for (const worker of taken) threads.giveBack(worker);
  const ended = await Promise.all(ends.slice(KEPT));
  const again = Array.from({ length: KEPT }, () => threads.take());
  assert.deepEqual(
    [...again].reverse(),
    taken.filter((worker) => !ended.includes(worker)),
    'the last that was given back comes first',
  );
  for (const worker of again) threads.giveBack(worker);
  await threads.close();
  await Promise.all(ends);
}, 60_000);

test.run();
