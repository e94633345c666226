// Checkpoint files that are damaged, half-written, open in two trackers, or not on the disk yet: each is recognized,
// nothing is truncated without a warning, and the error says which checkpoints can still be restored.

import { createHash } from 'node:crypto';
import { appendFileSync, copyFileSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import * as assert from 'uvu/assert';
import { closeDescriptor, openLocked } from '../../shim/descriptors.js';
import { type CheckpointError, DirtyTracker } from '../../src/dirty/index.js';
import { Mapping } from '../../src/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernel, P } from '../support/real-kernel.js';

const test = suite('dirty/damage');

const PAGES = 4;
const HEADER_BYTES = 32;

async function errorOf(action: () => Promise<unknown>): Promise<CheckpointError> {
  try {
    await action();
  } catch (error) {
    return error as CheckpointError;
  }
  throw new Error('nothing failed');
}

/** Runs a body with memory, a tracker and a file of `count` checkpoints, each of which fills another page. */
async function withFile(
  count: number,
  body: (it: {
    memory: Mapping;
    tracker: DirtyTracker;
    file: string;
    /** The offset at which each checkpoint begins, then the end of the file. */
    offsets: number[];
    /** The memory at each checkpoint. */
    kept: Buffer[];
  }) => Promise<void>,
): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const file = join(directory, 'file');
    const memory = Mapping.anonymous(PAGES * P);
    const tracker = await DirtyTracker.open(memory);
    const offsets = [HEADER_BYTES];
    const kept: Buffer[] = [];
    try {
      for (let index = 0; index < count; index++) {
        const page = index % PAGES;
        memory.bytes.fill(index + 1, page * P, (page + 1) * P);
        await tracker.checkpoint(file, { sync: false });
        offsets.push(statSync(file).size);
        kept.push(Buffer.from(memory.bytes));
      }
      await body({ memory, tracker, file, offsets, kept });
    } finally {
      tracker.close();
      memory.close();
    }
  });
}

/** The warnings of the process while a body runs. */
async function warnings(body: () => Promise<void>): Promise<string[]> {
  const messages: string[] = [];
  const listen = ({ message }: Error): void => void messages.push(message);
  process.on('warning', listen);
  try {
    await body();
    // Warnings are emitted in the next turn of the event loop.
    await new Promise((resolve) => setImmediate(resolve));
  } finally {
    process.off('warning', listen);
  }
  return messages;
}

function flip(file: string, at: number): void {
  const bytes = readFileSync(file);
  bytes[at] = (bytes[at] as number) ^ 0x10;
  writeFileSync(file, bytes);
}

/** Places in each record of a checkpoint, and how the error describes damage there. */
const PLACES: readonly [what: string, at: (from: number, to: number) => number, message: RegExp][] = [
  ['begin record', (from) => from + 9, /the begin record at byte/],
  ['first word of the begin record', (from) => from, /the begin record at byte/],
  ['head of a run', (from) => from + 40 + 1, /the run of pages at byte/],
  ['first page of a run', (from) => from + 40 + 14, /the run of pages at byte/],
  ["page's bytes", (from) => from + 40 + 24 + 77, /do not fit their digest/],
  ['first word of the commit record', (_, to) => to - 48, /the commit record at byte/],
  ['number in the commit record', (_, to) => to - 44, /the commit record at byte/],
  ['length in the commit record', (_, to) => to - 40, /the commit record at byte/],
  ['digest', (_, to) => to - 1, /do not fit their digest/],
];

for (const [what, place, expected] of PLACES) {
  for (const damaged of [0, 1, 3]) {
    test(`damage to the ${what} of checkpoint ${damaged} of 4 is reported, with what can be restored; nothing is lost`, async () => {
      await withFile(4, async ({ memory, tracker, file, offsets, kept }) => {
        flip(file, place(offsets[damaged] as number, offsets[damaged + 1] as number));
        const before = readFileSync(file);
        memory.bytes.fill(99);
        const error = await errorOf(() => tracker.restore(file));
        assert.is(error.code, 'ERR_UFFD_CHECKPOINT');
        assert.match(error.message, new RegExp(`checkpoint ${damaged}\\b.* is damaged`));
        assert.match(error.message, expected);
        assert.match(error.message, 'Nothing was restored: the memory is as it was.');
        assert.ok(memory.bytes.every((byte) => byte === 99));
        assert.equal(
          error.checkpoints.map(({ index }) => index),
          Array.from({ length: damaged }, (_, index) => index),
        );
        if (damaged === 0) assert.match(error.message, /No checkpoint of the file can be restored/);
        else {
          const newest = damaged - 1;
          assert.match(error.message, `restore('${file}', { checkpoint: ${newest} })`);
          await tracker.restore(file, { checkpoint: newest });
          assert.is(Buffer.compare(memory.bytes, kept[newest] as Buffer), 0, 'the way out is one');
        }
        // Writers and lists do not check the digest, so this damage does not affect them.
        if (/digest/.test(expected.source)) return;
        const list = await errorOf(() => DirtyTracker.checkpoints(file));
        assert.is(list.checkpoints.length, damaged);
        const refused = await errorOf(() => tracker.checkpoint(file));
        assert.match(refused.message, new RegExp(`checkpoint ${damaged} is damaged`));
        assert.match(refused.message, `truncate -s ${offsets[damaged]} ${file}`);
        assert.is(Buffer.compare(readFileSync(file), before), 0, 'the writer has left it alone');
        assert.is((await tracker.checkpoint(`${file}2`)).pages, PAGES, 'another file is a way out');
      });
    });
  }
}

test('an unfinished checkpoint at the end is cut off by the next writer, which says so', async () => {
  await withFile(2, async ({ tracker, file, offsets }) => {
    const whole = readFileSync(file);
    const [, second = 0, end = 0] = offsets;
    for (const length of [second + 1, second + 40, second + 64, second + 2000, end - 48, end - 1]) {
      writeFileSync(file, whole.subarray(0, length));
      const messages = await warnings(async () => {
        assert.is((await DirtyTracker.checkpoints(file)).length, 1, `${length} bytes`);
        assert.is((await tracker.restore(file)).index, 0);
        await tracker.checkpoint(file);
      });
      assert.is(messages.length, 1, `${messages}`);
      assert.match(
        messages[0] as string,
        `the last ${length - second} bytes are of a checkpoint that was not finished`,
      );
    }
    const messages = await warnings(async () => void (await tracker.checkpoint(file)));
    assert.equal(messages, [], 'a sound file causes no warning');
  });
});

test('what a crash of the machine leaves is unfinished, not damaged: zeros for what was not written', async () => {
  // With 9 checkpoints, a sector border lies in the last commit record, so either part of it can be missing alone.
  await withFile(9, async ({ tracker, file, offsets }) => {
    const whole = readFileSync(file);
    const [last = 0, end = 0] = offsets.slice(-2);
    const border = Math.floor(end / 512) * 512;
    assert.ok(border > end - 48 && border < end);
    const zeros: [number, number][] = [
      [last, end],
      [end - 48, end],
      [end - 48, border],
      [border, end],
    ];
    for (const [from, to] of zeros) {
      writeFileSync(file, Buffer.from(whole).fill(0, from, to));
      const messages = await warnings(async () => {
        assert.is((await DirtyTracker.checkpoints(file)).length, 8, `${from} to ${to}`);
        await tracker.restore(file);
        await tracker.checkpoint(file);
      });
      assert.is(messages.length, 1);
    }
  });
});

test('only the newest is named as a way out whose whole chain is sound, a later tree included', async () => {
  await withFile(3, async ({ memory, tracker, file, offsets, kept }) => {
    await tracker.restore(file, { checkpoint: 0 });
    memory.bytes[3 * P] = 44;
    const fork = await tracker.checkpoint(file);
    assert.is(fork.parent, 0);
    const forked = Buffer.from(memory.bytes);
    // Damage a page of checkpoint 1. Checkpoint 2 builds on it, checkpoint 3 does not.
    flip(file, (offsets[1] as number) + 40 + 24 + 5);
    const error = await errorOf(() => tracker.restore(file, { checkpoint: 2 }));
    assert.match(error.message, /checkpoint 1, which checkpoint 2 builds on, is damaged/);
    assert.match(error.message, 'The newest that can be restored is checkpoint 3');
    await tracker.restore(file);
    assert.is(Buffer.compare(memory.bytes, forked), 0);
    await tracker.restore(file, { checkpoint: 0 });
    assert.is(Buffer.compare(memory.bytes, kept[0] as Buffer), 0);
  });
});

// ---- files that no writer makes ---------------------------------------------------------------------------

const sha256 = (...parts: Buffer[]): Buffer => createHash('sha256').update(Buffer.concat(parts)).digest();

interface Made {
  index: number;
  parent?: number;
  pages?: number;
  /** The length that the commit record states; default: the correct length. */
  length?: number;
}

/** A checkpoint whose page 0 is 0x21s and all others are zeros, with correct marks and a correct digest. */
function made({ index, parent = 0xffffffff, pages = PAGES, length }: Made): Buffer {
  const begin = Buffer.alloc(40);
  begin.writeUInt32LE(0x4e474542, 0);
  begin.writeUInt32LE(index, 4);
  begin.writeUInt32LE(parent, 8);
  begin.writeBigUInt64LE(BigInt(pages), 24);
  sha256(begin.subarray(0, 32)).copy(begin, 32, 0, 8);
  const data = Buffer.alloc(24 + P, 0x21);
  data.fill(0, 0, 24);
  data.writeUInt32LE(1, 0);
  data.writeUInt32LE(1, 4);
  const zeros = Buffer.alloc(24);
  zeros.writeUInt32LE(2, 0);
  zeros.writeUInt32LE(PAGES - 1, 4);
  zeros.writeBigUInt64LE(1n, 8);
  const done = Buffer.alloc(48);
  done.writeUInt32LE(0x454e4f44, 0);
  done.writeUInt32LE(index, 4);
  done.writeBigUInt64LE(BigInt(length ?? begin.length + data.length + zeros.length), 8);
  sha256(begin, data, zeros, done.subarray(0, 16)).copy(done, 16);
  return Buffer.concat([begin, data, zeros, done]);
}

/** Runs a body with a file that holds a tracker's checkpoint, followed by a handmade one. */
async function withMade(
  what: Made,
  body: (tracker: DirtyTracker, file: string, memory: Mapping) => Promise<void>,
) {
  await withFile(1, async ({ tracker, file, memory }) => {
    appendFileSync(file, made(what));
    await body(tracker, file, memory);
  });
}

test('one that is as a tracker makes it is taken', async () => {
  await withMade({ index: 1 }, async (tracker, file, memory) => {
    assert.is((await tracker.restore(file)).index, 1);
    assert.equal([memory.bytes[0], memory.bytes[P]], [0x21, 0]);
  });
});

for (const [what, wrong, record] of [
  ['builds on itself', { index: 1, parent: 1 }, 'begin record'],
  ['builds on a later one', { index: 1, parent: 7 }, 'begin record'],
  ['has the number of another', { index: 0 }, 'begin record'],
  ['has fewer pages than it says', { index: 1, pages: PAGES + 1 }, 'commit record'],
  ['has more pages than it says', { index: 1, pages: PAGES - 1 }, 'commit record'],
  ['has another length than it says', { index: 1, length: 8 }, 'commit record'],
] as const) {
  test(`one that ${what} is damaged, whatever its digest says`, async () => {
    await withMade(wrong, async (tracker, file, memory) => {
      memory.bytes.fill(9);
      const before = readFileSync(file);
      for (const action of [
        () => tracker.restore(file),
        () => tracker.restore(file, { checkpoint: 1 }),
        () => tracker.checkpoint(file),
        () => DirtyTracker.checkpoints(file),
      ]) {
        const error = await errorOf(action);
        assert.is(error.code, 'ERR_UFFD_CHECKPOINT', error.message);
        assert.match(error.message, new RegExp(`checkpoint 1 is damaged: the ${record}`));
        assert.ok(memory.bytes.every((byte) => byte === 9));
      }
      assert.is(Buffer.compare(readFileSync(file), before), 0);
      await tracker.restore(file, { checkpoint: 0 });
    });
  }, 20_000);
}

// ---- writers ----------------------------------------------------------------------------------------------

test("a tracker's first checkpoint in another's file holds all pages, and brings its own memory back", async () => {
  await withFile(2, async ({ memory, tracker, file, kept }) => {
    const other = Mapping.anonymous(PAGES * P);
    for (let page = 0; page < PAGES; page++) other.bytes[page * P + 1] = 0x70 + page;
    const second = await DirtyTracker.open(other);
    const theirs = Buffer.from(other.bytes);
    const { index, parent, pages } = await second.checkpoint(file);
    assert.equal([index, parent, pages], [2, undefined, PAGES]);
    memory.bytes[2 * P] = 9;
    const mine = Buffer.from(memory.bytes);
    // The first tracker still builds on its own last checkpoint.
    assert.equal(
      [await tracker.checkpoint(file)].map((one) => [one.index, one.parent, one.pages]),
      [[3, 1, 1]],
    );
    for (const [checkpoint, content] of [kept[0], kept[1], theirs, mine].entries()) {
      other.bytes.fill(3);
      await second.restore(file, { checkpoint });
      assert.is(Buffer.compare(other.bytes, content as Buffer), 0, `checkpoint ${checkpoint}`);
    }
    second.close();
    other.close();
  });
});

test('one writer at a time, of all processes: the other is refused, and both checkpoints are whole in the end', async () => {
  await withFile(1, async ({ tracker, file }) => {
    const other = Mapping.anonymous(PAGES * P);
    const second = await DirtyTracker.open(other);
    const both = await Promise.allSettled([tracker.checkpoint(file), second.checkpoint(file)]);
    const refused = both
      .filter((one) => one.status === 'rejected')
      .map((one) => one.reason as CheckpointError);
    for (const error of refused) {
      assert.is(error.code, 'ERR_UFFD_CHECKPOINT');
      assert.match(error.message, /is being written by another tracker.*try again/);
    }
    assert.is((await DirtyTracker.checkpoints(file)).length, 3 - refused.length);
    // Lock the file as another process would.
    const lock = openLocked(file);
    assert.ok(lock >= 0);
    assert.match(
      (await errorOf(() => tracker.checkpoint(file))).message,
      /another tracker, of this process or/,
    );
    assert.is((await tracker.restore(file)).index, 2 - refused.length, 'reading needs no lock');
    closeDescriptor(lock);
    await second.checkpoint(file);
    await tracker.restore(file);
    second.close();
    other.close();
  });
});

/** The calls of `sync` and `datasync` while a body runs: the file's path, and its bytes at that moment. */
async function observed(
  body: () => Promise<void>,
): Promise<{ call: 'sync' | 'datasync'; path: string; bytes: Buffer | undefined }[]> {
  const probe = await open('/', 'r');
  const prototype = Object.getPrototypeOf(probe) as FileHandle;
  await probe.close();
  const seen: { call: 'sync' | 'datasync'; path: string; bytes: Buffer | undefined }[] = [];
  const original = { sync: prototype.sync, datasync: prototype.datasync };
  for (const call of ['sync', 'datasync'] as const) {
    prototype[call] = function (this: FileHandle) {
      const path = readlinkSync(`/proc/self/fd/${this.fd}`);
      seen.push({ call, path, bytes: statSync(path).isFile() ? readFileSync(path) : undefined });
      return original[call].call(this);
    };
  }
  try {
    await body();
  } finally {
    Object.assign(prototype, original);
  }
  return seen;
}

test('the folder and the pages are on the disk before the commit record is, and that one before the call returns', async () => {
  await withFile(0, async ({ tracker, file }) => {
    for (let index = 0; index < 2; index++) {
      const seen = await observed(async () => void (await tracker.checkpoint(file)));
      const end = statSync(file).size;
      assert.equal(
        seen.map(({ call, path }) => [call, path]),
        [
          ['sync', dirname(file)],
          ['datasync', file],
          ['datasync', file],
        ],
      );
      assert.is(seen[1]?.bytes?.length, end - 48, 'everything but the commit record');
      assert.is(seen[2]?.bytes?.length, end, 'and that one as well');
    }
    assert.equal(await observed(async () => void (await tracker.checkpoint(file, { sync: false }))), []);
  });
});

test('what is no file is refused before anything is written', async () => {
  await withFile(1, async ({ tracker, file }) => {
    assert.is((await errorOf(() => tracker.checkpoint('/dev/null'))).code as string, 'ERR_UFFD_CHECKPOINT');
    assert.is((await errorOf(() => tracker.checkpoint(dirname(file)))).code as string, 'EISDIR');
    assert.is((await errorOf(() => tracker.checkpoint(join(file, 'x')))).code as string, 'ENOTDIR');
    copyFileSync(file, `${file}2`);
    assert.is((await tracker.checkpoint(`${file}2`)).parent, undefined, 'a copy is another file');
  });
});

test.run();
