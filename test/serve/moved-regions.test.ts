// mremap moves a region onto another one. From then on the addresses of the other one get the bytes of the moved
// region, from faults and from background work alike.

import * as assert from 'uvu/assert';
import { MREMAP_FIXED, MREMAP_MAYMOVE, view } from '../../shim/memory.js';
import { Userfaultfd } from '../../src/index.js';
import { BackgroundFiller } from '../../src/serve/background-filler.js';
import { Answers, type Region, Tally } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { at, map, needKernel, P, withOpened } from '../support/real-kernel.js';

const test = suite('serve/moved-regions');
const HALF = 4;

test('what is installed in the background follows its region', async () => {
  needKernel();
  const features = ['event-remap', 'event-unmap', 'event-remove'] as const;
  await withOpened(Userfaultfd.open({ features }), async (uffd, thread) => {
    const [base, source] = [map(2 * HALF), map(2 * HALF)];
    const bytes = new Uint8Array(view(source, 2 * HALF * P));
    for (let page = 0; page < 2 * HALF; page++) bytes.fill(page + 1, page * P, (page + 1) * P);
    uffd.register(base, 2 * HALF * P);
    const regions: Region[] = [0, 1].map((index) => ({
      ...{ start: at(base, index * HALF), length: HALF * P, offset: index * HALF * P, pageSize: P },
    }));
    const tally = new Tally();
    const answers = new Answers({
      ...{ tally, regions, window: 1, latency() {}, now: () => performance.now(), closed() {} },
      source: {
        mapped: true,
        stretchAt: () => ({ from: 0, to: 2 * HALF * P, data: true }),
        bytesAt: (offset) => source + BigInt(offset),
      },
    });
    uffd.start(answers);
    // The second region replaces the first.
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await thread.mremap(at(base, HALF), HALF * P, HALF * P, flags, base), base);
    const work = new BackgroundFiller(answers, { prefetch: new Float64Array(), eager: true, tally }, uffd);
    while (work.step() === 'more');
    const first = Array.from({ length: HALF }, (_, page) => HALF + page + 1);
    assert.equal(await thread.read(...first.map((_, page) => at(base, page))), first);
  });
});

test.run();
