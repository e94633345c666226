// A pager reaches the memory limit of its control group: threads wait, stderr says why, and no byte is wrong.

import { strict as assert } from 'node:assert';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Pager } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { withMemoryGroup } from '../support/memory-group.js';
import { dataOf, MIB, program } from './support/pager-tools.js';

const test = suite('pager/memory-limit');

for (const [kind, call] of [
  ['file', 'pwrite'],
  ['module', 'MADV_POPULATE_WRITE'],
] as const) {
  test(`a source of kind ${kind} whose memory is refused: told, threads wait, and go on when there is some`, async () => {
    needKernel();
    await inDirectory(async (directory) => {
      const path = join(directory, 'data');
      if (kind === 'file') writeFileSync(path, dataOf(48 * MIB));
      await withMemoryGroup(async ({ refusing, usage, limit }) => {
        const { code, stdout, stderr } = await program('short-of-memory', [kind, path], {
          under: refusing(),
          async started(child, saw) {
            let told = '';
            child.stderr?.on('data', (text: string) => {
              told += text;
            });
            await saw(/ready/);
            const before = usage();
            let more = 16 * MIB;
            limit(before + more);
            // A thread of JavaScript that needs a page of its own waits for it, too, so there is a little more each time.
            while (!told.includes('cannot be read') && child.exitCode === null) {
              await sleep(20);
              more += 64 * 1024;
              limit(before + more);
            }
            await sleep(100);
            limit(before + 512 * MIB);
          },
        });
        assert.equal(stdout, 'ready\nread -1\nfailures true, poisoned 0\nclosed\n', stderr);
        assert.equal(code, 0, stderr);
        const lines = stderr.split('\n').slice(0, -1);
        assert.match(
          lines[0] as string,
          new RegExp(
            `cannot be read: ENOMEM: ${call} failed: .*tried again, and threads that touch them wait$`,
          ),
        );
        // The memory that the test adds may suffice for some reads only. The next failure is reported again.
        assert.ok(lines.length < 100, stderr);
        // Read-ahead that failed last is not tried again.
        assert.ok(lines.includes('userfaultfd: the data can be read again'), stderr);
      });
    });
  });
}

test('a process that the kernel kills for its memory: what was flushed is in the file', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, '');
    truncateSync(path, 64 * MIB);
    await withMemoryGroup(async ({ under, usage, limit }) => {
      const { code, stdout, stderr } = await program('killed-for-memory', [path], {
        under,
        started: async (_, saw) => {
          await saw(/flushed/);
          limit(usage() + 8 * MIB);
        },
      });
      assert.equal(stdout, 'flushed\n', stderr);
      assert.equal(code, 'SIGKILL', stderr);
    });
    Pager.recover(path);
    const file = readFileSync(path);
    const block = 64 * 1024;
    for (let at = 0; at < file.length; at += block) {
      const kinds = new Set(file.subarray(at, at + block));
      // A block may be written while the thread fills it.
      assert.ok(kinds.size <= 2, `the block at ${at} is torn: ${[...kinds]}`);
      assert.ok(at >= 4 * MIB || !kinds.has(0), `the block at ${at} was flushed`);
    }
  });
});

test.run();
