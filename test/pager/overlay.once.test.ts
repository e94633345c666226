// Overlays as files: what they hold, whose they are, and that each block is whole after kill -9.

import { strict as assert } from 'node:assert';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { recover } from '../../src/pager/journal.js';
import { Overlay } from '../../src/pager/overlay-file.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, skip, suite } from '../support/harness.js';
import { batchOf, blockOf, killed, versionOf } from './support/journal-blocks.js';

const test = suite('pager/overlay');

const BLOCK = 8192;
/** The last block has 100 bytes. */
const SIZE = 9 * BLOCK + 100;
const OF = { blockSize: BLOCK, size: SIZE, identity: 'a' };
const PROCESS = { durability: 'process' } as const;

async function withPath(body: (path: string) => Promise<void> | void): Promise<void> {
  await inDirectory(async (folder) => void (await body(join(folder, 'overlay'))));
}

function bytesOf(overlay: Overlay, block: number, length = BLOCK): Buffer {
  const bytes = Buffer.alloc(length);
  overlay.read(block * BLOCK, bytes);
  return bytes;
}

function heldBy(overlay: Overlay, blocks = 10): number[] {
  return Array.from({ length: blocks }, (_, block) => block).filter((block) => overlay.holds(block));
}

for (const durability of ['process', 'power'] as const) {
  test(`${durability}: it holds what was written, zeros and the short last block, also when it is opened again`, async () => {
    await withPath((path) => {
      let overlay = Overlay.open(path, OF, { durability });
      assert.deepEqual(heldBy(overlay), []);
      overlay.write([
        { offset: 2 * BLOCK, bytes: blockOf(2, 1, BLOCK) },
        { offset: 5 * BLOCK, bytes: Buffer.alloc(BLOCK) },
        { offset: 9 * BLOCK, bytes: blockOf(9, 1, 100) },
      ]);
      overlay.sync();
      overlay.write([
        { offset: 2 * BLOCK, bytes: blockOf(2, 2, BLOCK) },
        { offset: 3 * BLOCK, bytes: blockOf(3, 2, BLOCK) },
      ]);
      for (let times = 0; times < 2; times++) {
        assert.deepEqual(heldBy(overlay), [2, 3, 5, 9]);
        assert.equal(versionOf(bytesOf(overlay, 2), 2), 2);
        assert.equal(versionOf(bytesOf(overlay, 3), 3), 2);
        assert.equal(versionOf(bytesOf(overlay, 9, 100), 9), 1);
        assert.ok(bytesOf(overlay, 5).every((byte) => byte === 0));
        overlay.close();
        assert.ok(!existsSync(`${path}.uffd-journal`));
        overlay = Overlay.open(path, OF, { durability });
      }
      overlay.close();
    });
  });
}

test('blocks in several units of the bitmap', async () => {
  await withPath((path) => {
    const of = { blockSize: 4096, size: 100_000 * 4096, identity: 'large' };
    const blocks = [0, 32_767, 32_768, 99_999];
    for (const block of blocks) {
      const overlay = Overlay.open(path, of, PROCESS);
      overlay.write([{ offset: block * 4096, bytes: blockOf(block, 1, 4096) }]);
      overlay.close();
    }
    const overlay = Overlay.open(path, of, PROCESS);
    assert.deepEqual(heldBy(overlay, 100_000), blocks);
    overlay.close();
    assert.ok(statSync(path).blocks * 512 < 1e6, 'the rest of the file is holes');
  });
});

test('a file that is no overlay, or that of another source, is refused, and not changed', async () => {
  await withPath((path) => {
    const refused = (of: typeof OF, message: RegExp): void => {
      const before = readFileSync(path);
      assert.throws(
        () => Overlay.open(path, of, PROCESS),
        (error: Error) => {
          assert.match(error.message, message);
          assert.equal(error.name, 'OverlayError');
          return true;
        },
      );
      assert.ok(readFileSync(path).equals(before));
      assert.ok(!existsSync(`${path}.uffd-journal`));
    };
    for (const bytes of ['hello', Buffer.alloc(4096), Buffer.alloc(100_000, 1)]) {
      writeFileSync(path, bytes);
      refused(OF, /is not an overlay; choose a path where there is no file/);
    }
    // As a process leaves it that was killed while it made the file.
    writeFileSync(path, '');
    const overlay = Overlay.open(path, OF, PROCESS);
    overlay.write([{ offset: 0, bytes: blockOf(0, 1, BLOCK) }]);
    assert.throws(() => Overlay.open(path, OF, PROCESS), /is being written by another pager/);
    overlay.close();
    refused({ ...OF, size: SIZE + 1 }, /of a source of 73828 bytes, and this one has 73829/);
    refused(
      { ...OF, identity: 'b' },
      /of another source, or of another version of it: of a, and this one is b/,
    );
    refused({ ...OF, blockSize: 4096 }, /has blocks of 8192 bytes.*blockSize: 8192/);
    const good = readFileSync(path);
    const changed = Buffer.from(good);
    changed[good.length - 4096 + 16] = 1;
    writeFileSync(path, changed);
    refused(OF, /the header of .* is damaged/);
    changed.writeUInt32LE(2, good.length - 4096 + 8);
    writeFileSync(path, changed);
    refused(OF, /has version 2 of the format, and this library reads version 1/);
    writeFileSync(path, Buffer.concat([good.subarray(0, 4096), good.subarray(8192)]));
    refused(OF, /bytes instead of/);
    writeFileSync(path, good);
    truncateSync(path, good.length - 4096);
    refused(OF, /is not an overlay/);
  });
});

test('two identities that are too long for the header are not confused', async () => {
  await withPath((path) => {
    const long = 'é'.repeat(3000);
    Overlay.open(path, { ...OF, identity: long }, PROCESS).close();
    Overlay.open(path, { ...OF, identity: long }, PROCESS).close();
    assert.throws(() => Overlay.open(path, { ...OF, identity: `${long}.` }, PROCESS), /of another source/);
  });
});

test('a full disk: nothing is half written, and what failed is written when there is room', async () => {
  if (process.getuid?.() !== 0) skip('only root can mount a small disk');
  await inDirectory((folder) => {
    const mount = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" "$3" "$1" overlayIsFull';
    const program = fileURLToPath(new URL('./support/journal-small-disk.js', import.meta.url));
    const output = execFileSync(
      'unshare',
      ['-m', 'sh', '-c', mount, 'sh', folder, process.execPath, program],
      {
        encoding: 'utf8',
      },
    );
    const seen = JSON.parse(output) as Record<string, unknown>;
    assert.equal(seen.journal, 'ENOSPC');
    assert.equal(seen.afterJournal, 3, 'the bitmap in the file names the first two blocks');
    assert.equal(seen.again, undefined);
    assert.equal(seen.held, '0 1 2');
    assert.equal(seen.place, 'ENOSPC');
    assert.equal(seen.afterPlace, '0 1 2');
    assert.equal(seen.whole, true);
  });
});

test('a process that dies in the middle of a block that the overlay holds: the block is whole, from the journal', async () => {
  await withPath((path) => {
    const writer = fileURLToPath(new URL('./support/overlay-torn.js', import.meta.url));
    const { signal, stderr } = spawnSync(process.execPath, [writer, path, `${BLOCK}`, `${SIZE}`], {
      encoding: 'utf8',
      timeout: 30_000,
    });
    assert.equal(signal, 'SIGKILL', stderr);
    const torn = readFileSync(path).subarray(2 * BLOCK, 3 * BLOCK);
    assert.equal(versionOf(torn, 2), undefined, 'the process has died in the middle of the block');
    const overlay = Overlay.open(path, OF, PROCESS);
    assert.equal(overlay.recovery.recovered, 1);
    assert.equal(versionOf(bytesOf(overlay, 2), 2), 2);
    overlay.close();
  });
});

const KILLS = 60;
const KILLS_EACH = 6;
const LANES = 2;
const WRITER = fileURLToPath(new URL('./support/overlay-writer.js', import.meta.url));

test(`kill -9 at ${KILLS} random moments: each block is whole, and as at the last flush or later`, async () => {
  const first = seed();
  const random = generator(first);
  let [kills, recovered, flushes, held] = [0, 0, 0, 0];
  await inDirectory(async (folder) => {
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < KILLS / KILLS_EACH) {
        const turn = next++;
        const path = join(folder, `${turn}`);
        const blockSize = [4096, 65_536, 524_288][turn % 3] as number;
        const size = 24 * blockSize - blockSize / 2;
        const of = { blockSize, size, identity: 'the test' };
        const durability = turn % 4 === 3 ? 'power' : 'process';
        let floor = Array.from({ length: 24 }, () => 0);
        let version = 1;
        for (let kill = 0; kill < KILLS_EACH; kill++) {
          const args = [path, first + turn, blockSize, durability, version, size].map(String);
          const flushed = await killed(WRITER, args, random(6), random(12));
          kills++;
          if (flushed > 0) flushes++;
          for (let done = version; done <= flushed; done++) {
            for (const block of batchOf(first + turn, done, 24)) floor[block] = done;
          }
          if (kill % 2 === 0 && existsSync(path)) recovered += recover(path).recovered;
          const overlay = Overlay.open(path, of, PROCESS);
          recovered += overlay.recovery.recovered;
          floor = floor.map((least, block) => {
            // A block that it does not hold is as the source has it: version 0.
            if (!overlay.holds(block)) {
              assert.equal(least, 0, `block ${block} of version ${least} is lost`);
              return 0;
            }
            held++;
            const bytes = Buffer.alloc(Math.min(blockSize, size - block * blockSize));
            overlay.read(block * blockSize, bytes);
            const found = versionOf(bytes, block);
            assert.ok(found !== undefined, `block ${block} is torn`);
            assert.ok(found >= least, `block ${block} is of ${found}, ${least} was flushed`);
            assert.ok(batchOf(first + turn, found, 24).includes(block), `block ${block}: ${found}`);
            return found;
          });
          overlay.close();
          version = Math.max(1, ...floor);
        }
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  });
  console.log(`${kills} kills, ${recovered} parts recovered, ${held} blocks held, ${flushes} with flushes`);
  assert.equal(kills, KILLS);
  assert.ok(held > 0 && flushes > 0);
}, 240_000);

test.run();
