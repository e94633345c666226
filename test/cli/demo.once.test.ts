// `uffd demo` installs exactly the file's bytes in a guest's memory. It takes one page fault for each page if the
// window is 1 and nothing is prefetched.

import { randomBytes } from 'node:crypto';
import { freemem } from 'node:os';
import * as assert from 'uvu/assert';
import type { GuestRun, Report } from '../../src/cli/demo/report.js';
import { skip, suite } from '../support/harness.js';
import { type Ended, fileOf, inDirectory, needKernel, type RunOptions, uffd } from './support/command.js';

const test = suite('cli/demo');

const RUN: Record<keyof GuestRun, string> = {
  faults: 'number',
  verified: 'number',
  firstTouchMs: 'number',
  durationMs: 'number',
  faultsPerSecond: 'number',
  latencyP50Us: 'number',
  latencyP99Us: 'number',
};
const FIELDS: Record<keyof Report, string> = {
  ...RUN,
  file: 'string',
  fileBytes: 'number',
  pageSize: 'number',
  pages: 'number',
  seed: 'number',
  threads: 'number',
  window: 'number',
  wait: 'string',
  placement: 'string',
  kernel: 'string',
  trace: 'object',
  prefetched: 'object',
  equal: 'boolean',
  wrong: 'object',
};

/** Runs the demo on a file, and checks its report. */
async function demo(file: string, args: string[] = [], options: RunOptions = {}): Promise<Report> {
  const ended = await uffd(['demo', file, '--json', ...args], options);
  assert.is(ended.code, 0, ended.stderr);
  assert.is(ended.stderr, '');
  const report = JSON.parse(ended.stdout) as Report;
  assert.is(ended.stdout, `${JSON.stringify(report)}\n`);
  assert.ok(report.equal);
  assert.equal(report.wrong, []);
  assert.is(report.pages, Math.ceil(report.fileBytes / report.pageSize));
  for (const run of [report, report.prefetched as GuestRun]) {
    assert.is(run.verified, report.pages);
    assert.ok(run.faults <= report.pages);
    assert.ok(run.firstTouchMs <= run.durationMs);
  }
  return report;
}

function assertPlain({ stdout, stderr }: Ended): void {
  for (const drawn of ['\u001b', '█', '░', '│'])
    assert.not((stdout + stderr).includes(drawn), stdout + stderr);
}

test('files of all sizes: every page by one fault, the bytes equal', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    for (const size of [1, 4095, 4096, 4097, 8 * 2 ** 20 + 3]) {
      const file = fileOf(directory, `of-${size}`, randomBytes(size));
      const report = await demo(file);
      assert.is(report.fileBytes, size);
      assert.is(report.faults, report.pages);
    }
  });
}, 180_000);

test('every wait strategy, with one thread and with several', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    for (const [wait, threads] of [
      ['poll', 8],
      ['block', 1],
      ['spin', 4],
      ['adaptive', 1],
      ['adaptive', 8],
    ] as const) {
      const report = await demo(file, ['--wait', wait, '--threads', `${threads}`]);
      assert.equal([report.wait, report.threads], [wait, threads]);
      assert.is(report.faults, report.pages);
    }
  });
}, 180_000);

test('a window: one fault brings its pages, also if they are no power of two or more than the file has', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    for (const window of [2, 16, 100, 2 ** 20]) {
      const report = await demo(file, ['--window', `${window}`, '--threads', '1']);
      // The first window may begin before the memory does, because windows are aligned.
      const least = Math.ceil(report.pages / window);
      assert.ok(report.faults === least || report.faults === least + 1, `${report.faults} faults`);
    }
    // With several threads, two may fault in one window before its pages are installed.
    const report = await demo(file, ['--window', '16', '--threads', '8']);
    assert.ok(report.faults < report.pages);
  });
}, 180_000);

test('more threads than pages', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const report = await demo(fileOf(directory, 'file', randomBytes(5000)), ['--threads', '32']);
    assert.is(report.faults, report.pages);
  });
});

test('the largest and smallest seed, and one of its own where none is given', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(100_000));
    for (const seed of [0, 4294967295]) assert.is((await demo(file, ['--seed', `${seed}`])).seed, seed);
    const { seed } = await demo(file);
    assert.ok(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32);
    assert.is((await demo(file, ['--seed', `${seed}`])).seed, seed);
  });
});

test('a sparse file of 1 GiB', async () => {
  needKernel();
  if (freemem() < 2 * 2 ** 30) skip('less than 2 GiB of memory are free');
  await inDirectory(async (directory) => {
    const report = await demo(fileOf(directory, 'sparse', 2 ** 30), ['--window', '32', '--threads', '8']);
    assert.is(report.pages, 2 ** 30 / report.pageSize);
  });
}, 300_000);

test('without FILE it is the Node binary', async () => {
  needKernel();
  const { code, stdout, stderr } = await uffd(['demo', '--window', '64']);
  assert.is(code, 0, stderr);
  assert.ok(stdout.includes(process.execPath));
  assert.match(stdout, /^verdict +every page is right$/m);
});

test('JSON: these fields and no others, of these types; the help names them', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const report = await demo(fileOf(directory, 'file', randomBytes(100_000)));
    assert.equal(Object.keys(report).sort(), Object.keys(FIELDS).sort());
    const help = (await uffd(['demo', '--help'])).stdout.split(/\s+/);
    for (const [field, type] of Object.entries(FIELDS)) {
      const value = report[field as keyof Report];
      assert.is(typeof value, type, field);
      if (typeof value === 'number') assert.ok(Number.isFinite(value) && value >= 0, field);
      assert.ok(help.includes(field), field);
    }
    const { prefetched } = report;
    assert.equal(Object.keys(prefetched as GuestRun).sort(), Object.keys(RUN).sort());
    for (const run of [report, prefetched as GuestRun]) {
      for (const field of Object.keys(RUN)) assert.ok(Number.isFinite(run[field as keyof GuestRun]), field);
      assert.ok(run.latencyP50Us > 0 && run.latencyP50Us <= run.latencyP99Us);
    }
  });
});

test('into pipes go plain lines: no bar, no frame, no colour', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(100_000));
    for (const env of [{}, { COLUMNS: '40' }, { CI: 'true' }, { TERM: 'dumb' }]) {
      const ended = await uffd(['demo', file, '--seed', '7'], { env });
      assert.is(ended.code, 0);
      assertPlain(ended);
      assert.match(ended.stderr, /seed 7/);
      assert.match(ended.stderr, /^no prefetch:\nthe guest, process \d+, .*\nprefetch:\nthe guest/m);
      assert.match(ended.stdout, /^ {16}no prefetch {5}prefetch$/m);
      assert.match(ended.stdout, /^pages verified {11}25 {11}25$/m);
      assert.match(ended.stdout, /^verdict {9}every page is right$/m);
    }
  });
});

test('file names as people have them', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    for (const name of ['-dash', "with blanks, it's ünï", 'a\u001b[31mred']) {
      fileOf(directory, name, randomBytes(5000));
      const ended = await uffd(['demo', '--', name], { cwd: directory });
      assert.is(ended.code, 0, ended.stderr);
      assertPlain(ended);
    }
  });
});

test.run();
