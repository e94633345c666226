// However `uffd demo` fails or is interrupted, it says why, ends, and leaves nothing behind: no process, no socket, no
// folder.

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { skip, suite } from '../support/harness.js';
import {
  type Ended,
  fileOf,
  inDirectory,
  needKernel,
  needUnprivileged,
  type RunOptions,
  UNPRIVILEGED,
  uffd,
} from './support/command.js';

const test = suite('cli/failures');

const GIB = 2 ** 30;
/** Pages that the server copies before a sabotage begins. */
const COPIES_BEFORE = 100;
/** A run on a file of this size takes long enough to truncate the file in the middle. */
const UNDER_WAY_BYTES = 64 * 2 ** 20;
const GUEST = /the guest, process (\d+), has handed its memory over/;

/** The command has failed: one line on stderr, no stack, nothing on stdout. */
function assertRefused({ code, stdout, stderr }: Ended, message: RegExp): void {
  assert.is(code, 1, stderr);
  assert.match(stderr, message);
  assert.match(stderr, /^uffd: [^\n]+\n$/);
  assert.is(stdout, '');
}

/** Makes the options of a run, with a sabotage if one is given. */
type Sabotaged = (sabotage?: string) => RunOptions;

/** Calls `body` with a file, and with options for a temporary folder, which must be empty afterwards. */
async function withRoom(
  body: (file: string, options: Sabotaged, directory: string) => Promise<void>,
): Promise<void> {
  await inDirectory(async (directory) => {
    const TMPDIR = join(directory, 'temporary');
    mkdirSync(TMPDIR);
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    const options: Sabotaged = (UFFD_SABOTAGE) =>
      UFFD_SABOTAGE === undefined
        ? { env: { TMPDIR } }
        : { env: { TMPDIR, UFFD_SABOTAGE }, preload: './sabotage.js' };
    await body(file, options, directory);
    assert.equal(readdirSync(TMPDIR), []);
  });
}

/** The same with a sparse file of 1 GiB: a run takes long enough to be interrupted in the middle. */
async function withLargeFile(body: (file: string, options: Sabotaged) => Promise<void>): Promise<void> {
  needKernel();
  if (freemem() < 2 * GIB) skip('less than 2 GiB of memory are free');
  await withRoom((_, options, directory) => body(fileOf(directory, 'sparse', GIB), options));
}

function isThere(pid: number): boolean {
  return existsSync(`/proc/${pid}`);
}

/** The guests whose process ids the command printed have ended. */
function assertGone(stderr: string): void {
  for (const [, pid] of stderr.matchAll(new RegExp(GUEST, 'g'))) assert.not(isThere(Number(pid)), pid);
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

test('without privileges: served in user mode only; another user’s file is refused', async () => {
  needKernel();
  needUnprivileged();
  await inDirectory(async (directory) => {
    chmodSync(directory, 0o755);
    const file = fileOf(directory, 'file', randomBytes(300_000));
    const ended = await uffd(['demo', file, '--json'], { under: UNPRIVILEGED });
    assert.is(ended.code, 0, ended.stderr);
    assert.ok(JSON.parse(ended.stdout).equal);
    chmodSync(file, 0o600);
    assertRefused(await uffd(['demo', file], { under: UNPRIVILEGED }), /EACCES/);
  });
});

test('if userfaultfd is forbidden or missing, the demo prints the remedy and simulates the kernel', async () => {
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
      const { kernel, equal, pages, verified, faults, prefetched } = report;
      assert.equal([kernel, equal, pages, verified, faults], ['simulated', true, 74, 74, 74]);
      assert.is(prefetched, null);
    }
    // On the simulated kernel, the command also reports a missing file.
    const missing = ['demo', join(directory, 'missing')];
    const { code, stderr } = await uffd(missing, { preload: './seccomp.js' });
    assert.is(code, 1);
    assert.match(stderr, /\nuffd: [^\n]*ENOENT[^\n]*missing[^\n]*\n$/);
  });
});

test('serving throws: the error is printed, and the guest whose threads sleep is killed', async () => {
  needKernel();
  await withRoom(async (file, options) => {
    for (const wait of ['poll', 'block', 'spin', 'adaptive']) {
      const args = ['demo', file, '--wait', wait, '--threads', '8'];
      const { code, stdout, stderr } = await uffd(args, options('throw'));
      assert.is(code, 1);
      assert.match(stderr, /uffd: Error: sabotaged\n\s+at /);
      assert.is(stdout, '');
      assertGone(stderr);
    }
  });
}, 240_000);

test('the serving thread dies: the demo says so, and kills the guest whose threads sleep', async () => {
  needKernel();
  await withRoom(async (file, options) => {
    // Not with 'poll': it serves in a koffi callback, and process.exit in such a callback ends the whole process.
    for (const wait of ['block', 'spin', 'adaptive']) {
      const args = ['demo', file, '--wait', wait, '--threads', '8', '--json'];
      assertRefused(await uffd(args, options('exit')), /the guest cannot be served: its thread has ended/);
    }
  });
}, 240_000);

test('the guest dies, before or after the hand-off: the demo says so', async () => {
  needKernel();
  await withRoom(async (file, options) => {
    for (const [sabotage, message] of [
      ['no hand-over', /the guest's process has ended \(SIGKILL\)/],
      ['hand-over', /the guest's process has ended \(SIGKILL\)/],
    ] as const) {
      assertRefused(await uffd(['demo', file, '--json'], options(sabotage)), message);
    }
  });
});

test('a thread of the guest fails: the demo says so', async () => {
  needKernel();
  await withRoom(async (file, options) => {
    const ended = await uffd(['demo', file, '--json'], options('touch'));
    assert.is(ended.code, 1);
    assert.match(ended.stderr, /^uffd: Error: sabotaged/);
  });
});

test('wrong bytes in memory are found out', async () => {
  needKernel();
  await withRoom(async (file, options) => {
    const text = await uffd(['demo', file], options('zeros'));
    assert.is(text.code, 1);
    assert.match(text.stdout, /^verdict +WRONG: .*\n +page \d+ has 0 at byte \d+, and should have \d+$/m);
    const json = await uffd(['demo', file, '--json'], options('zeros'));
    assert.is(json.code, 1);
    const { equal, wrong, verified } = JSON.parse(json.stdout);
    assert.equal([equal, wrong.length], [false, 5]);
    // Only the pages that were copied before the sabotage are right.
    assert.is(verified, COPIES_BEFORE);
  });
});

test('a file that is truncated to nothing during the run: the demo says so', async () => {
  needKernel();
  await withRoom(async (_, options, directory) => {
    const file = fileOf(directory, 'large', randomBytes(UNDER_WAY_BYTES));
    // The serving thread may or may not have mapped the file by then.
    const ended = await uffd(['demo', file, '--threads', '4'], {
      env: { ...options().env, UFFD_AT: GUEST.source, UFFD_TRUNCATE: file },
      preload: './at-output.js',
    });
    assert.is(ended.code, 1);
    assert.match(
      ended.stderr,
      /\nuffd: the guest cannot be served: (EFAULT: UFFDIO_COPY[^\n]*truncated|the memory file [^\n]* is empty)[^\n]*\n$/,
    );
    assert.is(ended.stdout, '');
    assertGone(ended.stderr);
  });
}, 120_000);

test('signals end it in the middle, even if they come twice', async () => {
  await withLargeFile(async (file, options) => {
    const cases = [
      ['poll', 'SIGINT', 130],
      ['block', 'SIGINT', 130],
      ['spin', 'SIGINT', 130],
      ['adaptive', 'SIGTERM', 143],
    ] as const;
    for (const [wait, signal, code] of cases) {
      const started: RunOptions['started'] = async (pid, saw) => {
        await saw(GUEST);
        process.kill(pid, signal);
        process.kill(pid, signal);
      };
      const ended = await uffd(['demo', file, '--wait', wait], { ...options(), started });
      assert.is(ended.code, code, ended.stderr);
      assert.is(ended.stdout, '');
      assert.match(ended.stderr, /uffd: (interrupted|terminated)\n$/);
      assertGone(ended.stderr);
    }
  });
}, 240_000);

test('a signal before the guest has begun, and one in the second run', async () => {
  await withLargeFile(async (file, options) => {
    for (const [memory, what] of [
      [file, /no prefetch:/],
      [process.execPath, /\nprefetch:/],
    ] as const) {
      const ended = await uffd(['demo', memory, '--window', '16'], {
        env: { ...options().env, UFFD_AT: what.source, UFFD_SIGNAL: 'SIGTERM' },
        preload: './at-output.js',
      });
      assert.is(ended.code, 143, ended.stderr);
      assertGone(ended.stderr);
    }
  });
}, 120_000);

test('killed with SIGKILL: its guest ends too', async () => {
  await withLargeFile(async (file) => {
    let guest = 0;
    const started: RunOptions['started'] = async (pid, saw) => {
      guest = Number((await saw(GUEST))[1]);
      process.kill(pid, 'SIGKILL');
    };
    // The temporary folder stays, because the process that would remove it was killed.
    await inDirectory(async (TMPDIR) => {
      const ended = await uffd(['demo', file], { env: { TMPDIR }, started });
      assert.is(ended.code, 'SIGKILL');
    });
    while (isThere(guest)) await sleep(10);
  });
}, 120_000);

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
