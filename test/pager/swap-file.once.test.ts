// The swap file: what is read is what was written, whatever is compressed, encrypted and fragmented; other bytes on the
// disk are an error; and nothing is left in the folder.

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { SourceError } from '../../src/pager/source.js';
import { Extents } from '../../src/pager/swap-extents.js';
import { type SwapOptions, SwapStore } from '../../src/pager/swap-file.js';
import {
  type Compressor,
  libraryCompressor,
  nodeCompressor,
  openCompressor,
} from '../../src/store/compression.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, skip, suite } from '../support/harness.js';

const test = suite('pager/swap-file');

const BLOCK = 16_384;
const BLOCKS = 40;
/** The last block is shorter. */
const SIZE = (BLOCKS - 1) * BLOCK + 1000;
const KINDS = (['zstd', 'none', 'auto'] as const).flatMap((compress) =>
  [false, true].map((encrypt) => ({ compress, encrypt })),
);

function nameOf({ compress, encrypt }: { compress: string; encrypt: boolean }): string {
  return `${compress}, ${encrypt ? 'encrypted' : 'plain'}`;
}

/** Calls `body` with a store in a folder of its own, and checks that the folder stays empty. */
async function withStore(
  options: Partial<SwapOptions>,
  body: (store: SwapStore, folder: string) => void,
): Promise<void> {
  await inDirectory((folder) => {
    const store = SwapStore.create(folder, {
      ...{ size: SIZE, blockSize: BLOCK, compress: 'none', encrypt: false },
      ...options,
    });
    try {
      assert.equal(readdirSync(folder), [], 'it has no name at once');
      body(store, folder);
      assert.equal(readdirSync(folder), []);
    } finally {
      store.close();
    }
  });
}

/** Bytes of several kinds: zeros, text, noise, and noise with a compressible part. */
function someBytes(random: (below: number) => number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const kind = random(5);
  if (kind === 0) return bytes;
  const noise = kind === 1 ? 0 : kind === 2 ? length : random(length + 1);
  for (let at = 0; at < noise; at++) bytes[at] = random(256);
  for (let at = noise; at < length; at++) bytes[at] = 97 + ((at * 7) % 13);
  return bytes;
}

function read(store: SwapStore, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length, 0xee);
  store.read(offset, bytes);
  return bytes;
}

/** The open file of a store in this folder. */
function hiddenFile(folder: string): string {
  const found = readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${folder}/`);
    } catch {
      return false;
    }
  });
  assert.is(found.length, 1);
  return `/proc/self/fd/${found[0]}`;
}

/** Changes a byte of a file: calls `change` with it. */
function changeByte(path: string, at: number, change: (byte: number) => number): void {
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  byte[0] = change(byte[0] as number);
  writeSync(fd, byte, 0, 1, at);
  closeSync(fd);
}

for (const kind of KINDS) {
  test(`random writes and reads are as in memory (${nameOf(kind)})`, async () => {
    const random = generator(seed());
    await withStore(kind, (store) => {
      const shadow = Buffer.alloc(SIZE);
      const stored = new Set<number>();
      assert.ok(read(store, 0, SIZE).equals(shadow), 'all is zeros at first');
      for (let round = 0; round < 400; round++) {
        const parts = Array.from({ length: 1 + random(3) }, () => {
          const block = random(BLOCKS);
          const offset = block * BLOCK;
          const bytes = someBytes(random, Math.min(BLOCK * (1 + random(3)), SIZE - offset));
          bytes.copy(shadow, offset);
          for (let at = 0; at < bytes.length; at += BLOCK) {
            const zeros = bytes.subarray(at, at + BLOCK).every((byte) => byte === 0);
            if (zeros) stored.delete(block + at / BLOCK);
            else stored.add(block + at / BLOCK);
          }
          return { offset, bytes };
        });
        store.write(parts);
        store.sync();
        const from = random(SIZE);
        const length = random(Math.min(5 * BLOCK, SIZE - from) + 1);
        assert.ok(
          read(store, from, length).equals(shadow.subarray(from, from + length)),
          `${from}, ${length}`,
        );
        const { storedBlocks, rawBytes, usedBytes } = store.stats;
        assert.is(storedBlocks, stored.size);
        assert.is(rawBytes, stored.size * BLOCK - (stored.has(BLOCKS - 1) ? BLOCK - 1000 : 0));
        const most = kind.encrypt ? BLOCK + 4096 : BLOCK;
        assert.ok(usedBytes <= storedBlocks * most && usedBytes >= storedBlocks * 4096);
      }
      assert.ok(read(store, 0, SIZE).equals(shadow));
      store.write([{ offset: 0, bytes: Buffer.alloc(SIZE) }]);
      assert.equal(store.stats, { usedBytes: 0, storedBlocks: 0, rawBytes: 0 });
      assert.ok(read(store, 0, SIZE).every((byte) => byte === 0));
    });
  });

  test(`another byte on the disk is an error, and never data (${nameOf(kind)})`, async () => {
    const random = generator(seed());
    await withStore(kind, (store, folder) => {
      const bytes = someBytes(() => 3, BLOCK).fill(random(255) + 1, 0, 9000);
      for (let at = 0; at < 9000; at++) bytes[at] = random(256);
      store.write([{ offset: BLOCK, bytes }]);
      const file = hiddenFile(folder);
      const { usedBytes } = store.stats;
      // The padding of the last unit is not the block's.
      const places = new Set([
        0,
        15,
        16,
        17,
        8999,
        ...Array.from({ length: 50 }, () => random(usedBytes - 4096)),
      ]);
      for (const at of places) {
        const bit = 1 << random(8);
        changeByte(file, at, (byte) => byte ^ bit);
        let error: unknown;
        try {
          read(store, BLOCK, BLOCK);
        } catch (thrown) {
          error = thrown;
        }
        assert.instance(error, SourceError, `byte ${at}`);
        assert.ok((error as SourceError).permanent);
        assert.match(
          (error as Error).message,
          /the block at byte 16384 of the swap file in .*: the disk returns other data/,
        );
        assert.ok(
          read(store, 0, BLOCK).every((byte) => byte === 0),
          'other blocks can be read',
        );
        changeByte(file, at, (byte) => byte ^ bit);
        assert.ok(read(store, BLOCK, BLOCK).equals(bytes));
      }
    });
  });
}

test('an encrypted block cannot be replaced by an older one, and its bytes are not on the disk', async () => {
  await withStore({ encrypt: true }, (store, folder) => {
    const file = hiddenFile(folder);
    const bytes = Buffer.alloc(BLOCK, 'a secret that must not be found');
    store.write([{ offset: 0, bytes }]);
    const disk = (): Buffer => {
      const fd = openSync(file, 'r');
      const all = Buffer.alloc(statSync(file).size);
      readSync(fd, all, 0, all.length, 0);
      closeSync(fd);
      return all;
    };
    const old = disk();
    assert.is(old.indexOf('a secret'), -1);
    store.write([{ offset: 0, bytes: Buffer.alloc(BLOCK, 'newer') }]);
    const newer = disk();
    // The new extent follows the old one.
    const fd = openSync(file, 'r+');
    writeSync(fd, old, 0, old.length, newer.length - old.length);
    closeSync(fd);
    assert.throws(() => read(store, 0, BLOCK), /does not match its authentication tag/);
  });
});

test('compressed blocks take less of the disk; auto leaves alone what compresses badly', async () => {
  const compressor = openCompressor() ?? skip('this machine has no zstd');
  compressor.close();
  const random = generator(seed());
  const text = Buffer.alloc(BLOCK, 'compressible');
  // An eighth more than two units are saved: noise is stored as it is.
  const noise = Buffer.from(Array.from({ length: BLOCK }, () => random(256)));
  for (const [compress, bytes, units] of [
    ['zstd', text, 1],
    ['auto', text, 1],
    ['none', text, 4],
    ['zstd', noise, 4],
    ['auto', noise, 4],
  ] as const) {
    await withStore({ compress }, (store) => {
      store.write([{ offset: 0, bytes }]);
      assert.is(store.stats.usedBytes, units * 4096);
      assert.is(store.compression === 'none', compress === 'none');
    });
  }
  // Blocks of 64 KiB of which a sixteenth compresses: it saves a unit, but not an eighth.
  const large = Buffer.alloc(65_536, 'x');
  for (let at = 0; at < 15 * 4096 - 1000; at++) large[at] = random(256);
  for (const [compress, units] of [
    ['zstd', 15],
    ['auto', 16],
  ] as const) {
    await withStore({ compress, size: 65_536, blockSize: 65_536 }, (store) => {
      store.write([{ offset: 0, bytes: large }]);
      assert.is(store.stats.usedBytes, units * 4096);
      assert.ok(read(store, 0, large.length).equals(large));
    });
  }
});

test('freed space is given back to the disk', async () => {
  await withStore({}, (store, folder) => {
    const used = (): number => statSync(hiddenFile(folder)).blocks * 512;
    store.write([{ offset: 0, bytes: Buffer.alloc(SIZE, 1) }]);
    const before = used();
    store.write([{ offset: 0, bytes: Buffer.alloc((BLOCKS - 1) * BLOCK) }]);
    // A file system that cannot punch holes keeps the space for later blocks.
    assert.ok(used() <= before);
    console.log(`${before} bytes, then ${used()}`);
    store.write([{ offset: 0, bytes: Buffer.alloc((BLOCKS - 1) * BLOCK, 2) }]);
    assert.ok(used() <= before + BLOCK);
    assert.ok(statSync(hiddenFile(folder)).size <= 41 * BLOCK, 'freed extents are used again');
  });
});

test('an allocator never gives a unit twice, and reuses what is freed', () => {
  const random = generator(seed());
  for (const longest of [1, 5, 17, 70]) {
    const extents = new Extents(longest);
    const taken = new Map<number, number>();
    const owner: (number | undefined)[] = [];
    let used = 0;
    let peak = 0;
    for (let step = 0; step < 6000; step++) {
      const grow = Math.floor(step / 1500) % 2 === 0;
      if (taken.size === 0 || random(10) < (grow ? 7 : 3)) {
        const length = 1 + random(longest);
        const start = extents.allocate(length);
        for (let unit = start; unit < start + length; unit++) {
          assert.is(owner[unit], undefined, `unit ${unit}`);
          owner[unit] = start;
        }
        taken.set(start, length);
        used += length;
      } else {
        const [start, length] = [...taken][random(taken.size)] as [number, number];
        extents.free(start, length);
        for (let unit = start; unit < start + length; unit++) owner[unit] = undefined;
        taken.delete(start);
        used -= length;
      }
      peak = Math.max(peak, used);
      assert.is(extents.used, used);
    }
    assert.ok(extents.end <= peak * 2 + longest, `${extents.end} units for ${peak}`);
    for (const [start, length] of taken) extents.free(start, length);
    assert.is(extents.used, 0);
    // All free runs are one.
    const end = extents.end;
    for (let at = 0; at + longest <= end; at += longest) assert.is(extents.allocate(longest), at);
  }
});

const COMPRESSORS: readonly [string, () => Compressor | undefined][] = [
  ['node:zlib', nodeCompressor],
  ['libzstd', libraryCompressor],
];
for (const [kind, open] of COMPRESSORS) {
  test(`${kind}: round trips, limits, and frames that are damaged`, () => {
    const compressor = open();
    if (!compressor) {
      console.log(`${kind} is not here`);
      return;
    }
    assert.is(compressor.kind, kind);
    const random = generator(seed());
    for (const length of [1, 100, 4096, 65_536, 4_194_304]) {
      const bytes = Buffer.alloc(length, 'some text ');
      const frame = compressor.compress(bytes, length + 100);
      assert.ok(frame);
      const copy = Buffer.from(frame);
      const back = Buffer.alloc(length);
      assert.ok(compressor.decompress(copy, back) && back.equals(bytes));
      assert.not(compressor.decompress(copy, Buffer.alloc(length - 1)), 'it does not fit');
      assert.not(compressor.decompress(copy, Buffer.alloc(length + 1)), 'it is too short');
      assert.not(compressor.decompress(copy.subarray(0, copy.length - 1), back));
      assert.is(compressor.compress(bytes, copy.length), undefined, 'it must be less');
      for (let round = 0; round < 20; round++) {
        const damaged = Buffer.from(copy);
        const at = random(damaged.length);
        damaged[at] = (damaged[at] as number) ^ (1 + random(255));
        // Whatever comes out, it is no more than fits.
        compressor.decompress(damaged, back);
      }
    }
    compressor.close();
    compressor.close();
  });
}

test('a path instead of a folder: the name is gone at once, and no other file is overwritten', async () => {
  await inDirectory((folder) => {
    const path = join(folder, 'swap');
    const options = { size: SIZE, blockSize: BLOCK, compress: 'none', encrypt: false } as const;
    const store = SwapStore.create(path, options);
    assert.equal(readdirSync(folder), []);
    store.write([{ offset: 0, bytes: Buffer.alloc(BLOCK, 7) }]);
    assert.ok(read(store, 0, BLOCK).every((byte) => byte === 7));
    assert.is(statSync(hiddenFile(folder)).mode & 0o777, 0o600);
    store.close();
    writeFileSync(path, 'mine');
    assert.throws(() => SwapStore.create(path, options), /EEXIST/);
    assert.throws(() => SwapStore.create(join(folder, 'absent/swap'), options), /ENOENT/);
    execFileSync('rm', [path]);
  });
});

test('wrong arguments are refused', async () => {
  await withStore({}, (store, folder) => {
    const codeOf = (action: () => unknown): string | undefined => {
      try {
        action();
        return undefined;
      } catch (error) {
        return (error as NodeJS.ErrnoException).code;
      }
    };
    const good = { size: SIZE, blockSize: BLOCK, compress: 'none', encrypt: false } as const;
    for (const wrong of [{ size: 0 }, { size: 2 ** 50 }, { blockSize: 100 }, { blockSize: 5000 }])
      assert.is(
        codeOf(() => SwapStore.create(folder, { ...good, ...wrong })),
        'ERR_OUT_OF_RANGE',
      );
    for (const [offset, length] of [
      [1, BLOCK],
      [0, 100],
      [-BLOCK, BLOCK],
      [SIZE, BLOCK],
      [BLOCK, SIZE],
    ])
      assert.is(
        codeOf(() => store.write([{ offset: offset as number, bytes: Buffer.alloc(length as number) }])),
        'ERR_OUT_OF_RANGE',
      );
    for (const [offset, length] of [
      [-1, 1],
      [SIZE, 1],
      [0, SIZE + 1],
    ])
      assert.is(
        codeOf(() => read(store, offset as number, length as number)),
        'ERR_OUT_OF_RANGE',
      );
    store.close();
    assert.is(
      codeOf(() => read(store, 0, 1)),
      'ERR_INVALID_STATE',
    );
    assert.is(
      codeOf(() => store.write([])),
      'ERR_INVALID_STATE',
    );
  });
});

test.run();
