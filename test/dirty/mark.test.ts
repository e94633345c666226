// Writes that the kernel cannot report: once the caller reports them with `mark`, they count like any other write.

import { closeSync, constants, openSync, read, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import * as assert from 'uvu/assert';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { inDirectory } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { needKernel, P } from '../support/real-kernel.js';
import { KINDS, MODES, pagesOf } from './support/tracked-memory.js';

const test = suite('dirty/mark');

/** Reads a file into memory, without the page cache (O_DIRECT) or through it. */
async function readInto(path: string, bytes: Uint8Array, flags: number): Promise<void> {
  const fd = openSync(path, constants.O_RDONLY | flags);
  try {
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await promisify(read)(fd, bytes, done, bytes.length - done, done);
      assert.ok(bytesRead > 0);
      done += bytesRead;
    }
  } finally {
    closeSync(fd);
  }
}

for (const mode of MODES) {
  for (const kind of KINDS) {
    test(`${kind.name}, ${mode}: marked bytes are reported in whole pages, once, and are in the next checkpoint`, async () => {
      needKernel();
      await kind.needs(8, () =>
        inDirectory(async (directory) => {
          const file = join(directory, 'file');
          const memory = kind.make(8);
          const tracker = await DirtyTracker.open(memory, { mode });
          const size = tracker.pageSize;
          const place = (page: number, offset = 0): bigint => memory.address + BigInt(page * size + offset);
          const collected = (): number[] => pagesOf(tracker.collect(), memory.address, size);
          try {
            await tracker.checkpoint(file, { sync: false });
            tracker.mark(place(2, 5), 1);
            assert.equal(tracker.collect(), [{ start: place(2), length: size }]);
            assert.equal(tracker.collect(), []);
            tracker.mark(place(1, size - 1), 2);
            tracker.mark(place(5), size);
            tracker.mark(place(7, size - 1), 1);
            memory.bytes[6 * size] = 1;
            assert.equal(collected(), [1, 2, 5, 6, 7]);
            assert.is((await tracker.checkpoint(file, { sync: false })).pages, 5);
            assert.is((await tracker.checkpoint(file, { sync: false })).pages, 0);
            tracker.mark(memory.address, memory.length);
            assert.is((await tracker.checkpoint(file, { sync: false })).pages, 8);
          } finally {
            tracker.close();
            memory.close();
          }
        }),
      );
    });
  }

  test(`${mode}: an alias and pwrite: unseen without a mark, saved and restored with one`, async () => {
    needKernel();
    await inDirectory(async (directory) => {
      const file = join(directory, 'file');
      const memory = Mapping.memfd(8 * P);
      const alias = memory.alias();
      memory.bytes.fill(1);
      const tracker = await DirtyTracker.open(memory, { mode });
      const fd = openSync(`/proc/self/fd/${memory.fd}`, 'r+');
      try {
        await tracker.checkpoint(file);
        alias.bytes[3 * P] = 7;
        writeSync(fd, Buffer.from([8]), 0, 1, 5 * P);
        assert.equal(tracker.collect(), [], 'the kernel cannot know: docs/dirty-tracking.md says so first');
        tracker.mark(memory.address + BigInt(3 * P), P);
        tracker.mark(memory.address + BigInt(5 * P), P);
        assert.is((await tracker.checkpoint(file)).pages, 2);
        memory.bytes.fill(0);
        await tracker.restore(file);
        assert.equal([memory.bytes[3 * P], memory.bytes[5 * P], memory.bytes[6 * P]], [7, 8, 1]);
      } finally {
        tracker.close();
        closeSync(fd);
        alias.close();
        memory.close();
      }
    });
  });

  for (const [how, flag] of Object.entries({ direct: constants.O_DIRECT, buffered: 0 })) {
    test(`${mode}, ${how}: a file read into the memory, looked at all the while, then marked: no page is stale`, async () => {
      needKernel();
      await inDirectory(async (directory) => {
        const path = join(directory, 'data');
        const length = 8 << 20;
        writeFileSync(path, Buffer.alloc(length, 0x5a));
        const memory = Mapping.anonymous(length);
        memory.bytes.fill(0xee);
        const copy = Buffer.from(memory.bytes);
        const tracker = await DirtyTracker.open(memory, { mode });
        const take = (): void => {
          for (const { start, length: bytes } of tracker.collect()) {
            const at = Number(start - memory.address);
            copy.set(memory.bytes.subarray(at, at + bytes), at);
          }
        };
        try {
          let done = false;
          let failed: NodeJS.ErrnoException | undefined;
          readInto(path, memory.bytes, flag).then(
            () => {
              done = true;
              tracker.mark(memory.address, length);
            },
            (error) => {
              failed = error;
            },
          );
          while (!done) {
            if (failed?.code === 'EINVAL' && flag) skip('this file system has no direct I/O');
            if (failed) throw failed;
            take();
            await new Promise((resolve) => setImmediate(resolve));
          }
          take();
          assert.is(copy.compare(memory.bytes), 0);
          assert.is(copy[length - 1], 0x5a);
        } finally {
          tracker.close();
          memory.close();
        }
      });
    });
  }
}

test('a mark while a checkpoint is made is in the next one', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = join(directory, 'file');
    const memory = Mapping.anonymous(8 * P);
    const tracker = await DirtyTracker.open(memory);
    try {
      await tracker.checkpoint(file);
      memory.bytes[P] = 1;
      const running = tracker.checkpoint(file);
      // Wait until the tracker has scanned the page tables, but has not written the commit record.
      for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
      tracker.mark(memory.address + BigInt(4 * P), 1);
      const pages = (await running).pages + (await tracker.checkpoint(file)).pages;
      assert.is(pages, 2);
    } finally {
      tracker.close();
      memory.close();
    }
  });
});

test('what is not in the memory is refused, and the error names the argument', async () => {
  needKernel();
  const memory = Mapping.anonymous(4 * P);
  const tracker = await DirtyTracker.open(memory);
  const { address } = memory;
  const wrong: [unknown, unknown, RegExp, string][] = [
    [address - 1n, 1, /^start must be in 0x[0-9a-f]+–0x/, 'ERR_OUT_OF_RANGE'],
    [address + BigInt(4 * P), 1, /^start must be in/, 'ERR_OUT_OF_RANGE'],
    [address + BigInt(3 * P), P + 1, /^start must be in/, 'ERR_OUT_OF_RANGE'],
    [address, 4 * P + 1, /^length must be/, 'ERR_OUT_OF_RANGE'],
    [address, 0, /^length must be/, 'ERR_OUT_OF_RANGE'],
    [address, -P, /^length must be/, 'ERR_OUT_OF_RANGE'],
    [address, 1.5, /^length must be/, 'ERR_OUT_OF_RANGE'],
    [address, Number.NaN, /^length must be/, 'ERR_OUT_OF_RANGE'],
    [Number(address), 1, /^start must be an address, a bigint/, 'ERR_INVALID_ARG_TYPE'],
    [address, undefined, /^length must be a number/, 'ERR_INVALID_ARG_TYPE'],
    [undefined, undefined, /^start must be/, 'ERR_INVALID_ARG_TYPE'],
  ];
  for (const [start, length, message, code] of wrong) {
    try {
      tracker.mark(start as bigint, length as number);
      assert.unreachable(`${start}, ${length}`);
    } catch (error) {
      assert.match((error as Error).message, message);
      assert.is((error as { code?: string }).code, code);
    }
  }
  assert.equal(tracker.collect(), []);
  tracker.close();
  assert.throws(() => tracker.mark(address, 1), /the tracker is closed/);
  memory.close();
});

test.run();
