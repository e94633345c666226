// Mapping changes and `ranges`: when a change is delivered to the handler, ranges and page states already reflect it.
// For private memory, shared memory, and shared memory in huge pages.

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
import { suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { map, mapShared, P, pageOf, type Toucher, toucher, withUffd } from '../support/real-kernel.js';

const test = suite('uffd/mapping-changes');

const EVENTS: Feature[] = ['event-remove', 'event-unmap', 'event-remap'];
/** Pages of the memory that each test changes: few, because huge pages are scarce. */
const PAGES = 4;

/** Memory to change, and functions to describe it. */
interface Ground {
  uffd: Userfaultfd;
  thread: Toucher;
  base: bigint;
  /** Bytes of a page. */
  size: number;
  /** Address space of the same size, to move the memory to. */
  target: bigint;
  /** The address of a page. */
  page(index: number): bigint;
  /** First page and number of pages of each range; 't' marks ranges at the target. */
  ranges(): string[];
  /** Fills pages with their number. */
  fill(first: number, count: number): void;
  /** Each change that the handler got, with the ranges at that moment. */
  calls: string[];
}

type Kind = 'private' | 'shared' | 'huge';

/** Runs a body with watched memory of a kind; at the end, unmaps the huge pages that are still watched. */
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
        // Huge pages go back to their pool. Only what is still registered is unmapped, and not where no events came:
        // another mapping may have the address of unmapped memory by now.
        if (kind === 'huge') for (const { start, length } of uffd.ranges) munmap(start, length);
        if ('unmapAlias' in memory) memory.unmapAlias();
      }
    });
  await (kind === 'huge' ? withHugePages(PAGES, run) : run(P));
}

/** Reserves `length` bytes at an aligned address, to move memory to. */
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
  const calls: string[] = [];
  const note = (what: string): void => void calls.push(`${what} -> ${ranges().join(' ')}`.trim());
  const span = (start: bigint, end: bigint): string => name(start, Number(end - start));
  const ground: Ground = {
    uffd,
    thread,
    base,
    size,
    target,
    ranges,
    calls,
    page: (index) => base + BigInt(index * size),
    fill(first, count) {
      for (let index = first; index < first + count; index++) {
        assert.is(uffd.copy(ground.page(index), new Uint8Array(size).fill(index + 1)), size);
      }
    },
  };
  const handler: FaultHandler = {
    pagefault: (fault) => {
      calls.push(`fault ${name(fault.page, size)}`);
      return uffd.copy(fault.page, new Uint8Array(size).fill(99)) === size;
    },
    removed(start, end) {
      note(`removed ${span(start, end)}`);
      calls.push(`state ${uffd.pageState(start)}`);
    },
    unmapped: (start, end) => note(`unmapped ${span(start, end)}`),
    remapped: (from, to, length) => note(`remapped ${name(from, length)} to ${name(to, length)}`),
  };
  uffd.start(handler);
  return ground;
}

for (const kind of ['private', 'shared', 'huge'] as Kind[]) {
  test(`${kind}: a removal leaves the ranges, and its pages are to be zero`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, size, page, fill, calls, ranges }) => {
      fill(0, 4);
      assert.is(await thread.madvise(page(1), 2 * size, MADV_DONTNEED), 0);
      assert.equal(calls, ['removed 1+2 -> 0+4', 'state removed']);
      assert.equal(ranges(), ['0+4']);
      assert.equal(
        [0, 1, 2, 3].map((index) => uffd.pageState(page(index))),
        ['present', 'removed', 'removed', 'present'],
      );
    });
  });

  test(`${kind}: an unmapping in the middle leaves two ranges`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, size, page, fill, calls }) => {
      fill(0, 2);
      assert.is(await thread.munmap(page(1), size), 0);
      assert.is(await thread.munmap(page(3), size), 0);
      assert.equal(calls, ['unmapped 1+1 -> 0+1 2+2', 'unmapped 3+1 -> 0+1 2+1']);
      assert.is(uffd.watches(page(1), size), false);
      assert.is(uffd.pageState(page(0)), 'present');
      assert.is(uffd.copy(page(1), new Uint8Array(size)), 0, 'nothing is there');
    });
  });

  test(`${kind}: the whole is unmapped`, async () => {
    await on(kind, EVENTS, async ({ thread, base, size, calls, ranges }) => {
      assert.is(await thread.munmap(base, PAGES * size), 0);
      assert.equal(calls, ['unmapped 0+4 ->']);
      assert.equal(ranges(), []);
    });
  });

  test(`${kind}: what is moved is watched, and faults, where it is now`, async () => {
    await on(kind, EVENTS, async ({ uffd, thread, base, size, target, fill, calls, ranges }) => {
      fill(0, 2);
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(base, PAGES * size, PAGES * size, flags, target), target);
      // A second event reports the unmap of the old place.
      assert.equal(calls, ['remapped 0+4 to t0+4 -> 0+4 t0+4', 'unmapped 0+4 -> t0+4']);
      assert.equal(ranges(), ['t0+4']);
      assert.is(uffd.pageState(target), 'present', 'what is known of the pages has moved with them');
      assert.is(uffd.ranges[0]?.pageSize, size);
      calls.length = 0;
      assert.equal(await thread.read(target, target + BigInt(2 * size)), [1, 99]);
      assert.equal(calls, ['fault t2+1']);
    });
  });

  test(`${kind}: without unmap events the old place goes with the move`, async () => {
    await on(kind, ['event-remap'], async ({ thread, base, size, target, calls, ranges }) => {
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(base, PAGES * size, PAGES * size, flags, target), target);
      assert.equal(calls, ['remapped 0+4 to t0+4 -> t0+4']);
      assert.equal(ranges(), ['t0+4']);
    });
  });

  test(`${kind}: a part is moved`, async () => {
    await on(kind, EVENTS, async ({ thread, size, page, target, calls }) => {
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
      assert.is(await thread.mremap(page(1), 2 * size, 2 * size, flags, target), target);
      assert.equal(calls, ['remapped 1+2 to t0+2 -> 0+4 t0+2', 'unmapped 1+2 -> 0+1 3+1 t0+2']);
    });
  });
}

test('private: pages that are moved from a place that stays mapped', async () => {
  await on('private', EVENTS, async ({ thread, base, target, fill, calls, ranges }) => {
    fill(0, 4);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    assert.is(await thread.mremap(base, PAGES * P, PAGES * P, flags, target), target);
    assert.equal(calls, ['remapped 0+4 to t0+4 -> 0+4 t0+4']);
    assert.equal(ranges(), ['0+4', 't0+4']);
    calls.length = 0;
    assert.equal(await thread.read(target, base), [1, 99]);
    assert.equal(calls, ['fault 0+1']);
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
    const calls: string[] = [];
    let answer = false;
    const handler: FaultHandler = {
      pagefault(fault) {
        calls.push(`fault ${answer ? 'again' : 'first'}`);
        return answer && uffd.copy(fault.page, pageOf(7)) === P;
      },
      remapped: () => void calls.push('remapped'),
    };
    // The fault is read and deferred: mremap wakes no thread, and the kernel reports each sleeping thread once.
    uffd.poll(handler);
    const moved = mover.mremap(base, PAGES * P, PAGES * P, flags, reserve(PAGES * P, P));
    while (!calls.includes('remapped')) {
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
    assert.is(calls.at(-1), 'fault again');
  });
}, 20_000);

test('private: what is moved and grows is watched in its old length; shrinking unmaps the rest', async () => {
  await on('private', EVENTS, async ({ thread, base, target, calls, ranges }) => {
    assert.is(await thread.munmap(base + BigInt(2 * P), 2 * P), 0);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await thread.mremap(base, 2 * P, 4 * P, flags, target), target);
    assert.is(await thread.mremap(target, 4 * P, P, MREMAP_MAYMOVE, 0n), target);
    assert.equal(calls, [
      'unmapped 2+2 -> 0+2',
      'remapped 0+2 to t0+2 -> 0+2 t0+2',
      'unmapped 0+2 -> t0+2',
      'unmapped t1+3 -> t0+1',
    ]);
    assert.equal(ranges(), ['t0+1']);
  });
});

test('private: memory that is laid over unmaps what was there', async () => {
  await on('private', EVENTS, async ({ thread, page, calls, ranges }) => {
    const fresh = map(1, 5);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    assert.is(await thread.mremap(fresh, P, P, flags, page(2)), page(2));
    assert.equal(calls, ['unmapped 2+1 -> 0+2 3+1']);
    assert.equal(ranges(), ['0+2', '3+1']);
    assert.equal(await thread.read(page(2)), [5]);
  });
});

test('events that are off are not delivered, and the ranges stay what they were', async () => {
  await on('private', [], async ({ uffd, thread, size, page, calls, ranges }) => {
    assert.is(await thread.munmap(page(3), size), 0);
    assert.is(await thread.madvise(page(0), size, MADV_DONTNEED), 0);
    assert.equal(calls, []);
    assert.equal(ranges(), ['0+4']);
    assert.is(uffd.copy(page(3), pageOf(1)), 0);
  });
});

test.run();
