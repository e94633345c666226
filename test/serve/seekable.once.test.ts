// Guests whose memory is one zstd file in the seekable format, in a folder or on a web server: what they read, what the
// cache keeps, and what happens if the file is damaged or changes. They never get a wrong byte.

import { strict as assert } from 'node:assert';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Server } from '../../src/serve/index.js';
import { MemoryImage, packSeekable } from '../../src/store/index.js';
import { FileServer } from '../pager/support/http-server.js';
import { PYZSTD_FILE, pyzstdMemory } from '../store/support/seekable.js';
import { suite } from '../support/harness.js';
import { until } from '../support/real-kernel.js';
import { P, writeMemory } from './support/serve-process.js';
import {
  assertRight,
  CHUNK,
  CHUNK_PAGES,
  cachedFiles,
  isHole,
  PAGES,
  type StoreScene,
  withSnapshot,
} from './support/snapshot-store.js';

const test = suite('serve/seekable');

/** Chunks of the memory: all are frames, and those of zeros are read, too. */
const FRAMES = Math.ceil((PAGES * P) / CHUNK);
/** Requests for the seek table. */
const OPENING = 2;

interface Scene extends StoreScene {
  /** The file. */
  readonly file: string;
  /** Serves it over HTTP. */
  readonly web: FileServer;
  readonly url: string;
}

async function packed(memory: string, file: string): Promise<Buffer> {
  const image = new MemoryImage(memory);
  try {
    await packSeekable(image, file, { chunkSize: CHUNK });
  } finally {
    image.close();
  }
  return readFileSync(file);
}

const withFile = (body: (scene: Scene) => Promise<void>): Promise<void> =>
  withSnapshot(async (scene) => {
    const file = join(scene.directory, 'vm.mem.zst');
    const web = new FileServer(await packed(scene.memory, file));
    await web.listen();
    try {
      await body({ ...scene, file, web, url: web.url('/vm.mem.zst?key=1') });
    } finally {
      web.close();
    }
  });

test('a local file: every page is right', () =>
  withFile(async ({ serve, file }) => {
    const { server, guest } = await serve({}, file);
    await assertRight(await guest({ regions: 3 }));
    assert.equal(server.storage?.store.chunks, FRAMES);
  }));

test('over HTTP every page is right, each part is read once, of one version; then the cache has all of them', () =>
  withFile(async ({ serve, web, url, cache, store }) => {
    const one = await serve({}, url);
    await assertRight(await one.guest());
    await assertRight(await one.guest());
    assert.equal(web.requests.length, OPENING + FRAMES);
    for (const { headers } of web.requests.slice(1)) {
      assert.equal(headers['if-match'], '"first"');
      assert.equal(headers['accept-encoding'], 'identity');
    }
    assert.equal(cachedFiles(cache).length, FRAMES);
    const other = await serve({}, url);
    await assertRight(await other.guest());
    assert.equal(web.requests.length, 2 * OPENING + FRAMES);
    assert.equal(other.server.storage?.cache.chunks, FRAMES);
    assert.deepEqual(store.requests, []);
  }));

test('a guest reads only the parts that it touches', () =>
  withFile(async ({ serve, web, url }) => {
    const { guest } = await serve({}, url);
    const monitor = await guest();
    const range = {
      threads: 1,
      order: 'sequential',
      seed: 0,
      from: CHUNK_PAGES,
      to: 2 * CHUNK_PAGES,
    } as const;
    assert.equal((await monitor.touch(range)).wrongCount, 0);
    assert.equal(web.requests.length, OPENING + 1);
  }));

test('a file of pyzstd, with frames that end inside of pages and no checksums in its table: every page is right', () =>
  withFile(async ({ serve, web, url, directory }) => {
    const memory = join(directory, 'other');
    writeFileSync(memory, pyzstdMemory());
    web.file = PYZSTD_FILE;
    const { guest } = await serve({}, url);
    await assertRight(await guest({ memory }));
  }));

test('files of the cache that are damaged, or are those of other chunks, are fetched again', () =>
  withFile(async ({ serve, web, url, cache }) => {
    await assertRight(await (await serve({ eager: true }, url)).guest());
    const [damaged, exchanged, other] = cachedFiles(cache) as [string, string, string];
    const bytes = readFileSync(damaged);
    bytes.writeUInt8(bytes.readUInt8(100) ^ 1, 100);
    writeFileSync(damaged, bytes);
    copyFileSync(other, exchanged);
    const before = web.requests.length;
    const { server, guest } = await serve({}, url);
    await assertRight(await guest());
    assert.equal(web.requests.length, before + OPENING + 2);
    assert.equal(server.storage?.damaged, 2);
  }));

test('while the file is another one, or a part of it is damaged, the guest waits, and the problem is reported', () =>
  withFile(async ({ serve, web, url }) => {
    const { server, guest } = await serve({ storeOptions: { attempts: 1 } }, url);
    const monitor = await guest();
    const right = web.file;
    web.file = Buffer.from(right);
    web.file.writeUInt8(right.readUInt8(60) ^ 1, 60);
    const first = { threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES } as const;
    const touched = monitor.touch(first);
    await until(() => /vm\.mem\.zst is damaged in the \d+ bytes from 0 on/.test(problemsOf(server)));
    web.file = right;
    assert.equal((await touched).wrongCount, 0);
    await until(() => server.problems.size === 0);
    web.file = Buffer.from(right);
    web.etag = '"second"';
    const rest = assertRight(monitor);
    await until(() => /the file has changed since it was opened/.test(problemsOf(server)));
    web.etag = '"first"';
    web.file = right;
    await rest;
    await until(() => server.problems.size === 0);
  }));

test('a new file at the same place, of the same length: a new server mixes no cached part of the old one into it', () =>
  withFile(async ({ serve, web, url, directory, file }) => {
    await assertRight(await (await serve({}, url)).guest());
    const memory = join(directory, 'later');
    writeMemory(memory, PAGES, 8, isHole);
    web.file = await packed(memory, file);
    web.etag = '"second"';
    const { guest } = await serve({}, url);
    await assertRight(await guest({ memory }));
  }));

test('what cannot be served is refused when the server starts', () =>
  withFile(async ({ serve, web, url, directory, memory }) => {
    const plain = join(directory, 'plain.zst');
    writeFileSync(plain, web.file.subarray(0, -20));
    await assert.rejects(serve({}, plain), {
      name: 'IndexError',
      message: /it has no seek table.*uffd pack --seekable/,
    });
    await assert.rejects(serve({}, join(directory, 'none.zst')), { name: 'StoreError', kind: 'missing' });
    await assert.rejects(serve({}, memory), /there is a cache, and no memory for it/);
    web.answer = (_, response) => response.end(web.file);
    await assert.rejects(serve({}, url), /ignored the Range header and answered 200 OK/);
  }));

function problemsOf({ problems }: Pick<Server, 'problems'>): string {
  return [...problems.values()].join('\n');
}

test.run();
