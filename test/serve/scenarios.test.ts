// The numbered scenarios that every handler is tested with, on a guest in a process of its own, which compares each
// page with the bytes that it should hold. Where each scenario is tested:
//
//   1 to 8   here; 5 to 8 also in simulated.test.ts, which can delay fetched pages before they are copied
//   9        here, simulated.test.ts, and lifecycle.once.test.ts, where monitors are killed at random moments
//   10       simulated.test.ts; the queue itself: test/core/
//   11       handoff.test.ts
//   12       windows.once.test.ts
//   13       lifecycle.once.test.ts and simulated.test.ts
//   14       lifecycle.once.test.ts, peers.once.test.ts, handoff.test.ts and limits.once.test.ts

import { strict as assert } from 'node:assert';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Guest } from '../../src/cli/guest/guest.js';
import type { TouchResults } from '../../src/cli/guest/protocol.js';
import { serve } from '../../src/serve/index.js';
import { generator, seed, suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { servingApart, waitingFor } from './support/serve-process.js';
import { descriptors, P, serving, until } from './support/server.js';

const test = suite('serve/scenarios');
const DEBUG = process.env.UFFD_CORE === 'debug';

function assertRight({ wrong, wrongCount }: TouchResults): void {
  assert.equal(wrongCount, 0, wrong.join('\n'));
}

/** Runs `body` with small pages, and with huge pages, of which the pool has enough for `pages.guests` guests. */
function withEachPageSize(
  name: string,
  pages: { small: number; huge: number; guests?: number },
  body: (pageSize: number, pages: number) => Promise<void>,
): void {
  const { small, huge, guests = 1 } = pages;
  test(`${name}, pages of 4 KiB`, () => body(P, small), 120_000);
  test(
    `${name}, pages of 2 MiB`,
    () => withHugePages(guests * (huge + 2), (size) => body(size, huge)),
    120_000,
  );
}

withEachPageSize(
  '1. every page, in every order, by several threads, read and written, and read again',
  { small: 600, huge: 8 },
  async (pageSize, pages) => {
    for (const removes of [true, false]) {
      await serving({ pages, pageSize }, async ({ guest, server, ends }) => {
        for (const order of ['sequential', 'random', 'zipf'] as const) {
          const monitor = await guest({ removes, regions: 3 });
          const touches = order === 'zipf' ? pages * 4 : pages;
          assertRight(await monitor.touch({ threads: 3, order, seed: 1, touches, writes: 5 }));
          // A task that writes does not compare the bytes that threads write at the start of each page.
          assertRight(await monitor.touch({ threads: 2, order: 'sequential', seed: 1, writes: pages }));
          await monitor.end();
          await until(() => server.sessions.size === 0);
        }
        assert.deepEqual(
          ends.map(({ end }) => end.how),
          ['exited', 'exited', 'exited'],
        );
      });
    }
  },
);

withEachPageSize(
  '2. many touches of one page from many threads: it is installed once',
  { small: DEBUG ? 100_000 : 1_000_000, huge: 200 },
  async (pageSize, all) => {
    for (const [window, touches] of [
      [1, all],
      [2, all / 10],
    ] as const) {
      await serving({ pages: 4, pageSize, window }, async ({ guest, server }) => {
        const monitor = await guest();
        await until(() => server.sessions.size === 1);
        const [session] = server.sessions;
        // In the second round the page is already present.
        for (let time = 0; time < 2; time++) {
          const many = touches / 2;
          const order = { threads: 8, order: 'sequential', seed: 1, from: 2, to: 3, touches: many } as const;
          const touched = await monitor.touch(order);
          assertRight(touched);
          assert.equal(touched.touches, many);
          // A thread may touch its page before the one that has installed it counts it.
          await until(() => session?.tally.installed !== 0);
          assert.equal(session?.tally.installed, window * pageSize);
        }
      });
    }
  },
);

withEachPageSize(
  '3. pages that were removed are zero, the others are the file’s',
  { small: 300, huge: 6 },
  async (pageSize, pages) => {
    await serving({ pages, pageSize, window: 4 }, async ({ guest }) => {
      const monitor = await guest({ regions: 2 });
      // Removed: a missing page, a present page, and a range with both.
      await monitor.remove(1, 2);
      assertRight(
        await monitor.touch({ threads: 2, order: 'random', seed: 2, from: 0, to: Math.floor(pages / 2) }),
      );
      await monitor.remove(0, 1);
      await monitor.remove(Math.floor(pages / 2) - 1, Math.floor(pages / 2) + 2);
      assertRight(await monitor.verify(2));
      assertRight(await monitor.verify(1));
    });
  },
);

for (const removes of [true, false]) {
  const events = removes ? 'with EVENT_REMOVE' : 'without EVENT_REMOVE';
  withEachPageSize(
    `4. what is written to pages after their removal stays, the rest of each page is zero, ${events}`,
    { small: 200, huge: 6 },
    async (pageSize, pages) => {
      for (const window of [1, 4]) {
        await serving({ pages, pageSize, window }, async ({ guest }) => {
          const monitor = await guest({ removes });
          const writing = { threads: 2, order: 'random', seed: 3, writes: 1 } as const;
          assertRight(await monitor.touch(writing));
          for (let time = 0; time < 3; time++) {
            await monitor.remove(1, pages - 1);
            assertRight(await monitor.touch(writing));
          }
        });
      }
    },
  );
}

withEachPageSize(
  '5. a remove and writes queue up while the handler is stopped: nothing is lost, what was removed is zero',
  { small: 64, huge: 8 },
  async (pageSize, pages) => {
    for (const window of [1, 4]) {
      const options = ['--window', `${window}`];
      await servingApart({ pages, pageSize, options }, async ({ server, guest }) => {
        const monitor = await guest({ regions: 2 });
        const half = pages / 2;
        assertRight(await monitor.touch({ threads: 1, order: 'sequential', seed: 1, to: half }));
        await server.halt();
        const touching = monitor.touch({
          ...{ threads: 4, order: 'random', seed: 2, writes: 1, from: half, to: pages },
        });
        await until(() => waitingFor(monitor.pid) === 4);
        // The range has present pages and pages that threads are writing to.
        const removing = monitor.remove(half - 2, half + 2);
        await until(() => waitingFor(monitor.pid) === 5);
        server.signal('SIGCONT');
        await removing;
        assertRight(await touching);
        assertRight(await monitor.touch({ threads: 2, order: 'random', seed: 3, writes: pages }));
      });
    }
  },
);

withEachPageSize(
  '6. page after page is touched while the one before it is removed: both are right',
  { small: 60, huge: 10 },
  async (pageSize, pages) => {
    await serving({ pages, pageSize }, async ({ guest }) => {
      const monitor = await guest();
      for (let page = 0; page + 1 < pages; page += 2) {
        const order = { threads: 2, order: 'random', seed: page, from: page, to: page + 2 } as const;
        const [touched] = await Promise.all([monitor.touch(order), monitor.remove(page, page + 1)]);
        assertRight(touched);
      }
      assertRight(await monitor.verify());
    });
  },
);

withEachPageSize(
  '7. a balloon takes pages away while windows are filled around them: they are zero',
  { small: 512, huge: 12 },
  async (pageSize, pages) => {
    for (const window of [1, 8]) {
      await serving({ pages, pageSize, window }, async ({ guest }) => {
        const monitor = await guest({ regions: 2 });
        let touching = true;
        const balloon = async (): Promise<void> => {
          const some = Math.ceil(pages / 32);
          for (let round = 0; touching; round++) {
            const from = (round * 7) % (pages - some);
            await monitor.remove(from, from + some);
          }
        };
        const ballooning = balloon();
        for (let time = 0; time < 4; time++) {
          assertRight(await monitor.touch({ threads: 4, order: 'random', seed: time, writes: 3 }));
        }
        touching = false;
        await ballooning;
        assertRight(await monitor.touch({ threads: 2, order: 'random', seed: 9, writes: pages }));
      });
    }
  },
);

withEachPageSize(
  '8. without EVENT_REMOVE madvise returns though the handler is stopped; the removed pages are zero',
  { small: 64, huge: 8 },
  async (pageSize, pages) => {
    await servingApart({ pages, pageSize }, async ({ server, guest }) => {
      const monitor = await guest({ removes: false });
      assertRight(await monitor.touch({ threads: 1, order: 'sequential', seed: 1, to: pages / 2 }));
      await server.halt();
      const touching = monitor.touch({ threads: 2, order: 'random', seed: 2, from: pages / 2 });
      await until(() => waitingFor(monitor.pid) === 2);
      await monitor.remove(0, pages / 4);
      assert.equal(waitingFor(monitor.pid), 2);
      server.signal('SIGCONT');
      assertRight(await touching);
      assertRight(await monitor.verify());
    });
  },
);

const CLOSES = DEBUG ? 4 : 10;

withEachPageSize(
  `9. servers are closed at ${CLOSES} random moments while they fill: guests that get their descriptor numbers next are unharmed`,
  { small: 256, huge: 6, guests: 2 },
  async (pageSize, pages) => {
    const below = generator(seed());
    await serving({ pages, pageSize, window: 4 }, async ({ guest, server, memory, directory }) => {
      const socket = join(directory, 'other');
      const round = async (): Promise<void> => {
        const closing = await serve({ vms: [{ socket, memory }], eager: below(2) === 0 });
        const filled = new Guest({ socket, memory, pageSize });
        await filled.handedOver;
        const hangs = filled.touch({ threads: 2, order: 'random', seed: 1 }).catch(() => {});
        await sleep(below(150));
        // The next guest gets the descriptor numbers that the closing server frees.
        const closed = closing.close({ kill: true });
        const next = await guest();
        assertRight(await next.touch({ threads: 2, order: 'random', seed: 1 }));
        await closed;
        await next.remove(0, pages);
        assertRight(await next.verify());
        await next.end();
        filled.kill();
        await Promise.all([filled.ended, hangs]);
        await until(() => server.sessions.size === 0);
      };
      await round();
      const before = descriptors();
      for (let time = 1; time < CLOSES; time++) await round();
      await until(() => descriptors() <= before);
    });
  },
);

test.run();
