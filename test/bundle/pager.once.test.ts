// A pager in the published package: HTTP works without the package undici, which is bundled, whether the package is
// installed or is itself part of a bundle.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { koffiFile } from '../../src/embed.js';
import { FileServer, makeCertificates, someBytes, withProxy } from '../pager/support/http-server.js';
import { root, textOf } from '../support/documents.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { inFolder, must, pack } from './support/package.js';

const test = suite('bundle/pager');
/** Larger than what is resident, and the last block is short. */
const CONTENT = someBytes(1_500_001);
const DIGEST = createHash('sha256').update(CONTENT).digest('hex');
const { ca, ...tls } = makeCertificates();

/** Hashes the file, and the URLs that are its arguments; over https through the proxy. */
const MAIN = `
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileSource, httpSource, Pager } from 'userfaultfd/pager';
async function main() {
  const [plain, secure, proxy] = process.argv.slice(2);
  const ca = readFileSync('ca.pem', 'utf8');
  const remote = [httpSource(plain, { proxy: 'none' }), httpSource(secure, { ca, proxy })];
  for (const source of [fileSource('file'), ...remote]) {
    const pager = await Pager.open({ source, resident: 2 ** 20 });
    console.log(createHash('sha256').update(pager.bytes).digest('hex'));
    await pager.close();
  }
}`;
const INSTALLED = `${MAIN}
await main();`;
const EMBEDDED = `${MAIN}
import { realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { embed } from 'userfaultfd/embed';
const entry = realpathSync(process.argv[1]);
if (!embed({ entry, koffi: join(dirname(entry), 'koffi.node') })) main();`;

/** Makes a folder with the package as it is published, the packages that are installed with it, and no other. */
function installInto(folder: string): void {
  const installed = join(folder, 'node_modules/userfaultfd');
  mkdirSync(installed, { recursive: true });
  must('tar', ['-xzf', pack(folder).tarball, '-C', installed, '--strip-components=1'], folder);
  for (const name of ['@assemblyscript/loader', '@koromix', 'koffi']) {
    cpSync(join(root, 'node_modules', name), join(folder, 'node_modules', name), { recursive: true });
  }
}

/** Runs a program in a folder, with an empty environment, while this process serves what it reads. */
async function run(folder: string, program: string, args: readonly string[]): Promise<string> {
  const child = spawn(process.execPath, [program, ...args], { cwd: folder, env: {}, timeout: 60_000 });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (text) => (stdout += text));
  child.stderr.on('data', (text) => (stderr += text));
  const [code, signal] = await once(child, 'close');
  assert.equal([code, signal, stderr], [0, null, ''], `${program}: ${stdout}`);
  return stdout;
}

/** The program must read the right bytes from the file, over HTTP, and over HTTPS through the tunnel of a proxy. */
async function readsAll(folder: string, program: string): Promise<void> {
  writeFileSync(join(folder, 'file'), CONTENT);
  writeFileSync(join(folder, 'ca.pem'), ca);
  const [plain, secure] = [new FileServer(CONTENT), new FileServer(CONTENT, tls)];
  try {
    await Promise.all([plain.listen(), secure.listen()]);
    await withProxy(async (proxy) => {
      const args = [plain.url(), secure.url(), proxy.url()];
      assert.is(await run(folder, program, args), `${DIGEST}\n`.repeat(3));
      assert.ok(plain.requests.length > 1);
      assert.equal([...new Set(proxy.lines)], [`CONNECT 127.0.0.1:${secure.port}`]);
    });
  } finally {
    plain.close();
    secure.close();
  }
}

test('the installed package pages a file, a URL, and a URL behind a proxy', async () => {
  needKernel();
  await inFolder(async (folder) => {
    installInto(folder);
    writeFileSync(join(folder, 'program.mjs'), INSTALLED);
    await readsAll(folder, 'program.mjs');
  });
});

for (const [format, name] of [
  ['esm', 'tool.mjs'],
  ['cjs', 'tool.cjs'],
] as const) {
  test(`so does a bundle in the format ${format} that embeds the package`, async () => {
    needKernel();
    await inFolder(async (folder) => {
      installInto(folder);
      const empty = join(folder, 'empty');
      await build({
        stdin: { contents: EMBEDDED, resolveDir: folder },
        outfile: join(empty, name),
        ...{ bundle: true, platform: 'node', format, external: ['koffi'], logLevel: 'error' },
        logOverride: { 'empty-import-meta': 'silent' },
      });
      copyFileSync(koffiFile(), join(empty, 'koffi.node'));
      await readsAll(empty, name);
    });
  });
}

test('the HTTP client is in one file of its own, and sets no dispatcher for the fetch of its thread', () => {
  const files = readdirSync(join(root, 'dist/lib')).map((file) => ({
    file,
    text: textOf(`dist/lib/${file}`),
  }));
  const [client, ...others] = files.filter(({ text }) => text.includes('UND_ERR_'));
  assert.equal(others, []);
  // It is loaded when it is needed: no entry imports it, directly or through others.
  const reached = new Set(
    files
      .map(({ file }) => file)
      .filter((file) => existsSync(join(root, 'dist/types', file.replace(/js$/, 'd.ts')))),
  );
  assert.ok(reached.size > 8);
  for (const file of reached) {
    const text = files.find((one) => one.file === file)?.text ?? '';
    for (const [, name = ''] of text.matchAll(/\b(?:from|import)"\.\/([^"]+)"/g)) reached.add(name);
  }
  assert.ok(client && reached.size > 15 && !reached.has(client.file));
  // The symbol under which undici keeps the dispatcher, for Node's own copy of undici, too.
  for (const { file, text } of files) assert.not(text.includes('undici.globalDispatcher'), file);
});

test('the licences of what is bundled into the library are in the package', () => {
  const text = textOf('dist/THIRD-PARTY.txt');
  for (const name of ['assemblyscript', 'undici', 'llhttp', 'aws4', 'zstddec'])
    assert.match(text, new RegExp(`^${name} .*\\(`, 'm'));
});

test.run();
