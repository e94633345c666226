// What becomes of a pager when the thread that has opened it ends, when it is closed while a sink never answers, and of
// mistakes in its calls.

import { strict as assert } from 'node:assert';
import { closeSync, fstatSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CustomSource, Pager, type Sink } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernelFaults } from '../support/real-kernel.js';
import { dataOf, MIB, program, withPager } from './support/pager-tools.js';

const test = suite('pager/lifetime');
const SIZE = 4 * MIB;

/** A source and sink whose `sync` resolves only when the test calls `release`. */
function held(): CustomSource & Sink & { release(): void; calls: number } {
  const waiting: (() => void)[] = [];
  const wait = (): Promise<void> => new Promise((resolve) => waiting.push(resolve));
  return {
    size: SIZE,
    read: (_, into) => void into.fill(1),
    write() {
      this.calls++;
    },
    sync() {
      this.calls++;
      return wait();
    },
    calls: 0,
    release() {
      for (const resolve of waiting.splice(0)) resolve();
    },
  };
}

/** Waits for an event that a message brings. */
async function until(is: () => boolean): Promise<void> {
  while (!is()) await new Promise((resolve) => setImmediate(resolve));
}

for (const kind of ['file', 'program'] as const) {
  for (const how of ['exits', 'returns'] as const) {
    test(`a worker that has opened a pager of a ${kind} ${how}: the pager is closed, and no thread sleeps`, async () => {
      needKernel();
      await inDirectory(async (folder) => {
        const path = join(folder, 'data');
        writeFileSync(path, dataOf(SIZE));
        const { code, stdout, stderr } = await program('opener-ends', [kind === 'file' ? path : '', how]);
        assert.equal(stdout, 'read -1\nended\n', stderr);
        assert.equal(code, 'SIGSEGV', stderr);
      });
    });
  }
}

test('a worker that has opened a pager, and is the only one with koffi, is terminated: the process goes on', async () => {
  needKernel();
  const { code, stdout, stderr } = await program('opener-is-terminated');
  assert.equal(stdout, 'terminated\n', stderr);
  assert.equal(code, 0, stderr);
});

test('close with discard ends a close that waits for a sink, and nothing is written to a descriptor after that', async () => {
  needKernelFaults();
  await inDirectory(async (folder) => {
    const store = held();
    await withPager(
      { source: store, resident: MIB, writable: { to: store, flushMs: 0 } },
      1,
      async (pager, user) => {
        await user?.fill(0, 10, 7);
        const closing = pager.close();
        closing.catch(() => {});
        await until(() => store.calls === 2);
        await pager.close({ discard: true });
        await assert.rejects(closing, { code: 'ERR_INVALID_STATE', message: 'the pager was closed' });
        await assert.rejects(() => pager.prefetch({ length: 1 }), { code: 'ERR_INVALID_STATE' });
        // The numbers that are free now belong to these files, whose bytes the late answer must not be.
        const files = Array.from({ length: 40 }, (_, index) => openSync(join(folder, `${index}`), 'w+'));
        store.release();
        await new Promise((resolve) => setTimeout(resolve, 50));
        for (const fd of files) {
          assert.equal(fstatSync(fd).size, 0);
          closeSync(fd);
        }
      },
    );
  });
});

test('a memory of a swap file closes without writing to it', async () => {
  needKernelFaults();
  await withPager(Pager.anonymous(SIZE, { resident: MIB }), 1, async (pager, user) => {
    await user?.fill(0, MIB / 4, 7);
    const before = pager.stats.writtenBytes;
    await pager.close();
    assert.equal(pager.stats.writtenBytes, before);
  });
});

test('mistakes in calls are errors, and never mean everything', async () => {
  needKernelFaults();
  const source: CustomSource = { size: SIZE, read: (_, into) => void into.fill(1) };
  await withPager({ source, resident: MIB }, 0, async (pager) => {
    await pager.prefetch({ length: MIB });
    for (const range of [[0, 5], { start: 5 }, null, 5]) {
      await assert.rejects(() => pager.evict(range as never), { code: 'ERR_INVALID_ARG_TYPE' });
      await assert.rejects(() => pager.prefetch(range as never), { code: 'ERR_INVALID_ARG_TYPE' });
    }
    assert.equal(pager.stats.residentBytes, MIB);
    assert.throws(() => pager.close(null as never), { code: 'ERR_INVALID_ARG_TYPE' });
    await pager.evict();
    assert.equal(pager.stats.residentBytes, 0);
  });
});

test('a range of billions of blocks is evicted at once', async () => {
  needKernelFaults();
  const source: CustomSource = { size: 8e12, read: (_, into) => void into.fill(1) };
  await withPager({ source, resident: MIB, blockSize: 4096 }, 0, async (pager) => {
    await pager.prefetch({ offset: 7e12, length: MIB / 2 });
    await pager.evict({ length: 6e12 });
    assert.equal(pager.stats.residentBytes, MIB / 2);
    await pager.evict();
    assert.equal(pager.stats.residentBytes, 0);
  });
});

test('a source that does not answer: what is asked of it is poisoned after the deadline', async () => {
  needKernelFaults();
  const source: CustomSource = { size: SIZE, read: () => new Promise<void>(() => {}) };
  await withPager({ source, resident: MIB, deadlineMs: 50 }, 0, async (pager) => {
    await assert.rejects(() => pager.withPinned({ length: 1 }, () => {}), /has not answered for 50 ms/);
    assert.equal(pager.stats.poisonedBytes, pager.blockSize);
  });
});

test.run();
