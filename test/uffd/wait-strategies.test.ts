// The four wait strategies, each in a thread of its own: a loop serves, and stops from another thread. The next owner
// gets the faults that are left, and a handler that throws loses no fault.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { Userfaultfd, type Wait } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  compileLibrary,
  endAll,
  holdings,
  looper,
  map,
  numberedSource,
  openWith,
  P,
  skipWithout,
  toucher,
  touchers,
  until,
} from '../support/real-kernel.js';

const test = suite('uffd/wait-strategies');
const WAITS: Wait[] = ['poll', 'block', 'spin', 'adaptive'];
const PAGES = 500;

for (const wait of WAITS) {
  for (const answers of ['handler', 'core'] as const) {
    test(`${wait}: serves two threads, stops from another thread, goes on with the next owner; the ${answers} answers`, async () => {
      const uffd = openWith(['event-remove']);
      const base = map(PAGES);
      uffd.register(base, PAGES * P);
      const source = numberedSource(PAGES);
      const first = await looper(uffd, { wait, source, base, answers, after: 'release' });
      assert.is(uffd.closed, true, 'it was given away');
      const threads = await touchers(2);
      const half = PAGES / 2;
      assert.equal(await Promise.all(threads.map((thread) => thread.verify(base, half, P, 7))), [0, 0]);

      const stopped = await first.stop();
      assert.is(stopped.error, undefined);
      assert.ok(stopped.faults >= half && stopped.faults <= 2 * half);
      const { fd, ranges } = await first.waitFor('released');
      assert.equal((await first.waitFor('closed')).error, undefined);
      assert.is(ranges.length, 1);

      // No loop serves now: the thread sleeps until the next owner serves its fault.
      const late = threads[0]?.verify(base, PAGES, P, 7) as Promise<number>;
      await threads[0]?.asleep();
      const next = Userfaultfd.wrap(fd, { features: ['event-remove'], ranges });
      const second = await looper(next, { wait, source, base, answers });
      assert.is(await late, 0);
      assert.is(await threads[1]?.madvise(base, P, MADV_DONTNEED), 0);
      await second.end();
      assert.equal(
        second.messages.filter((message) => message.type === 'event').map((message) => message.call),
        [`removed ${base} ${at(base, 1)}`],
      );
      assert.is(second.messages.filter((message) => message.type === 'closed').length, 1);
      assert.is(second.messages.at(-1)?.type, 'closed');
      await endAll();
    });
  }

  test(`${wait}: a handler that throws stops the loop, and close lets every thread go`, async () => {
    const uffd = openWith();
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    const loop = await looper(uffd, { wait, throwAfter: 3 });
    const threads = await touchers(4);
    await Promise.all(threads.map((thread, n) => thread.read(...[0, 1, 2].map((i) => at(base, n * 3 + i)))));
    const stopped = await loop.waitFor('stopped');
    assert.match(stopped.error as string, /the handler gives up/);
    assert.is((await loop.waitFor('closed')).error, undefined);
    await endAll();
  });

  test(`${wait}: garbage collection while waiting does not stop it`, async () => {
    const uffd = openWith();
    const base = map(50);
    uffd.register(base, 50 * P);
    const loop = await looper(uffd, { wait, collect: true });
    const thread = await toucher();
    for (let n = 0; n < 50; n++) {
      await sleep(2);
      assert.equal(await thread.read(at(base, n)), [0]);
    }
    await loop.end();
    await endAll();
  });
}

test('a stop that comes before the start is not lost', async () => {
  for (const wait of WAITS) {
    const uffd = openWith();
    Userfaultfd.stop(uffd.stopHandle);
    assert.is(uffd.start({ pagefault() {} }, { wait }), true);
    assert.is(uffd.waiting, false, wait);
    uffd.close();
    Userfaultfd.stop(uffd.stopHandle);
  }
});

test('stops at random moments lose no fault', async () => {
  // Few pages: on a busy machine each loop resolves a handful of faults before it is stopped.
  const pages = 100;
  const uffd = openWith();
  const base = map(pages);
  uffd.register(base, pages * P);
  const source = numberedSource(pages);
  const threads = await touchers(2);
  let done = 0;
  const work = threads.map(async (thread, n) => {
    const wrong = await thread.verify(base, pages, P, n === 0 ? 1 : 7);
    done++;
    return wrong;
  });
  let current = uffd;
  for (let round = 0; done < threads.length; round++) {
    const wait = WAITS[round % WAITS.length] as Wait;
    const loop = await looper(current, { wait, source, base, after: 'release' });
    await sleep(round % 3);
    await loop.stop();
    const { fd, ranges } = await loop.waitFor('released');
    current = Userfaultfd.wrap(fd, { ranges });
  }
  assert.equal(await Promise.all(work), [0, 0]);
  current.close();
  await endAll();
}, 180_000);

test('fork: the child has its own userfaultfd, and no thread hangs', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const before = holdings().descriptors;
  const uffd = openWith(['event-fork']);
  const base = map(4);
  uffd.register(base, 2 * P);
  const thread = await toucher();
  const loop = await looper(uffd, { wait: 'block' });
  // A fork waits inside the kernel until the loop has read its event.
  for (let n = 0; n < 20; n++) assert.is(await thread.fork(library), 0);
  assert.equal(await thread.read(base, at(base, 1)), [0, 0]);
  await loop.end();
  const events = loop.messages.filter((message) => message.type === 'event').map((message) => message.call);
  assert.equal(events, Array(20).fill('forked 1'));
  await endAll();
  await until(() => holdings().descriptors <= before, 'descriptors to go');
});

test('fork: without a handler for it the child is closed', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const before = holdings().descriptors;
  const uffd = openWith(['event-fork']);
  const base = map(1);
  uffd.register(base, P);
  const thread = await toucher();
  uffd.start({ pagefault: (fault) => void uffd.zero(fault.page, P) });
  for (let n = 0; n < 20; n++) assert.is(await thread.fork(library), 0);
  uffd.close();
  await endAll();
  await until(() => holdings().descriptors <= before, 'descriptors to go');
});

test('fork: close reads a fork that waits, and lets it go', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const before = holdings().descriptors;
  const uffd = openWith(['event-fork']);
  const base = map(1);
  uffd.register(base, P);
  const thread = await toucher();
  const forked = thread.fork(library);
  await thread.asleep();
  uffd.close();
  assert.is(await forked, 0);
  await endAll();
  await until(() => holdings().descriptors <= before, 'descriptors to go');
});

test.run();
