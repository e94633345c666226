// Pages that a recorded run has touched are installed before the next run touches them.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { identify, serve } from '../../src/serve/index.js';
import { workingSet } from '../../src/serve/working-set.js';
import { replay, TraceReader, TraceWriter } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { leaveOut, suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { memoryFile, P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/prefetch');

/** Runs a guest that touches a part of its pages at random. Returns how many faults it took. */
async function run({ guest, server, ends }: Scene, seed: number, to: number, waits = false): Promise<number> {
  const monitor = await guest({ regions: 2 });
  if (waits) await until(() => [...server.sessions].some(({ settledMs }) => settledMs !== undefined));
  const { wrongCount, wrong } = await monitor.touch({ threads: 2, order: 'random', seed, to });
  assert.equal(wrongCount, 0, wrong.join('\n'));
  await monitor.end();
  await until(() => server.sessions.size === 0);
  return ends.at(-1)?.session.tally.get('faults') as number;
}

for (const [what, pageSize, pages, window] of [
  ['pages of 4 KiB', P, 600, 1],
  ['pages of 4 KiB, a window of 8', P, 600, 8],
  ['pages of 2 MiB', 2 ** 21, 8, 1],
] as const) {
  const body = (): Promise<void> =>
    inDirectory(async (directory) => {
      const record = join(directory, 'trace');
      let faults = 0;
      await serving({ pages, pageSize, window, record }, async (scene) => {
        faults = await run(scene, 1, pages / 2);
        assert.ok(faults >= pages / 2 / window, `${faults} faults`);
      });
      // The same working set is touched in another order, by another process, at other addresses.
      await serving({ pages, pageSize, window, prefetch: [record] }, async (scene) => {
        const left = await run(scene, 2, pages / 2, true);
        assert.ok(left <= faults * 0.03, `${left} of ${faults} faults are left`);
        const tally = scene.ends[0]?.session.tally;
        assert.ok((tally?.get('prefetched') ?? 0) >= (pages / 2) * pageSize);
      });
      const { identical, damage } = await replay(TraceReader.fromFile(record));
      assert.deepEqual({ identical, damage }, { identical: true, damage: undefined });
    });
  test(
    `a recorded run's faults are gone, ${what}`,
    () => (pageSize === P ? body() : withHugePages(2 * pages + 2, body)),
    120_000,
  );
}

/** Bytes of a file that are in this process's page tables. */
function residentBytes(path: string): number {
  const smaps = readFileSync('/proc/self/smaps', 'utf8');
  const sizes = [...smaps.matchAll(/^[0-9a-f]+-[0-9a-f]+ .* (\/.*)\n(?:[A-Z].*\n)*?Rss: +(\d+) kB/gm)];
  return sizes.reduce((sum, [, name, kB]) => (name === path ? sum + Number(kB) * 1024 : sum), 0);
}

/** Pages of a file that are in the page cache. */
function cachedPages(path: string): number {
  const { stdout } = spawnSync('fincore', ['--noheadings', '--raw', '--output', 'PAGES', path], {
    encoding: 'utf8',
  });
  return Number(stdout.trim() || Number.NaN);
}

test('what will be prefetched is mapped before the first guest comes, and a server that is closed leaves no mapping', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    await serving({ pages: 512, record }, async (scene) => void (await run(scene, 1, 256)));
    const vms = ['a', 'b', 'c'].map((name) => {
      const memory = join(directory, name);
      copyFileSync(memoryFile(directory, 512), memory);
      return { socket: join(directory, `${name}.sock`), memory };
    });
    const mapped = (): number[] => vms.map(({ memory }) => residentBytes(memory));
    for (const closesAtOnce of [false, true]) {
      const server = await serve({ vms, prefetch: [record], force: true });
      if (!closesAtOnce) await until(() => mapped().every((bytes) => bytes >= 256 * P));
      await server.close();
      await until(() => mapped().every((bytes) => bytes === 0));
      assert.ok(!readFileSync('/proc/self/maps', 'utf8').includes(directory));
    }
  });
}, 60_000);

test('what will be prefetched is read from the disk before the first guest comes', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    const pages = 4096;
    // The trace has the first eighth of the file. To identify a file, the server reads 256 pages, spread over it.
    await serving({ pages, record }, async (scene) => void (await run(scene, 1, 512)));
    const memory = memoryFile(directory, pages);
    const forget = (): void =>
      void spawnSync('sh', ['-c', `sync ${memory}; dd if=${memory} iflag=nocache count=0`]);
    forget();
    if (cachedPages(memory) !== 0)
      leaveOut('this file system does not drop a file from the cache, or does not report what is cached');
    const socket = join(directory, 'socket');
    const cachedBy = async (prefetch: string[], least: number): Promise<number> => {
      forget();
      const server = await serve({ vms: [{ socket, memory }], prefetch });
      await until(() => cachedPages(memory) >= least);
      const cached = cachedPages(memory);
      await server.close();
      return cached;
    };
    // The kernel may read ahead of these pages, so the test counts what they bring into the cache.
    const known = await cachedBy([], 0);
    assert.ok(known < pages / 2, `${known} pages are read to know the file`);
    assert.ok((await cachedBy([record], known + 400)) >= known + 400);
  });
});

test('demand comes first: a thread that touches a page during the prefetch gets the right one', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    await serving({ pages: 2000, record }, async (scene) => void (await run(scene, 1, 2000)));
    await serving({ pages: 2000, prefetch: [record], eager: true }, async (scene) => {
      await run(scene, 7, 2000);
    });
  });
});

test('the second guest is recorded beside the first', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    await serving({ pages: 64, record }, async (scene) => {
      await run(scene, 1, 16);
      await run(scene, 2, 32);
      const identity = identify(scene.memory);
      const bytes = (traces: string[]): number =>
        workingSet(traces, identity).ranges.reduce((sum, { length }) => sum + length, 0);
      assert.equal(bytes([record]), 16 * P);
      assert.equal(bytes([`${record}.2`]), 32 * P);
      // A working set has the pages that are in at least half of the traces.
      assert.equal(bytes([record, `${record}.2`]), 32 * P);
      assert.equal(bytes([record, record, `${record}.2`]), 16 * P);
    });
  });
});

test('runs are at most 2 MiB, in the order of the first touch', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    await serving({ pages: 1200, record }, async (scene) => {
      const monitor = await scene.guest();
      await monitor.touch({ threads: 1, order: 'sequential', seed: 1, from: 1000, to: 1010 });
      await monitor.touch({ threads: 1, order: 'sequential', seed: 1, from: 0, to: 900 });
      await monitor.end();
      await until(() => scene.server.sessions.size === 0);
      assert.deepEqual(
        workingSet([record], identify(scene.memory)).ranges.map(({ offset, length }) => [
          offset / P,
          length / P,
        ]),
        [
          [1000, 10],
          [0, 512],
          [512, 388],
        ],
      );
    });
  });
});

test('traces that cannot be used are refused before a monitor connects', async () => {
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    const memory = memoryFile(directory, 64);
    await serving({ memory: () => memory, record }, async (scene) => void (await run(scene, 1, 16)));
    const socket = join(directory, 'socket');
    const refused = (prefetch: string, message: RegExp, file = memory): Promise<void> =>
      assert.rejects(serve({ vms: [{ socket, memory: file }], prefetch: [prefetch] }), message);

    await refused(memory, /this is no trace/);
    await refused(join(directory, 'none'), /ENOENT/);
    const another = join(directory, 'another-trace');
    const writer = TraceWriter.toFile(another, { about: { kind: 'something' } });
    writer.start({ pageSize: P });
    writer.close();
    await refused(another, /is a trace, and not of a session of uffd serve/);

    // A copy counts as the same memory file; a file with another size or other bytes does not.
    const copy = join(directory, 'copy');
    copyFileSync(memory, copy);
    await (await serve({ vms: [{ socket, memory: copy }], prefetch: [record] })).close();
    const other = join(directory, 'other');
    writeFileSync(other, readFileSync(memory).fill(1, 5 * P, 6 * P));
    await refused(record, /was recorded with another memory file; --force/, other);
    await (await serve({ vms: [{ socket, memory: other }], prefetch: [record], force: true })).close();
  });
});

test.run();
