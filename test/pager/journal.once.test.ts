// Files that are written through a journal, and journals that were left behind: whole, incomplete, damaged or hostile.

import { execFileSync } from 'node:child_process';
import {
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import * as assert from 'uvu/assert';
import { recover } from '../../src/pager/journal.js';
import { JournaledFile } from '../../src/pager/journal-file.js';
import { encodeHeader, encodeRecord, HEADER_BYTES, RECORD_BYTES } from '../../src/pager/journal-format.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, leaveOut, seed, suite } from '../support/harness.js';
import { withLoopDevice } from '../support/loop-device.js';
import { batchOf, blockOf, freshFile, partsOf, versionOf } from './support/journal-blocks.js';

const test = suite('pager/journal');

const BLOCK = 512;
const BLOCKS = 6;
/** The last block is shorter. */
const SIZE = (BLOCKS - 1) * BLOCK + 100;
const SALT = Buffer.from('12345678', 'latin1');
const NOTHING = { recovered: 0, bytes: 0, ignoredBytes: 0 };

function errorOf(action: () => unknown): Error & { code?: string } {
  try {
    action();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing failed');
}

/** A target of version 0, and the path of its journal. */
async function withTarget(body: (file: string, journal: string, folder: string) => void): Promise<void> {
  await inDirectory((folder) => inFolder(folder, body));
}

/** As `withTarget`, in memory if there is a folder for that: for hundreds of recoveries, which flush to the disk. */
async function withTargetInMemory(body: (file: string, journal: string) => void): Promise<void> {
  if (!existsSync('/dev/shm')) return withTarget(body);
  const folder = mkdtempSync('/dev/shm/uffd-journal-');
  try {
    inFolder(folder, body);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function inFolder(folder: string, body: (file: string, journal: string, folder: string) => void): void {
  const file = join(folder, 'target');
  writeFileSync(file, freshFile(BLOCKS, BLOCK, 100));
  body(file, `${file}.uffd-journal`, folder);
}

/** The journal of one batch that writes version 1 of some blocks, and where each record ends. */
function journalOf(
  blocks: readonly number[],
  { size = SIZE, blockSize = BLOCK, shift = 0 } = {},
): { bytes: Buffer; ends: number[] } {
  const pieces = [encodeHeader({ blockSize, size, salt: SALT, disk: undefined })];
  const ends: number[] = [];
  for (const { offset, bytes } of partsOf(blocks, 1, BLOCK, SIZE)) {
    const record = { offset: offset + shift, length: bytes.length, checksum: crc32(bytes), batch: 1n };
    pieces.push(encodeRecord(record, SALT), bytes);
    ends.push(pieces.reduce((sum, { length }) => sum + length, 0));
  }
  return { bytes: Buffer.concat(pieces), ends };
}

/** The version of each block; undefined: it is torn. */
function versions(file: string): (number | undefined)[] {
  const bytes = readFileSync(file);
  return Array.from({ length: BLOCKS }, (_, block) =>
    versionOf(bytes.subarray(block * BLOCK, (block + 1) * BLOCK), block),
  );
}

for (const durability of ['process', 'power'] as const) {
  test(`blocks that are written are in the file, and nothing is left when it is closed (${durability})`, async () => {
    const start = seed();
    await withTarget((file, journal) => {
      const opened = JournaledFile.open(file, { blockSize: BLOCK, durability });
      assert.equal(opened.recovery, NOTHING);
      assert.is(opened.size, SIZE);
      assert.is(statSync(journal).mode & 0o7777, 0o600);
      const expected = Array.from({ length: BLOCKS }, () => 0);
      for (let version = 1; version < 100; version++) {
        const blocks = batchOf(start, version, BLOCKS);
        opened.write(partsOf(blocks, version, BLOCK, SIZE));
        for (const block of blocks) expected[block] = version;
        assert.equal(versions(file), expected);
        assert.is(statSync(journal).size, HEADER_BYTES);
        if (version % 10 === 0) opened.sync();
      }
      opened.write([]);
      opened.close();
      opened.close();
      assert.not(existsSync(journal));
      assert.is(statSync(file).size, SIZE);
      assert.equal(recover(file), NOTHING);
      assert.is(errorOf(() => opened.sync()).code, 'ERR_INVALID_STATE');
    });
  });
}

test('several blocks can be one part, up to the shorter last one', async () => {
  await withTarget((file) => {
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' });
    const bytes = Buffer.concat(partsOf([3, 4, 5], 7, BLOCK, SIZE).map((part) => part.bytes));
    opened.write([{ offset: 3 * BLOCK, bytes }]);
    opened.close();
    assert.equal(versions(file), [0, 0, 0, 7, 7, 7]);
  });
});

test('a batch of more parts than one system call takes', async () => {
  await inDirectory((folder) => {
    const file = join(folder, 'target');
    const blocks = 3000;
    writeFileSync(file, Buffer.alloc(blocks * BLOCK));
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' });
    const numbers = Array.from({ length: blocks }, (_, block) => block);
    opened.write(partsOf(numbers, 9, BLOCK, blocks * BLOCK));
    opened.close();
    const bytes = readFileSync(file);
    for (const block of numbers)
      assert.is(versionOf(bytes.subarray(block * BLOCK, (block + 1) * BLOCK), block), 9);
  });
});

test('parts that are no whole blocks of the file are refused, and nothing is written', async () => {
  await withTarget((file) => {
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' });
    for (const [offset, length] of [
      ...[
        [1, BLOCK],
        [0, 100],
        [0, 0],
        [-BLOCK, BLOCK],
        [BLOCKS * BLOCK, BLOCK],
      ],
      ...[
        [(BLOCKS - 1) * BLOCK, BLOCK],
        [BLOCK, SIZE],
        [Number.NaN, BLOCK],
      ],
    ] as [number, number][]) {
      const good = partsOf([0], 1, BLOCK, SIZE);
      const error = errorOf(() => opened.write([...good, { offset, bytes: new Uint8Array(length) }]));
      assert.is(error.code, 'ERR_OUT_OF_RANGE', `${offset}, ${length}`);
    }
    opened.close();
    assert.equal(versions(file), [0, 0, 0, 0, 0, 0]);
  });
});

test('a second pager is refused, with the name of the file and what to do', async () => {
  await withTarget((file, _, folder) => {
    const link = join(folder, 'link');
    symlinkSync(file, link);
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' });
    for (const name of [file, link]) {
      const error = errorOf(() => JournaledFile.open(name, { blockSize: BLOCK, durability: 'process' }));
      assert.is(error.code, 'ERR_UFFD_JOURNAL');
      assert.match(error.message, `${name} is being written by another pager`);
      assert.match(error.message, 'close that pager first');
      assert.match(errorOf(() => recover(name)).message, 'close that pager first');
    }
    opened.write(partsOf([1], 3, BLOCK, SIZE));
    opened.close();
    JournaledFile.open(link, { blockSize: BLOCK, durability: 'process' }).close();
    assert.equal(versions(file), [0, 3, 0, 0, 0, 0]);
  });
});

test('a journal that was left behind is applied by the next pager, and by every name of the file', async () => {
  await withTarget((file, journal, folder) => {
    writeFileSync(journal, journalOf([1, 5]).bytes);
    const link = join(folder, 'link');
    symlinkSync(file, link);
    const opened = JournaledFile.open(link, { blockSize: 4096, durability: 'process' });
    assert.equal(opened.recovery, { recovered: 2, bytes: BLOCK + 100, ignoredBytes: 0 });
    opened.close();
    assert.equal(versions(file), [0, 1, 0, 0, 0, 1]);
    assert.not(existsSync(journal));
  });
});

test('the journal can be at another path', async () => {
  await withTarget((file, beside, folder) => {
    const journal = join(folder, 'elsewhere');
    writeFileSync(journal, journalOf([2]).bytes);
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process', journal });
    assert.is(opened.recovery.recovered, 1);
    assert.ok(existsSync(journal) && !existsSync(beside));
    opened.close();
    assert.not(existsSync(journal));
    writeFileSync(journal, journalOf([3]).bytes);
    assert.is(recover(file, { journal }).recovered, 1);
    assert.equal(versions(file), [0, 0, 1, 1, 0, 0]);
  });
});

test('a target that is torn anywhere is whole after recovery', async () => {
  await withTargetInMemory((file, journal) => {
    const fresh = readFileSync(file);
    const blocks = [1, 2, 4, 5];
    const { bytes } = journalOf(blocks);
    const parts = partsOf(blocks, 1, BLOCK, SIZE);
    const whole = Buffer.from(fresh);
    for (const part of parts) part.bytes.copy(whole, part.offset);
    const total = parts.reduce((sum, part) => sum + part.bytes.length, 0);
    for (let written = 0; written <= total; written += 31) {
      const torn = Buffer.from(fresh);
      let left = written;
      for (const part of parts) {
        part.bytes.copy(torn, part.offset, 0, left);
        left = Math.max(0, left - part.bytes.length);
      }
      writeFileSync(file, torn);
      writeFileSync(journal, bytes);
      assert.is(recover(file).recovered, parts.length);
      assert.ok(readFileSync(file).equals(whole), `torn after ${written} bytes`);
    }
  });
});

test('a journal that ends at any byte: the records before it are applied, and the rest is counted', async () => {
  await withTargetInMemory((file, journal) => {
    const fresh = readFileSync(file);
    const { bytes, ends } = journalOf([2, 5, 0]);
    for (let end = 0; end <= bytes.length; end++) {
      writeFileSync(file, fresh);
      writeFileSync(journal, bytes.subarray(0, end));
      const result = recover(file);
      const complete = ends.filter((at) => at <= end).length;
      assert.is(result.recovered, complete, `cut at ${end}`);
      const last = complete === 0 ? (end < HEADER_BYTES ? 0 : HEADER_BYTES) : (ends[complete - 1] as number);
      assert.is(result.ignoredBytes, end - last, `cut at ${end}`);
      const expected = [0, 0, 0, 0, 0, 0];
      for (const block of [2, 5, 0].slice(0, complete)) expected[block] = 1;
      assert.equal(versions(file), expected);
      assert.not(existsSync(journal));
    }
  });
});

test('a journal with any byte changed: each block is as before or as after, or the header is refused', async () => {
  await withTargetInMemory((file, journal) => {
    const fresh = readFileSync(file);
    const blocks = [2, 5, 0];
    const { bytes, ends } = journalOf(blocks);
    for (let at = 0; at < bytes.length; at++) {
      const damaged = Buffer.from(bytes);
      damaged[at] = (damaged[at] as number) ^ (1 << (at % 8));
      writeFileSync(file, fresh);
      writeFileSync(journal, damaged);
      if (at < HEADER_BYTES) {
        const error = errorOf(() => recover(file));
        assert.is(error.code, 'ERR_UFFD_JOURNAL');
        assert.match(error.message, journal);
        assert.ok(readFileSync(file).equals(fresh) && readFileSync(journal).equals(damaged), 'all is kept');
        assert.is(
          errorOf(() => JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' })).code,
          'ERR_UFFD_JOURNAL',
        );
        continue;
      }
      const index = ends.findIndex((end) => at < end);
      const inHead = at - ((ends[index - 1] as number | undefined) ?? HEADER_BYTES) < RECORD_BYTES;
      const expected = [0, 0, 0, 0, 0, 0];
      // Behind a damaged head, the next record cannot be found; behind damaged bytes it can.
      for (const [number, block] of blocks.entries())
        if (number < index || (number > index && !inHead)) expected[block] = 1;
      const result = recover(file);
      assert.equal(versions(file), expected, `byte ${at}`);
      assert.is(result.recovered, expected.filter((version) => version === 1).length);
      assert.ok(result.ignoredBytes > 0);
    }
  });
});

test('a journal of random bytes behind a good header changes nothing', async () => {
  const random = generator(seed());
  await withTargetInMemory((file, journal) => {
    const fresh = readFileSync(file);
    for (let round = 0; round < 200; round++) {
      const tail = Buffer.from(Array.from({ length: random(3000) }, () => random(256)));
      writeFileSync(journal, Buffer.concat([journalOf([]).bytes, tail]));
      assert.equal(recover(file), { recovered: 0, bytes: 0, ignoredBytes: tail.length });
      assert.ok(readFileSync(file).equals(fresh));
    }
  });
});

test('records of an older batch, or of another journal, do not count', async () => {
  await withTarget((file, journal) => {
    const record = (block: number, batch: bigint, salt: Uint8Array): Buffer => {
      const bytes = blockOf(block, 1, BLOCK);
      const head = { offset: block * BLOCK, length: BLOCK, checksum: crc32(bytes), batch };
      return Buffer.concat([encodeRecord(head, salt), bytes]);
    };
    const header = encodeHeader({ blockSize: BLOCK, size: SIZE, salt: SALT, disk: undefined });
    const remnants = [record(2, 4n, SALT), record(2, 5n, Buffer.from('87654321'))];
    for (const remnant of remnants) {
      writeFileSync(journal, Buffer.concat([header, record(1, 5n, SALT), remnant]));
      assert.equal(recover(file), { recovered: 1, bytes: BLOCK, ignoredBytes: remnant.length });
      assert.equal(versions(file), [0, 1, 0, 0, 0, 0]);
    }
  });
});

test('a journal of another target is refused, and one whose records leave the target', async () => {
  await withTarget((file, journal) => {
    const fresh = readFileSync(file);
    const refused = (bytes: Buffer, message: RegExp): void => {
      writeFileSync(journal, bytes);
      const error = errorOf(() => recover(file));
      assert.is(error.code, 'ERR_UFFD_JOURNAL');
      assert.match(error.message, message);
      assert.ok(readFileSync(file).equals(fresh));
      assert.ok(existsSync(journal));
    };
    refused(
      journalOf([1], { size: SIZE + 1 }).bytes,
      /of a file of 2661 bytes, and .*target has 2660; restore/,
    );
    for (const shift of [1, SIZE, 2 ** 40, Number.MAX_SAFE_INTEGER])
      refused(
        journalOf([1], { shift }).bytes,
        /the record at byte 64 of .* does not fit .*; remove the journal/,
      );
    // The first record is good: it is not written either.
    refused(
      Buffer.concat([journalOf([0]).bytes, journalOf([1], { shift: 7 }).bytes.subarray(HEADER_BYTES)]),
      /byte 624/,
    );
    const version = journalOf([]).bytes;
    version.writeUInt32LE(2, 8);
    refused(version, /has version 2 of the format, and this library reads version 1/);
    refused(Buffer.alloc(100, 'not a journal'), /is not a journal/);
    truncateSync(file, SIZE - 1);
    writeFileSync(journal, journalOf([1]).bytes);
    assert.match(errorOf(() => recover(file)).message, /restore the size/);
  });
});

test('a journal that is a symbolic link, no regular file, or of another user is refused', async () => {
  await withTarget((file, journal, folder) => {
    const victim = join(folder, 'victim');
    writeFileSync(victim, journalOf([1]).bytes);
    const refused = (message: RegExp): void => {
      for (const action of [
        () => recover(file),
        () => JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' }),
      ]) {
        const error = errorOf(action);
        assert.is(error.code, 'ERR_UFFD_JOURNAL', error.message);
        assert.match(error.message, message);
      }
      assert.equal(versions(file), [0, 0, 0, 0, 0, 0]);
    };
    const remove = (): void => void execFileSync('rm', ['-rf', journal]);
    symlinkSync(victim, journal);
    refused(/is a symbolic link, and a journal never is; remove it/);
    assert.ok(readFileSync(victim).equals(journalOf([1]).bytes));
    remove();
    symlinkSync(join(folder, 'nowhere'), journal);
    refused(/is a symbolic link/);
    assert.not(existsSync(join(folder, 'nowhere')));
    remove();
    mkdirSync(journal);
    refused(/is not a regular file/);
    remove();
    execFileSync('mkfifo', [journal]);
    refused(/is not a regular file/);
    remove();
    if (process.getuid?.() !== 0) return;
    writeFileSync(journal, journalOf([1]).bytes);
    chownSync(journal, 65_534, 65_534);
    refused(/belongs to user 65534, and this process runs as user 0; recover as user 65534, or remove it/);
  });
});

test('a target that is no file is refused, and one that is not there', async () => {
  await withTarget((file, journal, folder) => {
    const options = { blockSize: BLOCK, durability: 'process' } as const;
    assert.match(
      errorOf(() => JournaledFile.open(folder, options)).message,
      /neither a file nor a block device/,
    );
    assert.match(errorOf(() => JournaledFile.open('/dev/null', options)).message, /neither a file nor/);
    assert.is(errorOf(() => JournaledFile.open(join(folder, 'absent'), options)).code, 'ENOENT');
    assert.equal(recover(join(folder, 'absent')), NOTHING);
    assert.is(
      errorOf(() => JournaledFile.open(file, { ...options, blockSize: 100 })).code,
      'ERR_OUT_OF_RANGE',
    );
    assert.is(
      errorOf(() => JournaledFile.open(file, { ...options, durability: 'none' as 'power' })).code,
      'ERR_INVALID_ARG_VALUE',
    );
    assert.not(existsSync(journal));
  });
});

test('a block device: its blocks are written, it cannot be used twice, and its journal must not be in memory', async () => {
  await inDirectory(async (folder) => {
    const file = join(folder, 'disk');
    writeFileSync(file, Buffer.alloc(8192));
    await withLoopDevice(file, (device) => {
      const journal = join(folder, 'journal');
      const opened = JournaledFile.open(device, { blockSize: 4096, durability: 'power', journal });
      assert.is(opened.size, 8192);
      opened.write([{ offset: 4096, bytes: blockOf(1, 5, 4096) }]);
      const again = errorOf(() =>
        JournaledFile.open(device, { blockSize: 4096, durability: 'process', journal }),
      );
      assert.match(again.message, /is mounted, or another program uses it/);
      opened.close();
      assert.is(versionOf(readFileSync(device).subarray(4096), 1), 5);
      const memory = errorOf(() => JournaledFile.open(device, { blockSize: 4096, durability: 'power' }));
      assert.match(memory.message, /is in memory, so the journal of .* choose another path/);
    });
  });
});

test('a journal is not written to another disk that is in the same block device now', async () => {
  await inDirectory(async (folder) => {
    const journal = join(folder, 'journal');
    const options = { blockSize: 4096, durability: 'process', journal } as const;
    const disk = (name: string): string => {
      const file = join(folder, name);
      writeFileSync(file, Buffer.alloc(8192));
      return file;
    };
    const [first, second] = [disk('first'), disk('second')];
    let left = Buffer.alloc(0);
    await withLoopDevice(first, (device) => {
      const opened = JournaledFile.open(device, options);
      const header = readFileSync(journal);
      opened.close();
      const bytes = blockOf(1, 5, 4096);
      const record = { offset: 4096, length: 4096, checksum: crc32(bytes), batch: 1n };
      left = Buffer.concat([header, encodeRecord(record, header.subarray(24, 32)), bytes]);
      writeFileSync(journal, left, { mode: 0o600 });
      assert.is(recover(device, { journal }).recovered, 1);
    });
    assert.is(versionOf(readFileSync(first).subarray(4096), 1), 5);
    writeFileSync(journal, left, { mode: 0o600 });
    await withLoopDevice(second, (device) => {
      if (left.readBigUInt64LE(48) === 0n)
        leaveOut('this kernel does not number its disks (before Linux 5.15)');
      for (const action of [() => recover(device, { journal }), () => JournaledFile.open(device, options)])
        assert.match(errorOf(action).message, /is the journal of another disk/);
      assert.ok(readFileSync(journal).equals(left));
      // After the system has started again, the numbers say nothing.
      const older = Buffer.from(left);
      older[32] = (older[32] as number) ^ 1;
      older.writeUInt32LE(crc32(older.subarray(0, 60)), 60);
      writeFileSync(journal, older);
      assert.is(recover(device, { journal }).recovered, 1);
    });
    assert.is(versionOf(readFileSync(second).subarray(4096), 1), 5);
  });
});

test('a short file at the path of the journal is not removed, unless a pager has begun it', async () => {
  await withTarget((file, journal) => {
    for (const text of ['my notes', 'UFFDJRN', 'x'.repeat(HEADER_BYTES)]) {
      writeFileSync(journal, text, { mode: 0o600 });
      if (text === 'UFFDJRN') {
        assert.is(recover(file).recovered, 0);
        assert.not(existsSync(journal));
        continue;
      }
      assert.match(errorOf(() => recover(file)).message, /is not a journal/);
      assert.is(readFileSync(journal, 'latin1'), text);
    }
    rmSync(journal);
    const options = { blockSize: BLOCK, durability: 'process', journal: file } as const;
    assert.match(errorOf(() => JournaledFile.open(file, options)).message, /is the file itself/);
    assert.is(statSync(file).size, SIZE);
  });
});

test('an empty journal does no harm to a file that has grown', async () => {
  await withTarget((file, journal) => {
    writeFileSync(journal, journalOf([]).bytes, { mode: 0o600 });
    truncateSync(file, SIZE + BLOCK);
    const opened = JournaledFile.open(file, { blockSize: BLOCK, durability: 'process' });
    opened.close();
    assert.not(existsSync(journal));
  });
});

test('a file with several names needs a path for its journal', async () => {
  await withTarget((file, _, folder) => {
    const other = join(folder, 'other');
    linkSync(file, other);
    const options = { blockSize: BLOCK, durability: 'process' } as const;
    for (const path of [file, other])
      assert.match(errorOf(() => JournaledFile.open(path, options)).message, /has 2 names \(hard links\)/);
    JournaledFile.open(other, { ...options, journal: join(folder, 'journal') }).close();
  });
});

test('a file that is replaced or removed while it is open: sync says so', async () => {
  await withTarget((file, _, folder) => {
    const options = { blockSize: BLOCK, durability: 'process' } as const;
    const opened = JournaledFile.open(file, options);
    const away = join(folder, 'away');
    renameSync(file, away);
    opened.write(partsOf([1], 1, BLOCK, SIZE));
    assert.match(errorOf(() => opened.sync()).message, /was removed, renamed or replaced while it was open/);
    writeFileSync(file, freshFile(BLOCKS, BLOCK, 100));
    assert.match(errorOf(() => opened.sync()).message, /was removed, renamed or replaced while it was open/);
    renameSync(away, file);
    opened.sync();
    opened.close();
    assert.equal(versions(file), [0, 1, 0, 0, 0, 0]);
  });
});

test.run();
