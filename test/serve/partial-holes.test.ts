// Pages that lie partly in a hole of the memory file are copied; only pages that lie wholly in one are zeros.

import * as assert from 'uvu/assert';
import { view } from '../../shim/memory.js';
import { Userfaultfd } from '../../src/index.js';
import { Answers, Tally } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { map, needKernel, P, withOpened } from '../support/real-kernel.js';

const test = suite('serve/partial-holes');
const PAGES = 8;
/** The hole begins and ends inside of a page: only pages 2 and 3 lie wholly in it. */
const HOLE = { from: 1.5 * P, to: 4.5 * P };

for (const window of [1, PAGES] as const) {
  for (const mapped of [false, true]) {
    test(`window ${window}, ${mapped ? 'mapped' : 'read'}: what is data of a page is there`, async () => {
      needKernel();
      await withOpened(Userfaultfd.open(), async (uffd, thread) => {
        const [base, source] = [map(PAGES), map(PAGES)];
        const bytes = new Uint8Array(view(source, PAGES * P));
        bytes.fill(7);
        bytes.fill(0, HOLE.from, HOLE.to);
        uffd.register(base, PAGES * P);
        const tally = new Tally();
        uffd.start(
          new Answers({
            ...{ tally, window, latency() {}, now: () => performance.now(), closed() {} },
            regions: [{ start: base, length: PAGES * P, offset: 0, pageSize: P }],
            source: {
              mapped,
              stretchAt(offset) {
                if (offset < HOLE.from) return { from: 0, to: HOLE.from, data: true };
                if (offset < HOLE.to) return { ...HOLE, data: false };
                return { from: HOLE.to, to: PAGES * P, data: true };
              },
              bytesAt: (offset) => source + BigInt(offset),
            },
          }),
        );
        // The first touch is inside of the hole, so that a window contains both of its ends.
        for (const page of [3, 2, 1, 4, 0, 5, 6, 7]) {
          const there = await thread.bytes(base + BigInt(page * P), P);
          assert.is(Buffer.compare(there, bytes.subarray(page * P, (page + 1) * P)), 0, `page ${page}`);
        }
        assert.is(tally.get('hole'), 2 * P);
      });
    });
  }
}

test.run();
