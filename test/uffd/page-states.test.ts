// Page states on the real kernel: the library records a state only after an observation, and drops it with the memory.
// The tests fail on data instead of zeros, on zeros instead of data, and on lost protection.

import { closeSync } from 'node:fs';
import * as assert from 'uvu/assert';
import * as memory from '../../shim/memory.js';
import { type FaultHandler, type Feature, type RegisteredRange, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import {
  at,
  compileLibrary,
  kernelWith,
  map,
  needKernel,
  numberedSource,
  openWith,
  P,
  pageOf,
  type Toucher,
  toucher,
  until,
  withOpened,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('uffd/page-states');
const PAGES = 8;
const { MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE } = memory;
const MREMAP_DONTUNMAP = 4;

/** A handler that follows docs/serving.md: it zeroes removed pages, and copies all others from the source. */
function answering(base: bigint, source: bigint): FaultHandler {
  return {
    pagefault({ page }, uffd) {
      const removed = uffd.pageState(page) === 'removed';
      return (removed ? uffd.zero(page, P) : uffd.copy(page, source + (page - base), P)) === P;
    },
    forked: (child) => void child.start(answering(base, source)),
  };
}

/** Runs a body with served memory whose page 0 was filled and then removed. */
async function withRemoved(
  features: readonly Feature[],
  body: (it: { uffd: Userfaultfd; thread: Toucher; base: bigint; handler: FaultHandler }) => Promise<void>,
): Promise<void> {
  await withUffd(['event-remove', ...features], async (uffd, thread) => {
    const base = map(PAGES);
    const handler = answering(base, numberedSource(PAGES));
    uffd.register(base, PAGES * P);
    uffd.start(handler);
    assert.equal(await thread.read(base), [1]);
    assert.is(await thread.madvise(base, P, MADV_DONTNEED), 0);
    await until(() => uffd.pageState(base) === 'removed');
    await body({ uffd, thread, base, handler });
  });
}

test('a child reads zeros where its parent has removed a page before the fork', async () => {
  const library = compileLibrary('support/fork.c');
  await withRemoved(['event-fork'], async ({ uffd, thread, base }) => {
    const child: Userfaultfd[] = [];
    const handler = answering(base, numberedSource(PAGES));
    uffd.stop();
    uffd.start({
      ...handler,
      forked(one) {
        child.push(one);
        handler.forked?.(one);
      },
    });
    // Page 0 was removed, so it must not hold the source's data; page 1 must.
    assert.is.not(await thread.forkTouch(library, base, 0, 1), 0, 'the removed page holds its old data');
    assert.is(await thread.forkTouch(library, base, 1, 2), 0);
    assert.is(child[0]?.pageState(base + BigInt(5 * P)), 'missing');
  });
});

for (const posted of [false, true]) {
  test(`release and wrap: the next owner knows what was removed${posted ? ', also if the ranges were posted' : ''}`, async () => {
    await withRemoved([], async ({ uffd, thread, base, handler }) => {
      // Read before the release, as a caller would do it.
      const { ranges, features } = uffd;
      const sent = posted ? (structuredClone([...ranges]) as RegisteredRange[]) : ranges;
      const next = Userfaultfd.wrap(uffd.release(), { ranges: sent, features });
      try {
        assert.is(next.pageState(base), 'removed');
        next.start(handler);
        assert.equal(await thread.read(base, at(base, 1)), [0, 2]);
      } finally {
        next.close();
      }
    });
  });
}

test('ranges that were read before more memory was registered are refused by wrap', async () => {
  await withUffd(['event-remove'], async (uffd) => {
    const base = map(PAGES);
    uffd.register(base, P);
    const { ranges, features } = uffd;
    const far = map(PAGES);
    uffd.register(far, P);
    uffd.copy(base, pageOf(1));
    uffd.copy(far, pageOf(1));
    const apart = base / BigInt(8192 * P) !== far / BigInt(8192 * P);
    const fd = uffd.release();
    if (apart) assert.throws(() => Userfaultfd.wrap(fd, { ranges, features }), /read `ranges` again/);
    closeSync(fd);
  });
});

test('unregistered and registered again, a removed page is zero; what is mapped anew is not', async () => {
  await withRemoved([], async ({ uffd, thread, base }) => {
    uffd.unregister(base, PAGES * P);
    uffd.register(base, PAGES * P);
    assert.is(uffd.pageState(base), 'removed');
    assert.equal(await thread.read(base, at(base, 1)), [0, 2]);
    uffd.unregister(base, PAGES * P);
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | memory.MAP_FIXED;
    memory.mmap(base, PAGES * P, memory.PROT_READ | memory.PROT_WRITE, flags);
    uffd.forget(base, PAGES * P);
    uffd.register(base, PAGES * P);
    assert.equal(await thread.read(base), [1]);
  });
});

for (const unmapEvents of [true, false]) {
  test(`a move onto watched memory brings its own pages; ${unmapEvents ? 'with' : 'without'} EVENT_UNMAP`, async () => {
    const features: Feature[] = [
      'event-remove',
      'event-remap',
      ...(unmapEvents ? (['event-unmap'] as const) : []),
    ];
    await withUffd(features, async (uffd, thread) => {
      const [base, target] = [map(PAGES), map(PAGES)];
      const source = numberedSource(PAGES);
      uffd.register(base, PAGES * P);
      uffd.register(target, PAGES * P);
      const data = (page: bigint): bigint =>
        source + (page >= target && page < at(target, PAGES) ? page - target : page - base);
      uffd.start({
        pagefault({ page }) {
          const removed = uffd.pageState(page) === 'removed';
          return (removed ? uffd.zero(page, P) : uffd.copy(page, data(page), P)) === P;
        },
      });
      // Prepare one present and one removed page in the target, and one present page in the source.
      assert.equal(await thread.read(at(target, 2), at(target, 3), at(base, 4)), [3, 4, 5]);
      await thread.madvise(at(target, 3), P, MADV_DONTNEED);
      await until(() => uffd.pageState(at(target, 3)) === 'removed');
      const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
      assert.is(await thread.mremap(base, PAGES * P, PAGES * P, flags, target), target);
      await until(() => uffd.pageState(at(target, 4)) === 'present');
      assert.is(uffd.pageState(at(target, 2)), 'missing');
      assert.is(uffd.pageState(at(target, 3)), 'missing');
      assert.equal(await thread.read(at(target, 2), at(target, 3), at(target, 4)), [3, 4, 5]);
      // Without UNMAP events the library cannot know whether the old place is still mapped.
      if (unmapEvents)
        assert.equal(await thread.read(at(base, 4)), [0], 'the place that was left reads as zeros');
    });
  });
}

test('without EVENT_REMOVE the handler gets the fault of a removed page, and no thread waits forever', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(PAGES);
    const source = numberedSource(PAGES);
    uffd.register(base, PAGES * P);
    uffd.answerFrom(base, PAGES * P, source);
    const states: string[] = [];
    uffd.start({
      pagefault({ page }) {
        states.push(uffd.pageState(page));
        return uffd.copy(page, source + (page - base), P) === P;
      },
    });
    assert.equal(await thread.read(base), [1]);
    await thread.madvise(base, P, MADV_DONTNEED);
    assert.equal(await thread.read(base), [1]);
    assert.equal(states, ['present']);
  });
});

/** Runs a body with memory whose page 0 is missing and has a write-protect marker. */
async function withMarker(
  body: (uffd: Userfaultfd, thread: Toucher, base: bigint) => Promise<void>,
): Promise<void> {
  await withUffd(['pagefault-flag-wp', 'wp-unpopulated'], async (uffd, thread) => {
    const base = map(PAGES);
    uffd.register(base, PAGES * P, ['missing', 'write-protect']);
    uffd.writeProtect(base, P, true);
    await body(uffd, thread, base);
  });
}

for (const [how, fill, expected] of [
  ['zero', (uffd: Userfaultfd, page: bigint) => uffd.zero(page, P), 0],
  ['copy', (uffd: Userfaultfd, page: bigint) => uffd.copy(page, pageOf(9)), 9],
  ['zero, over its neighbours too', (uffd: Userfaultfd, page: bigint) => uffd.zero(page, 4 * P), 0],
] as const) {
  test(`${how} over a write-protect marker installs the page, and it stays protected`, async () => {
    await withMarker(async (uffd, thread, base) => {
      const kinds: string[] = [];
      uffd.start({
        pagefault({ page, kind }) {
          kinds.push(kind);
          if (kind === 'missing') fill(uffd, page);
          else uffd.writeProtect(page, P, false);
        },
      });
      assert.equal(await thread.read(base), [expected]);
      assert.is(uffd.pageState(base), 'present');
      assert.ok(uffd.isWriteProtected(base));
      await thread.write(5, base);
      assert.equal(kinds, ['missing', 'write-protect']);
      assert.equal(await thread.read(base), [5]);
    });
  });
}

test('poison over a write-protect marker poisons', async () => {
  await withMarker(async (uffd, thread, base) => {
    uffd.start({ pagefault: ({ page }) => uffd.poison(page, P) === P });
    // The kernel reads the byte, so a touch of poison gives EFAULT and not SIGBUS.
    const file = memory.memfdCreate('poison', P);
    try {
      assert.is(await thread.send(file, base, 1), 'EFAULT');
    } finally {
      closeSync(file);
    }
  });
});

test('an empty pool of huge pages: the fault is tried less and less often, says so, and gets its data', async () => {
  needKernel();
  await withHugePages(3, async (size) => {
    let copies = 0;
    const kernel = kernelWith((port) => {
      const { ioctl } = port;
      return {
        ioctl(fd, request, offset) {
          if (request === 0xc028aa03) copies++;
          return ioctl.call(port, fd, request, offset);
        },
      };
    });
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | memory.MAP_HUGETLB;
    const map2 = (): bigint => memory.mmap(0n, 64 * size, memory.PROT_READ | memory.PROT_WRITE, flags);
    const [base, hog] = [map2(), map2()];
    const source = map(size / P, 77);
    await withOpened(Userfaultfd.open({ kernel, features: ['event-remove'] }), async (uffd, thread) => {
      uffd.register(base, 64 * size, 'missing', { pageSize: size });
      let repeats: number[] = [];
      uffd.start({
        pagefault(fault) {
          repeats.push(fault.repeats);
          return uffd.copy(fault.page, source, size) === size;
        },
      });
      let taken = 0;
      let hogged = true;
      try {
        // Another process may free a huge page at any time, so that the copy succeeds: then retry with the next page.
        for (let page = base; ; page += BigInt(size)) {
          // Unwatched memory takes every free page.
          while (taken < 64 && memory.madvise(hog + BigInt(taken * size), size, 23) === 0) taken++;
          copies = 0;
          repeats = [];
          let bytes: number[] | undefined;
          const read = thread.read(page).then((answer) => {
            bytes = answer;
          });
          await until(() => repeats.length > 9 || bytes !== undefined);
          if (bytes !== undefined) {
            assert.equal(bytes, [77]);
            continue;
          }
          assert.is(uffd.pageState(page), 'missing', 'nothing is noted of what was not installed');
          assert.equal(repeats.slice(0, 9), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
          assert.ok(copies < 20, `${copies} calls`);
          hogged = false;
          memory.munmap(hog, 64 * size);
          await read;
          assert.equal(bytes, [77]);
          assert.is(uffd.pageState(page), 'present');
          return;
        }
      } finally {
        // Once only: by now the address may hold memory of another thread.
        if (hogged) memory.munmap(hog, 64 * size);
        memory.munmap(base, 64 * size);
      }
    });
  });
});

test('a callback that throws between the answers and a fault loses no fault', async () => {
  await withOpened(openWith([]), async (uffd, thread) => {
    const [base, source] = [map(PAGES), numberedSource(PAGES)];
    uffd.register(base, PAGES * P);
    // Page 0 has a source, page 1 has none: one batch holds both faults.
    uffd.answerFrom(base, P, source);
    const other = await toucher();
    const reads = Promise.all([thread.read(base), other.read(at(base, 1))]);
    await Promise.all([thread.asleep(), other.asleep()]);
    let threw = false;
    const handler: FaultHandler = {
      pagefault: ({ page }) => uffd.copy(page, source + (page - base), P) === P,
      answered() {
        if (threw) return;
        threw = true;
        throw new Error('on purpose');
      },
    };
    assert.throws(() => uffd.poll(handler), /on purpose/);
    uffd.start(handler);
    assert.equal(await reads, [[1], [2]]);
  });
});

test.run();
