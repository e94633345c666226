// Each example runs, and prints what it is there to show. Lines of two threads may come in any order.

import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { type Feature, Userfaultfd } from '../src/index.js';
import { skip, suite } from './harness.js';

const test = suite('examples');
const built = fileURLToPath(new URL('../examples/', import.meta.url));

/** The features an example needs, and its lines. */
// biome-ignore format: a table
const EXAMPLES: Record<string, { needs: Feature[]; prints: string[] }> = {
  'answer-faults': { needs: [], prints: ['CAD', 'read of page 0', 'read of page 2', 'read of page 3'] },
  'minor-faults': { needs: ['minor-shmem'], prints: ['minor fault of page 2', 'GAMMA', 'minor fault of page 0', 'ALPHA'] },
  'move-pages': { needs: ['move'], prints: ['page 2 moves', 'page 0 moves', 'read: 67 65', 'left behind: 0 66 0'] },
  'track-writes': { needs: ['pagefault-flag-wp'], prints: ['checkpoint of 100 pages', 'written: page 7', 'written: page 42', 'checkpoint of 2 pages', 'the first draft'] },
  poison: { needs: ['poison'], prints: ['page 1 cannot be read from its source', 'page 0 is saved', 'page 1: EFAULT', 'page 2 is saved'] },
};

/** Those that another test runs. */
const ELSEWHERE = ['test-a-handler']; // test/testing/tutorial.test.ts

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

test('every example is run', () => {
  const files = readdirSync(built).filter((file) => file.endsWith('.js'));
  assert.equal(files.sort(), [...Object.keys(EXAMPLES), ...ELSEWHERE].map((name) => `${name}.js`).sort());
});

test.run();
