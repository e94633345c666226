// Zeros from sources, on the real kernel: holes, and removed pages. The handler does not get their faults; it gets the
// number of bytes of each kind.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import type { FaultHandler } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { at, map, numberedSource, P, until, withUffd } from '../support/real-kernel.js';

const test = suite('zero-sources');

/** Counts the pages that sources fill; `asked` records the faults that reach the handler. */
function counting() {
  const pages = { all: 0, hole: 0, removed: 0 };
  const asked: bigint[] = [];
  const handler: FaultHandler = {
    pagefault({ page }, uffd) {
      asked.push(page);
      uffd.zero(page, P);
    },
    answered(_faults, _writes, _deferred, bytes, _ns, holeBytes, removedBytes) {
      pages.all += bytes / P;
      pages.hole += holeBytes / P;
      pages.removed += removedBytes / P;
    },
  };
  return { pages, asked, handler };
}

test('a hole is zeros, with its window; data beside it stays data', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(32);
    uffd.register(base, 32 * P);
    uffd.answerFrom(base, 16 * P, numberedSource(16));
    uffd.answerFrom(at(base, 16), 16 * P, 'zeros', { window: 16 });
    const { pages, asked, handler } = counting();
    uffd.start(handler);
    assert.equal(await thread.read(at(base, 20), at(base, 15), at(base, 16), at(base, 31)), [0, 16, 0, 0]);
    await until(() => pages.all > 0);
    assert.ok(pages.hole >= 1 && pages.hole <= 16);
    assert.is(pages.all, pages.hole + 1);
    assert.is(pages.removed, 0);
    assert.equal(asked, []);
  });
});

test("with removed: 'zeros' a page that was removed is zeros, never its source's data again", async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(16);
    uffd.register(base, 16 * P);
    uffd.answerFrom(base, 16 * P, numberedSource(16), { window: 16, removed: 'zeros' });
    const { pages, asked, handler } = counting();
    uffd.start(handler);
    assert.equal(await thread.read(at(base, 3)), [4]);
    await thread.madvise(at(base, 2), 4 * P, MADV_DONTNEED);
    assert.equal(
      await thread.read(at(base, 1), at(base, 2), at(base, 3), at(base, 5), at(base, 6)),
      [2, 0, 0, 0, 7],
    );
    await until(() => pages.removed > 0);
    assert.ok(pages.removed <= 4);
    assert.is(pages.hole, 0);
    assert.equal(asked, []);
  });
});

test('without it the faults of removed pages go to the handler', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    uffd.answerFrom(base, 4 * P, numberedSource(4), { window: 4 });
    const { asked, handler } = counting();
    uffd.start(handler);
    assert.equal(await thread.read(base), [1]);
    await thread.madvise(base, P, MADV_DONTNEED);
    assert.equal(await thread.read(base), [0]);
    assert.equal(asked, [base]);
  });
});

test('holes are installed ahead', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(8);
    uffd.register(base, 8 * P);
    uffd.answerFrom(base, 8 * P, 'zeros');
    assert.equal(uffd.fillAhead(base, 8 * P), { passed: 0, installed: 8 * P, leftOut: 0 });
    assert.equal(await thread.read(at(base, 7)), [0]);
  });
});

test.run();
