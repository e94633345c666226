// Scenarios move, move of a huge page, move that splits one: pages of private anonymous memory move. The rules for all
// fills hold for moves too; if a page cannot move, its source stays unchanged.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../../shim/memory.js';
import { Mapping, type Pagefault, type Userfaultfd } from '../../../src/index.js';
import { skip, suite } from '../../support/harness.js';
import { withHugePages } from '../../support/huge-pages.js';
import {
  at,
  compileLibrary,
  map,
  P,
  skipWithout,
  smaps,
  type Toucher,
  withUffd,
} from '../../support/real-kernel.js';
import { KINDS, memoryOf, refused } from './support.js';

const test = suite('move');
const MADV_POPULATE_WRITE = 23;

/** Bytes of a transparent huge page. */
const THP = P ** 2 / 8;

test('move: each page that is touched comes from its place in the source, which is empty then', async () => {
  await withUffd(['move'], async (uffd, thread) => {
    const pages = 8;
    const source = map(pages);
    for (let page = 0; page < pages; page++) await thread.write(page + 1, at(source, page, 7));
    const base = map(pages);
    uffd.register(base, pages * P);
    const faults: [bigint, string][] = [];
    uffd.start({
      pagefault(fault) {
        faults.push([fault.page, fault.access]);
        assert.is(uffd.move(fault.page, source + (fault.page - base), P), P);
      },
    });
    for (let page = 0; page < pages; page++) {
      if (page % 2) await thread.write(99, at(base, page));
      assert.equal(await thread.read(at(base, page, 7)), [page + 1]);
      assert.equal(await thread.read(at(source, page, 7)), [0], 'the source is empty');
    }
    assert.equal(
      faults,
      Array.from({ length: pages }, (_, page) => [at(base, page), page % 2 ? 'write' : 'read']),
    );
  });
});

test('move between two watched ranges: what is known of the pages moves too', async () => {
  await withUffd(['move'], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    uffd.copy(base, new Uint8Array(P).fill(5));
    assert.is(uffd.move(at(base, 2), base, P), P);
    const states = [0, 1, 2, 3].map((page) => uffd.pageState(at(base, page)));
    assert.equal(states, ['missing', 'missing', 'present', 'missing']);
    uffd.start({ pagefault: (fault) => uffd.copy(fault.page, new Uint8Array(P).fill(8)) === P });
    assert.equal(
      await thread.read(at(base, 2), base),
      [5, 8],
      'and the source is watched like any missing page',
    );
  });
});

test('allowHoles: pages that the source does not have are no error, and are empty in the target', async () => {
  await withUffd(['move'], async (uffd, thread) => {
    const source = map(4);
    await thread.write(3, at(source, 1), at(source, 3));
    const base = map(4);
    uffd.register(base, 4 * P);
    refused(
      () => uffd.move(base, source, 4 * P),
      'ENOENT',
      'UFFDIO_MOVE',
      /source has a hole at 0x[0-9a-f]+.*allow holes with allowHoles/,
    );
    assert.is(uffd.move(base, source, 4 * P, { allowHoles: true }), 4 * P);
    const { faults, handler } = zeros();
    uffd.start(handler);
    assert.equal(await thread.read(...[0, 1, 2, 3].map((page) => at(base, page))), [0, 3, 0, 3]);
    assert.equal(faults, [base, at(base, 2)], 'they fault still');
  });
});

test('a page that is not its own: EBUSY after a fork, until it is written again', async () => {
  const library = compileLibrary('support/fork.c');
  await withUffd(['move'], async (uffd, thread) => {
    const source = map(2, 4);
    const base = map(2);
    uffd.register(base, 2 * P);
    assert.is(await thread.fork(library), 0);
    refused(() => uffd.move(base, source, 2 * P), 'EBUSY', 'UFFDIO_MOVE', /shared after a fork, or pinned/);
    await thread.write(5, source);
    assert.throws(
      () => uffd.move(base, source, 2 * P),
      (error: { code: string; transferred: number }) => error.code === 'EBUSY' && error.transferred === P,
    );
    assert.equal(await thread.read(base, at(source, 1)), [5, 4]);
  });
});

for (const kind of KINDS.filter((kind) => kind !== 'anon')) {
  test(`memory that cannot move is refused: ${kind}`, async () => {
    skipWithout('move');
    const body = () =>
      withUffd(['move'], async (uffd) => {
        const base = memoryOf(kind, 1);
        const source = memoryOf(kind, 1);
        uffd.register(base.address, base.pageSize);
        source.bytes.fill(1);
        const move = () => uffd.move(base.address, source.address, base.pageSize);
        // A page of a private file mapping becomes anonymous only by a write.
        refused(move, 'EINVAL', 'UFFDIO_MOVE', /private anonymous memory|huge pages/);
        assert.is(source.bytes[5], 1);
        base.close();
        source.close();
      });
    if (kind.startsWith('hugetlb')) await withHugePages(2, body);
    else await body();
  });
}

// ---- transparent huge pages --------------------------------------------------------------------------------

function zeros() {
  const faults: bigint[] = [];
  const handler = {
    pagefault(fault: Pagefault, uffd: Userfaultfd) {
      faults.push(fault.page);
      uffd.zero(fault.page, P);
    },
  };
  return { faults, handler };
}

/** Bytes of a mapping that are in transparent huge pages. */
function hugeBytes(mapping: Mapping): number {
  return smaps(mapping.address, 'AnonHugePages');
}

/** Runs a body with a source of `count` transparent huge pages, full of page numbers, and a registered target. */
async function withHuge(
  count: number,
  body: (stage: {
    uffd: Userfaultfd;
    thread: Toucher;
    source: Mapping;
    target: Mapping;
    /** Number of the target's pages from `first` on that do not hold the numbers of the pages from `from` on. */
    wrong(first: number, pages: number, from?: number): Promise<number>;
  }) => Promise<void>,
): Promise<void> {
  await withUffd(['move'], async (uffd, thread) => {
    const [source, target] = [0, 1].map(() => Mapping.anonymous(count * THP, { transparentHuge: true }));
    if (!source || !target) throw new Error('no memory');
    // The kernel takes small pages where it finds no huge one at once: other tests may have memory in pieces.
    for (let tries = 0; tries < 100; tries++) {
      await thread.madvise(source.address, source.length, MADV_POPULATE_WRITE);
      if (hugeBytes(source) === source.length) break;
      await thread.madvise(source.address, source.length, MADV_DONTNEED);
      await sleep(20);
    }
    const words = new BigUint64Array(source.bytes.buffer);
    for (let page = 0; page < source.length / P; page++) words[(page * P) / 8] = BigInt(page + 1);
    uffd.register(target.address, target.length);
    try {
      if (hugeBytes(source) < source.length) skip('this system gives no transparent huge pages on demand');
      const wrong = async (first: number, pages: number, from = first) => {
        let count = 0;
        const bytes = await thread.bytes(at(target.address, first), pages * P);
        const found = new BigUint64Array(bytes.buffer);
        for (let page = 0; page < pages; page++)
          if (found[(page * P) / 8] !== BigInt(from + page + 1)) count++;
        return count;
      };
      await body({ uffd, thread, source, target, wrong });
    } finally {
      uffd.close();
      source.close();
      target.close();
    }
  });
}

test('move-pmd: a huge page moves as one', async () => {
  await withHuge(2, async ({ uffd, source, target, wrong }) => {
    const faults: bigint[] = [];
    uffd.start({
      pagefault(fault) {
        faults.push(fault.page);
        const offset = (fault.page - target.address) & ~BigInt(THP - 1);
        assert.is(uffd.move(target.address + offset, source.address + offset, THP), THP);
      },
    });
    assert.is(await wrong(THP / P, THP / P), 0);
    assert.equal([hugeBytes(source), hugeBytes(target)], [THP, THP], 'the page itself went, in one piece');
    assert.is(await wrong(0, THP / P), 0);
    assert.is(hugeBytes(source), 0);
    assert.equal(faults, [target.address + BigInt(THP), target.address]);
  });
});

test('move-pmd-split: a part of a huge page leaves the rest in small ones', async () => {
  await withHuge(1, async ({ uffd, thread, source, target, wrong }) => {
    const part = 16;
    uffd.start({
      pagefault(fault) {
        const offset = (fault.page - target.address) & ~BigInt(part * P - 1);
        assert.is(uffd.move(target.address + offset, source.address + offset, part * P), part * P);
      },
    });
    assert.is(await wrong(2 * part, part), 0);
    assert.is(hugeBytes(source), 0);
    assert.is(await wrong(0, THP / P), 0);
    assert.is(hugeBytes(target), 0);
    assert.is(await thread.filling(source.address, source.length), 0);
  });
});

test('move-pmd-split: a whole huge page to where none can lie', async () => {
  await withHuge(2, async ({ uffd, source, target, wrong }) => {
    const shift = 3;
    assert.is(uffd.move(at(target.address, shift), source.address, THP), THP);
    assert.equal([hugeBytes(source), hugeBytes(target)], [THP, 0]);
    assert.is(await wrong(shift, THP / P, 0), 0);
    assert.equal(
      [uffd.pageState(at(target.address, shift - 1)), uffd.pageState(at(target.address, shift))],
      ['missing', 'present'],
    );
  });
});

test('copy over a transparent huge page: every page of it is there already', async () => {
  await withHuge(1, async ({ uffd, thread, source }) => {
    uffd.register(source.address, source.length);
    const filled = new Uint8Array(THP).fill(1);
    assert.is(uffd.copy(source.address, filled), THP);
    assert.equal(await thread.read(source.address + 8n), [0], 'and keeps its bytes');
    assert.is(hugeBytes(source), THP);
  });
});

test.run();
