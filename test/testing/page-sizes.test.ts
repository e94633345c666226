// Worlds with larger pages than this system's: a correct handler breaks no invariant there, and recordings replay.

import { strict as assert } from 'node:assert';
import { read, SimulatedKernel } from '../../src/sim/index.js';
import { answerFromSource, SimulationError, simulate } from '../../src/testing/index.js';
import { replay, TraceReader } from '../../src/trace/index.js';
import { suite } from '../support/harness.js';
import { memoryTrace, randomWorld } from './support/worlds.js';

const test = suite('testing/page-sizes');
const SEEDS = 60;

for (const pageSize of [16384, 65536]) {
  test(`${pageSize} bytes: random worlds with all that may go wrong`, async () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const { record, bytes } = memoryTrace();
      await simulate({ ...randomWorld(seed), pageSize, record });
      const reader = TraceReader.of(bytes());
      assert.equal(reader.meta.pageSize, pageSize);
      const { identical, difference } = await replay(reader);
      assert.ok(identical, `seed ${seed}: ${difference?.expected}; ${difference?.came}`);
    }
  });
}

test('a fault is reported at its exact address, anywhere in a page: a right handler breaks nothing', async () => {
  await simulate({
    seed: 1,
    pageSize: 65536,
    features: ['exact-address'],
    handler: answerFromSource,
    threads: (world) => [
      (function* () {
        for (let index = 0; index < world.pages; index++) yield read(world.page(index) + 20_000n);
      })(),
    ],
  });
});

test('a schedule counts in pages of the world', async () => {
  const forgetful = { pagefault() {} };
  try {
    await simulate({ seed: 1, pageSize: 16384, pages: 3, handler: () => forgetful });
    assert.fail('nothing was wrong with a handler that answers nothing');
  } catch (error) {
    if (!(error instanceof SimulationError)) throw error;
    const pages = error.schedule.join('\n').matchAll(/missing, \w+ of page (\d+)/g);
    const numbers = [...pages].map(([, page]) => Number(page));
    assert.ok(numbers.length > 0 && numbers.every((page) => page < 3), numbers.join());
  }
});

test('a page size that Linux does not have is refused', () => {
  for (const pageSize of [0, 5000, 8192, 2 ** 21])
    assert.throws(() => new SimulatedKernel({ pageSize }), /pageSize must be one of 4096, 16384, 65536/);
});

test('a source of another size is refused', async () => {
  const source = () => new Uint8Array(4096);
  await assert.rejects(
    simulate({ seed: 1, pageSize: 16384, source, handler: answerFromSource }),
    /4096 bytes, not 16384/,
  );
});

test.run();
