// A store behind nginx: with gzip on, without ranges, and with an object that changes.

import { strict as assert } from 'node:assert';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openStore, type Store } from '../../src/store/index.js';
import { inDirectory, sha256, uffd } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { SPARSE_SIZE, writeSparse } from './support/memory.js';
import { withNginx } from './support/nginx.js';

const test = suite('store/nginx');

/** Calls `body` with a packed memory in `folder`, and nginx in front of it. */
async function withPacked(
  settings: string,
  body: (folder: string, url: string, store: Store) => Promise<void>,
): Promise<void> {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    const packed = await uffd(['pack', 'memory', '--store', 'store', '--chunk', '64K'], { cwd: folder });
    assert.equal(packed.code, 0, packed.stderr);
    await withNginx(folder, settings, async (url) => {
      const store = await openStore(url, { proxy: 'none' });
      try {
        await body(folder, url, store);
      } finally {
        store.close();
      }
    });
  });
}

test('with gzip on and without ranges, chunks are unpacked and verified', async () => {
  const gzip =
    'gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; gzip_http_version 1.0; max_ranges 0;';
  await withPacked(gzip, async (folder, url, store) => {
    const options = ['--store', url, '--proxy', 'none'];
    const unpacked = await uffd(['unpack', 'memory.caibx', 'copy', ...options], { cwd: folder });
    assert.equal(unpacked.code, 0, unpacked.stderr);
    assert.equal(sha256(join(folder, 'copy')), sha256(join(folder, 'memory')));
    const verified = await uffd(['verify', 'memory.caibx', ...options], { cwd: folder });
    assert.equal(verified.stdout, '5 chunks: all are there, and right\n');
    writeFileSync(join(folder, 'store/object'), Buffer.alloc(10_000, 'a'));
    assert.equal(await store.has('object'), true);
    assert.equal(await store.has('other'), false);
    await assert.rejects(store.range('object', 0, 10), /ignored the Range header and answered 200 OK/);
    await assert.rejects(store.get('other', 100), { kind: 'missing', message: /answered 404 Not Found/ });
    await assert.rejects(store.put('new', Buffer.from('x')), { kind: 'failed', message: /answered 405/ });
  });
});

test('a part of an object that has changed is refused', async () => {
  await withPacked('', async (folder, _, store) => {
    const object = join(folder, 'store/object');
    writeFileSync(object, Buffer.alloc(10_000, 'a'));
    const { bytes, version } = await store.range('object', 5000, 100);
    assert.ok(Buffer.from(bytes).equals(Buffer.alloc(100, 'a')));
    assert.equal((await store.range('object', 0, 10, version)).bytes.length, 10);
    writeFileSync(object, Buffer.alloc(20_000, 'b'));
    await assert.rejects(store.range('object', 0, 10, version), /the file has changed since it was opened/);
  });
});

test.run();
