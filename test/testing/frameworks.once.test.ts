// The kit works under any test framework, needs nothing of Node, and gives the same traces on both cores.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { suite } from '../support/harness.js';

const test = suite('testing/frameworks');
const root = fileURLToPath(new URL('../../..', import.meta.url));
const built = fileURLToPath(new URL('.', import.meta.url));

function node(...args: string[]): { status: number | null; output: string } {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8', env });
  return { status, output: stdout + stderr };
}

test('a seed gives the same traces on the release and the debug core', () => {
  const hashes = [[], ['--conditions=uffd-debug']].map((conditions) => {
    const { status, output } = node(...conditions, join(built, 'support/trace-of.js'), '1', '60');
    assert.equal(status, 0, output);
    return output;
  });
  assert.match(hashes[0] as string, /^[0-9a-f]{64}\n$/);
  assert.equal(hashes[0], hashes[1]);
});

/** A test that passes and one that fails, for any framework that has a function `test`. */
const TESTS = `
  import { answerFromSource, explore } from 'userfaultfd/testing';
  test('right', async () => {
    await explore({ seeds: 20, handler: (world) => answerFromSource(world) });
  });
  test('wrong', async () => {
    await explore({ seeds: 20, handler: () => ({ pagefault() {} }) });
  });
`;

const FRAMEWORKS: Record<string, { begin: string; end?: string; run: string[]; file: string }> = {
  uvu: { begin: "import { test } from 'uvu';", end: 'test.run();', run: [], file: 'kit.mjs' },
  'node:test': { begin: "import { test } from 'node:test';", run: ['--test'], file: 'kit.test.mjs' },
  vitest: {
    begin: "import { test } from 'vitest';",
    run: ['node_modules/vitest/vitest.mjs', 'run', '--no-cache', '--testTimeout=60000', '--root'],
    file: 'kit.test.mjs',
  },
};

for (const [name, { begin, end = '', run, file }] of Object.entries(FRAMEWORKS)) {
  test(`under ${name} a right handler passes, and a wrong one fails with its schedule`, () => {
    // Inside the package, so that imports of its own name resolve.
    const folder = mkdtempSync(join(root, 'build/kit-'));
    try {
      writeFileSync(join(folder, file), `${begin}\n${TESTS}\n${end}`);
      const target = name === 'vitest' ? folder : join(folder, file);
      const { status, output } = node(...run, target);
      assert.equal(status, 1, output);
      assert.match(output, /a thread sleeps for ever/);
      assert.match(output, /to repeat it: seed: \d/);
      assert.match(output, /handler +pagefault: missing, read of page/);
      assert.match(output, /Passed: +1|pass 1|1 passed/);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

test('the kit and the simulation import nothing of Node, and name nothing global of it', () => {
  for (const folder of ['src/testing', 'src/sim']) {
    for (const file of readdirSync(join(root, folder))) {
      const text = readFileSync(join(root, folder, file), 'utf8');
      assert.doesNotMatch(
        text,
        /from 'node:|\bprocess\.(?:env|argv|emit|version|stdout|hrtime|next)|\bBuffer\b/,
        file,
      );
    }
  }
});

test.run();
