// Mapping changes: what the object knows has followed when the handler hears of them, whatever kind of memory it is.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE } from '../../shim/memory.js';
import { Mapping, type Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import { hugePageSize, withHugePages } from './huge-pages.js';
import { never, P, until, withUffd } from './support.js';

const test = suite('events');

const EVENTS = ['event-remove', 'event-unmap', 'event-remap'] as const;
const PAGES = 8;

interface Kind {
  name: string;
  pageSize: () => number;
  make: (pages: number, pageSize: number) => Mapping;
  needs: (body: () => Promise<void>) => Promise<void>;
}

const KINDS: Kind[] = [
  {
    name: 'anonymous',
    pageSize: () => P,
    make: (pages) => Mapping.anonymous(pages * P),
    needs: (body) => body(),
  },
  { name: 'shmem', pageSize: () => P, make: (pages) => Mapping.memfd(pages * P), needs: (body) => body() },
  {
    name: 'hugetlb',
    pageSize: hugePageSize,
    make: (pages, pageSize) => Mapping.memfd(pages * pageSize, { pageSize }),
    needs: (body) => withHugePages(2 * PAGES, body),
  },
];

/** What is registered, as [first page, end] in pages from `base` on. */
function inPages(uffd: Userfaultfd, base: bigint, pageSize: number): [number, number][] {
  return uffd.ranges.map(({ start, length }) => {
    const first = Number((start - base) / BigInt(pageSize));
    return [first, first + length / pageSize];
  });
}

for (const { name, pageSize: sizeOf, make, needs } of KINDS) {
  test(`${name}: ranges and pages have followed when removed, remapped and unmapped are told`, async () => {
    await needs(async () => {
      await withUffd([...EVENTS], async (uffd, thread) => {
        const pageSize = sizeOf();
        const from = make(PAGES, pageSize);
        const to = make(PAGES, pageSize);
        const base = from.address;
        uffd.register(base, from.length);
        assert.is(uffd.copy(base, new Uint8Array(2 * pageSize).fill(7)), 2 * pageSize);
        const at = (mapping: Mapping, page: number): bigint => mapping.address + BigInt(page * pageSize);
        const told: unknown[] = [];
        uffd.start({
          pagefault: never,
          removed: (start, end) => {
            const pages = Number(end - start) / pageSize;
            told.push(['removed', pages, uffd.pageState(start), inPages(uffd, base, pageSize)]);
          },
          remapped: (_from, moved, length) => {
            const target = uffd.ranges.find(({ start }) => start === moved);
            told.push([
              'remapped',
              length / pageSize,
              target?.length,
              target?.pageSize,
              uffd.pageState(moved),
            ]);
          },
          unmapped: (start) => {
            const there = uffd.ranges.some(
              (range) => range.start <= start && start < range.start + BigInt(range.length),
            );
            told.push(['unmapped', there]);
          },
        });

        assert.is(await thread.madvise(base, pageSize, MADV_DONTNEED), 0);
        await until(() => told.length === 1, 'removed');
        assert.equal(told.splice(0), [['removed', 1, 'removed', [[0, PAGES]]]]);

        // The second page, which is present, to the place of the other mapping's first.
        const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        const moved = await thread.mremap(at(from, 1), pageSize, pageSize, flags, to.address);
        assert.is(moved, to.address);
        await until(() => told.length === 2, 'remapped and unmapped');
        assert.equal(told.splice(0), [
          ['remapped', 1, pageSize, pageSize, 'present'],
          ['unmapped', false],
        ]);

        assert.is(await thread.munmap(at(from, 3), 2 * pageSize), 0);
        await until(() => told.length === 1, 'unmapped');
        assert.equal(told.splice(0), [['unmapped', false]]);
        const [first, ...rest] = inPages(uffd, base, pageSize).filter(([page]) => page >= 0 && page < PAGES);
        assert.equal(
          [first, ...rest],
          [
            [0, 1],
            [2, 3],
            [5, PAGES],
          ],
        );
        uffd.close();
        from.close();
        to.close();
      });
    });
  });
}

test.run();
