// The memory file changes between two guests, and the next guest gets the current bytes: on a plain file system,
// overlayfs, hugetlbfs, and a block device.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import {
  MADV_DONTNEED,
  MAP_SHARED,
  madvise,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
  view,
} from '../../shim/memory.js';
import { Extents } from '../../src/serve/extents.js';
import { identify, type ServeOptions } from '../../src/serve/index.js';
import { MemoryFile } from '../../src/serve/memory-file.js';
import { TraceReader } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { leaveOut, suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { withLoopDevice } from '../support/loop-device.js';
import { needKernel } from '../support/real-kernel.js';
import { writeMemory } from './support/serve-process.js';
import { memoryFile, P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/memory-file');
const PAGES = 64;
const HUGE = 2 ** 21;

/** Serves one guest from its first page to its last; it compares them with the memory file, or with `memory`. */
async function serveOne({ guest, server }: Scene, memory?: string): Promise<void> {
  const monitor = await guest(memory === undefined ? {} : { memory });
  const { wrongCount, wrong } = await monitor.touch({ threads: 1, order: 'random', seed: 1 });
  assert.equal(wrongCount, 0, wrong.join('\n'));
  await monitor.end();
  await until(() => server.sessions.size === 0);
}

function mount(...args: readonly string[]): void {
  const { status, stderr } = spawnSync('mount', args, { encoding: 'utf8' });
  if (status !== 0) leaveOut(`mount ${args.join(' ')}: ${stderr}`);
}

/** Calls `body` with a memory file on an overlay, whose lower folder has the file. */
async function onOverlay(body: (memory: string) => Promise<void>): Promise<void> {
  await inDirectory(async (directory) => {
    const [lower, upper, work, merged] = ['lower', 'upper', 'work', 'merged'].map((name) =>
      join(directory, name),
    );
    for (const folder of [lower, upper, work, merged]) mkdirSync(folder as string);
    writeMemory(join(lower as string, 'memory'), PAGES, 1);
    mount(
      '-t',
      'overlay',
      '-o',
      `lowerdir=${lower},upperdir=${upper},workdir=${work}`,
      'overlay',
      merged as string,
    );
    try {
      await body(join(merged as string, 'memory'));
    } finally {
      spawnSync('umount', ['-l', merged as string]);
    }
  });
}

/** Changes of a file, in order; the next guest must see each of them. */
const CHANGES: Record<string, (memory: string) => void> = {
  'written in place': (memory) => {
    const fd = openSync(memory, 'r+');
    writeSync(fd, Buffer.alloc(P, 0x5a), 0, P, 7 * P);
    closeSync(fd);
  },
  'replaced by one of the same size': (memory) => {
    writeMemory(`${memory}.new`, PAGES, 2);
    renameSync(`${memory}.new`, memory);
  },
  'replaced, with the times of before': (memory) => {
    const { atime, mtime } = statSync(memory);
    writeMemory(`${memory}.new`, PAGES, 3);
    utimesSync(`${memory}.new`, atime, mtime);
    renameSync(`${memory}.new`, memory);
  },
  shrunk: (memory) => truncateSync(memory, (PAGES / 2) * P),
  'grown by a hole': (memory) => truncateSync(memory, 2 * PAGES * P),
  'written where it had holes': (memory) => {
    const fd = openSync(memory, 'r+');
    writeSync(fd, Buffer.alloc(PAGES * P, 0xa5), 0, PAGES * P, PAGES * P);
    closeSync(fd);
  },
  'written anew': (memory) => writeMemory(memory, 3 * PAGES, 4),
};

for (const where of ['a plain file system', 'overlayfs']) {
  test(`a file that has changed between guests, on ${where}`, async () => {
    needKernel();
    const on = where === 'overlayfs' ? onOverlay : plain;
    await on(async (memory) => {
      await serving({ memory: () => memory }, async (scene) => {
        await serveOne(scene);
        for (const [what, change] of Object.entries(CHANGES)) {
          change(memory);
          await serveOne(scene).catch((error: Error) => assert.fail(`${what}: ${error.message}`));
        }
        assert.deepEqual(scene.refusals, []);
      });
    });
  });
}

function plain(body: (memory: string) => Promise<void>): Promise<void> {
  return inDirectory((directory) => body(memoryFile(directory, PAGES)));
}

test('a trace says what file its guest had, not what file there was when the server began', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    await serving({ pages: PAGES, record }, async (scene) => {
      writeMemory(`${scene.memory}.new`, PAGES, 9);
      renameSync(`${scene.memory}.new`, scene.memory);
      await serveOne(scene);
      const { about } = TraceReader.fromFile(record).meta;
      assert.deepEqual((about as { memory: object }).memory, identify(scene.memory));
    });
  });
});

test('every attribute of the file that shows a change is compared', async () => {
  await plain(async (memory) => {
    const file = new MemoryFile(memory);
    const mapped = (): bigint => {
      file.refresh();
      const taken = file.take(P);
      taken.release();
      return taken.file.address;
    };
    const keep: ReturnType<MemoryFile['take']>[] = [];
    const remapped = (change: () => void): boolean => {
      const before = mapped();
      // Held, so that the next mapping is at another address.
      keep.push(file.take(P));
      change();
      return mapped() !== before;
    };
    const { atime, mtime, size } = statSync(memory);
    assert.equal(
      remapped(() => {}),
      false,
    );
    assert.equal(
      remapped(() => readFileSync(memory)),
      false,
    );
    assert.equal(
      remapped(() => utimesSync(memory, atime, 1)),
      true,
    );
    // mtime is set back to its old value: only ctime shows the change.
    utimesSync(memory, atime, mtime);
    mapped();
    assert.equal(
      remapped(() => {
        const fd = openSync(memory, 'r+');
        writeSync(fd, 'x');
        closeSync(fd);
        utimesSync(memory, atime, mtime);
      }),
      true,
    );
    assert.equal(
      remapped(() => {
        copyFileSync(memory, `${memory}.new`);
        utimesSync(`${memory}.new`, atime, mtime);
        renameSync(`${memory}.new`, memory);
      }),
      true,
    );
    assert.equal(
      remapped(() => truncateSync(memory, size - 1)),
      true,
    );
    for (const one of keep) one.release();
    file.close();
  });
});

for (const sizeMismatch of [undefined, 'warn', 'refuse'] as const) {
  test(`a guest that has less memory than the file: ${sizeMismatch ?? 'by default'}`, async () => {
    const options: Partial<ServeOptions> = sizeMismatch ? { sizeMismatch } : {};
    await serving({ pages: PAGES, onError: 'leave', ...options }, async (scene) => {
      const warnings: string[] = [];
      scene.server.on('warned', (reason) => warnings.push(reason));
      await serveOne(scene);
      assert.equal(warnings.length, 0);
      const part = join(scene.directory, 'part');
      writeFileSync(part, readFileSync(scene.memory).subarray(0, 10 * P));
      const mismatch = /memory has 262144 bytes, and its guest only 40960/;
      if (sizeMismatch === 'refuse') {
        await scene.guest({ memory: part });
        await until(() => scene.refusals.length > 0);
        assert.match(scene.refusals[0] as string, mismatch);
      } else {
        await serveOne(scene, part);
        assert.equal(warnings.length, 1);
        assert.match(warnings[0] as string, mismatch);
      }
    });
  });
}

test('a block device is served, and when it has grown as well', async () => {
  needKernel();
  await plain(async (image) => {
    await withLoopDevice(image, async (device) => {
      assert.deepEqual(identify(device), identify(image));
      await serving({ memory: () => device }, async (scene) => {
        await serveOne(scene, image);
        const fd = openSync(image, 'r+');
        ftruncateSync(fd, 2 * PAGES * P);
        writeSync(fd, Buffer.alloc(P, 0x5a), 0, P, (2 * PAGES - 1) * P);
        closeSync(fd);
        spawnSync('losetup', ['--set-capacity', device]);
        await serveOne(scene, image);
      });
    });
  });
});

test('holes on hugetlbfs are zeros, and take no page of the pool', () =>
  withHugePages(6, () =>
    inDirectory(async (directory) => {
      const place = join(directory, 'huge');
      mkdirSync(place);
      mount('-t', 'hugetlbfs', '-o', 'pagesize=2M', 'none', place);
      try {
        const memory = join(place, 'memory');
        const fd = openSync(memory, 'w+');
        ftruncateSync(fd, 16 * HUGE);
        // Pages 0 and 1 are data, page 3 is zeros that take a page, page 5 has one byte of data; the others are holes.
        const fill = (page: number, at: number, value: number, length: number): void => {
          const address = mmap(0n, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, page * HUGE);
          assert.ok(address > 0n, `${address}`);
          new Uint8Array(view(address, HUGE)).fill(value, at, at + length);
          madvise(address, HUGE, MADV_DONTNEED);
          munmap(address, HUGE);
        };
        fill(0, 0, 7, HUGE);
        fill(1, 0, 8, HUGE);
        fill(3, 0, 0, HUGE);
        fill(5, HUGE - 1, 9, 1);
        const free = (): number =>
          Number(/^HugePages_Free:\s*(\d+)$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]);
        const { blocks } = fstatSync(fd);
        const before = free();
        const file = new MemoryFile(memory);
        const taken = file.take(HUGE);
        const stretches = new Extents(taken.file);
        assert.deepEqual(
          Array.from({ length: 8 }, (_, page) => stretches.at(page * HUGE + 12_345).data),
          [true, true, false, false, false, true, false, false],
        );
        taken.release();
        file.close();
        const copy = join(directory, 'copy');
        writeFileSync(copy, readFileSync(memory));
        await serving({ memory: () => memory }, async (scene) => {
          await serveOne(scene, copy);
          assert.deepEqual([free(), fstatSync(fd).blocks], [before, blocks]);
          // The hole at page 2 becomes data.
          fill(2, 0, 5, HUGE);
          writeFileSync(copy, readFileSync(memory));
          await serveOne(scene, copy);
        });
        closeSync(fd);
        rmSync(memory);
      } finally {
        spawnSync('umount', ['-l', place]);
      }
    }),
  ));

test.run();
