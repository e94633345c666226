// The thread that checks chunks: what it says of right and damaged ones, in which order, and what happens without it.

import { strict as assert } from 'node:assert';
import { closeSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ChunkChecker } from '../../src/serve/chunk-checker.js';
import { openCompressor } from '../../src/store/compression.js';
import { idOf } from '../../src/store/index.js';
import { startWith } from '../../src/workers/launcher.js';
import { BUNDLED, inDirectory } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';

const test = suite('serve/chunk-checker');

const BYTES = 64 * 1024;
const DIGEST = 'sha512-256';
const never = (): boolean => false;

async function withChecker(body: (checker: ChunkChecker, frame: Uint8Array, plain: Buffer) => Promise<void>) {
  const compressor = openCompressor() ?? skip('there is no zstd here');
  const plain = Buffer.alloc(BYTES, 'the bytes of a chunk');
  const frame = await compressor.compressLater(plain, 3);
  compressor.close();
  const checker = await ChunkChecker.open();
  try {
    await body(checker, frame, plain);
  } finally {
    await checker.close();
  }
}

async function checksAll(checker: ChunkChecker, frame: Uint8Array, plain: Buffer): Promise<void> {
  const bytes = checker.buffer(BYTES);
  const into = (): Uint8Array => bytes;
  const id = idOf(plain, DIGEST);
  const check = checker.frames(never);
  assert.equal(await check(frame, into, DIGEST, id), undefined);
  assert.ok(plain.equals(bytes));
  assert.match((await check(frame, into, DIGEST, idOf(frame, DIGEST))) ?? '', /another hash/);
  assert.match((await check(frame.subarray(1), into, DIGEST, id)) ?? '', /no zstd frame/);
  assert.match((await check(frame.subarray(0, 9), into, DIGEST, id)) ?? '', /cannot be decompressed/);
  await inDirectory(async (directory) => {
    const path = join(directory, 'chunk');
    for (const [file, whole] of [
      [plain, true],
      [plain.subarray(1), false],
      [Buffer.alloc(BYTES), false],
    ] as const) {
      writeFileSync(path, file);
      const fd = openSync(path, 'r');
      bytes.fill(0);
      assert.equal((await checker.file(fd, into, DIGEST, id, never)) === undefined, whole);
      assert.equal(plain.equals(bytes), whole);
      closeSync(fd);
    }
  });
  checker.release(bytes);
}

test('right and damaged chunks, from a store and from the cache', () => withChecker(checksAll));

test('what a guest waits for comes before what was asked for earlier', () =>
  withChecker(async (checker, frame, plain) => {
    const order: number[] = [];
    const id = idOf(plain, DIGEST);
    const all = Array.from({ length: 12 }, async (_, number) => {
      await checker.frames(() => number === 9)(frame, () => checker.buffer(BYTES), DIGEST, id);
      order.push(number);
    });
    await Promise.all(all);
    // Two were given to the thread before.
    assert.deepEqual(order, [0, 1, 9, 2, 3, 4, 5, 6, 7, 8, 10, 11]);
  }));

test('if the thread ends, chunks are checked all the same', async () => {
  startWith({ code: '' });
  try {
    await withChecker(checksAll);
  } finally {
    startWith(BUNDLED);
  }
});

test.run();
