// The README is correct. Its first example runs as a new user would run it, with the published package. The other
// examples run unchanged, its figures equal those of docs/benchmarks.md, and its picture shows the demo.

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
} from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Guest } from '../src/cli/guest/guest.js';
import { writeMemory } from './serve/support/serve-process.js';
import { blocksOf, root, type Snippet, textOf } from './support/documents.js';
import { skip, suite } from './support/harness.js';
import { needKernel } from './support/real-kernel.js';
import { linesOf, withPackage, writeModule } from './support/snippets.js';

const test = suite('readme');
const readme = textOf('README.md');
const { version, dependencies } = JSON.parse(textOf('package.json'));
type Snippets = [Snippet, Snippet, Snippet, Snippet, Snippet];
const [first, paged, served, explored, replayed] = blocksOf('README.md') as Snippets;

test('it has five examples and the two commands', () => {
  assert.is(blocksOf('README.md').length, 5);
  for (const command of ['npm ci && npm start', 'npm ci && npm test'])
    assert.is(readme.split('\n').filter((line) => line === command).length, 1, command);
  assert.is(first.code, textOf('examples/answer-faults.ts'));
});

/** Follows the README's steps in a new folder, with the packed package. Links replace the registry's dependencies. */
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

test('the first example, copied into a folder with the installed package, prints what the README says', () => {
  needKernel();
  asNewcomer((folder, tarball) => {
    const steps = blocksOf('README.md', 'sh').find(({ code }) => code.startsWith('npm init')) as Snippet;
    assert.equal(steps.code.trimEnd().split('\n'), [
      'npm init -y',
      `npm install ../userfaultfd/${tarball}`,
      'node first.mjs',
    ]);
    const out = execFileSync(process.execPath, [writeModule(folder, first)], {
      cwd: folder,
      encoding: 'utf8',
    });
    // Lines of different threads may come in any order.
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
    const code = readdirSync(join(installed, 'dist'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.js'))
      .map((file) => readFileSync(join(installed, 'dist', file), 'utf8'));
    const named = new Set(code.flatMap((text) => text.match(/docs\/[a-z/-]+\.md/g) ?? []));
    assert.ok(named.size > 0);
    for (const document of named) assert.ok(existsSync(join(installed, document)), `it lacks ${document}`);
  });
});

test('the example of the pager prints what the README says', async () => {
  needKernel();
  const printed = await withPackage((folder) => linesOf(folder, paged));
  assert.is(printed.length, 1);
  assert.ok(readme.includes(`prints \`${printed[0]}\``), printed[0]);
});

test('the example of a remote file in docs/guides/pager.md prints a byte of a file, which a server has', async () => {
  needKernel();
  const [remote] = blocksOf('docs/guides/pager.md') as [Snippet];
  const file = Buffer.alloc(100_000, 7);
  file[50_000] = 42;
  const server = createServer(({ headers }, response) => {
    const [, start = '0', end = '0'] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    const bytes = file.subarray(Number(start), Number(end) + 1);
    const last = Number(start) + bytes.length - 1;
    response.writeHead(206, { etag: '"1"', 'content-range': `bytes ${start}-${last}/${file.length}` });
    response.end(bytes);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    const { port } = server.address() as AddressInfo;
    const code = remote.code
      .replace('https://data.example/model.bin', `http://127.0.0.1:${port}/model.bin`)
      .replace('1_000_000_000', '50_000');
    assert.is.not(code, remote.code);
    await withPackage(async (folder) => {
      const child = spawn(process.execPath, [writeModule(folder, { ...remote, code })], { cwd: folder });
      let out = '';
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', (text: string) => {
          out += text;
        });
      }
      await once(child, 'close');
      assert.is(out, '42\n');
    });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test('the example of serve serves a guest that finds in its memory what the file has', async () => {
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

test('the example of explore finds what the README shows', async () => {
  const printed = await withPackage((folder) => linesOf(folder, explored));
  assert.match(printed[0] as string, /^a page that was removed holds data/);
  assert.ok(readme.includes(`\n\`\`\`\n${printed.join('\n')}\n\`\`\`\n`), printed.join('\n'));
});

test('the example of replay prints what the README says', async () => {
  const printed = await withPackage((folder) => linesOf(folder, replayed));
  assert.is(printed.length, 1);
  assert.ok(readme.includes(`prints \`${printed[0]}\``), printed[0]);
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
    execFileSync(process.execPath, [join(root, 'build/bench/picture.js'), '--file', file, out]);
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
