// What becomes of a pager when the thread that has opened it ends, when it is closed while a sink never answers, and of
// mistakes in its calls.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as memory from '../../shim/memory.js';
import { type CustomSource, moduleSource, Pager, type Sink } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernelFaults } from '../support/real-kernel.js';
import { CLOSE_THROWS, CLOSED, controlOf, SOURCE } from './support/pager-source.js';
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

test('a pager is closed even if its source throws in close', async () => {
  needKernelFaults();
  const control = controlOf(SIZE);
  control.words[CLOSE_THROWS] = 1;
  const pager = await Pager.open({ source: moduleSource(SOURCE, control), resident: MIB });
  await pager.prefetch({ length: 1 });
  await pager.close();
  assert.equal(Atomics.load(control.words, CLOSED), 1);
  assert.throws(() => pager.bytes, { code: 'ERR_INVALID_STATE' });
});

test('an onError that returns a promise is an error, and does not count as retry', async () => {
  needKernelFaults();
  const source: CustomSource = {
    size: SIZE,
    read() {
      throw new Error('the test has said so');
    },
  };
  const told: unknown[] = [];
  const listen = (error: unknown): void => void told.push(error);
  process.once('uncaughtException', listen);
  try {
    const onError = (async () => 'retry') as never;
    await withPager({ source, resident: MIB, onError }, 0, async (pager) => {
      pager.prefetch({ length: 1 }).catch(() => {});
      await until(() => told.length > 0);
      assert.match(String(told[0]), /onError returns.*no promise/);
    });
  } finally {
    process.off('uncaughtException', listen);
  }
});

for (const [name, thrown] of [
  ['a function', () => {}],
  [
    'an error that holds one',
    Object.assign(new Error('it holds a function'), { cause: () => {}, permanent: true }),
  ],
  ['a symbol', Symbol('wrong')],
] as const) {
  test(`a source that throws ${name}, which cannot be sent to another thread: the read fails, the pager goes on`, async () => {
    needKernelFaults();
    let isBroken = true;
    const source: CustomSource = {
      size: SIZE,
      read(_, into) {
        if (isBroken) throw thrown;
        into.fill(1);
      },
    };
    await withPager({ source, resident: MIB, onError: 'poison' }, 0, async (pager) => {
      await assert.rejects(() => pager.withPinned({ length: 1 }, () => {}), /cannot be read/);
      isBroken = false;
      await pager.withPinned({ length: 1 }, () => assert.equal(pager.bytes[0], 1));
    });
  });
}

test('what is read ahead and not answered does not keep others waiting beyond the deadline', async () => {
  needKernelFaults();
  const block = 65536;
  const far = 40 * block;
  let stalled = 0;
  const source: CustomSource = {
    size: 64 * block,
    parallel: 1,
    read(offset, into, signal) {
      if (offset < 3 * block || offset >= far) return void into.fill(1);
      stalled++;
      return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
    },
  };
  await withPager({ source, resident: SIZE, deadlineMs: 100 }, 1, async (pager, user) => {
    for (let index = 0; index < 3; index++) await user?.hash(index * block, block);
    await until(() => stalled > 0);
    await pager.prefetch({ offset: far, length: 1 });
    await pager.withPinned({ offset: far, length: 1 }, () => assert.equal(pager.bytes[far], 1));
  });
});

test('a program from the command line (node --input-type=module) opens a pager', () => {
  needKernel();
  const code = `import { Pager } from ${JSON.stringify(new URL('../../src/pager/index.js', import.meta.url).href)};
    const pager = await Pager.open({ source: { size: 4096, read: (_, into) => void into.fill(3) }, resident: 1 << 20 });
    await pager.withPinned({ length: 1 }, () => console.log(pager.bytes[4095]));
    await pager.close();`;
  const conditions = process.execArgv.filter((argument) => argument.startsWith('--'));
  const line = [...conditions, '--input-type=module', '-e', code];
  const ran = spawnSync(process.execPath, line, { encoding: 'utf8', timeout: 30_000 });
  assert.equal(ran.stdout, '3\n', ran.stderr);
  assert.equal(ran.status, 0, ran.stderr);
});

test('blocks whose mapping the kernel took away are mapped again at their first fault', async () => {
  needKernelFaults();
  const source: CustomSource = { size: MIB, read: (_, into) => void into.fill(1) };
  await withPager({ source, resident: 2 * MIB, blockSize: 4096 }, 1, async (pager, user) => {
    await pager.prefetch();
    for (let round = 0; round < 3; round++) {
      await user?.hash(0, MIB);
      // What was mapped just now may have threads that were about to be woken.
      const mapped = performance.now();
      await until(() => performance.now() - mapped > 5);
      const { faults } = pager.stats;
      // As the kernel does when it swaps shared memory out, or collapses it into huge pages.
      memory.madvise(pager.address, MIB, memory.MADV_DONTNEED);
      await user?.hash(0, MIB);
      const more = pager.stats.faults - faults;
      // The count is published after the thread is woken, so that one fault of before may be among them, or one missing.
      assert.ok(Math.abs(more - MIB / 4096) < MIB / 8192, `${more} faults`);
    }
  });
});

test.run();
