// Disks of a pager: block devices, disks that are full or fail, and a swap folder that goes away.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileSource, Pager } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { leaveOut, seed, skip, suite } from '../support/harness.js';
import { withLoopDevice } from '../support/loop-device.js';
import { byteAt } from './support/pager-source.js';
import { dataOf, KIB, MIB, program, withPager } from './support/pager-tools.js';

const test = suite('pager/disks');

// ---- disks that are full or fail ---------------------------------------------------------------------------

/** A tmpfs of 12 MiB, where the folder is. */
const SMALL_DISK = 'mount -t tmpfs -o size=12m none "$1"';
/** Also a disk whose blocks are a file in it: a write that finds no room there is an error of the device. */
const FAILING_DISK = `${SMALL_DISK} && mkdir "$1/on" && truncate -s 32m "$1/disk" && mkfs.ext2 -q "$1/disk"`;

for (const [name, what, mount, on, ...more] of [
  ['a file on a full disk', 'full-target', SMALL_DISK, ''],
  ['swap on a full disk', 'full-swap', SMALL_DISK, ''],
  [
    'a file on a disk that reports errors',
    'full-target',
    `${FAILING_DISK} && mount -o loop,sync "$1/disk" "$1/on"`,
    'on',
  ],
  [
    'a file on a disk that reports errors late, at fdatasync',
    'full-target',
    `${FAILING_DISK} && mount -o loop "$1/disk" "$1/on"`,
    'on',
    'power',
  ],
  [
    'swap on a disk that reports errors',
    'full-swap',
    `${FAILING_DISK} && mount -o loop,sync "$1/disk" "$1/on"`,
    'on',
  ],
] as const) {
  test(`${name}: changes stay, flush rejects, told once for each reason, and all is written when it works again`, async () => {
    needKernel();
    if (process.getuid?.() !== 0) skip('only root can mount a small disk');
    await inDirectory(async (folder) => {
      const under = ['unshare', '-m', 'sh', '-c', `${mount} && shift && exec "$@"`, 'sh', folder];
      const [command, ...rest] = [...under, 'true'] as string[] as [string, ...string[]];
      const tried = spawnSync(command, rest, { encoding: 'utf8' });
      if (tried.status !== 0) leaveOut(`such a disk cannot be mounted here: ${tried.stderr || tried.error}`);
      const { code, stdout, stderr } = await program(what, [folder, join(folder, on), ...more], { under });
      const codes = on ? '(EIO|ENOSPC)' : 'ENOSPC';
      // What is in a swap file need not be written to close it.
      const closing = what === 'full-swap' ? '' : `close: ${codes}\n`;
      assert.match(
        stdout,
        new RegExp(`^flush: ${codes} ${codes}: .*\n${closing}closed: false\nflushed\n$`),
        stderr,
      );
      assert.equal(code, 0, stderr);
      // Once for each reason: a device may report another one each time.
      const lines = stderr.split('\n').slice(0, -1);
      assert.ok(lines.length >= 2 && (on !== '' || lines.length === 2), stderr);
      assert.ok(
        lines.every((line, at) => line !== lines[at - 1]),
        stderr,
      );
      assert.match(lines[0] as string, /changes cannot be written/);
      assert.match(lines.at(-1) as string, /changes can be written again/);
    });
  });
}

// ---- the swap folder ---------------------------------------------------------------------------------------

test('a swap folder that is not there: an error that names it', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const swap = join(folder, 'absent', 'swap');
    await assert.rejects(
      () => Pager.anonymous(MIB, { resident: MIB, swap }),
      (error: NodeJS.ErrnoException) => error.code === 'ENOENT' && error.message.includes(swap),
    );
  });
});

test('a swap folder that is removed while it is used: nothing is lost', async () => {
  needKernel();
  const first = seed();
  await inDirectory(async (folder) => {
    const swap = join(folder, 'swap');
    mkdirSync(swap);
    const pager = Pager.anonymous(4 * MIB, { resident: MIB, swap, compress: 'none' });
    await withPager(pager, 2, async (open, one, other) => {
      await one?.fill(0, 2 * MIB, 1);
      rmSync(swap, { recursive: true });
      await one?.fill(2 * MIB, 2 * MIB, 2);
      assert.deepEqual(
        await other?.bytes(0, 4 * MIB),
        Uint8Array.from({ length: 4 * MIB }, (_, at) => (at < 2 * MIB ? 1 : 2)),
      );
      const results = await Promise.all(
        [one, other].map((user, own) => user?.hammer({ first: first + own, threads: 2, own, ms: 300 })),
      );
      assert.deepEqual(
        results.map((result) => result?.wrong),
        [0, 0],
      );
      assert.ok(open.stats.writtenBytes > 0);
    });
  });
});

// ---- block devices -----------------------------------------------------------------------------------------

test('a block device as a source: the bytes are right', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const file = join(folder, 'disk');
    const size = 4 * MIB + 512;
    writeFileSync(file, dataOf(size));
    await withLoopDevice(file, async (device) => {
      await withPager({ source: fileSource(device), resident: MIB }, 2, async (pager, one, other) => {
        assert.equal(pager.size, size);
        assert.deepEqual(
          await Promise.all([one?.wrong(0, size), other?.wrongAtRandom(seed(), 100, 5000)]),
          [-1, -1],
        );
      });
    });
  });
});

test('a block device that is written in place: nothing is lost, and no journal is left', async () => {
  needKernel();
  const first = seed();
  await inDirectory(async (folder) => {
    const file = join(folder, 'disk');
    const size = 3 * MIB + 1536;
    writeFileSync(file, dataOf(size));
    await withLoopDevice(file, async (device) => {
      const options = { source: fileSource(device), resident: MIB, writable: { flushMs: 20 } };
      let shadows: (Uint8Array | undefined)[] = [];
      await withPager(options, 2, async (pager, ...users) => {
        const results = await Promise.all(
          users.map((user, own) => user.hammer({ first: first + own, threads: 2, own, ms: 500 })),
        );
        assert.deepEqual(
          results.map(({ wrong }) => wrong),
          [0, 0],
        );
        shadows = results.map(({ shadow }) => shadow);
        await pager.flush();
        assert.ok(existsSync(`${device}.uffd-journal`));
      });
      assert.ok(!existsSync(`${device}.uffd-journal`));
      const bytes = readFileSync(device);
      assert.equal(bytes.length, size);
      const wrong = bytes.findIndex((byte, at) => byte !== shadows[at % 2]?.[Math.floor(at / 2)]);
      assert.equal(wrong, -1);
    });
  });
});

test('a block device whose writer was killed is recovered', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const file = join(folder, 'disk');
    const block = 16 * KIB;
    writeFileSync(file, '');
    truncateSync(file, 64 * block);
    await withLoopDevice(file, async (device) => {
      const { code, stdout, stderr } = await program('writes-until-killed', [device, 7, 1], {
        async started(child, saw) {
          await saw(/\n.*\n/);
          await sleep(5);
          child.kill('SIGKILL');
        },
      });
      assert.equal(code, 'SIGKILL', stderr);
      assert.ok(existsSync(`${device}.uffd-journal`));
      Pager.recover(device);
      assert.ok(!existsSync(`${device}.uffd-journal`));
      const words = new Uint32Array(new Uint8Array(readFileSync(device)).buffer);
      const newest = words.reduce((most, word) => Math.max(most, word));
      assert.ok(newest >= Number(stdout.split('\n').at(-2)), 'what was flushed');
      for (let at = 0; at < words.length; at += block / 4)
        assert.ok(new Set(words.subarray(at, at + block / 4)).size <= 2, `the block at ${at} is torn`);
    });
  });
});

test('a block device that cannot be written to can be read', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const file = join(folder, 'disk');
    writeFileSync(file, dataOf(64 * KIB));
    await withLoopDevice(
      file,
      async (device) => {
        await withPager({ source: fileSource(device), resident: MIB }, 0, async (pager) => {
          assert.equal(pager.bytes[5], byteAt(5));
        });
        await assert.rejects(
          Pager.open({ source: fileSource(device), resident: MIB, writable: true }),
          /is read-only; make it writable/,
        );
        assert.ok(!existsSync(`${device}.uffd-journal`));
      },
      ['--read-only'],
    );
  });
});

test.run();
