// The cache of chunks with many files: looking through them does not keep the event loop from other work.

import { strict as assert } from 'node:assert';
import { closeSync, mkdirSync, readdirSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ChunkCache, cacheContents } from '../../src/serve/chunk-cache.js';
import { idOf } from '../../src/store/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';

const test = suite('serve/chunk-cache');

const FOLDERS = 64;
const FILES = 4;
const BYTES = 100;

/** The id of a chunk that a folder of the cache holds. */
const idIn = (folder: number, file: number): string =>
  `${folder.toString(16).padStart(2, '0')}${file}`.padEnd(64, 'a');

function fill(directory: string): void {
  for (let folder = 0; folder < FOLDERS; folder++) {
    mkdirSync(join(directory, idIn(folder, 0).slice(0, 2)));
    for (let file = 0; file < FILES; file++) {
      const path = join(directory, idIn(folder, file).slice(0, 2), idIn(folder, file));
      writeFileSync(path, Buffer.alloc(BYTES));
      // Of each folder, the first file was not used for longest.
      utimesSync(path, file, file);
    }
  }
}

test('a cache that is too large is emptied in turns, what was not used for longest first', () =>
  inDirectory(async (directory) => {
    fill(directory);
    const most = (FOLDERS * FILES * BYTES) / 2;
    let turns = 0;
    const cache = new ChunkCache(directory, most);
    assert.equal(cacheContents(directory).chunks, FOLDERS * FILES, 'nothing is removed at once');
    const bounded = cache.bounded().then(() => true);
    while (!(await Promise.race([bounded, nextTurn(false)]))) turns++;
    assert.ok(turns > FOLDERS / 2, `${turns} turns`);
    const { bytes } = cacheContents(directory);
    assert.ok(bytes <= 0.9 * most && bytes > 0.8 * most, `${bytes} bytes`);
    assert.equal(cache.counts.bytes, bytes);
    const left = readdirSync(directory, { recursive: true, encoding: 'utf8' }).filter(
      (name) => name.length > 2,
    );
    assert.ok(
      left.every((name) => name.slice(3, 6) >= `${name.slice(0, 2)}2`),
      'of two files, the one that was used later is kept',
    );
  }));

test('chunks that are written while the cache is looked through count: it is bounded in the end', () =>
  inDirectory(async (directory) => {
    fill(directory);
    const most = FOLDERS * FILES * BYTES;
    const cache = new ChunkCache(directory, most);
    for (let chunk = 0; chunk < 500; chunk++) {
      const bytes = Buffer.alloc(BYTES);
      bytes.writeUInt32LE(chunk);
      const lock = cache.lock(idOf(bytes, 'sha256'));
      assert.ok(typeof lock === 'object');
      closeSync(cache.put(lock, bytes, 'sha256'));
      if (chunk % 10 === 0) await nextTurn();
    }
    await cache.bounded();
    const { bytes } = cacheContents(directory);
    assert.ok(bytes <= most, `${bytes} bytes`);
    assert.ok(bytes > most / 2, `${bytes} bytes`);
  }));

test.run();
