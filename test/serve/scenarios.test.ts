// The scenarios that every handler is tested with, on a guest in a process of its own that compares each page with what
// it should hold.

import { strict as assert } from 'node:assert';
import type { Touched } from '../../src/cli/guest/protocol.js';
import { suite } from '../harness.js';
import { withHugePages } from '../kernel/huge-pages.js';
import { P, serving, until } from './support.js';

const test = suite('serve/scenarios');

function assertRight({ wrong, wrongCount }: Touched): void {
  assert.equal(wrongCount, 0, wrong.join('\n'));
}

/** Runs a body with small pages, and with huge ones. */
function withEachPageSize(
  name: string,
  pages: { small: number; huge: number },
  body: (pageSize: number, pages: number) => Promise<void>,
): void {
  test(`${name}, pages of 4 KiB`, () => body(P, pages.small));
  test(`${name}, pages of 2 MiB`, () => withHugePages(pages.huge + 2, (size) => body(size, pages.huge)));
}

withEachPageSize(
  'every page, in every order, by several threads',
  { small: 600, huge: 8 },
  async (pageSize, pages) => {
    for (const removes of [true, false]) {
      await serving({ pages, pageSize }, async ({ guest, server, ends }) => {
        for (const order of ['sequential', 'random', 'zipf'] as const) {
          const monitor = await guest({ removes, regions: 3 });
          const touches = order === 'zipf' ? pages * 4 : pages;
          assertRight(await monitor.touch({ threads: 3, order, seed: 1, touches, writes: 5 }));
          assertRight(await monitor.verify(2).then((it) => ({ ...it, wrongCount: 0 })));
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
  'pages that were removed are zero, the others are the file’s',
  { small: 300, huge: 6 },
  async (pageSize, pages) => {
    await serving({ pages, pageSize, window: 4 }, async ({ guest }) => {
      const monitor = await guest({ regions: 2 });
      // One that was never there, some that were, and a span of both.
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

test.run();
