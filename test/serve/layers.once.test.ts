// Diff snapshots on top of a memory file are served as if they had been merged into it: on plain file systems, on a block
// device, with extents that are no whole pages, and with more extents than can be mapped.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { view } from '../../shim/memory.js';
import { Guest } from '../../src/cli/guest/guest.js';
import { identify } from '../../src/serve/index.js';
import { LayeredMapping } from '../../src/serve/layered-mapping.js';
import { MemoryImage } from '../../src/store/index.js';
import { TraceReader } from '../../src/trace/index.js';
import { commandLine, inDirectory, uffd } from '../cli/support/command.js';
import { generator, leaveOut, skip, suite } from '../support/harness.js';
import { withLoopDevice } from '../support/loop-device.js';
import { needKernel } from '../support/real-kernel.js';
import { P, Running, writeMemory } from './support/serve-process.js';
import { type Scene, serving, until } from './support/server.js';

const test = suite('serve/layers');
const PAGES = 96;
/** The last page is not complete. */
const SIZE = PAGES * P - 1000;

function bytesOf(seed: number, length: number): Buffer {
  const below = generator(seed);
  return Buffer.from(Uint8Array.from({ length }, () => 1 + below(255)));
}

/** Writes a sparse file with these parts, and writes them into `merged`, too. */
function writeParts(
  path: string,
  parts: readonly (readonly [number, Buffer])[],
  merged?: Buffer,
  size = SIZE,
): string {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, size);
  for (const [at, bytes] of parts) {
    const some = bytes.subarray(0, size - at);
    writeSync(fd, some, 0, some.length, at);
    if (merged) some.copy(merged, at);
  }
  closeSync(fd);
  return path;
}

interface Files {
  readonly base: string;
  readonly layers: readonly string[];
  /** What the guest must see. */
  readonly merged: string;
}

/** A sparse memory file and two diffs, in a folder. */
function makeFiles(folder: string): Files {
  const path = (name: string): string => join(folder, name);
  writeMemory(path('base'), PAGES, 1, (page) => page % 8 === 7);
  truncateSync(path('base'), SIZE);
  const merged = readFileSync(path('base'));
  const one = writeParts(
    path('one'),
    [
      // Zeros that were written hide what is below; data lies on a hole; the last page is the diff's.
      [P, Buffer.alloc(P)],
      [7 * P, bytesOf(2, 3 * P)],
      [40 * P, bytesOf(3, 8 * P)],
      [(PAGES - 1) * P, bytesOf(4, P)],
    ],
    merged,
  );
  const two = writeParts(
    path('two'),
    [
      [8 * P, bytesOf(5, P)],
      [44 * P, Buffer.alloc(2 * P)],
      [60 * P, bytesOf(6, P)],
    ],
    merged,
  );
  writeFileSync(path('merged'), merged);
  return { base: path('base'), layers: [one, two], merged: path('merged') };
}

async function serveOne({ guest, server }: Scene, memory: string, regions = 1): Promise<void> {
  const monitor = await guest({ memory, regions });
  const { wrongCount, wrong } = await monitor.touch({ threads: 2, order: 'random', seed: 1 });
  assert.equal(wrongCount, 0, wrong.join('\n'));
  await monitor.end();
  await until(() => server.sessions.size === 0);
}

/** The bytes that guests would get. */
function contentOf({ address, bytes }: LayeredMapping): Buffer {
  return Buffer.from(new Uint8Array(view(address, bytes)));
}

for (const [name, options] of Object.entries({
  'page by page': {},
  'in windows, with all pages in the background': { window: 16, eager: true } as const,
})) {
  test(`guests see the diffs on top of the memory file, ${name}`, async () => {
    await inDirectory(async (folder) => {
      needKernel();
      const { base, layers, merged } = makeFiles(folder);
      await serving({ memory: () => base, layers: () => layers, ...options }, async (scene) => {
        await serveOne(scene, merged);
        await serveOne(scene, merged, 5);
        assert.deepEqual([scene.refusals, scene.ends.map(({ end }) => end.how)], [[], ['exited', 'exited']]);
      });
    });
  });
}

test('a layer that was written to, truncated, and put right again, between guests', async () => {
  await inDirectory(async (folder) => {
    needKernel();
    const { base, layers, merged } = makeFiles(folder);
    await serving({ memory: () => base, layers: () => layers }, async (scene) => {
      await serveOne(scene, merged);
      const [, two] = layers as [string, string];
      const wanted = readFileSync(merged);
      const again = bytesOf(9, 2 * P);
      again.copy(wanted, 20 * P);
      const fd = openSync(two, 'r+');
      writeSync(fd, again, 0, again.length, 20 * P);
      writeFileSync(merged, wanted);
      await serveOne(scene, merged);
      ftruncateSync(fd, SIZE - P);
      const monitor = await scene.guest({ memory: merged });
      await monitor.ended;
      await until(() => scene.ends.length === 3);
      const { end } = scene.ends[2] as Scene['ends'][number];
      assert.match(
        end.how === 'failed' ? end.error.message : end.how,
        /two has \d+ bytes and the memory file \d+/,
      );
      ftruncateSync(fd, SIZE);
      closeSync(fd);
      await serveOne(scene, merged);
    });
  });
});

test('a trace recorded on layers is one of the merged file, and the other way round', async () => {
  await inDirectory(async (folder) => {
    needKernel();
    const { base, layers, merged } = makeFiles(folder);
    const record = join(folder, 'trace');
    await serving({ memory: () => base, layers: () => layers, record }, (scene) => serveOne(scene, merged));
    const { about } = TraceReader.fromFile(record).meta;
    assert.deepEqual((about as { memory: object }).memory, identify(merged));
    await serving({ memory: () => merged, prefetch: [record] }, (scene) => serveOne(scene, merged));
    await serving({ memory: () => base, layers: () => layers, prefetch: [record] }, async (scene) => {
      const monitor = await scene.guest({ memory: merged });
      const [session] = scene.server.sessions;
      await until(() => session?.settledMs !== undefined);
      assert.ok((session?.tally.get('prefetched') ?? 0) > 0);
      assert.equal((await monitor.verify()).wrongCount, 0);
    });
  });
});

test('a block device with a diff on top', async () => {
  await inDirectory(async (folder) => {
    needKernel();
    const size = PAGES * P;
    writeMemory(join(folder, 'base'), PAGES, 1);
    const merged = readFileSync(join(folder, 'base'));
    const diff = writeParts(join(folder, 'diff'), [[5 * P, bytesOf(2, 3 * P)]], merged, size);
    writeFileSync(join(folder, 'merged'), merged);
    await withLoopDevice(join(folder, 'base'), (device) =>
      serving({ memory: () => device, layers: () => [diff] }, (scene) =>
        serveOne(scene, join(folder, 'merged')),
      ),
    );
  });
});

test('more extents than can be mapped: the nearest ones are kept in memory', async () => {
  await inDirectory((folder) => {
    const { base } = makeFiles(folder);
    const merged = readFileSync(base);
    const pages = [2, 4, 6, 20, 22, 50, 80];
    const diff = writeParts(
      join(folder, 'scattered'),
      pages.map((page) => [page * P, bytesOf(page, P)] as const),
      merged,
    );
    for (const [most, note] of [
      [undefined, undefined],
      // Four pieces: pages 2 to 6 and 20 to 22 are one each.
      [16, 8 * P],
      [4, 79 * P],
      [0, 79 * P],
    ] as const) {
      const mapping = new LayeredMapping(base, [diff], most);
      assert.ok(contentOf(mapping).equals(merged), `${most}`);
      const [said = ''] = mapping.notes;
      if (note === undefined) assert.equal(said, '');
      else
        assert.match(
          said,
          new RegExp(`^the diffs have 7 extents, more than .*: ${note} bytes are kept in memory`),
        );
      mapping.close();
    }
  });
});

/** Calls `body` with a folder on a file system that is mounted for it. */
async function mounted(args: readonly string[], body: (folder: string) => void): Promise<void> {
  if (process.getuid?.() !== 0) skip('only root can mount a file system');
  await inDirectory((folder) => {
    const place = join(folder, 'place');
    mkdirSync(place);
    const { status, stderr } = spawnSync('mount', [...args, place], { encoding: 'utf8' });
    if (status !== 0) leaveOut(`mount ${args.join(' ')}: ${stderr}`);
    try {
      body(place);
    } finally {
      spawnSync('umount', ['-l', place]);
    }
  });
}

test('extents that are no whole pages: the rest of the page is what lies below', async () => {
  await inDirectory(async (folder) => {
    const image = join(folder, 'image');
    closeSync(openSync(image, 'w'));
    truncateSync(image, 8 << 20);
    const made = spawnSync('mkfs.ext4', ['-q', '-b', '1024', image], { encoding: 'utf8' });
    if (made.status !== 0) leaveOut(`mkfs.ext4: ${made.error?.message ?? made.stderr}`);
    await withLoopDevice(image, (device) =>
      mounted([device], (place) => {
        const { base } = makeFiles(place);
        const merged = readFileSync(base);
        const one = writeParts(
          join(place, 'first'),
          [
            [2 * P + 1024, bytesOf(1, 1024)],
            [10 * P + 3072, bytesOf(2, 2 * P)],
            [30 * P, bytesOf(3, 1024)],
          ],
          merged,
        );
        const two = writeParts(
          join(place, 'second'),
          [
            [2 * P + 2048, bytesOf(4, 1024)],
            [12 * P, bytesOf(5, 1024)],
          ],
          merged,
        );
        const mapping = new LayeredMapping(base, [one, two]);
        assert.ok(contentOf(mapping).equals(merged));
        mapping.close();
      }),
    );
  });
});

test('a diff on a file system that keeps holes only in larger blocks is refused', async () => {
  await mounted(['-t', 'tmpfs', '-o', 'huge=always,size=64m', 'none'], (place) => {
    const size = 8 << 20;
    const base = writeParts(join(place, 'base'), [[0, bytesOf(1, P)]], undefined, size);
    const diff = writeParts(join(place, 'diff'), [[5 * P, bytesOf(2, P)]], undefined, size);
    if (spawnSync('stat', ['-c', '%o', diff], { encoding: 'utf8' }).stdout.trim() === `${P}`)
      leaveOut('this kernel has no huge pages on tmpfs');
    assert.throws(() => new MemoryImage(base, [diff]), {
      code: 'ERR_UFFD_MEMORY_IMAGE',
      message:
        /diff lies on a file system with blocks of 2097152 bytes, so zeros around .* may hide the memory below/,
    });
    // Without any data there is nothing that could hide anything.
    new MemoryImage(base, [writeParts(join(place, 'empty'), [], undefined, size)]).close();
  });
});

test('uffd serve --layer, and --vm with layers; what cannot be served is told at once', async () => {
  await inDirectory(async (folder) => {
    needKernel();
    const { merged, layers } = makeFiles(folder);
    const [one, two] = layers as [string, string];
    const run = (...args: string[]): ReturnType<typeof uffd> => uffd(['serve', ...args], { cwd: folder });
    const place = ['--socket', 'socket', '--memory', 'base'];
    writeParts(join(folder, 'short'), [], undefined, SIZE - P);
    for (const [args, code, text] of [
      [['--layer', one], 2, /--socket PATH and --memory FILE|--layer belongs to --memory/],
      [['--vm', 'socket=a,memory=base,layer='], 2, /any number of ,layer=DIFF/],
      [[...place, '--layer', 'short'], 1, /short has \d+ bytes and the memory file \d+/],
      [[...place, '--layer', 'none'], 1, /ENOENT/],
      [[...place, '--layer', folder], 1, /is no file/],
      [[...place, '--layer', two, '--record', two], 1, /it is the diff snapshot/],
      [[...place, '--layer', two, '--stats-json', two], 1, /it is the diff snapshot/],
    ] as const) {
      const ended = await run(...args);
      assert.equal(ended.code, code, `${args.join(' ')}: ${ended.stderr}`);
      assert.match(ended.stderr, text);
    }
    const at = (name: string): string => join(folder, name);
    const absolute = ['--socket', at('socket'), '--memory', at('base'), '--layer', one, '--layer', two];
    const other = `socket=${at('other')},memory=${at('base')},layer=${one},layer=${two}`;
    const server = new Running(commandLine(['serve', ...absolute, '--vm', other]));
    try {
      await server.says(`ready: ${at('socket')}\nready: ${at('other')}\n`);
      for (const socket of ['socket', 'other']) {
        const guest = new Guest({ socket: at(socket), memory: merged });
        assert.equal((await guest.verify()).wrongCount, 0);
        await guest.end();
      }
    } finally {
      server.kill();
      await server.ended;
    }
  });
});

test.run();
