// Output on a terminal: a live line for each run, then a framed table. Afterwards the terminal is as it was before.

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { freemem } from 'node:os';
import { stripVTControlCharacters } from 'node:util';
import * as assert from 'uvu/assert';
import { skip, suite } from '../support/harness.js';
import { fileOf, inDirectory, needKernel, uffdOnTerminal } from './support/command.js';

const test = suite('cli/terminal');

const HIDE = '\u001b[?25l';
const SHOW = '\u001b[?25h';
const GREEN = '\u001b[32m';

function needTerminal(): void {
  needKernel();
  if (spawnSync('script', ['--version']).status !== 0)
    skip('script(1), which makes a terminal, is not installed');
}

/** The cursor is visible at the end. */
function assertShown(stdout: string): void {
  assert.ok(stdout.lastIndexOf(SHOW) >= stdout.lastIndexOf(HIDE));
}

test('live lines, then a framed table that fits', async () => {
  needTerminal();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    for (const columns of [120, 80, 40]) {
      const { code, stdout } = await uffdOnTerminal(['demo', file], columns);
      assert.is(code, 0, stdout);
      for (const title of ['no prefetch', 'prefetch'])
        assert.match(stdout, new RegExp(`^${title}:\\r\\n[^│]*?vm 1 █[^│]*? faults/`, 'm'));
      assertShown(stdout);
      const frame = stripVTControlCharacters(stdout)
        .split('\r\n')
        .filter((line) => line.includes('│'));
      assert.ok(frame.length > 10, stdout);
      for (const line of frame) assert.ok(line.length <= columns, line);
      assert.ok(stdout.includes(`${GREEN}every page is right`));
    }
  });
});

test('COLUMNS narrows it, NO_COLOR takes the colours, a dumb terminal gets no bar', async () => {
  needTerminal();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(100_000));
    const narrow = await uffdOnTerminal(['demo', file], 120, { env: { COLUMNS: '50', NO_COLOR: '1' } });
    const frame = narrow.stdout.split('\r\n').filter((line) => line.includes('│'));
    for (const line of frame) assert.ok(line.length <= 50, line);
    assert.not(narrow.stdout.includes(GREEN));
    const dumb = await uffdOnTerminal(['demo', file], 80, { env: { TERM: 'dumb' } });
    assert.not(dumb.stdout.includes('\u001b'), dumb.stdout);
  });
});

test('--json on a terminal is JSON and nothing else', async () => {
  needTerminal();
  await inDirectory(async (directory) => {
    const { stdout } = await uffdOnTerminal(
      ['demo', fileOf(directory, 'file', randomBytes(100_000)), '--json'],
      80,
    );
    assert.ok(JSON.parse(stdout).equal);
  });
});

test('Ctrl-C leaves the terminal as it was', async () => {
  needTerminal();
  if (freemem() < 2 * 2 ** 30) skip('less than 2 GiB of memory are free');
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'sparse', 2 ** 30);
    const { code, stdout } = await uffdOnTerminal(['demo', file], 80, { preload: './interrupt.js' });
    assert.is(code, 130, stdout);
    assertShown(stdout);
    assert.match(stdout, /uffd: interrupted\r\n$/);
  });
});

test.run();
