// System calls that put bytes into memory without a processor, O_DIRECT and io_uring, on memory that a pager has pinned.

import { strict as assert } from 'node:assert';
import { closeSync, constants, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { libc } from '../../shim/libc.js';
import { fileSource, type Pager } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { leaveOut, suite } from '../support/harness.js';
import { compileLibrary } from '../support/real-kernel.js';
import { wrongByte } from './support/pager-source.js';
import { dataOf, KIB, MIB, type PagerUser, withPager } from './support/pager-tools.js';

const test = suite('pager/direct');

const { O_RDWR, O_CREAT, O_DIRECT } = constants;
const SIZE = 4 * MIB;
const PART = { offset: MIB + 64 * KIB, length: 256 * KIB };
const FILL = 0x6b;
const ENOSYS = -38;
const EFAULT = -14;

/** Reads or writes all bytes at the start of a file: how many it were, or the code of an error. */
type Transfer = (write: boolean, fd: number, bytes: Uint8Array) => number | string;

const directly: Transfer = (write, fd, bytes) => {
  try {
    return write ? writeSync(fd, bytes, 0, bytes.length, 0) : readSync(fd, bytes, 0, bytes.length, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code as string;
  }
};

/** The ways of io-uring.c. */
const WAYS = ['as usual', 'with registered memory', "by the kernel's thread"] as const;

let compiled: ((...args: unknown[]) => number) | undefined;

/** @throws Skip if io_uring cannot be used here */
function byRing(way: (typeof WAYS)[number]): Transfer {
  const { koffi } = libc();
  compiled ??= koffi
    .load(compileLibrary('pager/support/io-uring.c'))
    .func('int uring_transfer(int, int, int, uint64_t, uint32_t, uint64_t)') as unknown as typeof compiled;
  return (write, fd, bytes) => {
    const done = compiled?.(write ? 1 : 0, WAYS.indexOf(way), fd, koffi.address(bytes), bytes.length, 0);
    if (done === ENOSYS) leaveOut('io_uring cannot be used here');
    return done === EFAULT ? 'EFAULT' : (done ?? 0);
  };
}

interface Scene {
  pager: Pager;
  user: PagerUser;
  /** A file of FILL bytes, and one to write to, opened with O_DIRECT. */
  from: number;
  to: number;
  toPath: string;
  dataPath: string;
}

async function withScene(
  userModeOnly: boolean | 'auto',
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  needKernel();
  await inDirectory(async (folder) => {
    const [dataPath, fromPath, toPath] = ['data', 'from', 'to'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    writeFileSync(dataPath, dataOf(SIZE));
    writeFileSync(fromPath, Buffer.alloc(PART.length, FILL));
    const fds: number[] = [];
    try {
      try {
        for (const path of [fromPath, toPath]) fds.push(openSync(path, O_RDWR | O_CREAT | O_DIRECT));
      } catch (error) {
        leaveOut(`this file system has no O_DIRECT: ${(error as Error).message}`);
      }
      const [from, to] = fds as [number, number];
      const options = { source: fileSource(dataPath), resident: MIB, writable: true, userModeOnly };
      await withPager({ ...options, readAhead: 0 }, 1, async (pager, user) => {
        await body({ pager, user: user as PagerUser, from, to, toPath, dataPath });
      });
    } finally {
      for (const fd of fds) closeSync(fd);
    }
  });
}

/**
 * Pinned memory takes and gives the right bytes, while other memory is evicted, and what it took is written back. `writes`:
 * whether memory must be writable even if it is only read, as it must to be registered with io_uring.
 */
async function pinned(transfer: Transfer, userModeOnly: boolean | 'auto', writes = false): Promise<void> {
  await withScene(userModeOnly, async ({ pager, user, from, to, toPath, dataPath }) => {
    await pager.withPinned(
      PART,
      async (bytes) => {
        const others = user.wrong(2 * MIB, 2 * MIB);
        assert.equal(transfer(true, to, bytes), PART.length);
        assert.equal(await others, -1);
        assert.equal(wrongByte(readFileSync(toPath), PART.offset), -1);
      },
      { write: writes },
    );
    await pager.evict();
    await pager.withPinned(
      PART,
      async (bytes) => {
        const others = user.wrong(2 * MIB, 2 * MIB);
        assert.equal(transfer(false, from, bytes), PART.length);
        assert.equal(await others, -1);
      },
      { write: true },
    );
    // Evicted, and read again.
    assert.equal(await user.wrong(2 * MIB, 2 * MIB), -1);
    await pager.evict();
    assert.ok((await user.bytes(PART.offset, PART.length)).every((byte) => byte === FILL));
    assert.equal(await user.wrong(0, PART.offset), -1);
    await pager.flush();
    const file = readFileSync(dataPath);
    assert.ok(file.subarray(PART.offset, PART.offset + PART.length).every((byte) => byte === FILL));
    const rest = PART.offset + PART.length;
    assert.equal(wrongByte(file.subarray(0, PART.offset), 0), -1);
    assert.equal(wrongByte(file.subarray(rest), rest), -1);
  });
}

/** Without privilege and without a pin, a call fails and changes nothing. */
async function unpinned(transfer: Transfer): Promise<void> {
  await withScene(true, async ({ pager, user, from, to, toPath }) => {
    const bytes = pager.view(PART.offset, PART.length);
    assert.equal(transfer(true, to, bytes), 'EFAULT');
    assert.equal(readFileSync(toPath).length, 0);
    assert.equal(transfer(false, from, bytes), 'EFAULT');
    assert.equal(await user.wrong(0, SIZE), -1);
  });
}

for (const userModeOnly of ['auto', true] as const) {
  const how = userModeOnly === true ? 'user mode only' : 'as privileged as it can be';
  test(`O_DIRECT on pinned memory, ${how}: the bytes are right`, () => pinned(directly, userModeOnly));
  for (const way of WAYS) {
    test(`io_uring ${way} on pinned memory, ${how}: the bytes are right`, () =>
      pinned(byRing(way), userModeOnly, way === 'with registered memory'));
  }
}

test('O_DIRECT without a pin, user mode only: EFAULT, and nothing is changed', () => unpinned(directly));
for (const way of WAYS) {
  test(`io_uring ${way} without a pin, user mode only: EFAULT, and nothing is changed`, () =>
    unpinned(byRing(way)));
}

test.run();
