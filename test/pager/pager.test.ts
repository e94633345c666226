// The pager on the real kernel: what threads and system calls read is right, what they write gets into the file, and
// the memory stays within the limit as the kernel counts it.

import { strict as assert } from 'node:assert';
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync, truncateSync, write, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { deflate, deflateSync, inflateSync } from 'node:zlib';

import { fileSource, httpSource, moduleSource, Pager, type PagerSource } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { seed, suite } from '../support/harness.js';
import { needKernelFaults, until } from '../support/real-kernel.js';
import { hammerFile, hammerSwap } from './support/hammer.js';
import { FileServer } from './support/http-server.js';
import {
  byteAt,
  controlOf,
  DOES,
  Does,
  fillBytes,
  READS,
  SOURCE,
  wrongByte,
} from './support/pager-source.js';
import { dataOf, KIB, MIB, memfdBytes, mostBytes, withPager } from './support/pager-tools.js';

const test = suite('pager');

/** Each kind of source, of `size` bytes. */
async function withSources(
  size: number,
  body: (kind: string, source: PagerSource) => Promise<void>,
): Promise<void> {
  const data = dataOf(size);
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, data);
    const server = new FileServer(Buffer.from(data));
    await server.listen();
    try {
      await body('file', fileSource(path));
      await body('http', httpSource(server.url()));
      await body('module', moduleSource(SOURCE, controlOf(size)));
      await body('program', { size, read: (offset, into) => void fillBytes(into, offset) });
    } finally {
      server.close();
    }
  });
}

for (const [blockSize, size] of [
  [4 * KIB, 1],
  [4 * KIB, 300 * KIB + 1],
  [16 * KIB, 700 * KIB + 4095],
  [64 * KIB, 3 * MIB + 5000],
  [MIB, 20 * MIB + 4096],
  [4 * MIB, 70 * MIB - 1],
] as const) {
  test(`${size} bytes in blocks of ${blockSize}: right from each source, at random and in order`, async () => {
    needKernel();
    const first = seed();
    const resident = 16 * blockSize;
    await withSources(size, async (kind, source) => {
      await withPager({ source, resident, blockSize }, 2, async (pager, one, other) => {
        assert.equal(pager.size, size);
        const read = [
          one?.wrongAtRandom(first, 40, 3 * KIB),
          other?.wrong(0, size),
          one?.wrong(Math.max(0, size - 5000), Math.min(size, 5000)),
        ];
        const most = await mostBytes(async () => {
          assert.deepEqual(await Promise.all(read), [-1, -1, -1], kind);
        });
        assert.ok(most <= resident, `${kind}: ${most} bytes in memory`);
        assert.ok(pager.stats.residentBytes <= resident);
        if (size > resident) assert.ok(pager.stats.evictedBytes > 0, kind);
      });
    });
  });
}

test('threads that read backwards, and with strides, get the right bytes', async () => {
  needKernel();
  const size = 4 * MIB + 77;
  await withSources(size, async (kind, source) => {
    await withPager({ source, resident: MIB }, 2, async (_, one, other) => {
      const backwards = async (): Promise<void> => {
        for (let at = size - 10; at > 0; at -= 50_000) assert.equal(await one?.wrong(at, 10), -1, kind);
      };
      const strides = async (): Promise<void> => {
        for (let step = 0; step < 100; step++)
          assert.equal(await other?.wrong((step * 1_234_567) % size, 1), -1, kind);
      };
      await Promise.all([backwards(), strides()]);
    });
  });
});

test('eight threads write and read at random: nothing is lost, in memory or in the file', async () => {
  needKernel();
  const first = seed();
  // One block of a hundred is in memory, and one of nine.
  for (const [blockSize, size, random, flushMs] of [
    [4 * KIB, 6.25 * MIB + 1234, false, 0],
    [64 * KIB, 9 * MIB + 1234, true, 20],
  ] as const)
    console.log(await hammerFile({ first, size, blockSize, random, flushMs, ms: 2500 }));
});

test('eight threads write to anonymous memory, compressed and encrypted: nothing is lost', async () => {
  needKernel();
  const first = seed();
  for (const [blockSize, compress, encrypt] of [
    [64 * KIB, 'auto', true],
    [4 * KIB, 'none', false],
  ] as const) {
    const options = { first, size: 6.25 * MIB + 99, blockSize, random: false, compress, encrypt, ms: 1500 };
    console.log(await hammerSwap(options));
  }
});

test('all memory was changed: what the program asks for gets room, though no thread faults meanwhile', async () => {
  needKernel();
  const resident = MIB;
  const pager = Pager.anonymous(4 * MIB, { resident });
  await withPager(pager, 1, async (pager, user) => {
    const { blockSize } = pager;
    // As much as may be changed before the pager writes; the rest is pinned.
    for (let at = resident - 3 * blockSize; at >= 0; at -= blockSize) await user?.fill(at, blockSize, 7);
    assert.equal(pager.stats.writtenBytes, 0);
    await pager.withPinned({ offset: 2 * MIB, length: 2 * blockSize }, async () => {
      await pager.prefetch({ offset: 3 * MIB, length: blockSize });
      assert.ok(pager.stats.writtenBytes > 0);
    });
    assert.ok((await user?.bytes(0, resident - 2 * blockSize))?.every((byte) => byte === 7));
  });
});

test('many threads at the smallest limit: each gets its bytes', async () => {
  needKernel();
  const size = 2 * MIB;
  const source = moduleSource(SOURCE, controlOf(size));
  await withPager({ source, resident: 64 * KIB, blockSize: 4 * KIB }, 24, async (_, ...users) => {
    const wrong = await Promise.all(users.map((user, number) => user.wrongAtRandom(number + 1, 50, 6000)));
    assert.deepEqual(new Set(wrong), new Set([-1]));
  });
});

for (const count of [4, 8, 40]) {
  test(`${count} fs.writes at once from missing memory, which occupy libuv's pool`, async () => {
    needKernelFaults();
    const length = 100_000;
    const size = count * length;
    await withSources(size, async (kind, source) => {
      if (kind === 'program' && count > 4) return;
      await withPager({ source, resident: MIB }, 0, async (pager) => {
        await inDirectory(async (directory) => {
          const fds = Array.from({ length: count }, (_, number) =>
            openSync(join(directory, `${number}`), 'w+'),
          );
          const writing = fds.map((fd, number) =>
            promisify(write)(fd, pager.view(number * length, length), 0, length, 0),
          );
          for (const { bytesWritten } of await Promise.all(writing)) assert.equal(bytesWritten, length);
          for (const [number, fd] of fds.entries()) {
            const bytes = readFileSync(join(directory, `${number}`));
            assert.equal(wrongByte(bytes, number * length), -1, `${kind} ${number}`);
            closeSync(fd);
          }
        });
      });
    });
  });
}

test('hashes, compression, structuredClone, TextDecoder and comparisons of missing memory', async () => {
  needKernel();
  const size = 3 * MIB + 17;
  const data = Buffer.from(dataOf(size));
  await withSources(size, async (kind, source) => {
    // The program's own source needs this thread, so it must not sleep in a fault.
    if (kind === 'program' || kind === 'http') return;
    await withPager({ source, resident: MIB }, 0, async (pager) => {
      const { bytes } = pager;
      const hash = (of: Uint8Array): string => createHash('sha1').update(of).digest('hex');
      assert.equal(hash(bytes), hash(data), kind);
      assert.ok(inflateSync(deflateSync(bytes)).equals(data));
      const packed = (await promisify(deflate)(bytes as Buffer)) as Buffer;
      assert.ok(inflateSync(packed).equals(data));
      assert.ok(Buffer.from(structuredClone(bytes)).equals(data));
      assert.equal(new TextDecoder('latin1').decode(bytes), new TextDecoder('latin1').decode(data));
      assert.equal(Buffer.compare(bytes, data), 0);
      assert.equal(data.lastIndexOf(bytes.subarray(size - 9)), size - 9);
      assert.equal(bytes.lastIndexOf(byteAt(1), 1), 1);
    });
  });
});

test('prefetch reads a range once, evict gives it up, and a touch reads it again', async () => {
  needKernel();
  const control = controlOf(4 * MIB);
  await withPager({ source: moduleSource(SOURCE, control), resident: MIB }, 1, async (pager, user) => {
    await pager.prefetch({ offset: MIB + 5, length: 500_000 });
    const { residentBytes, faults } = pager.stats;
    assert.equal(residentBytes, 8 * 64 * KIB);
    assert.equal(memfdBytes(), residentBytes);
    assert.equal(faults, 0);
    const reads = Atomics.load(control.words, READS);
    await pager.prefetch({ offset: MIB + 5, length: 500_000 });
    assert.equal(Atomics.load(control.words, READS), reads);
    assert.equal(await user?.wrong(MIB + 5, 100_000), -1);
    assert.equal(Atomics.load(control.words, READS), reads, 'it was in memory');
    await pager.evict();
    assert.equal(memfdBytes(), 0);
    assert.equal(await user?.wrong(MIB + 5, 500_000), -1);
    assert.ok(Atomics.load(control.words, READS) > reads);
    await assert.rejects(() => pager.prefetch(), /length must be at most 1048576/);
    // The whole limit, with other blocks in memory.
    await pager.prefetch({ offset: 2 * MIB, length: MIB });
    assert.ok(memfdBytes() <= MIB);
    await pager.prefetch({ offset: 4 * MIB });
    await pager.prefetch({ offset: 0, length: 0 });
  });
});

test('evict of changed memory writes it first', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, dataOf(MIB + 3));
    const options = { source: fileSource(path), resident: MIB, writable: { flushMs: 0 } };
    await withPager(options, 1, async (pager, user) => {
      await user?.fill(MIB - 5, 8, 0x55);
      await pager.evict();
      assert.equal(memfdBytes(), 0);
      assert.deepEqual(
        readFileSync(path).subarray(MIB - 6, MIB + 3),
        Buffer.from([byteAt(MIB - 6), ...Array(8).fill(0x55)]),
      );
      assert.deepEqual(await user?.bytes(MIB - 5, 8), new Uint8Array(8).fill(0x55));
    });
  });
});

test('what is pinned is present, stays while other memory is evicted, and takes what a system call writes', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    const from = join(directory, 'from');
    const size = 4 * MIB;
    writeFileSync(path, dataOf(size));
    writeFileSync(from, Buffer.alloc(300_000, 0x77));
    const options = { source: fileSource(path), resident: MIB, writable: { flushMs: 5 } };
    await withPager(options, 2, async (pager, user, other) => {
      const range = { offset: 100_001, length: 300_000 };
      await pager.withPinned(
        range,
        async (bytes) => {
          const { faults } = pager.stats;
          assert.equal(wrongByte(bytes, range.offset), -1);
          assert.equal(pager.stats.faults, faults, 'pinned bytes need no fault');
          assert.ok(pager.stats.pinnedBytes >= range.length);
          await other?.wrong(0, 100_000);
          await Promise.all([user?.wrong(1 * MIB, 3 * MIB), other?.wrong(2 * MIB, MIB)]);
          await pager.evict();
          const fd = openSync(from, 'r');
          const before = pager.stats.faults;
          assert.equal(readSync(fd, bytes), range.length);
          assert.equal(pager.stats.faults, before, 'a system call needs no fault');
          closeSync(fd);
          await pager.flush();
          // Written once more after a flush, without a fault.
          bytes[0] = 0x78;
          assert.equal(pager.stats.faults, before);
        },
        { write: true },
      );
      await user?.wrong(1 * MIB, 3 * MIB);
      await pager.flush();
      assert.equal(pager.stats.pinnedBytes, 0);
      const file = readFileSync(path);
      assert.equal(wrongByte(file.subarray(0, range.offset), 0), -1);
      assert.equal(file[range.offset], 0x78);
      assert.ok(file.subarray(range.offset + 1, range.offset + range.length).every((byte) => byte === 0x77));
      assert.equal(wrongByte(file.subarray(range.offset + range.length), range.offset + range.length), -1);
    });
  });
});

test('at most half of the limit can be pinned, and it is told how much', async () => {
  needKernel();
  await withPager(
    { source: moduleSource(SOURCE, controlOf(4 * MIB)), resident: MIB },
    1,
    async (pager, user) => {
      const half = { offset: 0, length: MIB / 2 };
      await assert.rejects(
        () => pager.withPinned({ offset: 0, length: MIB / 2 + 1 }, () => {}),
        /length must be at most 524288, what may be pinned now; it is 524289/,
      );
      await pager.withPinned(half, async () => {
        await assert.rejects(() => pager.withPinned({ offset: MIB, length: 1 }, () => {}), /at most 0/);
        // All other memory can still be used.
        assert.equal(await user?.wrong(MIB, 3 * MIB), -1);
      });
      await assert.rejects(
        () =>
          pager.withPinned(half, () => {
            throw new Error('mine');
          }),
        /mine/,
      );
      assert.equal(await pager.withPinned(half, ({ length }) => length), MIB / 2);
      await assert.rejects(() => pager.withPinned(half, () => {}, { write: true }), /opened to read only/);
      assert.equal(await pager.withPinned({ offset: 5, length: 0 }, ({ length }) => length), 0);
      await pager.evict();
      assert.equal(pager.stats.pinnedBytes, 0);
    },
  );
});

test('a pin that fails takes no other pin with it', async () => {
  needKernel();
  const control = controlOf(40 * MIB);
  const options = { source: moduleSource(SOURCE, control), resident: 32 * MIB, onError: 'poison' } as const;
  await withPager(options, 1, async (pager, user) => {
    // Far enough from the start that the second pin has not asked for it when it fails.
    const last = { offset: 7 * MIB, length: 64 * KIB };
    await pager.withPinned(last, async (bytes) => {
      Atomics.store(control.words, DOES, Does.FAIL);
      await assert.rejects(
        () => pager.withPinned({ offset: 0, length: 8 * MIB }, () => {}),
        /cannot be read/,
      );
      Atomics.store(control.words, DOES, Does.READ);
      await pager.evict();
      assert.equal(pager.stats.pinnedBytes, last.length);
      assert.equal(await user?.wrong(8 * MIB, 32 * MIB), -1);
      // Its answer comes after the counts of all faults that woke the thread.
      await pager.prefetch({ offset: last.offset, length: 1 });
      const { faults } = pager.stats;
      assert.equal(wrongByte(bytes, last.offset), -1);
      assert.equal(pager.stats.faults, faults);
    });
    await pager.evict();
    assert.equal(pager.stats.pinnedBytes, 0);
  });
});

test('a source gets as many reads at once as it takes, one more if a thread waits', async () => {
  needKernel();
  const control = controlOf(16 * MIB, 2);
  await withPager({ source: moduleSource(SOURCE, control), resident: 8 * MIB }, 8, async (_, ...users) => {
    const wrong = await Promise.all(users.map((user, number) => user.wrongAtRandom(number + 1, 20, 100_000)));
    assert.deepEqual(new Set(wrong), new Set([-1]));
    assert.ok(Atomics.load(control.words, 3) <= 3, `${Atomics.load(control.words, 3)} at once`);
  });
});

test('threads that want the same block cause one read', async () => {
  needKernel();
  const control = controlOf(MIB);
  Atomics.store(control.words, DOES, Does.STALL);
  await withPager({ source: moduleSource(SOURCE, control), resident: MIB }, 6, async (_, ...users) => {
    const reading = users.map((user) => user.wrong(500_000, 10));
    for (const user of users) await user.asleep();
    // The threads fall asleep before the pager reads their faults.
    await until(() => Atomics.load(control.words, READS) > 0, 'a read');
    Atomics.store(control.words, DOES, Does.READ);
    assert.deepEqual(new Set(await Promise.all(reading)), new Set([-1]));
    assert.equal(Atomics.load(control.words, READS), 1);
  });
});

test('a sparse file of 5 GiB: view reads any part, and bytes says what Node 20 cannot do', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const path = join(directory, 'large');
    writeFileSync(path, '');
    const size = 5 * 2 ** 30;
    truncateSync(path, size);
    const fd = openSync(path, 'r+');
    const at = size - 3 * MIB;
    await promisify(write)(fd, fillBytes(new Uint8Array(MIB), 77), 0, MIB, at);
    await promisify(write)(fd, fillBytes(new Uint8Array(MIB), 78), 0, MIB, 2 ** 32 - 500_000);
    closeSync(fd);
    await withPager({ source: fileSource(path), resident: 2 * MIB }, 0, async (pager) => {
      assert.equal(wrongByte(pager.view(at, MIB), 77), -1);
      assert.equal(wrongByte(pager.view(2 ** 32 - 500_000, MIB), 78), -1);
      assert.equal(pager.view(size - 1, 1)[0], 0);
      assert.ok(memfdBytes() <= 2 * MIB);
      if (process.versions.node.startsWith('20.')) {
        assert.throws(() => pager.bytes, /at most 4294967296, the largest Uint8Array of this Node; use view/);
        assert.throws(() => pager.view(0, size), /length must be/);
      } else {
        assert.equal(pager.bytes.length, size);
      }
      await pager.evict();
      assert.equal(memfdBytes(), 0);
    });
  });
});

test.run();
