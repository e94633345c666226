// Recording does no harm: it never writes to a file that is served or read, and a guest whose recording fails is still
// served. The contents of a trace for prefetching are validated.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { existsSync, linkSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UFFD_EVENT_PAGEFAULT, UFFDIO_COPY } from '../../src/bindings/core.js';
import { identify, type ServeOptions, serve } from '../../src/serve/index.js';
import { workingSet } from '../../src/serve/working-set.js';
import { Kind, TraceReader, TraceWriter } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { memoryFile, P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/recording');
const PAGES = 16;

/** Serves a guest from its first page to its last. Returns why its recording failed, if it did. */
async function record({ guest, server, ends }: Scene, regions = 1): Promise<string | null | undefined> {
  const before = ends.length;
  const monitor = await guest({ regions });
  const { wrongCount } = await monitor.touch({ threads: 1, order: 'random', seed: 1 });
  assert.equal(wrongCount, 0);
  await monitor.end();
  await until(() => server.sessions.size === 0 && ends.length > before);
  assert.equal(ends.at(-1)?.end.how, 'exited');
  return ends.at(-1)?.session.recorded?.failure;
}

function warningsOf({ server }: Scene): string[] {
  const warnings: string[] = [];
  server.on('warned', (reason) => warnings.push(reason));
  return warnings;
}

test('what cannot be recorded to is refused at the start, and nothing is changed', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    const memory = memoryFile(directory, PAGES);
    const bytes = readFileSync(memory);
    writeFileSync(at('old'), 'an old trace');
    symlinkSync('memory', at('link'));
    linkSync(memory, at('second'));
    mkdirSync(at('folder'));
    spawnSync('mkfifo', [at('fifo')]);
    const refused = async (
      record: string,
      why: RegExp,
      options: Partial<ServeOptions> = {},
    ): Promise<void> => {
      const vms = [{ socket: at('socket'), memory }];
      await assert.rejects(serve({ vms, record, ...options }), { code: 'ERR_UFFD_RECORD', message: why });
      assert.ok(!existsSync(at('socket')));
    };
    await refused(memory, /cannot record to .*memory: it is the memory file .*memory$/);
    await refused(at('link'), /it is the memory file/);
    await refused(at('second'), /it is the memory file/);
    await refused(at('old'), /it is the trace .*old/, { prefetch: [at('old')] });
    await refused(at('memory/trace'), /ENOTDIR|EEXIST/);
    await refused(at('folder'), /EISDIR/);
    await refused(at('fifo'), /ENXIO/);
    assert.ok(readFileSync(memory).equals(bytes));
    const server = await serve({ vms: [{ socket: at('socket'), memory }], record: at('old') });
    assert.equal(readFileSync(at('old'), 'utf8'), 'an old trace');
    await server.close();
    const other = await serve({ vms: [{ socket: at('socket'), memory }], record: at('new') });
    assert.ok(!existsSync(at('new')));
    await other.close();
  });
});

test('about that cannot be in a trace is refused at the start', async () => {
  const about: Record<string, unknown> = {};
  about.self = about;
  await serving({ pages: PAGES }, async ({ memory, directory }) => {
    const vms = [{ socket: join(directory, 'other'), memory }];
    await assert.rejects(serve({ vms, about }), /circular/);
    await assert.rejects(serve({ vms, about: { n: 1n } }), /BigInt/);
    await assert.rejects(serve({ vms, about: 7 as never }), /about must be/);
    await assert.rejects(serve({ vms, about: { text: 'x'.repeat(2 ** 20) } }), /about has more than/);
  });
});

test('a later file that is the memory file, or cannot be opened: the guest is served, and not recorded', async () => {
  await inDirectory(async (traces) => {
    const trace = join(traces, 'trace');
    await serving({ pages: PAGES, record: trace }, async (scene) => {
      const warnings = warningsOf(scene);
      const bytes = readFileSync(scene.memory);
      linkSync(scene.memory, `${trace}.2`);
      symlinkSync(scene.memory, `${trace}.3`);
      mkdirSync(`${trace}.4`);
      assert.equal(await record(scene), null);
      assert.match((await record(scene)) ?? '', /it is the memory file/);
      assert.match((await record(scene)) ?? '', /it is the memory file/);
      assert.match((await record(scene)) ?? '', /EISDIR/);
      rmSync(traces, { recursive: true });
      assert.match((await record(scene)) ?? '', /ENOENT/);
      mkdirSync(traces);
      assert.equal(await record(scene), null);
      assert.ok(readFileSync(scene.memory).equals(bytes));
      assert.equal(warnings.length, 4);
      assert.match(warnings[0] as string, /^vm 2: cannot record to .*trace\.2: it is the memory file/);
      assert.ok(TraceReader.fromFile(`${trace}.6`).meta.about);
    });
  });
});

test('no room for a trace: the guest is served, and the recording has ended', async () => {
  await serving({ pages: PAGES, record: '/dev/full' }, async (scene) => {
    const warnings = warningsOf(scene);
    assert.match((await record(scene)) ?? '', /ENOSPC/);
    assert.match(warnings.join('\n'), /^vm 1: the recording of a trace has ended: ENOSPC[^\n]*$/);
  });
});

test('a guest of hundreds of regions is recorded, and what it touched is prefetched', async () => {
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    const pages = 900;
    await serving({ pages, record: trace }, async (scene) => {
      assert.equal(await record(scene, 900), null);
      assert.ok(JSON.stringify(TraceReader.fromFile(trace).meta).length > 100_000);
    });
    await serving({ pages, prefetch: [trace] }, async (scene) => {
      const monitor = await scene.guest({ regions: 900 });
      await until(() => [...scene.server.sessions].some(({ settledMs }) => settledMs !== undefined));
      assert.equal([...scene.server.sessions][0]?.tally.get('prefetched'), pages * P);
      await monitor.end();
    });
  });
});

// ---- traces that are read -----------------------------------------------------------------------------------

const BASE = 0x7f00_0000_0000n;

/** Writes a trace with a given description, in which a fault was read and a COPY has installed a range for it. */
function traceOf(path: string, about: unknown, start = BASE, length = P): string {
  const writer = TraceWriter.toFile(path, { about: about as Record<string, unknown> });
  writer.start({ pageSize: P });
  const message = new DataView(new ArrayBuffer(32));
  message.setUint8(0, UFFD_EVENT_PAGEFAULT);
  message.setBigUint64(16, start, true);
  writer.payload(32).set(new Uint8Array(message.buffer));
  writer.numbers(Kind.READ, 1, 3, 4096, 32);
  const bytes = BigInt(length);
  const struct = [start, 0n, bytes, 0n, 0n, start, 0n, bytes, 0n, bytes];
  for (const [index, value] of struct.entries()) writer.setWord(3 + index, value);
  writer.ioctl(1, 3, UFFDIO_COPY, 0);
  writer.close();
  return path;
}

test('a trace is not believed: regions, lengths and counts that no session had', async () => {
  await inDirectory((directory) => {
    const memory = memoryFile(directory, PAGES);
    const identity = identify(memory);
    const at = join(directory, 'trace');
    const region = { start: `${BASE}`, length: PAGES * P, offset: 0, pageSize: P };
    const about = (regions: unknown): object => ({ kind: 'uffd serve', memory: identity, regions });
    const set = (recorded: unknown, start?: bigint, length?: number): number =>
      workingSet([traceOf(at, recorded, start, length)], identity).ranges.reduce(
        (sum, run) => sum + run.length,
        0,
      );
    assert.equal(set(about([region])), P);
    assert.equal(set(about([region]), BASE, 2 ** 52), PAGES * P);
    assert.equal(set(about([region]), BASE - 4096n, 2 ** 52), 0);
    const huge = { ...region, length: 2 ** 52 };
    assert.equal(set(about([huge]), BASE, 2 ** 52), PAGES * P);
    const refused = (recorded: unknown): void =>
      assert.throws(
        () => set(recorded),
        { code: 'ERR_UFFD_WORKING_SET' },
        JSON.stringify(recorded)?.slice(0, 200),
      );
    for (const pageSize of [0, 1, 3, 1024, 2 ** 30, '4096', null, undefined])
      refused(about([{ ...region, pageSize }]));
    for (const length of [-P, 1, 2 ** 53, '4096', null]) refused(about([{ ...region, length }]));
    for (const offset of [-P, 1, 0.5, null]) refused(about([{ ...region, offset }]));
    for (const start of ['', '-1', '1', 'x', 0, null]) refused(about([{ ...region, start }]));
    for (const regions of [null, 7, {}, [null], [7], [[]], [region, region]]) refused(about(regions));
    refused(
      about(Array.from({ length: 32_769 }, (_, index) => ({ ...region, start: `${index * P}`, length: P }))),
    );
    refused({ ...about([region]), memory: null });
    refused({ ...about([region]), kind: 'x' });
    refused([]);
  });
});

test('a trace is used only as far as memory allows, with a warning; a path that is no regular file is refused', async () => {
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    await serving({ pages: 64, record: trace }, async (scene) => {
      await record(scene);
      const identity = identify(scene.memory);
      const all = workingSet([trace], identity);
      assert.equal(all.truncated, undefined);
      const some = workingSet([trace], identity, false, 10);
      assert.match(some.truncated ?? '', /trace is longer than what is prefetched/);
      assert.equal(
        some.ranges.reduce((sum, { length }) => sum + length, 0),
        10 * P,
      );
      spawnSync('mkfifo', [`${trace}.fifo`]);
      assert.throws(() => workingSet([`${trace}.fifo`], identity), /is no file, so it is no trace/);
    });
  });
});

test.run();
