// One registered range that consists of several mappings in the kernel: split without an event, or with a hole. No fill
// crosses a border (ENOENT for the whole call). Every mapped page must still be served, and each border is searched for
// only once.

import * as assert from 'uvu/assert';
import { libc } from '../../shim/libc.js';
import { madvise, munmap } from '../../shim/memory.js';
import { type FaultHandler, Mapping, Userfaultfd } from '../../src/index.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  at,
  kernelWith,
  map,
  needKernel,
  numberedSource,
  P,
  type Toucher,
  toucher,
  until,
  withOpened,
} from '../support/real-kernel.js';

const test = suite('uffd/split-mappings');
const start = seed();
const PAGES = 64;
const WINDOW = 16;
const MADV_DONTNEED = 4;
const MADV_DONTDUMP = 16;
const PROT_READ = 1;
const PROT_WRITE = 2;
const UFFDIO_COPY = 0xc028aa03;
const ENOENT = -2;

const call = (declaration: string) => libc().koffi.load('libc.so.6').func(declaration);
const mprotect = call('int mprotect(uint64_t, size_t, int)');
const mlock2 = call('int mlock2(uint64_t, size_t, int)');
const MLOCK_ONFAULT = 1;

/** Ways to split off `count` pages from page `first` on; `hole`: the pages cannot be read afterwards. */
const SPLITS: Record<
  string,
  { split: (base: bigint, first: number, count: number) => unknown; hole?: true }
> = {
  'madvise(DONTDUMP)': { split: (base, first, count) => madvise(at(base, first), count * P, MADV_DONTDUMP) },
  'mprotect(READ)': { split: (base, first, count) => mprotect(at(base, first), count * P, PROT_READ) },
  mlock2: { split: (base, first, count) => mlock2(at(base, first), count * P, MLOCK_ONFAULT) },
  'a hole': { split: (base, first, count) => munmap(at(base, first), count * P), hole: true },
  'PROT_NONE and back': {
    split(base, first, count) {
      mprotect(at(base, first), count * P, 0);
      // The last page stays a separate mapping.
      mprotect(at(base, first), (count - 1) * P, PROT_READ | PROT_WRITE);
    },
    hole: true,
  },
};

/** Counts the COPY calls, and those that the kernel refused because they cross a border. */
function counting() {
  const count = { calls: 0, refused: 0 };
  const kernel = kernelWith((port) => {
    const { ioctl } = port;
    return {
      ioctl(fd, request, offset) {
        const result = ioctl.call(port, fd, request, offset);
        if (request === UFFDIO_COPY) count.calls++;
        if (request === UFFDIO_COPY && result === ENOENT) count.refused++;
        return result;
      },
    };
  });
  return { count, kernel };
}

/** A handler that fills windows, as docs/serving.md shows. */
function windows(base: bigint, source: bigint): FaultHandler {
  return {
    pagefault({ page }, uffd) {
      const { start: from, length } = uffd.window(page, WINDOW);
      return uffd.copy(from, source + (from - base), length) === length;
    },
  };
}

const WAYS: Record<string, (uffd: Userfaultfd, base: bigint, source: bigint) => FaultHandler> = {
  'windows of a handler': (_, base, source) => windows(base, source),
  'windows of a source': (uffd, base, source) => {
    uffd.answerFrom(base, PAGES * P, source, { window: WINDOW });
    return windows(base, source);
  },
};

for (const [what, { split, hole }] of Object.entries(SPLITS)) {
  for (const [how, answering] of Object.entries(WAYS)) {
    test(`${what}, ${how}: every page comes, and a border is looked for once`, async () => {
      needKernel();
      const { count, kernel } = counting();
      await withOpened(Userfaultfd.open({ kernel, features: ['event-remove'] }), async (uffd, thread) => {
        const [base, source] = [map(PAGES), numberedSource(PAGES)];
        const random = generator(start);
        const first = 1 + random(PAGES - 10);
        uffd.register(base, PAGES * P);
        split(base, first, 7);
        uffd.start(answering(uffd, base, source));
        const all = Array.from({ length: PAGES }, (_, index) => index);
        const mapped = hole ? all.filter((index) => index < first || index >= first + 7) : all;
        await readAll(thread, base, mapped);
        // At most: two borders in two windows, four halvings for each side, and the pages of a hole beside them.
        assert.ok(count.refused <= 2 * 8 + 7, `${count.refused} refused calls; page ${first}, seed ${start}`);
        // Again: the library knows the borders now, so no call is refused.
        const before = count.refused;
        await thread.madvise(base, first * P, MADV_DONTNEED);
        await until(() => uffd.pageState(base) === 'removed');
        uffd.forget(base, first * P);
        assert.equal(await thread.read(at(base, first - 1)), [first & 255]);
        assert.is(count.refused, before);
      });
    });
  }
}

async function readAll(thread: Toucher, base: bigint, pages: readonly number[]): Promise<void> {
  for (const index of pages)
    assert.equal(await thread.read(at(base, index)), [(index + 1) & 255], `page ${index}`);
}

test('neighbours on both sides of a border that are waited for come both', async () => {
  needKernel();
  const { count, kernel } = counting();
  await withOpened(Userfaultfd.open({ kernel }), async (uffd) => {
    const [base, source] = [map(PAGES), numberedSource(PAGES)];
    uffd.register(base, PAGES * P);
    madvise(at(base, 33), 10 * P, MADV_DONTDUMP);
    uffd.answerFrom(base, PAGES * P, source);
    const threads = [await toucher(), await toucher()] as const;
    const reads = [threads[0].read(at(base, 32)), threads[1].read(at(base, 33))];
    await Promise.all(threads.map((one) => one.asleep()));
    uffd.start({ pagefault: () => false });
    assert.equal(await Promise.all(reads), [[33], [34]]);
    assert.is(count.refused, 1);
  });
});

test('what is installed ahead passes over a hole, and says what it left out', async () => {
  needKernel();
  await withOpened(Userfaultfd.open(), async (uffd) => {
    const [base, source] = [map(PAGES), numberedSource(PAGES)];
    uffd.register(base, PAGES * P);
    munmap(at(base, 20), 3 * P);
    uffd.answerFrom(base, PAGES * P, source);
    let [installed, leftOut] = [0, 0];
    for (let offset = 0, calls = 0; offset < PAGES * P; calls++) {
      const ahead = uffd.fillAhead(base + BigInt(offset), PAGES * P - offset);
      assert.ok(ahead && calls < 32, 'it makes progress');
      installed += ahead.installed;
      leftOut += ahead.leftOut;
      offset += ahead.passed + ahead.installed + ahead.leftOut;
    }
    assert.equal([installed, leftOut], [(PAGES - 3) * P, 3 * P]);
  });
});

test('two memfds side by side, registered one after the other, are served over their border', async () => {
  needKernel();
  await withOpened(Userfaultfd.open({ features: ['missing-shmem'] }), async (uffd, thread) => {
    const [one, two] = [Mapping.memfd(24 * P), Mapping.memfd(24 * P)];
    const [low, high] = one.address < two.address ? [one, two] : [two, one];
    const source = numberedSource(48);
    uffd.register(low.address, low.length);
    uffd.register(high.address, high.length);
    const border = high.address;
    uffd.start({
      pagefault({ page }) {
        const { start: from, length } = uffd.window(page, WINDOW);
        const index = from < border ? Number(from - low.address) : Number(from - border) + 24 * P;
        // Like a handler that assumes that a window lies in one mapping.
        return uffd.copy(from, source + BigInt(index), length) === length;
      },
    });
    // The kernel usually maps the two memfds side by side.
    assert.equal(await thread.read(at(low.address, 23), border), [24, 25]);
    uffd.close();
    one.close();
    two.close();
  });
});

test.run();
