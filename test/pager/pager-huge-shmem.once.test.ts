// A pager beside huge pages for all shared memory, which is a setting of the whole system: run.ts runs this file alone.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { moduleSource, type PagerOptions } from '../../src/pager/index.js';
import { needKernel } from '../cli/support/command.js';
import { seed, skip, suite } from '../support/harness.js';
import { aloneWithHugePages } from '../support/huge-pages.js';
import { hammerFile, hammerSwap } from './support/hammer.js';
import { controlOf, SOURCE } from './support/pager-source.js';
import { KIB, MIB, memfdBytes, mostBytes, withPager } from './support/pager-tools.js';

const test = suite('pager/huge-shmem');

const SHMEM = '/sys/kernel/mm/transparent_hugepage/shmem_enabled';

/** Runs a body with huge pages for all shared memory of the system. */
async function withHugeShmem(body: () => Promise<void>): Promise<void> {
  await aloneWithHugePages(async () => {
    let before: string | undefined;
    const restore = (): void => {
      if (before) writeFileSync(SHMEM, before);
      before = undefined;
    };
    process.once('exit', restore);
    try {
      const was = /\[(\w+)\]/.exec(readFileSync(SHMEM, 'utf8'))?.[1];
      writeFileSync(SHMEM, 'always');
      before = was;
    } catch (error) {
      skip(`huge pages of shared memory cannot be switched on: ${(error as Error).message}`);
    }
    try {
      await body();
    } finally {
      restore();
      process.off('exit', restore);
    }
  });
}

test('huge pages for all shared memory: no zeros beside a block that was read, and the limit holds', async () => {
  needKernel();
  await withHugeShmem(async () => {
    for (const blockSize of [64 * KIB, 4 * MIB]) {
      const size = 20 * blockSize + 7;
      const options: PagerOptions = {
        source: moduleSource(SOURCE, controlOf(size)),
        resident: 16 * blockSize,
        blockSize,
        readAhead: 0,
      };
      await withPager(options, 2, async (pager, user, other) => {
        const most = await mostBytes(async () => {
          await user?.wrong(blockSize, 1);
          assert.equal(memfdBytes(), blockSize, 'one block');
          assert.equal(await other?.wrong(0, size), -1);
          assert.equal(await user?.wrongAtRandom(3, 20, 5000), -1);
        });
        assert.ok(most <= pager.resident, `${most} bytes in memory`);
      });
    }
    const options = { first: seed(), size: 2 * MIB, blockSize: 64 * KIB, ms: 500, random: true };
    await hammerFile({ ...options, flushMs: 10 });
    await hammerSwap({ ...options, compress: 'none', encrypt: false });
  });
});

test.run();
