// Snapshots in a chunk store: what guests read, how often the store is asked, and what the cache keeps.

import { strict as assert } from 'node:assert';
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Guest } from '../../src/cli/guest/guest.js';
import { indexHash } from '../../src/store/index.js';
import { commandLine, type Ended, uffd } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { compileProgram, until } from '../support/real-kernel.js';
import { Running } from './support/serve-process.js';
import {
  assertRight,
  CHUNK,
  CHUNK_PAGES,
  CHUNKS,
  cachedFiles,
  PAGES,
  type Served,
  withSnapshot,
} from './support/snapshot-store.js';

const test = suite('serve/stored-snapshots');

/** Whether a guest has come, and nothing is left to install in the background. */
const isSettled = ({ server }: Served): boolean =>
  server.sessions.size > 0 && [...server.sessions].every(({ settledMs }) => settledMs !== undefined);

for (const wait of ['adaptive', 'block', 'poll'] as const) {
  test(`${wait}: from an empty cache every page is right, and a second guest asks the store for nothing`, () =>
    withSnapshot(async ({ serve, store }) => {
      const served = await serve({ wait });
      const first = await served.guest({ regions: 3 });
      const { wrongCount } = await first.touch({ threads: 4, order: 'random', seed: 5 });
      assert.equal(wrongCount, 0);
      assert.equal(store.requests.length, CHUNKS);
      assert.deepEqual(store.repeated, []);
      const [session] = [...served.server.sessions];
      assert.ok((session?.tally.get('waited') ?? 0) > 0);
      await assertRight(await served.guest());
      assert.equal(store.requests.length, CHUNKS);
      const { storage } = served.server;
      assert.deepEqual(
        [storage?.store.chunks, storage?.waiting, storage?.fetching, storage?.failed],
        [CHUNKS, 0, 0, 0],
      );
    }));
}

test('guests that come at once, of two servers that share a cache: each chunk is fetched once', () =>
  withSnapshot(async ({ serve, store }) => {
    const [one, other] = [await serve(), await serve()];
    const guests = await Promise.all([one.guest(), one.guest({ regions: 2 }), other.guest(), other.guest()]);
    await Promise.all(guests.map((guest) => assertRight(guest)));
    assert.equal(store.requests.length, CHUNKS);
    assert.deepEqual(store.repeated, []);
    const fromCache = [one, other].map(({ server }) => server.storage?.cache.chunks ?? 0);
    assert.equal((fromCache[0] as number) + (fromCache[1] as number), CHUNKS);
  }));

test('32 guests of one snapshot that come at once, to an empty cache: each chunk is asked for once, every page is right', () =>
  withSnapshot(async ({ serve, store, directory, memory }) => {
    const { ends } = await serve();
    const [socket] = readdirSync(directory).filter((name) => /^socket/.test(name));
    const program = compileProgram('guest/monitor.c');
    const guests = Array.from({ length: 32 }, (_, seed) => {
      const words = ['-t', '1', '-r', '1', '-s', `${seed}`, '-l', '60'];
      return new Running([program, ...words, join(directory, socket as string), memory]);
    });
    try {
      for (const { ended } of guests) {
        const { code, stdout, stderr } = await ended;
        assert.equal(code, 0, `${stdout}${stderr}`);
        assert.match(stdout, /"wrong":\s*0\b/);
      }
    } finally {
      for (const guest of guests) guest.kill();
    }
    assert.equal(store.requests.length, CHUNKS);
    assert.deepEqual(store.repeated, []);
    await until(() => ends.length === guests.length);
  }));

test('pages that were removed are zeros, before and after their chunk has come', () =>
  withSnapshot(async ({ serve, store }) => {
    const served = await serve();
    const guest = await served.guest();
    await guest.remove(1, 3);
    await guest.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES + 3 });
    await guest.remove(CHUNK_PAGES, CHUNK_PAGES + 2);
    await assertRight(guest);
    await assertRight(guest, 1);
    assert.equal(store.requests.length, CHUNKS);
  }));

test('the working set beside the index is fetched in its order before a guest comes, and installed without faults', () =>
  withSnapshot(async ({ serve, store, index }) => {
    const chunks = [9, 2, 6];
    const ranges = chunks.map((chunk) => [chunk * CHUNK, CHUNK]);
    const content = { kind: 'uffd working set', version: 1, index: indexHash(readFileSync(index)), ranges };
    writeFileSync(`${index}.working-set`, JSON.stringify(content));
    const served = await serve({ storeOptions: { attempts: 1, parallel: 1 } });
    await until(() => store.requests.length === chunks.length && served.server.storage?.waiting === 0);
    const guest = await served.guest();
    await until(() => isSettled(served));
    const [session] = [...served.server.sessions];
    assert.equal(session?.tally.get('prefetched'), chunks.length * CHUNK);
    for (const chunk of chunks) {
      const [from, to] = [chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES];
      await guest.touch({ threads: 1, order: 'random', seed: 1, from, to });
    }
    assert.equal(session?.tally.get('faults'), 0);
    assert.equal(store.requests.length, chunks.length);
    const byChunk = chunks.map((chunk) => store.requests.indexOf(pathOf(index, chunk)));
    assert.deepEqual(byChunk, [0, 1, 2]);
    await assertRight(guest);
  }));

/** The path of a chunk in the store. */
function pathOf(index: string, chunk: number): string {
  const at = 64 + chunk * 40 + 8;
  const id = readFileSync(index)
    .subarray(at, at + 32)
    .toString('hex');
  return `/${id.slice(0, 4)}/${id}.cacnk`;
}

test('with eager, all of the memory is fetched and installed although the guest touches nothing', () =>
  withSnapshot(async ({ serve, store }) => {
    const served = await serve({ eager: true });
    const guest = await served.guest();
    await until(() => isSettled(served));
    assert.equal(store.requests.length, CHUNKS);
    const [session] = [...served.server.sessions];
    const faults = session?.tally.get('faults');
    await assertRight(guest);
    assert.equal(session?.tally.get('faults'), faults);
  }));

test('while a chunk does not come, faults on other chunks are answered; then it comes', () =>
  withSnapshot(async ({ serve, store, index }) => {
    let held: (() => void) | undefined;
    store.answer = (response, bytes, url) => {
      if (url !== pathOf(index, 0)) return false;
      held = () => void response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
      return true;
    };
    const served = await serve();
    const guest = await served.guest();
    const first = guest.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES });
    await until(() => held !== undefined);
    const others = await guest.touch({ threads: 2, order: 'random', seed: 0, from: CHUNK_PAGES, to: PAGES });
    assert.equal(others.wrongCount, 0);
    held?.();
    assert.equal((await first).wrongCount, 0);
  }));

test('a recording of a guest in a store is a working set for the next', () =>
  withSnapshot(async ({ serve, directory, memory, index, chunks }) => {
    const record = `${directory}/trace`;
    const first = await serve({ record });
    const guest = await first.guest();
    await guest.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES });
    await guest.end();
    await until(() => first.ends.length === 1);
    const second = await serve({ prefetch: [record] });
    const next = await second.guest();
    await until(() => isSettled(second));
    const [session] = [...second.server.sessions];
    await next.touch({ threads: 1, order: 'random', seed: 0, from: 0, to: CHUNK_PAGES });
    assert.equal(session?.tally.get('faults'), 0);
    await assertRight(next);
    // It also goes beside the index, if the same memory is packed again.
    const pack = async (chunk: number): Promise<Ended> =>
      uffd(['pack', memory, ...['--store', chunks, '-o', index, '--trace', record, '--chunk', `${chunk}`]]);
    const packed = await pack(CHUNK);
    assert.equal(packed.code, 0, packed.stderr);
    const beside = JSON.parse(readFileSync(`${index}.working-set`, 'utf8'));
    assert.equal(beside.index, indexHash(readFileSync(index)));
    const installed = beside.ranges.reduce((sum: number, [, length]: [number, number]) => sum + length, 0);
    assert.equal(installed, CHUNK);
    assert.match((await pack(2 * CHUNK)).stderr, /was recorded with another memory file/);
  }));

// ---- the cache -----------------------------------------------------------------------------------------------

test('damaged files of the cache are not used: other bytes, and another length', () =>
  withSnapshot(async ({ serve, store, cache }) => {
    const first = await serve();
    await assertRight(await first.guest());
    await first.server.close();
    const files = cachedFiles(cache);
    assert.equal(files.length, CHUNKS);
    const [flipped, cut] = files as [string, string];
    const bytes = readFileSync(flipped);
    bytes.writeUInt8(bytes.readUInt8(100) ^ 1, 100);
    writeFileSync(flipped, bytes);
    truncateSync(cut, 4096);
    const second = await serve();
    await assertRight(await second.guest());
    assert.equal(store.requests.length, CHUNKS + 2);
    assert.equal(second.server.storage?.damaged, 2);
    assert.equal(statSync(cut).size, CHUNK);
  }));

test('a cache that is smaller than the memory is kept small, while guests get every page', () =>
  withSnapshot(async ({ serve, cache }) => {
    const most = 5 * CHUNK;
    const served = await serve({ cacheBytes: most });
    const guests = await Promise.all([served.guest(), served.guest()]);
    await Promise.all(guests.map((guest) => assertRight(guest)));
    for (const guest of guests) await guest.end();
    await until(() => served.ends.length === 2);
    await until(() => cachedFiles(cache).length * CHUNK <= most);
    assert.ok((served.server.storage?.evicted ?? 0) > 0);
    // What was removed from the cache is not kept in mappings either, and is fetched again.
    await assertRight(await served.guest());
    assert.ok((served.server.storage?.store.chunks ?? 0) > CHUNKS);
  }));

test('uffd serve: --once, --stats-json and uffd cache with a store', () =>
  withSnapshot(async ({ directory, memory, index, cache, store }) => {
    const [socket, stats] = [join(directory, 'once'), join(directory, 'stats')];
    const places = ['--store', store.url, '--cache', cache, '--cache-size', '1G'];
    const options = ['--socket', socket, '--memory', index, '--stats-json', stats, '--once', ...places];
    const server = new Running(commandLine(['serve', ...options]));
    try {
      await server.says(`ready: ${socket}\n`);
      const guest = new Guest({ socket, memory });
      try {
        await guest.handedOver;
        await assertRight(guest);
      } finally {
        await guest.end();
      }
      assert.equal((await server.ended).code, 0);
    } finally {
      server.kill();
    }
    const { storage } = JSON.parse(readFileSync(stats, 'utf8'));
    assert.deepEqual([storage.store.chunks, storage.cache.chunks, storage.waiting], [CHUNKS, 0, 0]);
    const command = async (...args: string[]): Promise<string> => {
      const { code, stdout, stderr } = await uffd(['cache', ...args]);
      assert.equal(code, 0, stderr);
      return stdout;
    };
    assert.deepEqual(JSON.parse(await command('info', cache, '--json')), {
      ...{ cache, chunks: CHUNKS, bytes: storage.cacheBytes },
    });
    assert.match(await command('clear', cache), /14 chunks, .* were removed/);
    assert.match(await command('info', cache), /0 chunks, 0 bytes/);
    const before = store.requests.length;
    const warm = ['warm', index, ...places, '--all', '--json'];
    const first = JSON.parse(await command(...warm));
    assert.deepEqual([first.fetchedChunks, first.cachedChunks], [CHUNKS, 0]);
    const second = JSON.parse(await command(...warm));
    assert.deepEqual([second.fetchedChunks, second.cachedChunks], [0, CHUNKS]);
    assert.equal(store.requests.length, before + CHUNKS);
  }));

test('uffd cache does not touch what is no cache', () =>
  withSnapshot(async ({ directory, memory }) => {
    const missing = await uffd(['cache', 'info', join(directory, 'none')]);
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /there is no folder/);
    const { code, stdout } = await uffd(['cache', 'clear', directory]);
    assert.equal(code, 0);
    assert.match(stdout, /0 chunks/);
    assert.ok(statSync(memory).size > 0);
  }));

test('an index without a store is refused', () =>
  withSnapshot(async ({ serve }) => {
    const none = { store: undefined, cache: undefined } as object;
    await assert.rejects(serve(none), { code: 'ERR_UFFD_MEMORY_FILE', message: /give a store and a cache/ });
    const half = { cache: undefined } as object;
    await assert.rejects(serve(half), { code: 'ERR_INVALID_ARG_VALUE' });
  }));

test.run();
