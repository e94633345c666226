// Checkpoints: each restores exactly the memory that it saved, whatever was written, restored or torn before. A damaged
// file, or a file that is no checkpoint file, is a clear error before anything is written.

import { appendFileSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, suite } from '../support/harness.js';
import { needKernel, P } from '../support/real-kernel.js';
import { KINDS, MODES } from './support/tracked-memory.js';

const test = suite('dirty/checkpoint');

/** Bytes of the records that every checkpoint has beside its pages: begin and commit. */
const LEAST_BYTES = 40 + 48;

async function withTracker(
  pages: number,
  mode: 'async' | 'sync' | 'auto',
  body: (memory: Mapping, tracker: DirtyTracker, file: string) => Promise<void>,
): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const memory = Mapping.anonymous(pages * P);
    const tracker = await DirtyTracker.open(memory, { mode });
    try {
      await body(memory, tracker, join(directory, 'checkpoints'));
    } finally {
      tracker.close();
      memory.close();
    }
  });
}

/** The error of an action that must fail. */
async function refusal(action: () => Promise<unknown>): Promise<Error & { code?: string }> {
  try {
    await action();
  } catch (error) {
    return error as Error;
  }
  throw new Error('it was not refused');
}

for (const mode of MODES) {
  for (const kind of KINDS) {
    test(`${kind.name}, ${mode}: the first holds everything, the others what was written; any comes back`, async () => {
      needKernel();
      const pages = 12;
      await kind.needs(pages, () =>
        inDirectory(async (directory) => {
          const file = join(directory, 'checkpoints');
          const memory = kind.make(pages);
          const tracker = await DirtyTracker.open(memory, { mode });
          const size = tracker.pageSize;
          const kept: Buffer[] = [];
          try {
            for (const written of [[0, 1, 7], [3], [], [1, 2, 3], [11]]) {
              for (const page of written) memory.bytes.fill(kept.length + 1, page * size, page * size + 100);
              const checkpoint = await tracker.checkpoint(file, { sync: false });
              assert.is(checkpoint.index, kept.length);
              assert.is(checkpoint.parent, kept.length === 0 ? undefined : kept.length - 1);
              assert.is(checkpoint.pages, kept.length === 0 ? pages : written.length);
              kept.push(Buffer.from(memory.bytes));
            }
            const listed = await DirtyTracker.checkpoints(file);
            assert.equal(
              listed.map(({ index, pages: count }) => [index, count]),
              [
                [0, pages],
                [1, 1],
                [2, 0],
                [3, 3],
                [4, 1],
              ],
            );
            // Zero pages take no room in the file.
            assert.ok((listed[0]?.bytes as number) < 4 * size);
            for (const checkpoint of [2, 4, 0, 3, 1]) {
              memory.bytes[5 * size] = 99;
              await tracker.restore(file, { checkpoint });
              assert.is(
                Buffer.compare(memory.bytes, kept[checkpoint] as Buffer),
                0,
                `checkpoint ${checkpoint}`,
              );
            }
          } finally {
            tracker.close();
            memory.close();
          }
        }),
      );
    });
  }
}

test('what is restored is what the next builds on: a tree, every node of which comes back', async () => {
  await withTracker(16, 'auto', async (memory, tracker, file) => {
    const random = generator(seed());
    const kept: Buffer[] = [];
    for (let round = 0; round < 60; round++) {
      if (kept.length > 0 && random(3) === 0) {
        const back = random(kept.length);
        await tracker.restore(file, { checkpoint: back });
        assert.is(Buffer.compare(memory.bytes, kept[back] as Buffer), 0);
      }
      for (let n = random(5); n > 0; n--) memory.bytes[random(16 * P)] = random(4) === 0 ? 0 : random(256);
      const { index, pages } = await tracker.checkpoint(file, { sync: false });
      assert.is(index, kept.length);
      assert.ok(index === 0 || pages < 6, 'incremental');
      kept.push(Buffer.from(memory.bytes));
    }
    for (const [checkpoint, content] of kept.entries()) {
      await tracker.restore(file, { checkpoint });
      assert.is(Buffer.compare(memory.bytes, content), 0);
    }
    const parents = (await DirtyTracker.checkpoints(file)).map(({ parent }) => parent);
    assert.ok(new Set(parents).size < parents.length, 'some have the same parent');
  });
});

test('another tracker, another file, a file that was replaced: the next holds everything', async () => {
  await withTracker(4, 'auto', async (memory, tracker, file) => {
    memory.bytes[0] = 1;
    await tracker.checkpoint(file);
    assert.is((await tracker.checkpoint(`${file}2`)).parent, undefined);
    assert.is((await tracker.checkpoint(`${file}2`)).parent, 0);
    assert.is((await tracker.checkpoint(file)).parent, undefined, 'the last one was elsewhere');
    writeFileSync(file, readFileSync(`${file}2`));
    assert.is((await tracker.checkpoint(file)).parent, undefined, 'these are others');
    const other = await DirtyTracker.open(Mapping.anonymous(4 * P));
    assert.is((await other.checkpoint(file)).parent, undefined);
    await other.restore(file, { checkpoint: 0 });
    assert.is((await other.checkpoint(file)).parent, 0);
    other.close();
  });
});

test('collect and checkpoint take nothing from each other', async () => {
  await withTracker(4, 'auto', async (memory, tracker, file) => {
    await tracker.checkpoint(file);
    memory.bytes[P] = 1;
    assert.is(tracker.collect().length, 1);
    assert.is((await tracker.checkpoint(file)).pages, 1);
    memory.bytes[2 * P] = 1;
    assert.is((await tracker.checkpoint(file)).pages, 1);
    assert.is(tracker.collect().length, 1);
  });
});

test('a torn tail is not there for readers, and cut off by the next writer', async () => {
  await withTracker(4, 'auto', async (memory, tracker, file) => {
    memory.bytes.fill(1);
    await tracker.checkpoint(file);
    const whole = statSync(file).size;
    memory.bytes.fill(2);
    await tracker.checkpoint(file);
    const second = readFileSync(file);
    for (const length of [whole, whole + 1, whole + 39, whole + 64, second.length - 48, second.length - 1]) {
      writeFileSync(file, second.subarray(0, length));
      assert.is((await DirtyTracker.checkpoints(file)).length, 1, `${length} bytes`);
      await tracker.restore(file);
      assert.is(memory.bytes[5], 1);
      memory.bytes[0] = 3;
      const { index, parent } = await tracker.checkpoint(file);
      assert.equal([index, parent], [1, 0]);
      assert.is((await DirtyTracker.checkpoints(file)).length, 2);
    }
    appendFileSync(file, 'whatever');
    assert.is((await DirtyTracker.checkpoints(file)).length, 2);
  });
});

test('a small file cut anywhere, or with any byte changed: an error, or a shorter list; never wrong memory', async () => {
  await withTracker(2, 'auto', async (memory, tracker, file) => {
    memory.bytes.fill(7, 0, 16);
    await tracker.checkpoint(file, { sync: false });
    const first = Buffer.from(memory.bytes);
    memory.bytes.fill(8, P, P + 16);
    await tracker.checkpoint(file, { sync: false });
    const second = Buffer.from(memory.bytes);
    const sound = readFileSync(file);
    const check = async (bytes: Buffer, what: string): Promise<void> => {
      writeFileSync(file, bytes);
      memory.bytes.fill(1);
      const before = Buffer.from(memory.bytes);
      try {
        const { index } = await tracker.restore(file);
        const expected = index === 0 ? first : second;
        assert.is(Buffer.compare(memory.bytes, expected), 0, `${what}: checkpoint ${index}`);
      } catch (error) {
        assert.is((error as { code?: string }).code, 'ERR_UFFD_CHECKPOINT', `${what}: ${error}`);
        assert.is(Buffer.compare(memory.bytes, before), 0, `${what}: refused, and nothing written`);
      }
    };
    // Change only one in 97 of the zero bytes, because the same digest covers all of them.
    const flipped = [...sound.keys()].filter((at) => sound[at] !== 0 || at % 97 === 0);
    assert.ok(flipped.length > 100);
    for (const at of flipped) {
      const changed = Buffer.from(sound);
      changed[at] = (changed[at] as number) ^ (1 << (at % 8));
      await check(changed, `byte ${at}`);
      await check(sound.subarray(0, at), `${at} bytes`);
    }
  });
}, 120_000);

test('what is no such file, or is of other memory, is refused and left alone', async () => {
  await withTracker(4, 'auto', async (_memory, tracker, file) => {
    writeFileSync(file, 'a letter to a friend, and nothing else than that');
    assert.match((await refusal(() => tracker.checkpoint(file))).message, /is no file of checkpoints/);
    assert.is(readFileSync(file, 'utf8').length, 48);
    assert.match((await refusal(() => tracker.restore(file))).message, /is no file of checkpoints/);
    const small = await DirtyTracker.open(Mapping.anonymous(P));
    await small.checkpoint(`${file}2`);
    small.close();
    const { message } = await refusal(() => tracker.checkpoint(`${file}2`));
    assert.match(message, /is of 4096 bytes in pages of 4096; this memory has 16384/);
    assert.is((await refusal(() => tracker.restore('/nowhere'))).code, 'ENOENT');
    assert.is((await refusal(() => DirtyTracker.checkpoints('/'))).code, 'EISDIR');
    writeFileSync(file, '');
    assert.match((await refusal(() => tracker.restore(file))).message, /holds no whole checkpoint/);
    await tracker.checkpoint(file);
    assert.is((await refusal(() => tracker.restore(file, { checkpoint: 1 }))).code, 'ERR_OUT_OF_RANGE');
    truncateSync(file, 31);
    assert.match((await refusal(() => tracker.checkpoint(file))).message, /is no file of checkpoints/);
  });
});

test('one at a time: a second call meanwhile, or a close, is refused', async () => {
  await withTracker(4, 'auto', async (_memory, tracker, file) => {
    const first = tracker.checkpoint(file);
    assert.is((await refusal(() => tracker.checkpoint(file))).code, 'ERR_INVALID_STATE');
    assert.throws(() => tracker.close(), /a checkpoint is under way/);
    assert.is((await first).bytes >= LEAST_BYTES, true);
  });
});

test.run();
