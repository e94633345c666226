// A pager over a snapshot in a chunk store: right bytes, each chunk fetched once, none of zeros, nothing unverified, and
// no need of libuv's thread pool.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, open as openLater, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ChunkSourceOptions, chunkSource, Pager } from '../../src/pager/index.js';
import {
  chunkId,
  chunkKey,
  indexHash,
  MemoryImage,
  openStore,
  pack,
  parseIndex,
} from '../../src/store/index.js';
import { inDirectory } from '../cli/support/command.js';
import { CHUNK, SPARSE_SIZE, writeSparse } from '../store/support/memory.js';
import { type StoreServer, withStoreServer } from '../store/support/store-server.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { MIB, type PagerUser, userOf, withPager } from './support/pager-tools.js';

const test = suite('pager/chunk-source');

interface Packed {
  readonly folder: string;
  readonly index: Buffer;
  readonly server: StoreServer;
  readonly hash: string;
}

async function withPacked(body: (packed: Packed) => Promise<void>): Promise<void> {
  needKernel();
  await inDirectory(async (folder) => {
    const memory = join(folder, 'memory');
    writeSparse(memory, SPARSE_SIZE);
    const image = new MemoryImage(memory);
    const { index } = await pack(image, await openStore(join(folder, 'store')), { chunkSize: CHUNK });
    image.close();
    const hash = createHash('sha256').update(readFileSync(memory)).digest('hex');
    await withStoreServer(join(folder, 'store'), (server) => body({ folder, index, server, hash }));
  });
}

/** What a pager needs for this store. */
function options(index: string | Buffer, store: string, more: ChunkSourceOptions = {}, onError?: 'poison') {
  const source = chunkSource(index, store, { proxy: 'none', ...more });
  return { source, resident: MIB, blockSize: 16 * 1024, ...(onError && { onError }) };
}

test('a description is plain data, and wrong arguments are named', () => {
  const source = chunkSource('i.caibx', 's3://bucket/chunks', { anonymous: true, fallback: '/other' });
  assert.deepEqual(structuredClone(source), source);
  assert.deepEqual(source, {
    kind: 'chunks',
    index: join(process.cwd(), 'i.caibx'),
    store: 's3://bucket/chunks',
    options: { anonymous: true, fallback: '/other' },
  });
  const wrong: [index: unknown, store: unknown, options: unknown, message: RegExp][] = [
    [5, 's', {}, /^index must be a path, a URL or the bytes of an index; it is number/],
    ['i', '', {}, /^store must be a path or a URL/],
    ['i', 's', null, /^options must be an object/],
    ['i', 's', { indexSha256: 'abc' }, /^indexSha256 must be 64 hexadecimal digits/],
    ['i', 's', { cacheBytes: -1 }, /^cacheBytes must be an integer from 0/],
    ['i', 's', { endpoint: 'host' }, /^endpoint must be an http: or https: URL/],
    ['i', 's', { bytesPerSecond: 0 }, /^bytesPerSecond must be/],
    ['i', 's', { anonymous: 1 }, /^anonymous must be true or false/],
    ['i', 's', { attempts: 0 }, /^attempts must be/],
  ];
  for (const [index, store, given, message] of wrong)
    assert.throws(() => chunkSource(index as string, store as string, given as object), { message });
});

test('all bytes are right, each chunk is fetched once for its four blocks, and zeros are not', async () => {
  await withPacked(async ({ index, server, hash }) => {
    await withPager(options(index, server.url), 2, async (pager, one, two) => {
      assert.equal(pager.size, SPARSE_SIZE);
      const hashes = await Promise.all([one, two].map((user) => (user as PagerUser).hash(0, SPARSE_SIZE)));
      assert.deepEqual(hashes, [hash, hash]);
      // Chunks 0, 1, 3 (the same as 0), 5 and the last.
      assert.equal(server.requests.length, 5, server.requests.join('\n'));
    });
  });
});

test('a folder as the store, and an index from a file, a URL, or with a hash', async () => {
  await withPacked(async ({ folder, index, server, hash }) => {
    const file = join(folder, 'index');
    for (const path of [file, join(folder, 'store/index')]) writeFileSync(path, index);
    const indexSha256 = indexHash(index);
    const places: [index: string, store: string][] = [
      [file, join(folder, 'store')],
      [`${server.url}/index`, server.url],
    ];
    for (const [place, store] of places) {
      await withPager(options(place, store, { indexSha256 }), 1, async (_, user) => {
        assert.equal(await (user as PagerUser).hash(0, SPARSE_SIZE), hash);
      });
    }
    const refused = (place: string, more: ChunkSourceOptions, message: RegExp): Promise<void> =>
      assert.rejects(Pager.open(options(place, server.url, more)), { message });
    await refused(
      file,
      { indexSha256: '0'.repeat(64) },
      /is not the index that was asked for: its SHA-256 is/,
    );
    await refused(join(folder, 'none'), {}, /ENOENT/);
    await refused(`${server.url}/none`, {}, /answered 404/);
    await refused(join(folder, 'memory'), {}, /this is no index/);
  });
});

test('a damaged chunk never gets into memory: it is fetched once more, and read after it is mended', async () => {
  await withPacked(async ({ folder, index, server, hash }) => {
    const file = join(folder, 'store', chunkKey(chunkId(parseIndex(index, 'index'), 1)));
    const right = readFileSync(file);
    writeFileSync(file, right.subarray(1));
    const pinned = (pager: Pager): Promise<void> =>
      pager.withPinned({ offset: CHUNK, length: 100 }, () => {});
    await withPager(options(index, server.url, {}, 'poison'), 1, async (pager, user) => {
      await assert.rejects(pinned(pager), { message: /is damaged: it is no zstd frame/ });
      assert.equal(server.requests.length, 2);
      assert.equal((await (user as PagerUser).bytes(0, 1)).length, 1);
    });
    await withPager(options(index, server.url), 1, async (pager, user) => {
      const touched = (user as PagerUser).hash(0, SPARSE_SIZE);
      while (pager.stats.failures === 0) await new Promise((resolve) => setTimeout(resolve, 5));
      writeFileSync(file, right);
      assert.equal(await touched, hash);
    });
  });
});

test('chunks come from S3 while all threads of libuv’s pool are blocked', async () => {
  await withPacked(async ({ folder, index, server, hash }) => {
    const before = { ...process.env };
    Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'id', AWS_SECRET_ACCESS_KEY: 'secret' });
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const source = options(index, 's3://bucket', { endpoint: server.url.replace('127.0.0.1', 'localhost') });
    server.always = (request, response) => {
      assert.match(request.headers.authorization ?? '', /^AWS4-HMAC-SHA256 /);
      request.url = (request.url as string).replace('/bucket', '');
      server.serve(request, response, Buffer.alloc(0));
      return true;
    };
    const opened: number[] = [];
    try {
      const pager = await Pager.open(source);
      const user = await userOf(pager);
      // Each waits in open(2) for a writer.
      const count = Number(process.env.UV_THREADPOOL_SIZE ?? 4);
      let left = count;
      const done = new Promise<void>((resolve) => {
        for (let thread = 0; thread < count; thread++) {
          openLater(fifo, 'r', (_, fd) => {
            opened.push(fd);
            if (--left === 0) resolve();
          });
        }
      });
      try {
        assert.equal(await user.hash(0, SPARSE_SIZE), hash);
        assert.equal(opened.length, 0);
      } finally {
        // On Linux, this is a reader and a writer, and waits for neither.
        const writer = openSync(fifo, 'r+');
        await done;
        for (const fd of [writer, ...opened]) closeSync(fd);
        await user.end();
        await pager.close();
      }
    } finally {
      for (const name of ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']) delete process.env[name];
      Object.assign(process.env, before);
    }
  });
});

test.run();
