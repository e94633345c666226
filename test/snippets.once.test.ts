// The documented code works: every example in a docstring compiles, runs and prints its expected output. Every block of
// code in a document compiles, and so does test/types.ts. A block with a file name, `NAME.mjs`, is run as it is.

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { blocksOf, documents, programsOf, root, textOf } from './support/documents.js';
import { suite } from './support/harness.js';
import { needKernel } from './support/real-kernel.js';
import { complaints, examples, isPlain, linesOf, withPackage, writeModule } from './support/snippets.js';

const test = suite('snippets');

/** The output of each example; `kernel` marks examples that need the real kernel. */
// biome-ignore format: a table
const PRINTS: Record<string, { kernel?: true; lines: (string | RegExp)[] }> = {
  'src/dirty/tracker.ts: open': { kernel: true, lines: ['28672n 4096'] },
  'src/embed.ts: embed': { lines: ['a thread that was started with the same file'] },
  'src/memory/mapping.ts: anonymous': { kernel: true, lines: ['0n 65536 1'] },
  'src/pager/pager.ts: Pager': { kernel: true, lines: ['ELF'] },
  'src/serve/server.ts: serve': { kernel: true, lines: [''] },
  'src/sim/kernel.ts: SimulatedKernel': { lines: ['65'] },
  'src/sim/kernel.ts: memfd': { lines: ['65536 1 true'] },
  'src/testing/explore.ts: explore': { lines: ['nothing is broken in 50 worlds'] },
  'src/testing/simulate.ts: simulate': { lines: ['1', '1'] },
  'src/trace/replay.ts: replay': { lines: ['true undefined'] },
  'src/trace/writer.ts: TraceWriter': { kernel: true, lines: ['undefined true'] },
  'src/uffd/userfaultfd.ts: open': { kernel: true, lines: [/^(syscall|device) (true|false) \[/] },
  'src/uffd/userfaultfd.ts: wrap': { kernel: true, lines: ['1'] },
  'src/uffd/userfaultfd.ts: copy': { kernel: true, lines: ['8192 present missing'] },
  'src/uffd/userfaultfd.ts: answerFrom': { kernel: true, lines: ['true', '{ passed: 0, installed: 65536, leftOut: 0 }'] },
  'src/uffd/userfaultfd.ts: start': { kernel: true, lines: ['read', '42', 'closed'] },
};

/** Imports for blocks of code without imports. PRELUDE declares the names that blocks may use. */
const IMPORTS = "import { type FaultHandler, Mapping, Userfaultfd } from 'userfaultfd';";
const PRELUDE = `
import type { Worker } from 'node:worker_threads';
import type { FaultHandler, Feature, RegisteredRange, Userfaultfd } from 'userfaultfd';
import type * as testing from 'userfaultfd/testing';
declare global {
  const uffd: Userfaultfd;
  const handler: FaultHandler & ((world: testing.World) => FaultHandler);
  const pagefault: FaultHandler['pagefault'];
  const handlerOf: (uffd: Userfaultfd) => FaultHandler;
  const myHandler: typeof handlerOf;
  const hasty: (fetch: (page: bigint) => Promise<Uint8Array>) => FaultHandler;
  const { answerFromSource, explore, simulate }: typeof testing;
  const fetchPage: (page: bigint) => Promise<Uint8Array>;
  const start: bigint, page: bigint, source: bigint;
  const pageSize: number, fd: number, pid: number, P: number, MADV_DONTNEED: number;
  const features: Iterable<Feature>, ranges: Iterable<RegisteredRange>;
  const worker: Worker;
  const assert: typeof import('node:assert').strict;
  const thread: {
    read(page: bigint): Promise<number[]>;
    madvise(start: bigint, length: number, advice: number): Promise<number>;
  };
}`;

test('the examples in docstrings are those that are expected, and compile', () => {
  const found = examples();
  assert.equal(found.map(({ where }) => where).sort(), Object.keys(PRINTS).sort());
  assert.equal(complaints(found), []);
});

for (const snippet of examples()) {
  test(`the example of ${snippet.where} prints what it should`, async () => {
    const { kernel, lines = [] } = PRINTS[snippet.where] ?? {};
    if (kernel) needKernel();
    const printed = await withPackage((folder) => linesOf(folder, snippet));
    // Lines of different threads may come in any order. A pattern matches the first line of a long output.
    const [first] = lines;
    if (first instanceof RegExp) assert.match(printed[0] as string, first);
    else assert.equal(printed.sort(), [...lines].sort());
  });
}

test('the declarations that are published take and give what test/types.ts says', () => {
  assert.equal(complaints([{ where: 'test/types.ts', code: textOf('test/types.ts') }]), []);
});

test('every block of ts in a document compiles', () => {
  const blocks = documents().flatMap((file) => blocksOf(file));
  assert.ok(blocks.length > 15, `only ${blocks.length} were found`);
  const whole = blocks.map(({ code, ...rest }) => ({
    ...rest,
    code: /^import /m.test(code) ? code : IMPORTS + code,
  }));
  assert.equal(complaints(whole, PRELUDE), []);
});

const GUIDES = documents().filter((file) => file.startsWith('docs/guides/'));

test('a block with a file name is plain JavaScript that Node 20 can parse', () => {
  const named = documents().flatMap((file) => blocksOf(file).filter(({ name }) => name !== undefined));
  assert.ok(named.length > 10, `only ${named.length} were found`);
  for (const { where, name, code } of named) assert.ok(isPlain(code), `${where}: ${name}`);
  // Checks that the check finds anything.
  for (const code of ['await using a = b;', 'const a: number = 1;']) assert.not(isPlain(code), code);
});

test('a file that a document runs with node is one of its blocks, or is built', () => {
  for (const document of documents()) {
    const named = new Set(blocksOf(document).map(({ name }) => name));
    for (const [, file] of textOf(document).matchAll(/\bnode ([\w-]+\.mjs)\b/g))
      if (file !== 'uffd.mjs') assert.ok(named.has(file), `${document}: ${file}`);
  }
});

// The tutorial of test-a-handler.md has a test of its own: test/testing/tutorial.test.ts.
for (const guide of GUIDES.filter((file) => !file.endsWith('/test-a-handler.md'))) {
  test(`each program of ${guide} that shows what it prints has a file name`, () => {
    for (const { program } of programsOf(guide)) assert.ok(program.name !== undefined, program.where);
  });

  for (const { program, prints } of programsOf(guide)) {
    test(`the program of ${program.where} prints what the guide shows`, async () => {
      needKernel();
      const printed = await withPackage((folder) => {
        // It may load another file of the guide.
        for (const other of blocksOf(guide)) if (other.name !== undefined) writeModule(folder, other);
        return linesOf(folder, program);
      });
      // Lines of different threads may come in any order.
      assert.equal(printed.sort(), prints.sort());
    });
  }
}

test('the module of docs/guides/replay.md is a handler that uffd replay compares with the recorded one', async () => {
  needKernel();
  await withPackage((folder) => {
    const [replayed, zeros] = ['replay.mjs', 'zeros.mjs'].map((name) =>
      blocksOf('docs/guides/replay.md').find((block) => block.name === name),
    );
    if (!replayed || !zeros) throw new Error('a program is missing');
    linesOf(folder, replayed); // writes run.trace
    const command = [
      join(root, 'dist/uffd.js'),
      'replay',
      'run.trace',
      '--handler',
      `./${writeModule(folder, zeros)}`,
    ];
    const { status, stdout } = spawnSync(process.execPath, command, {
      cwd: folder,
      encoding: 'utf8',
      timeout: 30_000,
    });
    assert.match(stdout, /^expected {2}copy[\s\S]*^came {6}zero/m);
    assert.is(status, 1);
  });
});

test('each guide says what to do if something goes wrong', () => {
  for (const guide of GUIDES) assert.match(textOf(guide), /^## If something goes wrong$/m, guide);
});

test.run();
