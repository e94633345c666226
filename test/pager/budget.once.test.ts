// Pagers that share a limit, on the real kernel: together they never have more memory than it says, each gets its part
// when all need some, and what one does not use the others may.

import { strict as assert } from 'node:assert';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

import { fileSource, Pager, type PagerBudget, type PagerOptions } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { seed, suite } from '../support/harness.js';
import { fillBytes } from './support/pager-source.js';
import { dataOf, KIB, MIB, mostBytes, type PagerUser, userOf } from './support/pager-tools.js';

const test = suite('pager/budget');

const SIZE = 24 * MIB + 123;
const BUDGET = 8 * MIB;

/** Opens pagers of files with the same data, each with a thread, and closes them. */
async function withPagers(
  options: Omit<PagerOptions, 'source'>[],
  body: (pagers: Pager[], users: PagerUser[]) => Promise<void>,
): Promise<void> {
  await inDirectory(async (directory) => {
    const data = dataOf(SIZE);
    const pagers: Pager[] = [];
    const users: PagerUser[] = [];
    try {
      for (const one of options) {
        const path = join(directory, String(pagers.length));
        writeFileSync(path, data);
        const pager = await Pager.open({ source: fileSource(path), ...one });
        pagers.push(pager);
        users.push(await userOf(pager));
      }
      await body(pagers, users);
    } finally {
      await Promise.all(users.map((user) => user.end()));
      await Promise.all(pagers.map((pager) => pager.close({ discard: true })));
    }
  });
}

/** Calls `done` again and again, until it is true. The test's time limit ends it. */
async function repeat(done: () => Promise<boolean>): Promise<void> {
  while (!(await done())) {}
}

const limits = (pagers: Pager[]): number[] => pagers.map(({ stats }) => stats.limitBytes);
const sum = (numbers: number[]): number => numbers.reduce((all, one) => all + one, 0);

test('threads of three pagers read and write at once: right bytes, and together no more than the budget', async () => {
  needKernel();
  const first = seed();
  const resident = Pager.budget(BUDGET);
  await withPagers(
    [{ resident }, { resident, blockSize: 4 * KIB, writable: true }, { resident, blockSize: 256 * KIB }],
    async (pagers, [one, other, third]) => {
      const most = await mostBytes(async () => {
        const [wrong, hammered, wrongToo] = await Promise.all([
          one?.wrong(0, SIZE),
          other?.hammer({ first, threads: 1, own: 0, ms: 1500 }),
          third?.wrongAtRandom(first, 300, 30 * KIB),
        ]);
        assert.equal(wrong, -1);
        assert.equal(wrongToo, -1);
        assert.equal(hammered?.wrong, 0);
        assert.ok((hammered?.writes ?? 0) > 0);
      });
      assert.ok(most <= BUDGET, `${most} bytes in memory`);
      assert.ok(sum(limits(pagers)) <= BUDGET, `${limits(pagers)}`);
    },
  );
});

test('a pager takes what is free; a second one gets its half of it; and all of it is free in the end', async () => {
  needKernel();
  const resident = Pager.budget(BUDGET);
  await withPagers([{ resident }], async ([pager], [user]) => {
    assert.equal(pager?.resident, BUDGET);
    assert.equal(await user?.wrong(0, SIZE), -1);
    assert.ok((pager?.stats.limitBytes ?? 0) > 0.9 * BUDGET, `${pager?.stats.limitBytes}`);
    await withPagers([{ resident }], async ([second], [reader]) => {
      // Both are in use: neither gets less than its half for long.
      await repeat(async () => {
        assert.deepEqual(await Promise.all([user?.wrong(0, SIZE), reader?.wrong(0, SIZE)]), [-1, -1]);
        const both = limits([pager as Pager, second as Pager]);
        assert.ok(sum(both) <= BUDGET);
        return both.every((bytes) => bytes > 0.4 * BUDGET);
      });
    });
    // The first one may use it all again.
    await repeat(async () => {
      assert.equal(await user?.wrong(0, SIZE), -1);
      return (pager?.stats.limitBytes ?? 0) > 0.9 * BUDGET;
    });
  });
  assert.equal(new Int32Array(resident.state)[0], BUDGET / 4096);
});

test('what a pager that is not used has, another one gets; and it gets its part back when it is used', async () => {
  needKernel();
  const resident = Pager.budget(BUDGET);
  await withPagers([{ resident }, { resident }], async (pagers, [idle, busy]) => {
    assert.equal(await idle?.wrong(0, SIZE), -1);
    await repeat(async () => {
      assert.equal(await busy?.wrong(0, SIZE), -1);
      return (limits(pagers)[1] ?? 0) > 0.75 * BUDGET;
    });
    await repeat(async () => {
      assert.deepEqual(await Promise.all([idle?.wrong(0, SIZE), busy?.wrong(0, SIZE)]), [-1, -1]);
      return (limits(pagers)[0] ?? 0) > 0.4 * BUDGET;
    });
  });
});

test('what is pinned stays, and all pagers together pin at most half of the budget', async () => {
  needKernel();
  const resident = Pager.budget(BUDGET);
  await withPagers([{ resident }, { resident }], async ([pager, other], [user, reader]) => {
    await pager?.withPinned({ length: BUDGET / 4 }, async (pinned) => {
      await assert.rejects(
        pager.withPinned({ offset: MIB * 10, length: 1 }, () => {}),
        /length must be at most 0, what may be pinned now/,
      );
      for (let round = 0; round < 3; round++)
        assert.deepEqual(await Promise.all([user?.wrong(0, SIZE), reader?.wrong(0, SIZE)]), [-1, -1]);
      assert.deepEqual(Buffer.from(pinned), Buffer.from(dataOf(BUDGET / 4)));
      assert.ok(pager.stats.limitBytes > BUDGET / 4);
      await other?.withPinned({ length: BUDGET / 8 }, () => {});
    });
    // All of it is free again.
    await other?.withPinned({ length: BUDGET / 4 }, () => {});
  });
});

test('a budget is for pagers of several threads', async () => {
  needKernel();
  const resident = Pager.budget(BUDGET);
  const code = `
    import { parentPort, workerData } from 'node:worker_threads';
    import { Pager } from ${JSON.stringify(new URL('../../src/pager/index.js', import.meta.url).href)};
    const { resident, size } = workerData;
    const pager = await Pager.open({ resident, source: { size, read: (_, into) => void into.fill(7) } });
    await pager.prefetch({ length: 2 * 2 ** 20 });
    parentPort.postMessage(pager.stats.limitBytes);
    parentPort.once('message', async () => { await pager.close(); parentPort.close(); });`;
  const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
  await withPagers([{ resident }], async (pagers, [user]) => {
    const worker = new Worker(url, { workerData: { resident, size: SIZE } });
    try {
      const [bytes] = (await once(worker, 'message')) as [number];
      assert.ok(bytes >= 2 * MIB, `${bytes}`);
      assert.equal(await user?.wrong(0, SIZE), -1);
      assert.ok(sum(limits(pagers)) <= BUDGET - 2 * MIB, `${limits(pagers)}`);
      worker.postMessage('close');
      await once(worker, 'exit');
    } finally {
      await worker.terminate();
    }
  });
});

test('a budget that is too small, and what is no budget', async () => {
  needKernel();
  for (const bytes of [0, -1, 4096, Number.NaN, '8', 2 ** 50])
    assert.throws(() => Pager.budget(bytes as number), /bytes must be/);
  const source = { size: MIB, read: (offset: number, into: Uint8Array) => void fillBytes(into, offset) };
  for (const resident of [{}, null, { kind: 'budget', bytes: MIB }, { ...Pager.budget(MIB), state: 1 }])
    await assert.rejects(
      async () => Pager.open({ source, resident: resident as PagerBudget }),
      /resident must be a number of bytes, or what Pager.budget returns|resident must be an object/,
    );
  // 16 blocks of 64 KiB each.
  const small = Pager.budget(MIB - 1);
  await assert.rejects(async () => Pager.open({ source, resident: small }), /resident must be/);
  const resident = Pager.budget(2 * MIB);
  await withPagers([{ resident }, { resident }], async () => {
    await assert.rejects(
      Pager.open({ source, resident }),
      /resident must be a budget of 3145728 bytes or more: each of its 3 pagers needs 16 blocks/,
    );
  });
  // Nothing of the pager that was refused is left in it.
  await withPagers([{ resident }, { resident }], async () => {});
});

test('a pager is refused if nothing of the budget is freed', async () => {
  needKernel();
  const resident = Pager.budget(2 * MIB);
  await withPagers([{ resident }], async ([pager]) => {
    await pager?.prefetch({ length: 2 * MIB });
    await pager?.withPinned({ length: MIB }, async () => {
      const source = { size: MIB, read: (offset: number, into: Uint8Array) => void fillBytes(into, offset) };
      await assert.rejects(Pager.open({ source, resident }), /could not free 16 blocks in 10 s/);
    });
  });
}, 60_000);

test.run();
