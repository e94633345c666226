// However `uffd demo` fails or is interrupted, it says why, ends, and leaves the terminal as it was.

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, mkdirSync, truncateSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { skip, suite } from '../harness.js';
import {
  type Ended,
  fileOf,
  inDirectory,
  NOBODY,
  needKernel,
  needNobody,
  sha256,
  uffd,
  untilResident,
} from './command.js';

const test = suite('cli/failures');

const GIB = 2 ** 30;
/** More than the command holds before it touches anything. */
const UNDER_WAY_BYTES = 350 * 2 ** 20;

/** It failed: one line on stderr, no stack, nothing on stdout. */
function assertRefused({ code, stdout, stderr }: Ended, message: RegExp): void {
  assert.is(code, 1, stderr);
  assert.match(stderr, message);
  assert.match(stderr, /^uffd: [^\n]+\n$/);
  assert.is(stdout, '');
}

/** A file that takes long enough to be interrupted in the middle. */
async function withLargeFile(body: (file: string) => Promise<void>): Promise<void> {
  needKernel();
  if (freemem() < 2 * GIB) skip('less than 2 GiB of memory are free');
  await inDirectory((directory) => body(fileOf(directory, 'sparse', GIB)));
}

test('files that cannot be mapped', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    fileOf(directory, 'empty', 0);
    fileOf(directory, 'file', 1);
    mkdirSync(at('directory'));
    spawnSync('mkfifo', [at('fifo')]);
    const cases: [string, RegExp][] = [
      [at('empty'), /empty must be at least 1 byte/],
      [at('missing'), /ENOENT.*missing/],
      [at('directory'), /directory is no regular file/],
      [at('fifo'), /fifo is no regular file/],
      [at('file/below'), /ENOTDIR/],
      ['/dev/null', /no regular file/],
      ['', /ENOENT/],
    ];
    for (const [file, message] of cases) assertRefused(await uffd(['demo', file]), message);
    assertRefused(await uffd(['demo', at('empty'), '--json']), /at least 1 byte/);
  });
});

test('a file larger than the memory is refused before it is tried', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'huge', 2 ** 42);
    assertRefused(await uffd(['demo', file]), /4\.0 TiB .* available/);
  });
});

test('without privileges: served in user mode only; a file of somebody else is refused', async () => {
  needKernel();
  needNobody();
  await inDirectory(async (directory) => {
    chmodSync(directory, 0o755);
    const file = fileOf(directory, 'file', randomBytes(300_000));
    const ended = await uffd(['demo', file, '--json'], { under: NOBODY });
    assert.is(ended.code, 0, ended.stderr);
    assert.ok(JSON.parse(ended.stdout).equal);
    chmodSync(file, 0o600);
    assertRefused(await uffd(['demo', file], { under: NOBODY }), /EACCES/);
  });
});

test('where userfaultfd is forbidden or missing, the remedy is told, and the kernel is simulated', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(300_000));
    for (const [errno, message] of [
      ['1', /EPERM: userfaultfd .*vm\.unprivileged_userfaultfd.*seccomp/],
      ['38', /ENOSYS: userfaultfd/],
    ] as const) {
      const env = { UFFD_SECCOMP_ERRNO: errno };
      const args = ['demo', file, '--json', '--threads', '5'];
      const { code, stdout, stderr } = await uffd(args, { env, preload: './seccomp.js' });
      assert.is(code, 0, stderr);
      assert.match(stderr, message);
      assert.match(stderr, /^uffd: [^\n]*simulated[^\n]*\n$/);
      const report = JSON.parse(stdout);
      assert.equal([report.kernel, report.equal, report.pages, report.fills], ['simulated', true, 74, 74]);
      assert.is(report.memorySha256, sha256(file));
    }
    // What is wrong with the file is said there too.
    const missing = ['demo', join(directory, 'missing')];
    const { code, stderr } = await uffd(missing, { preload: './seccomp.js' });
    assert.is(code, 1);
    assert.match(stderr, /\nuffd: [^\n]*ENOENT[^\n]*missing[^\n]*\n$/);
  });
});

test('the loop throws: the error is told, and every thread that slept goes on and ends', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    for (const wait of ['poll', 'block', 'spin', 'adaptive']) {
      const env = { UFFD_SABOTAGE: 'throw' };
      const args = ['demo', file, '--wait', wait, '--threads', '8'];
      const { code, stdout, stderr } = await uffd(args, { env, preload: './sabotage.js' });
      assert.is(code, 1);
      assert.match(stderr, /uffd: Error: sabotaged\n\s+at /);
      assert.is(stdout, '');
    }
  });
});

test('the loop thread dies: that is told, and every thread that slept goes on and ends', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    // Not on the event loop: leaving koffi's callback by process.exit ends the whole process.
    for (const wait of ['block', 'spin', 'adaptive']) {
      const env = { UFFD_SABOTAGE: 'exit' };
      const args = ['demo', file, '--wait', wait, '--threads', '8', '--json'];
      assertRefused(await uffd(args, { env, preload: './sabotage.js' }), /the fault loop ended too early/);
    }
  });
});

test('a touching thread fails: that is told, and the others end', async () => {
  needKernel();
  const ended = await uffd(['demo', '--json'], { env: { UFFD_SABOTAGE: 'touch' }, preload: './sabotage.js' });
  assert.is(ended.code, 1);
  assert.match(ended.stderr, /uffd: Error: sabotaged/);
});

test('wrong bytes in memory are found out', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    const options = { env: { UFFD_SABOTAGE: 'zeros' }, preload: './sabotage.js' };
    const text = await uffd(['demo', file], options);
    assert.is(text.code, 1);
    assert.match(text.stdout, /^verdict\s+DIFFERENT/m);
    const json = await uffd(['demo', file, '--json'], options);
    assert.is(json.code, 1);
    assert.is(JSON.parse(json.stdout).equal, false);
  });
});

test('a file that shrinks meanwhile: the kernel says EFAULT, and that is told', async () => {
  await withLargeFile(async (file) => {
    const started = async (pid: number): Promise<void> => {
      await untilResident(pid, UNDER_WAY_BYTES);
      truncateSync(file, 0);
    };
    const ended = await uffd(['demo', file, '--json', '--threads', '4'], { started });
    assertRefused(ended, /EFAULT: UFFDIO_COPY.*truncated/);
  });
}, 120_000);

test('signals end it in the middle, even if they come twice', async () => {
  await withLargeFile(async (file) => {
    const cases = [
      ['poll', 'SIGINT', 130],
      ['block', 'SIGINT', 130],
      ['spin', 'SIGINT', 130],
      ['adaptive', 'SIGTERM', 143],
    ] as const;
    for (const [wait, signal, code] of cases) {
      const started = async (pid: number): Promise<void> => {
        await untilResident(pid, UNDER_WAY_BYTES);
        process.kill(pid, signal);
        process.kill(pid, signal);
      };
      const ended = await uffd(['demo', file, '--wait', wait], { started });
      assert.is(ended.code, code, ended.stderr);
      assert.is(ended.stdout, '');
      assert.match(ended.stderr, /uffd: (interrupted|terminated)\n$/);
    }
  });
}, 240_000);

test('a reader that leaves is no failure, a full disk is', async () => {
  needKernel();
  const shell = (redirection: string): string[] => ['sh', '-c', `exec "$@" ${redirection}`, 'sh'];
  const full = await uffd(['demo', '--window', '64'], { under: shell('> /dev/full') });
  assert.is(full.code, 1);
  assert.match(full.stderr, /uffd: cannot write the output: ENOSPC/);
  const gone = await uffd(['demo', '--window', '64'], {
    under: ['sh', '-c', '("$@"; echo "code $?" >&2) | true', 'sh'],
  });
  assert.match(gone.stderr, /code 0\n$/);
});

test.run();
