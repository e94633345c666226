// The tracker reports exactly the pages that were written: every kind of memory, both modes, against a shadow copy.

import * as assert from 'uvu/assert';
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  mmap,
  PROT_READ,
  PROT_WRITE,
} from '../../shim/memory.js';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping, type UffdError } from '../../src/index.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  endAll,
  holdings,
  kernelWith,
  map,
  needKernel,
  P,
  type Toucher,
  touchers,
  until,
} from '../support/real-kernel.js';
import { KINDS, type Kind, MODES, pagesOf, sorted } from './support/tracked-memory.js';

const test = suite('dirty');

/** Runs a body with tracked memory and threads to write to it. */
async function tracked(
  kind: Kind,
  mode: 'async' | 'sync',
  pages: number,
  threads: number,
  body: (it: {
    memory: Mapping;
    tracker: DirtyTracker;
    threads: Toucher[];
    pageSize: number;
  }) => Promise<void>,
): Promise<void> {
  needKernel();
  await kind.needs(pages, async () => {
    const memory = kind.make(pages);
    const tracker = await DirtyTracker.open(memory, { mode });
    try {
      assert.is(tracker.mode, mode);
      assert.is(tracker.pageSize, kind.pageSize());
      await body({ memory, tracker, threads: await touchers(threads), pageSize: tracker.pageSize });
    } finally {
      tracker.close();
      await endAll();
      memory.close();
    }
  });
}

for (const kind of KINDS) {
  for (const mode of MODES) {
    const title = `${kind.name}, ${mode}`;

    test(`${title}: each write is reported once, reads are not, and runs are as long as possible`, async () => {
      await tracked(kind, mode, 16, 1, async ({ memory, tracker, threads: [thread], pageSize }) => {
        const at = (page: number): bigint => memory.address + BigInt(page * pageSize);
        const writer = thread as Toucher;
        assert.equal(tracker.collect(), [], 'nothing was written yet');
        await writer.read(at(1), at(9));
        assert.equal(tracker.collect(), [], 'reading is no writing');
        await writer.write(1, at(3), at(4), at(5), at(12), at(4));
        assert.equal(tracker.collect(), [
          { start: at(3), length: 3 * pageSize },
          { start: at(12), length: pageSize },
        ]);
        assert.equal(tracker.collect(), [], 'reported once');
        await writer.write(2, at(4) + BigInt(pageSize - 1));
        assert.equal(pagesOf(tracker.collect(), memory.address, pageSize), [4]);
        // The thread that calls `collect` may write too.
        memory.bytes[7 * pageSize] = 3;
        assert.equal(pagesOf(tracker.collect(), memory.address, pageSize), [7]);
      });
    });

    test(`${title}: removed pages are reported, and again once they are written`, async () => {
      await tracked(kind, mode, 8, 1, async ({ memory, tracker, threads: [thread], pageSize }) => {
        const at = (page: number): bigint => memory.address + BigInt(page * pageSize);
        const writer = thread as Toucher;
        await writer.write(5, ...Array.from({ length: 8 }, (_, page) => at(page)));
        tracker.collect();
        assert.is(await writer.madvise(at(2), 2 * pageSize, MADV_DONTNEED), 0);
        const collected = pagesOf(tracker.collect(), memory.address, pageSize);
        // Shared memory keeps its contents and its protection, so no page has changed.
        const shared = kind.name === 'memfd' || collected.length === 0;
        if (!shared) assert.equal(collected, [2, 3]);
        assert.equal(tracker.collect(), []);
        await writer.write(6, at(3));
        assert.equal(pagesOf(tracker.collect(), memory.address, pageSize), [3]);
      });
    });
  }
}

for (const mode of MODES) {
  test(`${mode}: 1,000 rounds of random writes by three threads, looked at in their midst`, async () => {
    const kind = KINDS[0] as Kind;
    const random = generator(seed());
    await tracked(kind, mode, 64, 3, async ({ memory, tracker, threads }) => {
      const shadow = new Uint8Array(memory.length);
      for (let round = 0; round < 1000; round++) {
        const written: number[] = [];
        const writes = threads.map((thread, index) => {
          const value = 1 + ((round + index) % 255);
          // Each thread writes bytes of its own, so the last value of each byte is known.
          const places = Array.from(
            { length: 1 + random(6) },
            () => random(64) * P + random(1024) * 3 + index,
          );
          for (const place of places) {
            shadow[place] = value;
            written.push(Math.floor(place / P));
          }
          return thread.write(value, ...places.map((place) => memory.address + BigInt(place)));
        });
        const amid = pagesOf(tracker.collect(), memory.address, P);
        await Promise.all(writes);
        const after = pagesOf(tracker.collect(), memory.address, P);
        assert.equal(sorted([...amid, ...after]), sorted(written), `round ${round}`);
        if (round % 100 === 99)
          assert.is(Buffer.compare(memory.bytes, shadow), 0, 'and nothing else was changed');
      }
    });
  }, 120_000);
}

test('closing gives everything back, and memory is as any other afterwards', async () => {
  needKernel();
  const memory = Mapping.anonymous(8 * P);
  const before = holdings();
  for (const mode of MODES) {
    const tracker = await DirtyTracker.open(memory, { mode });
    memory.bytes[0] = 1;
    tracker.close();
    tracker.close();
    assert.throws(() => tracker.collect(), /the tracker is closed/);
    memory.bytes[P] = 2;
  }
  // The thread of the synchronous tracker ends by itself, and closes the descriptors of its event loop.
  const given = (): boolean => {
    const { descriptors, threads } = holdings();
    return descriptors <= before.descriptors && threads <= before.threads;
  };
  await until(given, 'everything to be given back');
  memory.close();
});

test('memory that was unmapped, or mapped anew, is an error that says so', async () => {
  needKernel();
  for (const mode of MODES) {
    const memory = Mapping.anonymous(8 * P);
    const tracker = await DirtyTracker.open(memory, { mode });
    memory.close();
    assert.throws(() => tracker.collect(), /is closed/);
    tracker.close();

    const address = map(8);
    const ranged = await DirtyTracker.open({ address, length: 8 * P }, { mode });
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    assert.is(mmap(address + BigInt(2 * P), P, PROT_READ | PROT_WRITE, flags), address + BigInt(2 * P));
    const call = mode === 'async' ? 'PAGEMAP_SCAN' : 'UFFDIO_WRITEPROTECT';
    assert.throws(
      () => ranged.collect(),
      (error: UffdError) => error.syscall === call && /unmapped or mapped anew/.test(error.message),
    );
    ranged.close();
  }
});

test('a kernel without the means says which version has them', async () => {
  needKernel();
  const without = (hidden: bigint) =>
    kernelWith((port, memory) => {
      const ioctl = port.ioctl.bind(port);
      return {
        ioctl(fd, request, at) {
          const words = new BigUint64Array(memory.buffer, at, 2);
          if (request === 0xc018aa3f && (words[1] as bigint) & hidden) return -22;
          const result = ioctl(fd, request, at);
          if (request === 0xc018aa3f) words[1] = (words[1] as bigint) & ~hidden;
          return result;
        },
      };
    });
  const memory = Mapping.anonymous(4 * P);
  const async = 1n << 15n;
  const all = async | 1n;
  const refused = async (kernel: ReturnType<typeof without>, mode: 'auto' | 'async'): Promise<string> => {
    try {
      await DirtyTracker.open(memory, { kernel, mode });
    } catch (error) {
      assert.is((error as { code?: string }).code, 'ERR_UFFD_UNSUPPORTED');
      return (error as Error).message;
    }
    throw new Error('it opened');
  };
  assert.match(await refused(without(async), 'async'), /6\.7/);
  assert.match(await refused(without(all), 'auto'), /5\.\d+/);
  const tracker = await DirtyTracker.open(memory, { kernel: without(async) });
  assert.is(tracker.mode, 'sync', "'auto' takes what there is");
  tracker.close();
  memory.close();
});

test('what is no memory is refused', async () => {
  needKernel();
  const cases: unknown[] = [
    undefined,
    null,
    5,
    { address: 1n, length: P },
    { address: 4096n, length: 5 },
    {},
  ];
  for (const memory of cases) {
    try {
      await DirtyTracker.open(memory as Mapping);
      assert.unreachable(`${memory}`);
    } catch (error) {
      assert.match((error as { code?: string }).code ?? `${error}`, /^ERR_(INVALID_ARG|OUT_OF_RANGE)/);
    }
  }
});

test.run();
