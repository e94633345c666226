// A store whose server lies, hangs, fails and changes bytes: no wrong byte comes out, what passes is tried again, and each
// failure says what it was.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  ChunkReader,
  chunkBytes,
  chunkId,
  chunkKey,
  MemoryImage,
  openStore,
  pack,
  parseIndex,
  type StoreError,
  type StoreOptions,
  verify,
} from '../../src/store/index.js';
import { withTasks } from '../../src/store/parallel.js';
import { inDirectory } from '../cli/support/command.js';
import { makeCertificates, withProxy } from '../pager/support/http-server.js';
import { suite } from '../support/harness.js';
import { CHUNK, SPARSE_SIZE, writeSparse } from './support/memory.js';
import { type Misbehave, type StoreServer, withStoreServer } from './support/store-server.js';

const test = suite('store/hostile');

interface Packed {
  readonly folder: string;
  readonly server: StoreServer;
  readonly reader: ChunkReader;
  readonly key: string;
  /** Reads the first chunk. */
  read(): Promise<Buffer>;
}

/** A packed memory behind a server. */
async function withPacked(options: StoreOptions, body: (packed: Packed) => Promise<void>): Promise<void> {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    const image = new MemoryImage(join(folder, 'memory'));
    const made = await pack(image, await openStore(join(folder, 'store')), { chunkSize: CHUNK });
    image.close();
    const index = parseIndex(made.index, 'index');
    await withStoreServer(join(folder, 'store'), async (server) => {
      const store = await openStore(server.url, { proxy: 'none', ...options });
      const reader = await ChunkReader.open(index, store);
      const read = async (): Promise<Buffer> => {
        const bytes = Buffer.alloc(chunkBytes(index, 0));
        await reader.read(0, bytes);
        return bytes;
      };
      try {
        await body({ folder, server, reader, key: chunkKey(chunkId(index, 0)), read });
      } finally {
        store.close();
        reader.close();
      }
    });
  });
}

const isFirst = (bytes: Buffer, folder: string): boolean =>
  bytes.equals(readFileSync(join(folder, 'memory')).subarray(0, CHUNK));

/** What passes: the next attempt is right. */
const PASSING: Record<string, Misbehave> = {
  'answers 500': (_, response) => void response.writeHead(500).end('no'),
  'answers 503 with a short Retry-After': (_, response) =>
    void response.writeHead(503, { 'retry-after': '0' }).end(),
  'answers 429': (_, response) => void response.writeHead(429).end(),
  'cuts the connection before the answer': (request) => void request.socket.destroy(),
  'cuts the connection in the body': (request, response) => {
    response.writeHead(200, { 'content-length': 5000 });
    response.write(Buffer.alloc(100), () => request.socket.destroy());
  },
  'cuts a chunked body': (request, response) => {
    response.writeHead(200);
    response.write(Buffer.alloc(100), () => request.socket.destroy());
  },
  'sends less than it announced': (request, response) => {
    response.writeHead(200, { 'content-length': 5000, connection: 'close' });
    response.write(Buffer.alloc(4999), () => request.socket.end());
  },
  'speaks no HTTP': (request) => void request.socket.end('hello\r\n\r\n'),
  'sends other bytes': (_, response) => void response.end(Buffer.alloc(3000, 7)),
  'sends nothing': (_, response) => void response.writeHead(200, { 'content-length': 0 }).end(),
};

for (const [what, answer] of Object.entries(PASSING)) {
  test(`a server that ${what} once is asked again`, async () => {
    await withPacked({}, async ({ folder, server, read }) => {
      server.answers.push(answer);
      assert.ok(isFirst(await read(), folder));
      assert.equal(server.requests.length, 2);
      for (const headers of server.headers) assert.equal(headers['accept-encoding'], 'identity');
    });
  });
}

test('a server that hangs is asked again after the time-out, and all attempts end', async () => {
  await withPacked({ timeoutMs: 1000, attempts: 20 }, async ({ folder, server, read }) => {
    server.answers.push(() => {});
    assert.ok(isFirst(await read(), folder));
    assert.ok(server.requests.length >= 2);
  });
  await withPacked({ timeoutMs: 100, attempts: 2 }, async ({ server, read }) => {
    server.always = () => true;
    await assert.rejects(read(), {
      message: /(did not answer in time|was not done after 1 s) \(attempt 2 of 2\)/,
    });
  });
});

/** What does not pass, and what is said. */
const LASTING: [string, Misbehave, StoreError['kind'], RegExp][] = [
  ['404', (_, response) => void response.writeHead(404).end(), 'missing', /answered 404 Not Found$/],
  ['403', (_, response) => void response.writeHead(403).end(), 'refused', /answered 403 Forbidden$/],
  ['302 to nowhere', (_, response) => void response.writeHead(302).end(), 'failed', /answered 302/],
  [
    'more bytes than a chunk can have',
    (_, response) => void response.writeHead(200, { 'content-length': 10 * CHUNK }).end(Buffer.alloc(10)),
    'failed',
    /the object has at least 655360 bytes, more than 67072/,
  ],
  [
    'endless bytes',
    (_, response) => {
      const more = (error?: Error | null): void => {
        // Node 26 calls this again and again for a connection that is gone, which is not destroyed yet.
        if (!error && !response.destroyed) response.write(Buffer.alloc(CHUNK), more);
      };
      response.on('error', () => {});
      more();
    },
    'failed',
    /the object has at least \d+ bytes, more than 67072/,
  ],
  [
    'a body that is compressed',
    (_, response) => void response.writeHead(200, { 'content-encoding': 'gzip' }).end('x'),
    'failed',
    /the server compressed the answer \(Content-Encoding: "gzip"\)/,
  ],
];

for (const [what, answer, kind, message] of LASTING) {
  test(`a server that answers ${what} is asked once`, async () => {
    await withPacked({}, async ({ server, key, read }) => {
      server.answers.push(answer, answer);
      await assert.rejects(read(), (error: StoreError) => {
        assert.equal(error.kind, kind, String(error));
        assert.match(error.message, message);
        assert.ok(error.message.startsWith(`${server.url}/${key}: `), error.message);
        return true;
      });
      assert.equal(server.requests.length, 1);
    });
  });
}

test('a chunk that stays damaged is fetched twice, is an error, and comes from the fall-back store if there is one', async () => {
  await inDirectory(async (elsewhere) => {
    await withPacked({}, async ({ folder, server, key, read }) => {
      const file = join(folder, 'store', key);
      const right = readFileSync(file);
      writeFileSync(file, Buffer.concat([right.subarray(0, 1000), Buffer.from([1]), right.subarray(1001)]));
      await assert.rejects(read(), { code: 'ERR_UFFD_DAMAGED_CHUNK', message: /is damaged: it/ });
      assert.equal(server.requests.length, 2);
      const other = await openStore(elsewhere);
      await other.put(key, right);
    });
    await withPacked({ fallback: elsewhere }, async ({ folder, server, key, read }) => {
      writeFileSync(join(folder, 'store', key), 'damaged');
      assert.ok(isFirst(await read(), folder));
      server.always = (_, response) => response.writeHead(404).end() !== undefined;
      assert.ok(isFirst(await read(), folder));
    });
  });
});

test('another chunk of the same size in the place of one is noticed', async () => {
  await withPacked({}, async ({ folder, reader, key, read }) => {
    const other = join(folder, 'store', chunkKey(chunkId(reader.index, 1)));
    writeFileSync(join(folder, 'store', key), readFileSync(other));
    await assert.rejects(read(), {
      code: 'ERR_UFFD_DAMAGED_CHUNK',
      message: /is damaged: its bytes have another hash/,
    });
  });
});

test('a frame that says it is larger than its chunk is refused', async () => {
  const { openCompressor, portableDecompressor } = await import('../../src/store/compression.js');
  const compressor = openCompressor();
  assert.ok(compressor);
  const bomb = Buffer.from(await compressor.compressLater(Buffer.alloc(64 << 20), 3));
  assert.ok(bomb.length < CHUNK);
  for (const decompressor of [compressor, await portableDecompressor()]) {
    assert.equal(decompressor.decompress(bomb, Buffer.alloc(CHUNK)), false, decompressor.kind);
    const bytes = Buffer.alloc(64 << 20, 1);
    assert.equal(decompressor.decompress(bomb, bytes), true, decompressor.kind);
    assert.ok(bytes.equals(Buffer.alloc(64 << 20)));
    assert.equal(decompressor.decompress(Buffer.from('no frame'), Buffer.alloc(100)), false);
  }
  compressor.close();
});

test('a redirect is followed, and another origin gets no credentials', async () => {
  await withPacked({ headers: { authorization: 'Basic secret', 'x-other': '1' } }, async (packed) => {
    const { folder, server, read } = packed;
    await withStoreServer(join(folder, 'store'), async (other) => {
      server.always = (request, response) => {
        response.writeHead(307, { location: other.url + request.url }).end();
        return true;
      };
      assert.ok(isFirst(await read(), folder));
      assert.equal(server.headers[0]?.authorization, 'Basic secret');
      assert.equal(other.headers[0]?.authorization, undefined);
      assert.equal(other.headers[0]?.['x-other'], '1');
    });
  });
});

test('a private authority must be given, and a proxy is used', async () => {
  const { ca, ...tls } = makeCertificates();
  await inDirectory(async (folder) => {
    await withStoreServer(
      folder,
      (server) =>
        withProxy(async (proxy) => {
          const untrusting = await openStore(server.url, { proxy: 'none' });
          const message = /the server's certificate is not trusted/;
          await assert.rejects(untrusting.put('key', Buffer.from('bytes')), { kind: 'failed', message });
          const store = await openStore(server.url, { ca, proxy: proxy.url() });
          await store.put('key', Buffer.from('bytes'));
          assert.equal(Buffer.from(await store.get('key', 10)).toString(), 'bytes');
          assert.match(proxy.lines[0] as string, /^CONNECT 127\.0\.0\.1:/);
          for (const each of [untrusting, store]) each.close();
        }),
      tls,
    );
  });
});

test('verify names what is missing and damaged, and fails if the store refuses everything', async () => {
  await withPacked({}, async ({ folder, server, reader }) => {
    const { index } = reader;
    const store = await openStore(server.url, { proxy: 'none' });
    assert.deepEqual((await verify(index, store)).bad, []);
    const [first, second] = [0, 1].map((chunk) => chunkId(index, chunk)) as [string, string];
    writeFileSync(join(folder, 'store', chunkKey(second)), 'damaged');
    server.always = ({ url }, response) => {
      if (url !== `/${chunkKey(first)}`) return false;
      response.writeHead(403).end();
      return true;
    };
    const { bad } = await verify(index, store);
    assert.deepEqual(
      bad.map(({ id, offset, state }) => ({ id, offset, state })),
      [
        { id: first, offset: 0, state: 'refused' },
        { id: second, offset: CHUNK, state: 'damaged' },
      ],
    );
    server.always = (_, response) => response.writeHead(403).end() !== undefined;
    await assert.rejects(verify(index, store), { kind: 'refused' });
    store.close();
  });
});

test('many calls at once warn of nothing', async () => {
  const warnings: Error[] = [];
  const note = (warning: Error): void => void warnings.push(warning);
  process.on('warning', note);
  try {
    await withPacked({ parallel: 32 }, async ({ server, reader }) => {
      const store = await openStore(server.url, { proxy: 'none', parallel: 32 });
      await Promise.all(Array.from({ length: 32 }, () => store.has('key')));
      await withTasks(32, undefined, async (pool) => {
        for (let task = 0; task < 32; task++)
          await pool.start(async (signal) => reader.fetch(0, () => Buffer.alloc(CHUNK), signal));
      });
      store.close();
    });
    // Warnings are emitted a turn later.
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(warnings, []);
  } finally {
    process.off('warning', note);
  }
});

test('closing a store, and an abort, end what is under way', async () => {
  await withPacked({}, async ({ server, key }) => {
    server.always = () => true;
    const store = await openStore(server.url, { proxy: 'none' });
    const aborted = new AbortController();
    const one = store.get(key, CHUNK, aborted.signal);
    const two = store.get(key, CHUNK);
    while (server.requests.length < 2) await new Promise((resolve) => setImmediate(resolve));
    aborted.abort(new Error('enough'));
    await assert.rejects(one, { message: 'enough' });
    store.close();
    await assert.rejects(two, { message: /the store was closed/ });
  });
});

test('parts of an object: the version is pinned, and a server that ignores the range is not read', async () => {
  await withPacked({}, async ({ server, key }) => {
    const store = await openStore(server.url, { proxy: 'none' });
    const part =
      (etag: string): Misbehave =>
      ({ headers }, response) => {
        assert.equal(headers.range, 'bytes=10-19');
        response.writeHead(206, { 'content-range': 'bytes 10-19/100', etag }).end(Buffer.alloc(10, 5));
      };
    server.answers.push(part('"one"'));
    const { bytes, version } = await store.range(key, 10, 10);
    assert.deepEqual([...bytes], Array(10).fill(5));
    server.answers.push(part('"two"'));
    await assert.rejects(store.range(key, 10, 10, version), /the file has changed/);
    assert.equal(server.headers[1]?.['if-match'], '"one"');
    await assert.rejects(store.range(key, 10, 10), /ignored the Range header and answered 200 OK/);
    store.close();
  });
});

test.run();
