// The README keeps its word. Its first example is done as a newcomer does it, with the package as it is published; the
// others run as they stand; its figures are those of docs/benchmarks.md; its picture is one of the demo.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Guest } from '../src/cli/guest/guest.js';
import { blocksOf, root, type Snippet, textOf } from './documents.js';
import { skip, suite } from './harness.js';
import { needKernel } from './kernel/support.js';
import { writeMemory } from './serve/process.js';
import { linesOf, withPackage, writeModule } from './snippets.js';

const test = suite('readme');
const readme = textOf('README.md');
const { version, dependencies } = JSON.parse(textOf('package.json'));
const [first, served, explored, replayed] = blocksOf('README.md') as [Snippet, Snippet, Snippet, Snippet];

test('it has four examples and the two commands', () => {
  assert.is(blocksOf('README.md').length, 4);
  for (const command of ['npm ci && npm start', 'npm ci && npm test'])
    assert.is(readme.split('\n').filter((line) => line === command).length, 1, command);
  assert.is(first.code, textOf('examples/answer-faults.ts'));
});

/** Does the README's steps in a folder of one's own, with the packed package; the registry's part is done by links. */
function asNewcomer(body: (folder: string, tarball: string) => void): void {
  const home = mkdtempSync(join(tmpdir(), 'uffd-newcomer-'));
  try {
    const folders = ['userfaultfd', 'mine', 'mine/node_modules/userfaultfd'].map((name) => join(home, name));
    for (const folder of folders) mkdirSync(folder, { recursive: true });
    const [packed, mine, installed] = folders as [string, string, string];
    execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', packed], {
      cwd: root,
    });
    const tarball = readdirSync(packed)[0] as string;
    execFileSync('tar', ['-xzf', join(packed, tarball), '-C', installed, '--strip-components=1']);
    for (const name of Object.keys(dependencies)) {
      const link = join(mine, 'node_modules', name);
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(join(root, 'node_modules', name), link);
    }
    body(mine, tarball);
  } finally {
    rmSync(home, { recursive: true });
  }
}

test('who installs the package and copies the first example sees what the README says', () => {
  needKernel();
  asNewcomer((folder, tarball) => {
    const steps = blocksOf('README.md', 'sh').find(({ code }) => code.startsWith('npm init')) as Snippet;
    assert.equal(steps.code.trimEnd().split('\n'), [
      'npm init -y',
      `npm install ../userfaultfd/${tarball}`,
      'node first.mjs',
    ]);
    writeFileSync(join(folder, 'first.mjs'), first.code);
    const out = execFileSync(process.execPath, ['first.mjs'], { cwd: folder, encoding: 'utf8' });
    // Lines of two threads come in any order.
    assert.equal(out.trimEnd().split('\n').sort(), [
      'CAD',
      'read of page 0',
      'read of page 2',
      'read of page 3',
    ]);
  });
});

test('the package has the command, and the documents that its help and its errors name', () => {
  asNewcomer((folder) => {
    const installed = join(folder, 'node_modules/userfaultfd');
    const { bin } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'));
    const said = execFileSync(process.execPath, [join(installed, bin.uffd), '--version'], {
      encoding: 'utf8',
    });
    assert.is(said.trim(), version);
    const code = readdirSync(join(installed, 'dist/src'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.js'))
      .map((file) => readFileSync(join(installed, 'dist/src', file), 'utf8'));
    const named = new Set(code.flatMap((text) => text.match(/docs\/[a-z-]+\.md/g) ?? []));
    assert.ok(named.size > 0);
    for (const document of named) assert.ok(existsSync(join(installed, document)), `it lacks ${document}`);
  });
});

test('the second example serves a guest that finds in its memory what the file has', async () => {
  needKernel();
  await withPackage(async (folder) => {
    writeMemory(join(folder, 'snapshot.mem'), 100, 1);
    const server = spawn(process.execPath, [writeModule(folder, served)], { cwd: folder });
    let out = '';
    for (const stream of [server.stdout, server.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        out += text;
      });
    }
    const ended = once(server, 'close');
    const socket = join(folder, 'vm.sock');
    while (!existsSync(socket) && server.exitCode === null) await sleep(10);
    const guest = new Guest({ socket, memory: join(folder, 'snapshot.mem') });
    try {
      await guest.handedOver;
      const { touches, wrong } = await guest.touch({ threads: 2, order: 'random', seed: 1 });
      assert.equal({ touches, wrong }, { touches: 100, wrong: [] });
      await guest.end();
      const [code] = await ended;
      assert.is(code, 0, out);
      assert.is(out, 'a guest of 409600 bytes is served\nexited after 100 faults\n');
    } finally {
      guest.kill();
      server.kill('SIGKILL');
    }
  });
});

test('the third example finds what the README shows', async () => {
  const printed = await withPackage((folder) => linesOf(folder, explored));
  assert.match(printed[0] as string, /^a page that was removed holds data/);
  assert.ok(readme.includes(`\n\`\`\`\n${printed.join('\n')}\n\`\`\`\n`), printed.join('\n'));
});

test('the fourth example prints what the README says', async () => {
  const printed = await withPackage((folder) => linesOf(folder, replayed));
  assert.is(printed.length, 1);
  assert.ok(readme.includes(`it prints \`${printed[0]}\``), printed[0]);
});

test('its figures are those of docs/benchmarks.md', () => {
  const costs = /^## What it costs$([\s\S]*?)^## /m.exec(readme)?.[1] ?? '';
  const figures = costs.match(/\d+(?:,\d{3})+|\d\.\d\d/g) ?? [];
  assert.ok(figures.length > 10, costs);
  const benchmarks = textOf('docs/benchmarks.md');
  for (const figure of figures)
    assert.ok(new RegExp(`(?<![\\d,.])${figure}(?![\\d,.])`).test(benchmarks), figure);
});

test('its picture is one of the demo, small, and says nothing of where it was made', () => {
  const picture = textOf('docs/demo.svg');
  assert.ok(statSync(join(root, 'docs/demo.svg')).size <= 60_000);
  assert.match(picture, /every page is right/);
  assert.match(picture, /prefers-color-scheme:dark/);
  assert.not.match(picture.replaceAll('</', '<'), /(?<!:)\/(?:usr|tmp|var|opt|etc|mnt|srv)\b|file:/);
  assert.not.match(picture, /\w@\w/);
});

test('a picture is what the demo leaves on a terminal', () => {
  needKernel();
  const directory = mkdtempSync(join(tmpdir(), 'uffd-picture-'));
  try {
    const [file, out] = [join(directory, 'a & b'), join(directory, 'out.svg')];
    writeMemory(file, 20, 1);
    try {
      execFileSync('script', ['--version'], { stdio: 'ignore' });
    } catch {
      skip('script(1), which makes a terminal, is not installed');
    }
    execFileSync(process.execPath, [join(root, 'dist/bench/picture.js'), '--file', file, out]);
    const picture = readFileSync(out, 'utf8');
    assert.match(picture, />\$ npx uffd demo a &#38; b</);
    assert.match(picture, />no prefetch:</);
    assert.match(picture, /<text class="c2" [^>]*>every page is right</);
    assert.not(picture.includes(directory));
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test.run();
