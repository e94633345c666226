// examples/bundled-tool: a tool that embeds the library, bundled with the usual bundlers and as a single executable.
// Each result runs in an empty folder, with an empty environment, and answers real page faults.

import { createHash, randomBytes } from 'node:crypto';
import { cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { root } from '../support/documents.js';
import { skip, suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { inFolder, install, must, pack, start } from './support/package.js';

const test = suite('bundle/tool');
const PAGES = 100;
const TOOL = 'examples/bundled-tool';

/** Calls `body` with a folder in which the tool is installed, with the library as it is published. */
function withTool(body: (folder: string) => void): Promise<void> {
  return inFolder((folder) => {
    const tool = join(folder, 'tool');
    cpSync(join(root, TOOL), tool, { recursive: true });
    const { tarball } = pack(folder);
    install(tool, ['npm', 'install', '--no-audit', '--no-fund', `userfaultfd@${tarball}`]);
    body(tool);
  });
}

/** Runs a program in a folder with only the given files. The program must hash a file through page faults. */
function hashes(from: string, files: readonly string[], program: string, args: readonly string[]): void {
  const empty = join(from, 'empty');
  rmSync(empty, { recursive: true, force: true });
  mkdirSync(empty);
  for (const file of files) cpSync(join(from, file), join(empty, file));
  // The file ends in the middle of its last page.
  const content = randomBytes(PAGES * 4096 - 1000);
  writeFileSync(join(empty, 'file'), content);
  const { status, stdout, stderr } = start(program, [...args, 'file'], empty, {}, 30_000);
  const expected = createHash('sha256').update(content).digest('hex');
  assert.equal([status, stdout, stderr], [0, `${expected}  file\n`, `${PAGES} page faults\n`], from);
}

test('the tool runs, whatever it was bundled by', async () => {
  needKernel();
  await withTool((tool) => {
    must('npm', ['run', '--silent', 'check'], tool);
    const bundles = must('npm', ['run', '--silent', 'build'], tool).trim().split('\n');
    assert.equal(
      bundles.map((file) => file.split('/').slice(-2).join('/')),
      ['esbuild', 'rollup', 'webpack'].flatMap((name) => [`${name}-esm/tool.mjs`, `${name}-cjs/tool.cjs`]),
    );
    for (const bundle of bundles) {
      const name = bundle.split('/').at(-1) as string;
      hashes(join(bundle, '..'), [name, 'koffi.node'], process.execPath, [name]);
    }
    must('npm', ['run', '--silent', 'sea'], tool);
    hashes(join(tool, 'dist/sea'), ['tool'], './tool', []);
  });
}, 240_000);

test('a bundle without embed, and one whose binary is missing, say what is missing', async () => {
  if (process.platform !== 'linux') skip('koffi is not looked for on other systems');
  await inFolder((folder) => {
    const bundle = (name: string, text: string): string => {
      writeFileSync(join(folder, 'source.mjs'), text);
      const esbuild = join(root, 'node_modules/.bin/esbuild');
      const args = ['--bundle', '--platform=node', '--format=cjs', '--external:koffi', '--log-level=error'];
      must(esbuild, ['source.mjs', `--outfile=${name}`, ...args], folder);
      rmSync(join(folder, 'source.mjs'));
      return must(process.execPath, [name], folder, {}).trim();
    };
    const entry = (name: string): string => JSON.stringify(join(root, `build/src/${name}.js`));
    const open = 'try { Userfaultfd.open() } catch (error) { console.log(error.code, error.message) }';
    assert.match(
      bundle('without.cjs', `import { Userfaultfd } from ${entry('index')}; ${open}`),
      /^ERR_UFFD_UNSUPPORTED koffi, .* in a bundle, bring its binary along \(docs\/guides\/embed\.md\)$/,
    );
    assert.match(
      bundle(
        'missing.cjs',
        `import { Userfaultfd } from ${entry('index')}; import { embed } from ${entry('embed')};
         embed({ entry: __filename, koffi: __dirname + '/koffi.node' }); ${open}`,
      ),
      /^ERR_UFFD_UNSUPPORTED koffi, .*koffi\.node: cannot open shared object file.*\(docs\/guides\/embed\.md\)$/,
    );
    assert.match(
      bundle(
        'thread.cjs',
        `import { startThread } from ${entry('embed')};
         try { startThread('any') } catch (error) { console.log(error.code, error.message) }`,
      ),
      /^ERR_UFFD_UNSUPPORTED 'any' cannot be started: .*\(embed, docs\/guides\/embed\.md\)$/,
    );
  });
});

test('a bundle started as a worker, but without instructions from a parent, runs as the ordinary program', async () => {
  await inFolder((folder) => {
    const args = ['uffd.mjs', '--userfaultfd-part=session'];
    cpSync(join(root, 'build/standalone/uffd.mjs'), join(folder, 'uffd.mjs'));
    const { status, stderr } = start(process.execPath, args, folder, {}, 30_000);
    assert.is(status, 2, stderr);
    assert.match(stderr, /unknown option '--userfaultfd-part=session'/);
  });
});

test.run();
