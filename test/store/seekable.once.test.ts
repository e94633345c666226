// zstd's seekable format: what is written, what is read of files with frames of any size, and that a file that is hostile,
// damaged or truncated is refused, or gives the right bytes.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chunkBytes, chunkId, IndexError } from '../../src/store/chunk-index.js';
import { openCompressor } from '../../src/store/compression.js';
import { checkFrame, type FrameTools, openFrameTools } from '../../src/store/frame-check.js';
import { DamagedChunkError, MemoryImage, packSeekable, SeekableReader } from '../../src/store/index.js';
import { encodeSeekTable } from '../../src/store/seekable-table.js';
import { inDirectory, uffd } from '../cli/support/command.js';
import { FileServer } from '../pager/support/http-server.js';
import { generator, leaveOut, seed, suite } from '../support/harness.js';
import { SPARSE_SIZE, someMemory, writeSparse } from './support/memory.js';
import { PYZSTD_FILE, pyzstdMemory, seekableOf } from './support/seekable.js';

const test = suite('store/seekable');

const MEMORY = 300_000;

/** All of the memory in a file. @throws what opening and reading it throws */
async function memoryOf(file: string, tools: FrameTools): Promise<Buffer> {
  const reader = await SeekableReader.open(file, {});
  try {
    const parts: Buffer[] = [];
    for (let chunk = 0; chunk < reader.index.count; chunk++) {
      const bytes = Buffer.alloc(chunkBytes(reader.index, chunk));
      const check = (...what: Parameters<typeof checkFrame> extends [unknown, ...infer W] ? W : never) =>
        checkFrame(tools, ...what);
      await reader.fetch(chunk, () => bytes, undefined, check);
      parts.push(bytes);
    }
    return Buffer.concat(parts);
  } finally {
    reader.close();
  }
}

async function withTools(body: (folder: string, tools: FrameTools) => Promise<void>): Promise<void> {
  const tools = await openFrameTools();
  try {
    await inDirectory((folder) => body(folder, tools));
  } finally {
    tools.decompressor.close();
  }
}

/** Random sizes that sum up to `total`, some of them 0. */
function randomSizes(total: number, most: number, below: (limit: number) => number): number[] {
  const sizes: number[] = [];
  for (let left = total; left > 0; ) {
    const size = below(8) === 0 ? 0 : Math.min(left, 1 + below(most));
    sizes.push(size);
    left -= size;
  }
  return sizes;
}

test('uffd pack --seekable writes what zstd decompresses, and uffd info describes', () =>
  inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    const packed = await uffd(['pack', 'memory', '--seekable', '--chunk', '64K', '--json'], { cwd: folder });
    assert.equal(packed.code, 0, packed.stderr);
    const { frames, size } = JSON.parse(packed.stdout);
    assert.deepEqual([frames, size], [Math.ceil(SPARSE_SIZE / 65_536), SPARSE_SIZE]);
    const info = await uffd(['info', 'memory.zst'], { cwd: folder });
    assert.match(info.stdout, new RegExp(`${frames}, with checksums in the seek table`));
    const again = await uffd(['pack', 'memory', '--seekable', '-o', 'other'], { cwd: folder });
    assert.deepEqual([again.code, /let it end with \.zst/.test(again.stderr)], [2, true]);
    if (!existsSync('/usr/bin/zstd')) leaveOut('zstd is not installed');
    const plain = execFileSync('/usr/bin/zstd', ['-dc', join(folder, 'memory.zst')]);
    assert.ok(plain.equals(readFileSync(join(folder, 'memory'))));
  }));

test('the file of another program', () =>
  withTools(async (folder, tools) => {
    const file = join(folder, 'a.zst');
    writeFileSync(file, PYZSTD_FILE);
    assert.ok((await memoryOf(file, tools)).equals(pyzstdMemory()));
  }));

test('frames of any sizes, and empty ones', () =>
  withTools(async (folder, tools) => {
    const below = generator(seed());
    const [file, memory] = [join(folder, 'a.zst'), someMemory(3_000_000, seed())];
    for (const most of [30_000, 600_000, 2_000_000]) {
      const sizes = randomSizes(memory.length, most, below);
      writeFileSync(file, await seekableOf(memory, sizes));
      assert.ok((await memoryOf(file, tools)).equals(memory), `${sizes}`);
    }
    writeFileSync(file, await seekableOf(memory, new Array(732).fill(4096)));
    assert.ok((await memoryOf(file, tools)).equals(memory.subarray(0, 732 * 4096)));
  }));

test('a file that is cut anywhere, or has any byte changed, is refused, or gives the right bytes', () =>
  withTools(async (folder, tools) => {
    const below = generator(seed());
    const memory = Buffer.alloc(MEMORY, 'memory of a guest ');
    const whole = await seekableOf(memory, [100_000, 65_536, 1, MEMORY - 165_537]);
    const file = join(folder, 'a.zst');
    const outcomes = { refused: 0, damaged: 0, right: 0 };
    const tries = async (bytes: Buffer): Promise<void> => {
      writeFileSync(file, bytes);
      try {
        assert.ok((await memoryOf(file, tools)).equals(memory), 'wrong bytes');
        outcomes.right++;
      } catch (error) {
        if (error instanceof IndexError) outcomes.refused++;
        else if (error instanceof DamagedChunkError) outcomes.damaged++;
        else throw error;
      }
    };
    const table = 8 + 4 * 12 + 9;
    for (let length = 1; length < whole.length; length += 1 + below(7))
      await tries(whole.subarray(0, length));
    assert.deepEqual([outcomes.damaged, outcomes.right], [0, 0]);
    for (let at = 0; at < whole.length; at++) {
      if (at < whole.length - table && below(3) !== 0) continue;
      const changed = Buffer.from(whole);
      changed.writeUInt8(changed.readUInt8(at) ^ (1 << below(8)), at);
      await tries(changed);
    }
    assert.ok(outcomes.damaged > 0 && outcomes.refused > 0, JSON.stringify(outcomes));
  }));

const HOSTILE: [what: string, make: (whole: Buffer) => Buffer | Promise<Buffer>, message: RegExp][] = [
  ['a table of no frames', () => encodeSeekTable([]), /it has no data/],
  [
    '2^32 - 1 frames',
    (whole) => {
      const bytes = Buffer.from(whole);
      bytes.writeUInt32LE(0xffffffff, bytes.length - 9);
      return bytes;
    },
    /claims 4294967295 frames; only 4194304 are supported/,
  ],
  [
    'more frames than the file has room for',
    (whole) => {
      const bytes = Buffer.from(whole);
      bytes.writeUInt32LE(4_000_000, bytes.length - 9);
      return bytes;
    },
    /claims 4000000 frames, and the file has only/,
  ],
  [
    'frames of 4 GiB',
    () => encodeSeekTable(new Array(9).fill({ length: 2 ** 32 - 1, dataLength: 2 ** 32 - 1, checksum: 0 })),
    /frames of more than 67108864 are not supported/,
  ],
  [
    'frames that are not there',
    () => encodeSeekTable(new Array(9).fill({ length: 60_000, dataLength: 65_536, checksum: 0 })),
    /its frames have 540000 bytes, and there are 0 before the table/,
  ],
  [
    'frames that are much larger than their data',
    () => encodeSeekTable([{ length: 2 ** 32 - 1, dataLength: 1, checksum: 0 }]),
    /has 4294967295 bytes for 1 bytes of data/,
  ],
  [
    'thousands of frames for a few bytes',
    () =>
      Buffer.concat([
        Buffer.alloc(3_000_000),
        encodeSeekTable(new Array(3000).fill({ length: 1000, dataLength: 1, checksum: 0 })),
      ]),
    /because its frames are too small/,
  ],
  ['the end of another file', (whole) => Buffer.concat([whole, Buffer.from('more')]), /it has no seek table/],
];

test('hostile tables are refused before anything is allocated for what they claim', () =>
  withTools(async (folder, tools) => {
    const whole = await seekableOf(someMemory(MEMORY, seed()), [MEMORY]);
    const file = join(folder, 'a.zst');
    for (const [what, make, message] of HOSTILE) {
      writeFileSync(file, await make(whole));
      await assert.rejects(memoryOf(file, tools), { name: 'IndexError', message }, what);
    }
  }));

test('a frame with more data than the table says is damaged, and is not decompressed to its end', () =>
  withTools(async (folder, tools) => {
    const memory = Buffer.alloc(32 << 20, 'bomb');
    const file = join(folder, 'a.zst');
    const claims = await seekableOf(memory, [memory.length], ([frame]) =>
      encodeSeekTable([{ ...(frame as { length: number; checksum: number }), dataLength: 65_536 }]),
    );
    writeFileSync(file, claims);
    await assert.rejects(memoryOf(file, tools), {
      name: 'DamagedChunkError',
      message: /a frame cannot be decompressed to 65536 bytes/,
    });
  }));

/** A table without checksums, in place of the one at the end of a file. */
function withoutChecksums(whole: Buffer, frame: { length: number; dataLength: number }): Buffer {
  const table = Buffer.alloc(8 + 8 + 9);
  table.writeUInt32LE(0x184d2a5e);
  table.writeUInt32LE(17, 4);
  table.writeUInt32LE(frame.length, 8);
  table.writeUInt32LE(frame.dataLength, 12);
  table.writeUInt32LE(1, 16);
  table.writeUInt32LE(0x8f92eab1, 21);
  return Buffer.concat([whole, table]);
}

test('without any checksums it is refused; so is a table without them on a server that does not tell of changes', () =>
  withTools(async (folder, tools) => {
    const compressor = openCompressor() ?? leaveOut('there is no zstd here');
    const frame = Buffer.from(await compressor.compressLater(Buffer.alloc(65_536, 'a'), 1));
    compressor.close();
    const file = join(folder, 'a.zst');
    writeFileSync(file, withoutChecksums(frame, { length: frame.length, dataLength: 65_536 }));
    await assert.rejects(memoryOf(file, tools), {
      name: 'IndexError',
      message: /neither its seek table nor its frames have checksums.*uffd pack --seekable/,
    });
    const server = new FileServer(PYZSTD_FILE);
    await server.listen();
    try {
      server.etag = undefined;
      await assert.rejects(memoryOf(server.url('/a.zst'), tools), {
        name: 'IndexError',
        message: /the server sends neither an ETag nor a date/,
      });
      server.modified = new Date(0).toUTCString();
      assert.ok((await memoryOf(server.url('/a.zst'), tools)).equals(pyzstdMemory()));
      assert.equal(server.requests.at(-1)?.headers['if-unmodified-since'], server.modified);
    } finally {
      server.close();
    }
  }));

test('what a cache has of one place is not taken for another place with the same version, length and table', async () => {
  const server = new FileServer(PYZSTD_FILE);
  await server.listen();
  try {
    const [first, second] = await Promise.all(
      ['/a.zst', '/b.zst'].map((path) => SeekableReader.open(server.url(path), {})),
    );
    assert.ok(first && second);
    assert.equal(first.identity, second.identity, 'a trace fits both');
    assert.notEqual(chunkId(first.index, 0), chunkId(second.index, 0));
    for (const reader of [first, second]) reader.close();
  } finally {
    server.close();
  }
});

test('a memory that changes while it is packed leaves no file', () =>
  inDirectory(async (folder) => {
    const [memory, file] = [join(folder, 'memory'), join(folder, 'memory.zst')];
    writeSparse(memory, SPARSE_SIZE);
    const image = new MemoryImage(memory);
    try {
      const progress = (): void => writeFileSync(memory, 'x', { flag: 'r+' });
      await assert.rejects(packSeekable(image, file, { chunkSize: 65_536, progress }), {
        name: 'MemoryImageError',
        message: /has changed while it was read/,
      });
      await assert.rejects(
        packSeekable(image, file, { signal: AbortSignal.abort(new Error('stop')) }),
        /stop/,
      );
      assert.deepEqual(
        ['', '.uffd-partial'].map((end) => existsSync(file + end)),
        [false, false],
      );
    } finally {
      image.close();
    }
  }));

test.run();
