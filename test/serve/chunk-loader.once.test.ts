// Chunks that are loaded for images: how often, in which order, and what happens if mappings run out.

import { strict as assert } from 'node:assert';
import { writeFileSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { view } from '../../shim/memory.js';
import { ChunkCache } from '../../src/serve/chunk-cache.js';
import { ChunkChecker } from '../../src/serve/chunk-checker.js';
import { ChunkLoader, type LoadedImage } from '../../src/serve/chunk-loader.js';
import { ImageMapping } from '../../src/serve/image-mapping.js';
import { ImageSource } from '../../src/serve/image-source.js';
import { Random } from '../../src/sim/index.js';
import { type ChunkIndex, idOf } from '../../src/store/index.js';
import { StoreError } from '../../src/store/store.js';
import { inDirectory } from '../cli/support/command.js';
import { seed, suite } from '../support/harness.js';
import { until } from '../support/real-kernel.js';

const test = suite('serve/chunk-loader');

const CHUNK = 8192;
const COUNT = 24;
const DIGEST = 'sha256';

/** Chunk `chunk` of the images; every fifth one is the same. */
const bytesOf = (chunk: number): Buffer => Buffer.alloc(CHUNK, chunk % 5 === 0 ? 255 : chunk + 1);

function indexOf(count: number): ChunkIndex {
  const ids = Buffer.concat(
    Array.from({ length: count }, (_, chunk) => Buffer.from(idOf(bytesOf(chunk), DIGEST), 'hex')),
  );
  return { size: count * CHUNK, chunkSize: CHUNK, digest: DIGEST, count, ids };
}

/** A store whose answers come when a test wants. */
class ManualStore {
  readonly index = indexOf(COUNT);
  /** The fetches that wait, in order. */
  readonly waiting: { chunk: number; id: string; end: (error?: Error) => void }[] = [];
  fetched = 0;

  readonly fetch = (chunk: number, into: () => Uint8Array): Promise<void> =>
    new Promise((resolve, reject) => {
      const id = idOf(bytesOf(chunk), DIGEST);
      assert.ok(!this.waiting.some((other) => other.id === id), `${id} is fetched twice at once`);
      this.fetched++;
      this.waiting.push({
        ...{ chunk, id },
        end: (error) => {
          if (error) reject(error);
          else {
            into().set(bytesOf(chunk));
            resolve();
          }
        },
      });
    });
}

function imageOf(
  store: ManualStore,
  mappingsMost = 1000,
): LoadedImage & { mapping: ImageMapping; close(): void } {
  const { size, chunkSize, count } = store.index;
  const mapping = new ImageMapping('', size, chunkSize, count, () => false, mappingsMost);
  return { reader: store, mapping, closed: false, arrived() {}, close: () => mapping.close() };
}

/** The bytes of an image, through the source that guests' threads use. */
function assertHas(image: { mapping: ImageMapping }, chunk: number): void {
  const source = new ImageSource(
    image.mapping.image,
    () => {},
    () => {},
  );
  assert.equal(source.stretchAt(chunk * CHUNK, 4096).absent, false);
  const address = source.bytesAt(chunk * CHUNK, CHUNK) as bigint;
  assert.ok(Buffer.from(view(address, CHUNK)).equals(bytesOf(chunk)));
}

async function withLoader(
  body: (scene: {
    store: ManualStore;
    cache: ChunkCache;
    loader: ChunkLoader;
    troubles: Map<string, string | undefined>;
  }) => Promise<void>,
): Promise<void> {
  await inDirectory(async (directory) => {
    const [store, cache] = [new ManualStore(), new ChunkCache(directory, 2 ** 30)];
    const checker = await ChunkChecker.open();
    const troubles = new Map<string, string | undefined>();
    const loader = new ChunkLoader({
      ...{ cache, checker, parallel: 4, lockedMostMs: 200 },
      report: (trouble, reason) => void troubles.set(trouble, reason),
    });
    try {
      await body({ store, cache, loader, troubles });
    } finally {
      const closed = loader.close();
      for (const { end } of store.waiting) end(new Error('closed'));
      await closed;
      await checker.close();
    }
  });
}

test('random wishes of several images: each chunk is fetched once at a time, and comes to each image', () =>
  withLoader(async ({ store, loader }) => {
    const random = new Random(seed());
    const images = [imageOf(store), imageOf(store), imageOf(store)];
    const wanted: [number, number][] = [];
    for (let wish = 0; wish < 300 || store.waiting.length > 0; wish++) {
      if (wish < 300) {
        const [image, chunk] = [random.below(images.length), random.below(COUNT)];
        loader.want(images[image] as LoadedImage, chunk, random.chance(0.3));
        wanted.push([image, chunk]);
      }
      await nextTurn();
      const [next] = store.waiting.splice(random.below(store.waiting.length + 1), 1);
      const fails = random.chance(0.3);
      next?.end(fails ? new StoreError('failed', 'a failure') : undefined);
    }
    await until(() => {
      for (const { end } of store.waiting.splice(0)) end();
      return loader.inFlight.waiting === 0;
    });
    for (const [image, chunk] of wanted) assertHas(images[image] as { mapping: ImageMapping }, chunk);
    const different = new Set(wanted.map(([, chunk]) => idOf(bytesOf(chunk), DIGEST))).size;
    assert.equal(store.fetched - loader.counts.failed, different);
    for (const image of images) image.close();
  }));

test('what a guest waits for comes before what is loaded ahead, also if that was asked for first', () =>
  withLoader(async ({ store, loader }) => {
    const image = imageOf(store);
    for (let chunk = 1; chunk < 20; chunk++) loader.want(image, chunk, false);
    await until(() => store.waiting.length >= 3);
    const ahead = store.waiting.length;
    for (const chunk of [21, 19]) loader.want(image, chunk, true);
    // Some room is kept for them, so they do not wait for a fetch that was begun before.
    assert.deepEqual(
      store.waiting.slice(ahead).map(({ chunk }) => chunk),
      [21, 19],
    );
    for (const { end } of store.waiting.splice(0)) end();
    await until(() => image.mapping.has(19));
    image.close();
  }));

test('without room for mappings chunks are kept in memory, which is reported, and freed when no guest is left', () =>
  withLoader(async ({ store, loader, troubles }) => {
    const image = imageOf(store, 2);
    for (const chunk of [1, 2, 3, 4]) loader.want(image, chunk, true);
    for (const { end } of store.waiting.splice(0)) end();
    await until(() => loader.inFlight.waiting === 0);
    for (const chunk of [1, 2, 3, 4]) assertHas(image, chunk);
    assert.equal(image.mapping.spilledBytes, 2 * CHUNK);
    assert.match(troubles.get('mappings') ?? '', /raise vm\.max_map_count/);
    image.mapping.trim(() => true);
    assert.equal(image.mapping.spilledBytes, 0);
    assert.deepEqual(
      [1, 2, 3, 4].map((chunk) => image.mapping.has(chunk)),
      [true, true, false, false],
    );
    image.close();
  }));

test('a chunk whose lock another process does not give back is fetched all the same', () =>
  withLoader(async ({ store, cache, loader }) => {
    const image = imageOf(store);
    const lock = cache.lock(idOf(bytesOf(1), DIGEST));
    assert.ok(typeof lock === 'object');
    loader.want(image, 1, true);
    await until(() => store.waiting.length === 1);
    store.waiting.splice(0)[0]?.end();
    await until(() => image.mapping.has(1));
    assertHas(image, 1);
    cache.unlock(lock);
    image.close();
  }));

test('a problem of the store is over when another process has put what was wanted into the cache', () =>
  withLoader(async ({ store, cache, loader, troubles }) => {
    const image = imageOf(store);
    loader.want(image, 1, true);
    writeFileSync(cache.pathOf(idOf(bytesOf(1), DIGEST)), bytesOf(1));
    store.waiting.splice(0)[0]?.end(new StoreError('failed', 'no answer'));
    await until(() => troubles.get('store') === 'no answer');
    await until(() => image.mapping.has(1) && loader.inFlight.waiting === 0);
    assert.equal(troubles.get('store'), undefined);
    assertHas(image, 1);
    image.close();
  }));

test('a problem of the store is over when a chunk comes, that of a chunk when this one does', () =>
  withLoader(async ({ store, loader, troubles }) => {
    const image = imageOf(store);
    for (const chunk of [1, 2]) loader.want(image, chunk, true);
    const [first, second] = store.waiting.splice(0);
    first?.end(new StoreError('failed', 'no answer'));
    await until(() => troubles.get('store') === 'no answer');
    second?.end(new StoreError('missing', 'not there'));
    await until(() => troubles.get('chunks') === '1 cannot be had; the first: not there');
    await until(() => store.waiting.some(({ chunk }) => chunk === 1));
    store.waiting.find(({ chunk }) => chunk === 1)?.end();
    await until(() => image.mapping.has(1));
    assert.equal(troubles.get('store'), undefined);
    assert.match(troubles.get('chunks') ?? '', /not there/);
    await until(() => store.waiting.some(({ chunk }) => chunk === 2));
    store.waiting.find(({ chunk }) => chunk === 2)?.end();
    await until(() => image.mapping.has(2));
    assert.equal(troubles.get('chunks'), undefined);
    image.close();
  }));

test.run();
