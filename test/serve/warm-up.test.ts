// A serving thread warms up with scratch guests: it stops when the thread is wanted, leaves nothing behind, and never
// fails.

import { strict as assert } from 'node:assert';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { Userfaultfd } from '../../src/index.js';
import { Tally } from '../../src/serve/counters.js';
import { serveScratch } from '../../src/serve/session-worker.js';
import { type WarmUp, warmUp } from '../../src/serve/warm-up.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';

const test = suite('serve/warm-up');
/** A thread that no guest needs while it warms up. */
const THREAD: WarmUp = {
  ...{ window: 1, wait: 'adaptive' },
  wanted: () => false,
  stopped: new SharedArrayBuffer(4),
  serving() {},
  serve: serveScratch,
};
/** The constants of src/serve/warm-up.ts. */
const GUESTS = 12;
const PAGES = 1024;
const PAGE = 4096;

/** Resources that a warm-up could leave behind. */
function resources(): { descriptors: number; watched: number } {
  const watched = readFileSync('/proc/self/smaps', 'latin1').match(/^VmFlags:.* um( |$)/gm) ?? [];
  return { descriptors: readdirSync('/proc/self/fd').length, watched: watched.length };
}

/** Serves scratch guests, and counts them and their installed pages. */
function counting(): { serve: WarmUp['serve']; count: { guests: number; pages: number } } {
  const count = { guests: 0, pages: 0 };
  const serve: WarmUp['serve'] = (task, serving, answered) => {
    const before = count.pages;
    const tally = new Tally(task.tally);
    count.guests++;
    return serveScratch(task, serving, () => {
      count.pages = before + tally.installed / PAGE;
      answered();
    });
  };
  return { serve, count };
}

for (const [wait, window] of [
  ['adaptive', 1],
  ['block', 4],
  ['spin', 16],
  ['poll', 'adaptive'],
] as const) {
  test(`every scratch guest is served to its last page, and nothing is left, ${wait}, window ${window}`, async () => {
    needKernel();
    const before = resources();
    const { serve, count } = counting();
    await warmUp({ ...THREAD, window, wait, serve });
    assert.deepEqual(count, { guests: GUESTS, pages: GUESTS * PAGES });
    assert.deepEqual(resources(), before);
  }, 60_000);
}

test('it ends when the thread is wanted, in the middle of a guest', async () => {
  needKernel();
  const before = resources();
  const { serve, count } = counting();
  await warmUp({ ...THREAD, wanted: () => count.pages > PAGES / 2, serve });
  assert.equal(count.guests, 1);
  assert.ok(count.pages < PAGES, `${count.pages} pages`);
  assert.deepEqual(resources(), before);
}, 60_000);

test('background work for a scratch guest ends when the thread is wanted, although no page was asked for', async () => {
  needKernel();
  const before = resources();
  const stopped = new SharedArrayBuffer(4);
  const { serve, count } = counting();
  await warmUp({
    ...THREAD,
    stopped,
    wanted: () => new Int32Array(stopped)[0] !== 0,
    serve(task, serving, answered) {
      if (count.guests === 1) new Int32Array(stopped)[0] = 1;
      return serve(task, serving, answered);
    },
  });
  assert.deepEqual(count, { guests: 2, pages: PAGES });
  assert.deepEqual(resources(), before);
}, 60_000);

test('if userfaultfd is refused, the simulated kernel has the scratch guest', async () => {
  const { open } = Userfaultfd;
  Userfaultfd.open = (options) => {
    if (options?.kernel) return open(options);
    throw Object.assign(new Error('refused'), { code: 'EPERM' });
  };
  let asked = 0;
  const wanted = (): boolean => {
    asked++;
    return false;
  };
  try {
    await warmUp({ ...THREAD, wanted });
    assert.ok(asked > PAGES, 'the simulated guest touches its pages');
  } finally {
    Userfaultfd.open = open;
  }
}, 60_000);

test('another failure is a warning, ends the warm-up, and leaves nothing', async () => {
  needKernel();
  const before = resources();
  const warning = once(process, 'warning');
  await warmUp({
    ...THREAD,
    async serve(task, serving, answered) {
      await serveScratch(task, serving, answered);
      throw new Error('sabotaged');
    },
  });
  assert.match(`${(await warning)[0]}`, /did not warm up.*sabotaged/);
  assert.deepEqual(resources(), before);
}, 60_000);

test.run();
