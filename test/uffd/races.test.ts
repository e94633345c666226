// Races on the real kernel: many threads, mapping changes while they run, stops and closes at any moment.
// Invariant: no thread stays asleep, and every page that is read holds its source's data or the zeros of a removal.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  MREMAP_DONTUNMAP,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  mmap,
  PROT_NONE,
} from '../../shim/memory.js';
import { Userfaultfd, type Wait } from '../../src/index.js';
import { generator, seed, suite } from '../support/harness.js';
import { at, endAll, looper, map, numberedSource, openWith, P, touchers } from '../support/real-kernel.js';

const test = suite('uffd/races');
const random = generator(seed());

/** What resolves faults: the handler, or the core, which wakes the threads of a batch together. */
const ANSWERS = ['handler', 'core'] as const;

for (const answers of ANSWERS) {
  test(`32 threads on the same 4,000 pages, the ${answers} answers`, async () => {
    const pages = 4_000;
    const uffd = openWith();
    const base = map(pages);
    uffd.register(base, pages * P);
    const loop = await looper(uffd, { wait: 'block', source: numberedSource(pages), base, answers });
    const threads = await touchers(32);
    const steps = threads
      .map((_, n) => (n % 4 === 0 ? 1 : 2 * n + 3))
      .map((step) => (pages % step ? step : step + 4));
    const wrong = await Promise.all(
      threads.map((thread, n) => thread.verify(base, pages, P, steps[n] as number)),
    );
    assert.equal(wrong, Array(32).fill(0));
    await loop.end();
    await endAll();
  }, 120_000);

  for (const wait of ['poll', 'block', 'adaptive'] as Wait[]) {
    test(`${wait}: removals while faults are in flight, the ${answers} answers`, async () => {
      const pages = 400;
      const uffd = openWith(['event-remove']);
      const base = map(pages);
      uffd.register(base, pages * P);
      const loop = await looper(uffd, { wait, source: numberedSource(pages), base, answers });
      const [remover, ...readers] = await touchers(5);
      let reading = readers.length;
      // A removed page gets its source's data again here, so each page always holds its number.
      const reads = readers.map(async (reader, n) => {
        let wrong = 0;
        for (let round = 0; round < 5; round++) wrong += await reader.verify(base, pages, P, 2 * n + 3);
        reading--;
        return wrong;
      });
      let removals = 0;
      while (reading > 0) {
        const first = random(pages - 8);
        assert.is(await remover?.madvise(at(base, first), (1 + random(8)) * P, MADV_DONTNEED), 0);
        removals++;
      }
      assert.equal(await Promise.all(reads), [0, 0, 0, 0]);
      await loop.end();
      assert.ok(loop.messages.filter((message) => message.type === 'event').length >= removals);
      await endAll();
    });
  }
}

const MAP_FIXED_NOREPLACE = 0x100000;

/** Takes `pages` pages at `address` again, or elsewhere if another thread has got memory there in the meantime. */
function reserveAgain(address: bigint, pages: number): bigint {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  return mmap(address, pages * P, PROT_NONE, flags) === address ? address : map(pages);
}

test('mremap back and forth under readers that follow', async () => {
  const pages = 64;
  const uffd = openWith(['event-remap', 'event-unmap', 'event-remove']);
  // What is moved over must be mapped: an unmapped place may belong to another thread of this process by then.
  let [base, free] = [map(pages), map(pages)];
  uffd.register(base, pages * P);
  const source = numberedSource(pages);
  uffd.start({
    // The page's number depends on its place, which the mover may change before the handler gets the event.
    pagefault: (fault) => uffd.copy(fault.page, source + (fault.page - base), P) === P,
    remapped: (_from, to) => {
      base = to;
    },
  });
  const [mover, reader] = await touchers(2);
  for (let round = 0; round < 30; round++) {
    const [from, to] = [base, free];
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await mover?.mremap(from, pages * P, pages * P, flags, to), to);
    free = reserveAgain(from, pages);
    const words = await Promise.all([0, 1, 2].map(() => reader?.verify(to, pages, P, 1 + 2 * random(30))));
    assert.equal(words, [0, 0, 0]);
    await mover?.madvise(at(to, random(pages)), P, MADV_DONTNEED);
  }
  assert.equal(
    uffd.ranges.map(({ start, length }) => [start, length]),
    [[base, pages * P]],
  );
  uffd.close();
  await endAll();
});

test('mremap while faults are in flight: what it leaves behind is filled again', async () => {
  const pages = 64;
  const uffd = openWith(['event-remap', 'event-unmap']);
  const base = map(pages);
  uffd.register(base, pages * P);
  const source = numberedSource(pages);
  let moves = 0;
  uffd.start({
    pagefault: (fault) => uffd.copy(fault.page, source + (fault.page - base), P) === P,
    remapped: () => void moves++,
  });
  const [mover, ...readers] = await touchers(4);
  let reading = readers.length;
  const reads = readers.map(async (reader, n) => {
    let wrong = 0;
    for (let round = 0; round < 40; round++)
      wrong += (await reader.verify(base, pages, P, 2 * n + 1)) as number;
    reading--;
    return wrong;
  });
  // The pages move away, but the old place stays mapped and watched: a thread that reads there faults again.
  const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  let asked = 0;
  while (reading > 0 || asked < 10) {
    const to = map(pages);
    assert.is(await mover?.mremap(base, pages * P, pages * P, flags, to), to);
    asked++;
  }
  assert.equal(await Promise.all(reads), [0, 0, 0]);
  assert.is(moves, asked);
  uffd.close();
  await endAll();
});

test('memory is unmapped under its readers: each reads the old bytes, or what replaced them', async () => {
  const pages = 32;
  const uffd = openWith(['event-unmap', 'event-remap']);
  const base = map(pages);
  const source = numberedSource(pages);
  uffd.start({ pagefault: (fault) => uffd.copy(fault.page, source + (fault.page - base), P) === P });
  const [swapper, ...readers] = await touchers(4);
  for (let round = 0; round < 40; round++) {
    uffd.register(base, pages * P);
    const reads = readers.map((reader) =>
      reader.read(...Array.from({ length: pages }, (_, n) => at(base, n))),
    );
    await sleep(random(3));
    // Fresh memory replaces the watched memory: this unmaps it without a hole in which a thread could fault.
    assert.is(
      await swapper?.mremap(map(pages), pages * P, pages * P, MREMAP_MAYMOVE | MREMAP_FIXED, base),
      base,
    );
    for (const bytes of await Promise.all(reads)) {
      bytes.forEach((byte, n) => void assert.ok(byte === 0 || byte === n + 1, `page ${n} held ${byte}`));
    }
    assert.equal(uffd.ranges, []);
  }
  uffd.close();
  await endAll();
});

test('close at random moments under readers', async () => {
  const pages = 200;
  const source = numberedSource(pages);
  const threads = await touchers(4);
  for (let round = 0; round < 40; round++) {
    const uffd = openWith();
    const base = map(pages);
    uffd.register(base, pages * P);
    uffd.start({ pagefault: (fault) => void uffd.copy(fault.page, source + (fault.page - base), P) });
    const reads = threads.map((thread) =>
      thread.read(...Array.from({ length: pages }, (_, n) => at(base, n))),
    );
    await sleep(random(4));
    uffd.close();
    for (const bytes of await Promise.all(reads)) {
      bytes.forEach(
        (byte, n) => void assert.ok(byte === 0 || byte === (n + 1) % 256, `page ${n} held ${byte}`),
      );
    }
  }
  await endAll();
});

for (const answers of ANSWERS) {
  test(`a loop on another thread is stopped and closed at random moments under readers, the ${answers} answers`, async () => {
    const pages = 200;
    const source = numberedSource(pages);
    const threads = await touchers(3);
    const waits: Wait[] = ['block', 'spin', 'adaptive', 'poll'];
    for (let round = 0; round < 16; round++) {
      const uffd = openWith(['event-remove']);
      const base = map(pages);
      uffd.register(base, pages * P);
      const loop = await looper(uffd, { wait: waits[round % 4] as Wait, source, base, answers });
      const reads = threads.map((thread) =>
        thread.read(...Array.from({ length: pages }, (_, n) => at(base, n))),
      );
      await sleep(random(3));
      await loop.end();
      for (const bytes of await Promise.all(reads)) {
        bytes.forEach(
          (byte, n) => void assert.ok(byte === 0 || byte === (n + 1) % 256, `page ${n} held ${byte}`),
        );
      }
    }
    await endAll();
  }, 120_000);

  test(`a userfaultfd handed from thread to thread while readers wait, the ${answers} answers`, async () => {
    const pages = 300;
    const uffd = openWith();
    const base = map(pages);
    uffd.register(base, pages * P);
    const source = numberedSource(pages);
    const threads = await touchers(3);
    const reads = threads.map((thread, n) => thread.verify(base, pages, P, [1, 7, 11][n] as number));
    let current = uffd;
    for (let round = 0; round < 6; round++) {
      const loop = await looper(current, { wait: 'block', source, base, after: 'release', answers });
      await sleep(random(3));
      await loop.stop();
      const { fd, ranges } = await loop.waitFor('released');
      current = Userfaultfd.wrap(fd, { ranges });
    }
    const last = await looper(current, { wait: 'adaptive', source, base, answers });
    assert.equal(await Promise.all(reads), [0, 0, 0]);
    await last.end();
    await endAll();
  }, 120_000);
}

test.run();
