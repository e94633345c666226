// The tutorial's claims hold: its handlers are the example's, the hasty one passes a thousand runs on the real kernel,
// `explore` catches it within a minute, and the output is what the document shows.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { careful, hasty } from '../../examples/test-a-handler.js';
import { simulate } from '../../src/testing/index.js';
import { suite } from '../support/harness.js';
import { map, needKernel, P, pageOf, withUffd } from '../support/real-kernel.js';

const test = suite('testing/tutorial');
const root = fileURLToPath(new URL('../../..', import.meta.url));
const text = readFileSync(join(root, 'docs/guides/test-a-handler.md'), 'utf8');
const MADV_DONTNEED = 4;
const RUNS = 1000;

test('the document shows the example as it is, and what it prints', () => {
  const example = readFileSync(join(root, 'examples/test-a-handler.ts'), 'utf8');
  assert.ok(text.includes(`\`\`\`ts\n${example}\`\`\``), 'examples/test-a-handler.ts is in the document');
  const conditions = process.env.UFFD_CORE === 'debug' ? ['--conditions=uffd-debug'] : [];
  const ran = spawnSync(process.execPath, [...conditions, join(root, 'build/examples/test-a-handler.js')], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  assert.equal(ran.status, 0, ran.stderr);
  assert.match(ran.stdout, /^hasty: a page that was removed holds data/);
  assert.match(ran.stdout, /\ncareful: nothing is broken in \d+ worlds\n$/);
  assert.ok(text.includes(`\`\`\`\n${ran.stdout}\`\`\``), `the document shows:\n${ran.stdout}`);
});

test('the call of simulate in the document repeats the failure', async () => {
  const [, inject = '', choices = ''] =
    /await simulate\(\{\n.*\n {2}inject: (.*),\n {2}choices: (.*),\n\}\);/.exec(text) ?? [];
  assert.ok(text.includes(`to repeat this schedule: choices: ${choices}\n`), choices);
  const options = { inject: JSON.parse(inject.replace(/(\w+):/g, '"$1":')), choices: JSON.parse(choices) };
  await assert.rejects(
    simulate({ ...options, handler: (world) => hasty((page) => world.fetch(page)) }),
    /a page that was removed holds data/,
  );
});

for (const handler of [hasty, careful]) {
  test(`${handler.name}: ${RUNS} runs on the real kernel pass`, async () => {
    needKernel();
    await withUffd(['event-remove'], async (uffd, thread) => {
      const data = pageOf('x');
      const file = new URL(import.meta.url);
      uffd.start(
        handler(async () => {
          // Really wait, as a remote store would.
          await readFile(file);
          return data;
        }),
      );
      for (let run = 0; run < RUNS; run++) {
        const page = map(1);
        uffd.register(page, P);
        assert.deepEqual(await thread.read(page), ['x'.charCodeAt(0)]);
        assert.equal(await thread.madvise(page, P, MADV_DONTNEED), 0);
        assert.deepEqual(await thread.read(page), [0]);
        uffd.unregister(page, P);
      }
    });
  });
}

test.run();
