// Runs each example and checks its output. Lines of different threads may come in any order.

import { execFile, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import * as assert from 'uvu/assert';
import { type Feature, Userfaultfd } from '../src/index.js';
import { skip, suite } from './support/harness.js';

const test = suite('examples');
const run = promisify(execFile);
const built = fileURLToPath(new URL('../examples/', import.meta.url));

/** The features that an example needs, and the lines that it prints. */
// biome-ignore format: a table
const EXAMPLES: Record<string, { needs: Feature[]; prints: string[] }> = {
  'answer-faults': { needs: [], prints: ['CAD', 'read of page 0', 'read of page 2', 'read of page 3'] },
  'minor-faults': { needs: ['minor-shmem'], prints: ['minor fault of page 2', 'GAMMA', 'minor fault of page 0', 'ALPHA'] },
  'move-pages': { needs: ['move'], prints: ['page 2 moves', 'page 0 moves', 'read: 67 65', 'left behind: 0 66 0'] },
  'track-writes': { needs: ['pagefault-flag-wp'], prints: ['checkpoint of 100 pages', 'written: page 7', 'written: page 42', 'checkpoint of 2 pages', 'the first draft'] },
  'edit-large-file': { needs: ['minor-shmem', 'wp-unpopulated'], prints: ['line 42 is in the file'] },
  'sort-larger-than-memory': { needs: ['minor-shmem', 'wp-unpopulated'], prints: ['2097152 numbers are sorted', 'more than all of them was evicted: true'] },
  'weights-to-wasm': { needs: ['minor-shmem'], prints: ['every layer was copied: true', 'each was read once: true', 'resident at the end: at most 4194304 bytes: true'] },
  poison: { needs: ['poison'], prints: ['page 1 cannot be read from its source', 'page 0 is saved', 'page 1: EFAULT', 'page 2 is saved'] },
};

/** Examples that another test runs. */
const ELSEWHERE = ['search-remote-file', 'test-a-handler']; // below, and test/testing/tutorial.test.ts

for (const [name, { needs, prints }] of Object.entries(EXAMPLES)) {
  test(`${name} does what it shows`, () => {
    const { features, userModeOnly } = Userfaultfd.isSupported()
      ? Userfaultfd.probe()
      : skip('this system has no userfaultfd');
    const lacks = needs.filter((feature) => !features.has(feature));
    if (lacks.length > 0) skip(`this kernel lacks ${lacks.join(', ')}`);
    if (name === 'poison' && userModeOnly) skip('without privilege a system call is never served');
    const { status, stdout, stderr } = spawnSync(process.execPath, [`${built}${name}.js`], {
      encoding: 'utf8',
    });
    assert.is(status, 0, stderr);
    assert.equal(stdout.trimEnd().split('\n').sort(), [...prints].sort());
  });
}

test('search-remote-file does what it shows, and is as short as it says', async () => {
  if (!Userfaultfd.isSupported()) skip('this system has no userfaultfd');
  if (!Userfaultfd.probe().features.has('minor-shmem')) skip('this kernel lacks minor-shmem');
  const file = Buffer.alloc(3 * 2 ** 20 + 5, 'hay ');
  file.write('needle', 2_500_000);
  const server = createServer(({ headers }, response) => {
    const [, first = '0', last = '0'] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    const bytes = file.subarray(Number(first), Number(last) + 1);
    response.writeHead(206, {
      etag: '"1"',
      'content-range': `bytes ${first}-${Number(first) + bytes.length - 1}/${file.length}`,
    });
    response.end(bytes);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    const { stdout } = await run(process.execPath, [`${built}search-remote-file.js`, url, 'needle']);
    assert.is(stdout, 'found at byte 2500000\n');
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

/** Lines of a program that are neither blank nor comments. */
function linesOfCode(name: string): number {
  const text = readFileSync(new URL(`../../examples/${name}.ts`, import.meta.url), 'utf8');
  return text.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('//')).length;
}

test('a remote file takes at most 10 lines, and a file that is edited in place at most 20', () => {
  assert.ok(linesOfCode('search-remote-file') <= 10, `${linesOfCode('search-remote-file')} lines`);
  assert.ok(linesOfCode('edit-large-file') <= 20, `${linesOfCode('edit-large-file')} lines`);
});

test('every example is run', () => {
  const files = readdirSync(built).filter((file) => file.endsWith('.js'));
  assert.equal(files.sort(), [...Object.keys(EXAMPLES), ...ELSEWHERE].map((name) => `${name}.js`).sort());
});

test.run();
