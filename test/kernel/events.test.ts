// Mapping changes and `ranges`: when a handler hears of a change, the ranges and page states are what the change has
// made of them. For private memory, shared memory, and shared memory in huge pages.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MREMAP_DONTUNMAP,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  mmap,
  munmap,
  PROT_READ,
} from '../../shim/memory.js';
import type { FaultHandler, Feature, Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import { withHugePages } from './huge-pages.js';
import { map, mapShared, P, pageOf, type Toucher, toucher, withUffd } from './support.js';

const test = suite('events');

const EVENTS: Feature[] = ['event-remove', 'event-unmap', 'event-remap'];
/** Pages of the memory that each test changes; huge ones are few. */
const PAGES = 4;

/** Memory to change, and how to speak of it. */
interface Ground {
  uffd: Userfaultfd;
  thread: Toucher;
  base: bigint;
  /** Bytes of a page. */
  size: number;
  /** Address space for as much. */
  target: bigint;
  /** The address of a page. */
  page(index: number): bigint;
  /** First page and pages of each range; those at the target as 't'. */
  ranges(): string[];
  /** Fills pages with their number. */
  fill(first: number, count: number): void;
  /** Serves, and writes down each change with the ranges at that moment. */
  heard: string[];
}

type Kind = 'private' | 'shared' | 'huge';

/** Runs a body with watched memory of a kind; what is watched at its end is unmapped. */
async function on(kind: Kind, features: Feature[], body: (ground: Ground) => Promise<void>): Promise<void> {
  const kinds: Record<Kind, Feature[]> = {
    private: [],
    shared: ['missing-shmem'],
    huge: ['missing-hugetlbfs'],
  };
  const run = (size: number): Promise<void> =>
    withUffd([...features, ...kinds[kind]], async (uffd, thread) => {
      const memory = kind === 'private' ? { base: map(PAGES) } : mapShared(PAGES, size);
      try {
        await body(groundOf(uffd, thread, memory.base, size, reserve(PAGES * size, size)));
      } finally {
        uffd.close();
        // Not what was unmapped: somebody else may have that address by now.
        for (const { start, length } of uffd.ranges) munmap(start, length);
        if ('unmapAlias' in memory) memory.unmapAlias();
      }
    });
  await (kind === 'huge' ? withHugePages(PAGES, run) : run(P));
}

/** An aligned address from which on so many bytes are ours, to move memory to. */
function reserve(length: number, alignment: number): bigint {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const found = mmap(0n, length + alignment, PROT_READ, flags);
  return found + ((BigInt(alignment) - (found % BigInt(alignment))) % BigInt(alignment));
}

function groundOf(uffd: Userfaultfd, thread: Toucher, base: bigint, size: number, target: bigint): Ground {
  uffd.register(base, PAGES * size);
  const name = (start: bigint, length: number): string => {
    const there = start >= target && start < target + BigInt(PAGES * size);
    const first = Number(start - (there ? target : base)) / size;
    return `${there ? 't' : ''}${first}+${length / size}`;
  };
  const ranges = (): string[] => uffd.ranges.map(({ start, length }) => name(start, length)).sort();
  const heard: string[] = [];
  const note = (what: string): void => void heard.push(`${what} -> ${ranges().join(' ')}`.trim());
  const span = (start: bigint, end: bigint): string => name(start, Number(end - start));
  const ground: Ground = {
    uffd,
    thread,
    base,
    size,
    target,
    ranges,
    heard,
    page: (index) => base + BigInt(index * size),
    fill(first, count) {
      for (let index = first; index < first + count; index++) {
        assert.is(uffd.copy(ground.page(index), new Uint8Array(size).fill(index + 1)), size);
      }
    },
  };
  const handler: FaultHandler = {
    pagefault: (fault) => {
      heard.push(`fault ${name(fault.page, size)}`);
      return uffd.copy(fault.page, new Uint8Array(size).fill(99)) === size;
    },
    removed(start, end) {
      note(`removed ${span(start, end)}`);
      heard.push(`state ${uffd.pageState(start)}`);
    },
    unmapped: (start, end) => note(`unmapped ${span(start, end)}`),
    remapped: (from, to, length) => note(`remapped ${name(from, length)} to ${name(to, length)}`),
  };
  uffd.start(handler);
  return ground;
}

for (const kind of ['private', 'shared', 'huge'] as Kind[]) {
  test(`${kind}: a removal leaves the ranges, and its pages are to be zero`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, size, page, fill, heard, ranges }) => {
      fill(0, 4);
      assert.is(await thread.madvise(page(1), 2 * size, MADV_DONTNEED), 0);
      assert.equal(heard, ['removed 1+2 -> 0+4', 'state removed']);
      assert.equal(ranges(), ['0+4']);
      assert.equal(
        [0, 1, 2, 3].map((index) => uffd.pageState(page(index))),
        ['present', 'removed', 'removed', 'present'],
      );
    });
  });

  test(`${kind}: an unmapping in the middle leaves two ranges`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, size, page, fill, heard }) => {
      fill(0, 2);
      assert.is(await thread.munmap(page(1), size), 0);
      assert.is(await thread.munmap(page(3), size), 0);
      assert.equal(heard, ['unmapped 1+1 -> 0+1 2+2', 'unmapped 3+1 -> 0+1 2+1']);
      assert.is(uffd.watches(page(1), size), false);
      assert.is(uffd.pageState(page(0)), 'present');
      assert.is(uffd.copy(page(1), new Uint8Array(size)), 0, 'nothing is there');
    });
  });

  test(`${kind}: the whole is unmapped`, async () => {
    await on(kind, EVENTS, async ({ thread, base, size, heard, ranges }) => {
      assert.is(await thread.munmap(base, PAGES * size), 0);
      assert.equal(heard, ['unmapped 0+4 ->']);
      assert.equal(ranges(), []);
    });
  });

  test(`${kind}: what is moved is watched, and faults, where it is now`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, base, size, target, fill, heard, ranges }) => {
      fill(0, 2);
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(base, PAGES * size, PAGES * size, flags, target), target);
      // The old place is taken away by an event of its own.
      assert.equal(heard, ['remapped 0+4 to t0+4 -> 0+4 t0+4', 'unmapped 0+4 -> t0+4']);
      assert.equal(ranges(), ['t0+4']);
      assert.is(uffd.pageState(target), 'present', 'what is known of the pages has moved with them');
      assert.is(uffd.ranges[0]?.pageSize, size);
      heard.length = 0;
      assert.equal(await thread.read(target, target + BigInt(2 * size)), [1, 99]);
      assert.equal(heard, ['fault t2+1']);
    });
  });

  test(`${kind}: without unmap events the old place goes with the move`, async () => {
    await on(kind, ['event-remap'], async ({ thread, base, size, target, heard, ranges }) => {
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(base, PAGES * size, PAGES * size, flags, target), target);
      assert.equal(heard, ['remapped 0+4 to t0+4 -> t0+4']);
      assert.equal(ranges(), ['t0+4']);
    });
  });

  test(`${kind}: a part is moved`, async () => {
    await on(kind, EVENTS, async ({ thread, size, page, target, heard }) => {
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(page(1), 2 * size, 2 * size, flags, target), target);
      assert.equal(heard, ['remapped 1+2 to t0+2 -> 0+4 t0+2', 'unmapped 1+2 -> 0+1 3+1 t0+2']);
    });
  });
}

test('private: pages that are moved from a place that stays mapped', async () => {
  await on('private', EVENTS, async ({ thread, base, target, fill, heard, ranges }) => {
    fill(0, 4);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    assert.is(await thread.mremap(base, PAGES * P, PAGES * P, flags, target), target);
    assert.equal(heard, ['remapped 0+4 to t0+4 -> 0+4 t0+4']);
    assert.equal(ranges(), ['0+4', 't0+4']);
    heard.length = 0;
    assert.equal(await thread.read(target, base), [1, 99]);
    assert.equal(heard, ['fault 0+1']);
  });
});

test('private: a thread that sleeps in a page which is moved away, from a place that stays mapped, faults anew', async () => {
  await withUffd(['event-remap'], async (uffd, sleeper) => {
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    const mover = await toucher();
    const read = sleeper.read(base);
    await sleeper.asleep();
    const heard: string[] = [];
    let answer = false;
    const handler: FaultHandler = {
      pagefault(fault) {
        heard.push(`fault ${answer ? 'again' : 'first'}`);
        return answer && uffd.copy(fault.page, pageOf(7)) === P;
      },
      remapped: () => void heard.push('remapped'),
    };
    // Read, and not answered: mremap wakes nobody, and the kernel tells of a sleeper once.
    uffd.poll(handler);
    const moved = mover.mremap(base, PAGES * P, PAGES * P, flags, reserve(PAGES * P, P));
    while (!heard.includes('remapped')) {
      uffd.poll(handler);
      await sleep(1);
    }
    answer = true;
    await moved;
    let over = false;
    const done = read.then((found) => {
      over = true;
      return found;
    });
    while (!over) {
      uffd.poll(handler);
      await sleep(1);
    }
    assert.equal(await done, [7]);
    assert.is(heard.at(-1), 'fault again');
  });
}, 20_000);

test('private: what is moved and grows is watched in its old length; shrinking unmaps the rest', async () => {
  await on('private', EVENTS, async ({ thread, base, target, heard, ranges }) => {
    assert.is(await thread.munmap(base + BigInt(2 * P), 2 * P), 0);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await thread.mremap(base, 2 * P, 4 * P, flags, target), target);
    assert.is(await thread.mremap(target, 4 * P, P, MREMAP_MAYMOVE, 0n), target);
    assert.equal(heard, [
      'unmapped 2+2 -> 0+2',
      'remapped 0+2 to t0+2 -> 0+2 t0+2',
      'unmapped 0+2 -> t0+2',
      'unmapped t1+3 -> t0+1',
    ]);
    assert.equal(ranges(), ['t0+1']);
  });
});

test('private: memory that is laid over unmaps what was there', async () => {
  await on('private', EVENTS, async ({ thread, page, heard, ranges }) => {
    const fresh = map(1, 5);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await thread.mremap(fresh, P, P, flags, page(2)), page(2));
    assert.equal(heard, ['unmapped 2+1 -> 0+2 3+1']);
    assert.equal(ranges(), ['0+2', '3+1']);
    assert.equal(await thread.read(page(2)), [5]);
  });
});

test('events that are off are not told, and the ranges stay what they were', async () => {
  await on('private', [], async ({ uffd, thread, size, page, heard, ranges }) => {
    assert.is(await thread.munmap(page(3), size), 0);
    assert.is(await thread.madvise(page(0), size, MADV_DONTNEED), 0);
    assert.equal(heard, []);
    assert.equal(ranges(), ['0+4']);
    assert.is(uffd.copy(page(3), pageOf(1)), 0);
  });
});

test.run();
