// casync of Debian extracts what `uffd pack` has packed, and `uffd unpack` unpacks what casync has packed. Both make the
// same index.

import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { inDirectory, sha256, uffd } from '../cli/support/command.js';
import { leaveOut, suite } from '../support/harness.js';
import { CHUNK, SPARSE_SIZE, writeSparse } from './support/memory.js';

const test = suite('store/casync');

function casync(folder: string, ...args: string[]): void {
  const { status, error, stderr } = spawnSync('casync', args, { cwd: folder, encoding: 'utf8' });
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') leaveOut('casync is not installed');
  assert.is(status, 0, stderr);
}

for (const digest of ['sha512-256', 'sha256']) {
  test(`both read what the other one writes, with ${digest}`, async () => {
    await inDirectory(async (folder) => {
      const path = (name: string): string => join(folder, name);
      writeSparse(path('memory'), SPARSE_SIZE);
      const size = `--chunk-size=${CHUNK}:${CHUNK}:${CHUNK}`;
      casync(folder, 'make', size, `--digest=${digest}`, '--store=theirs', 'theirs.caibx', 'memory');
      const options = ['--store', 'ours', '-o', 'ours.caibx', '--chunk', `${CHUNK}`, '--digest', digest];
      const packed = await uffd(['pack', 'memory', ...options], { cwd: folder });
      assert.is(packed.code, 0, packed.stderr);
      assert.equal(readFileSync(path('ours.caibx')), readFileSync(path('theirs.caibx')));
      casync(folder, 'extract', '--store=ours', 'ours.caibx', 'extracted');
      assert.is(sha256(path('extracted')), sha256(path('memory')));
      for (const name of ['ours', 'theirs']) {
        rmSync(path('unpacked'), { force: true });
        const args = ['unpack', 'ours.caibx', 'unpacked', '--store', name];
        const { code, stderr } = await uffd(args, { cwd: folder });
        assert.is(code, 0, stderr);
        assert.is(sha256(path('unpacked')), sha256(path('memory')));
      }
      // casync's gc keeps what our index names, and our prune what theirs names.
      casync(folder, 'gc', '--store=ours', 'ours.caibx');
      const pruned = await uffd(['prune', 'theirs.caibx', '--store', 'theirs', '--grace', '0s'], {
        cwd: folder,
      });
      assert.match(pruned.stdout, /^0 chunks, 0 bytes, removed; 5 are named/);
      const verified = await uffd(['verify', 'ours.caibx', '--store', 'ours'], { cwd: folder });
      assert.is(verified.stdout, '5 chunks: all are there, and right\n');
    });
  });
}

test.run();
