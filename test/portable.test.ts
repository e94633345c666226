// Importing the library never fails. If the machine lacks something, `open` throws an error that names it.

import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { suite } from './support/harness.js';

const test = suite('portable');
const root = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a script where only the package and its loader are installed, and koffi unless koffi is the part left out. */
function runWithout(koffi: 'koffi' | 'nothing', script: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-portable-'));
  const installed = join(folder, 'node_modules/userfaultfd');
  mkdirSync(installed, { recursive: true });
  cpSync(join(root, 'package.json'), join(installed, 'package.json'));
  cpSync(join(root, 'dist'), join(installed, 'dist'), { recursive: true });
  const loader = 'node_modules/@assemblyscript/loader';
  cpSync(join(root, loader), join(folder, loader), { recursive: true });
  if (koffi === 'nothing') {
    for (const name of ['koffi', '@koromix']) {
      cpSync(join(root, 'node_modules', name), join(folder, 'node_modules', name), { recursive: true });
    }
  }
  writeFileSync(join(folder, 'script.mjs'), script);
  const { stdout, stderr, status } = spawnSync(process.execPath, ['script.mjs'], {
    cwd: folder,
    encoding: 'utf8',
  });
  assert.is(status, 0, stderr);
  return stdout.trim();
}

const OPEN = `
  import { Userfaultfd, Mapping } from 'userfaultfd';
  import { instantiate } from 'userfaultfd/core';
  import 'userfaultfd/dirty';
  import 'userfaultfd/embed';
  import 'userfaultfd/pager';
  import 'userfaultfd/serve';
  import 'userfaultfd/sim';
  import 'userfaultfd/store';
  import 'userfaultfd/testing';
  import 'userfaultfd/trace';
  console.log(Userfaultfd.isSupported());
  for (const act of [() => Userfaultfd.open(), () => Userfaultfd.wrap(3), () => Mapping.anonymous(4096)]) {
    try { act(); console.log('opened'); } catch (error) { console.log(error.code, error.message); }
  }
  instantiate().exports.start(12);
  console.log('the core runs');
`;

test('without koffi everything imports, the core runs, and open says what is missing', () => {
  const lines = runWithout('koffi', OPEN).split('\n');
  assert.is(lines[0], 'false');
  for (const line of lines.slice(1).filter((text) => text.startsWith('ERR'))) {
    assert.match(line, /^ERR_UFFD_UNSUPPORTED koffi, which makes the system calls, cannot be loaded/);
  }
  assert.is(lines.filter((line) => line.startsWith('ERR')).length, 3);
  assert.is(lines.at(-1), 'the core runs');
});

test('without koffi the commands work on the simulated kernel: a demo, recorded, replayed, inspected', () => {
  const script = `
    import { spawnSync } from 'node:child_process';
    import { randomBytes } from 'node:crypto';
    import { writeFileSync } from 'node:fs';
    writeFileSync('file', randomBytes(100_000));
    for (const args of [['demo', 'file', '--record', 'trace'], ['replay', 'trace'], ['inspect', 'trace'], ['simulate', '--seed', '1']]) {
      const { status, stdout, stderr } = spawnSync(process.execPath, ['node_modules/userfaultfd/dist/uffd.js', ...args], { encoding: 'utf8' });
      console.log(status, args[0], JSON.stringify(stdout), JSON.stringify(stderr));
    }`;
  const lines = runWithout('koffi', script).split('\n');
  const patterns = [
    /^0 demo .*verdict +every page is right.*simulated: koffi, which makes the system calls, cannot be loaded/,
    /^0 replay "identical: /,
    /^0 inspect .*faults +25 \(missing read 25\)/,
    /^0 simulate .*every read found what it had to/,
  ];
  assert.is(lines.length, patterns.length, lines.join('\n'));
  for (const [index, pattern] of patterns.entries()) assert.match(lines[index] as string, pattern);
});

for (const [what, change, message] of [
  ['another system', "'platform', { value: 'darwin' }", /userfaultfd is a part of Linux; this is darwin/],
  ['another machine', "'arch', { value: 'mips' }", /does not know userfaultfd's system call number on mips/],
] as const) {
  test(`on ${what} everything imports, and open says so`, () => {
    const script = `Object.defineProperty(process, ${change});\n${OPEN.replaceAll(/import (.*?) from '(.*?)';/g, "const $1 = await import('$2');").replaceAll(/import ('.*?');/g, 'await import($1);')}`;
    const lines = runWithout('nothing', script).split('\n');
    assert.is(lines[0], 'false');
    assert.match(lines[1] as string, /^ERR_UFFD_UNSUPPORTED/);
    assert.match(lines[1] as string, message);
    assert.is(lines.at(-1), 'the core runs');
  });
}

test.run();
