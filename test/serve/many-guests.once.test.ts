// Large loads: several guests with balloons, memory that is far larger than its touched part, and a balloon that
// removes pages while they are being filled.

import { strict as assert } from 'node:assert';
import { closeSync, ftruncateSync, openSync, readdirSync, readlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { skip, suite } from '../support/harness.js';
import { P, serving, until } from './support/server.js';

const test = suite('serve/many-guests');
/** Less than the time after which the server ends idle threads (IDLE_MS of src/serve/worker-pool.ts). */
const BEFORE_SHRINK_MS = 20_000;

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

for (const [window, count] of [
  [1, 4],
  [16, 4],
  ['adaptive', 8],
] as const) {
  test(`${count} guests at once with ${count} threads and a balloon each, window ${window}: no wrong page`, async () => {
    const pages = 512;
    await serving({ pages, window }, async ({ guest, server, ends }) => {
      const guests = await Promise.all(Array.from({ length: count }, () => guest({ regions: 2 })));
      await until(() => server.sessions.size === count);
      await Promise.all(
        guests.map(async (one, index) => {
          let touching = true;
          const balloon = async (): Promise<void> => {
            for (let round = 0; touching; round++) {
              const from = (round * 37 + index * 11) % (pages - 16);
              await one.remove(from, from + 16);
            }
          };
          const ballooning = balloon();
          for (const order of ['random', 'zipf'] as const) {
            const touches = order === 'zipf' ? 2 * pages : pages;
            const outcome = await one.touch({ threads: count, order, seed: index, touches });
            assert.equal(outcome.wrongCount, 0, outcome.wrong.join('\n'));
          }
          touching = false;
          await ballooning;
          await one.end();
        }),
      );
      await until(() => server.sessions.size === 0);
      assert.deepEqual(
        ends.map(({ end }) => end.how),
        Array(count).fill('exited'),
      );
    });
  }, 240_000);
}

test('by default nothing outside of the process is changed: processors may sleep, however fast faults come', async () => {
  if (process.env.UFFD_PLACEMENT) skip('UFFD_PLACEMENT says otherwise');
  await serving({ pages: 4096 }, async ({ guest }) => {
    const one = await guest();
    let [looks, kept] = [0, 0];
    const look = setInterval(() => {
      looks++;
      const open = readdirSync('/proc/self/fd').map((fd) => linkOf(`/proc/self/fd/${fd}`));
      if (open.includes('/dev/cpu_dma_latency')) kept++;
    }, 1);
    await one.touch({ threads: 1, order: 'random', seed: 1 });
    while (looks === 0) {
      await one.remove(0, 4096);
      await one.touch({ threads: 1, order: 'random', seed: 1 });
    }
    clearInterval(look);
    assert.equal(kept, 0, 'looks that found processors kept awake');
    await one.end();
  });
});

test('guests that come at once again find the threads of those before them', async () => {
  const threads = (): string[] => readdirSync('/proc/self/task');
  await serving({ pages: 16 }, async ({ guest, server }) => {
    const wave = async (count: number): Promise<void> => {
      const guests = await Promise.all(Array.from({ length: count }, () => guest()));
      await until(() => server.sessions.size === count);
      await Promise.all(guests.map((one) => one.end()));
      await until(() => server.sessions.size === 0);
    };
    await wave(6);
    const before = new Set(threads());
    // Not all 6: the server starts a spare thread if no thread is idle.
    await wave(4);
    // A spare thread that warms up starts a reader thread, which ends soon.
    const sameAsBefore = (): boolean => threads().every((thread) => before.has(thread));
    const end = performance.now() + BEFORE_SHRINK_MS;
    await until(() => sameAsBefore() || performance.now() > end);
    assert.ok(sameAsBefore(), 'no thread beyond those of before');
  });
});

test('holes of a sparse file are zeros, and are not read; data beside them is the file’s', async () => {
  const pages = 400;
  const memory = (directory: string): string => {
    const path = join(directory, 'sparse');
    const fd = openSync(path, 'w+');
    ftruncateSync(fd, pages * P);
    // Data at the beginning, in the middle, and one byte in a page of its own.
    writeSync(fd, Buffer.alloc(3 * P, 7), 0, 3 * P, 0);
    writeSync(fd, Buffer.alloc(2 * P, 9), 0, 2 * P, 200 * P);
    writeSync(fd, Buffer.from([1]), 0, 1, 300 * P + 5);
    closeSync(fd);
    return path;
  };
  for (const window of [1, 16]) {
    await serving({ memory, window }, async ({ guest, server, ends }) => {
      const one = await guest();
      const { wrongCount, wrong } = await one.touch({ threads: 2, order: 'random', seed: 3 });
      assert.equal(wrongCount, 0, wrong.join('\n'));
      await one.end();
      await until(() => server.sessions.size === 0);
      const tally = ends[0]?.session.tally;
      assert.ok((tally?.get('hole') ?? 0) > (pages - 20) * P);
      assert.ok((tally?.get('copied') ?? 0) >= 6 * P && (tally?.get('copied') ?? 0) <= 20 * P);
    });
  }
});

test('a guest of 64 GiB that touches little costs little', async () => {
  const pages = 2 ** 24;
  const memory = (directory: string): string => {
    const path = join(directory, 'huge');
    const fd = openSync(path, 'w');
    ftruncateSync(fd, pages * P);
    writeSync(fd, Buffer.alloc(P, 5), 0, P, (pages - 1) * P);
    closeSync(fd);
    return path;
  };
  await serving({ memory, window: 16 }, async ({ guest }) => {
    const before = process.memoryUsage.rss();
    const one = await guest({ regions: 2 });
    for (const from of [0, pages / 2 - 500, pages - 1000]) {
      const { wrongCount, touches } = await one.touch({
        ...{ threads: 2, order: 'random', seed: 1, from, to: from + 1000 },
      });
      assert.deepEqual([wrongCount, touches], [0, 1000]);
    }
    const more = process.memoryUsage.rss() - before;
    assert.ok(more < 150 * 2 ** 20, `${Math.round(more / 2 ** 20)} MiB more`);
  });
}, 120_000);

test.run();
