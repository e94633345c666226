// build/standalone/uffd.mjs is the whole command: one file beside koffi's binary runs in an empty folder, with an empty
// environment.

import { randomBytes } from 'node:crypto';
import { copyFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { root, textOf } from '../support/documents.js';
import { suite } from '../support/harness.js';
import { aloneWithHugePages } from '../support/huge-pages.js';
import { needKernel } from '../support/real-kernel.js';
import { inFolder, must, start } from './support/package.js';

const test = suite('bundle/command');
const { version } = JSON.parse(textOf('package.json'));

/** Runs the body in a folder that holds the given files of the bundle and a file of 25 pages, nothing else. */
function withBundle(
  files: readonly ('uffd.mjs' | 'koffi.node')[],
  body: (uffd: (...args: string[]) => string, folder: string) => void,
): Promise<void> {
  return inFolder((folder) => {
    for (const file of files) copyFileSync(join(root, 'build/standalone', file), join(folder, file));
    writeFileSync(join(folder, 'file'), randomBytes(100_000));
    body((...args) => must(process.execPath, ['uffd.mjs', ...args], folder, {}), folder);
  });
}

test('it serves faults of a guest in a process of its own, and records, replays and inspects', async () => {
  needKernel();
  await withBundle(['uffd.mjs', 'koffi.node'], (uffd, folder) => {
    assert.is(uffd('--version'), `${version}\n`);
    const shown = uffd('demo', 'file', '--record', 'trace');
    assert.match(shown, /^verdict +every page is right$/m);
    assert.not.match(shown, /simulated/);
    assert.match(uffd('replay', 'trace'), /^identical: /);
    assert.is(JSON.parse(uffd('inspect', 'trace', '--json')).faults, 25);
    assert.match(uffd('simulate', '--seed', '1'), /^verdict +every read found what it had to$/m);
    assert.equal(readdirSync(folder).sort(), ['file', 'koffi.node', 'trace', 'uffd.mjs']);
  });
});

test('its doctor makes every trial, and knows the version of koffi', async () => {
  needKernel();
  const compare = (folder: string): void => {
    const doctor = (file: string): Record<string, unknown> =>
      JSON.parse(start(process.execPath, [file, 'doctor', '--json'], folder, {}, 60_000).stdout);
    const [bundled, installed] = [doctor('uffd.mjs'), doctor(join(root, 'dist/uffd.js'))];
    assert.equal(Object.keys(bundled), Object.keys(installed));
    for (const part of ['verdict', 'features', 'operations']) assert.equal(bundled[part], installed[part]);
    const koffiOf = ({ system }: Record<string, unknown>): string => (system as { koffi: string }).koffi;
    assert.is(koffiOf(bundled), koffiOf(installed));
  };
  // Both find the same huge pages.
  await aloneWithHugePages(() => withBundle(['uffd.mjs', 'koffi.node'], (_, folder) => compare(folder)));
});

test('as a server it listens, and says that no monitor came', async () => {
  needKernel();
  await withBundle(['uffd.mjs', 'koffi.node'], (_, folder) => {
    const args = ['uffd.mjs', 'serve', '--socket', 'vm.sock', '--memory', 'file', '--accept-timeout', '200'];
    const { status, stdout, stderr } = start(process.execPath, args, folder, {}, 60_000);
    assert.is(status, 1, stdout + stderr);
    assert.match(stdout + stderr, /no monitor/i);
  });
});

test('without the binary the demo runs on the simulated kernel, and says so', async () => {
  await withBundle(['uffd.mjs'], (_, folder) => {
    const { status, stdout, stderr } = start(
      process.execPath,
      ['uffd.mjs', 'demo', 'file'],
      folder,
      {},
      60_000,
    );
    assert.is(status, 0, stdout + stderr);
    assert.match(stdout + stderr, /simulated: koffi, which makes the system calls, cannot be loaded/);
  });
});

test('it is one file that says nothing of where it was made', () => {
  const text = textOf('build/standalone/uffd.mjs');
  assert.ok(statSync(join(root, 'build/standalone/uffd.mjs')).mode & 0o100, 'it can be executed');
  assert.match(text, /^#!\/usr\/bin\/env node\n/);
  assert.not(text.includes(root));
});

test.run();
