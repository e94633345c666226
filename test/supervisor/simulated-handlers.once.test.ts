// Handlers as binaries in the simulated kernel: each way to wait works, a race is found and repeats, the fixed handler
// passes, and a handler that does not work at all gets a clear reason. No test needs a privilege or a userfaultfd.
//
// UFFD_LONG=1 runs as many guests as the documents promise.

import { strict as assert } from 'node:assert';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CheckReport, ScenarioResult } from '../../src/conformance/result.js';
import { type CheckSimulatedOptions, checkSimulated } from '../../src/supervisor/check-simulated.js';
import { skip, suite } from '../support/harness.js';
import { compileProgram } from '../support/real-kernel.js';
import type { RestrictedOrder } from './support/restricted.js';
import { rustHandler } from './support/rust-handler.js';

const test = suite('simulated handlers');
const long = process.env.UFFD_LONG !== undefined;
const UNPRIVILEGED_UID = 65534;
const WAYS = [
  ...['poll', 'ppoll', 'select', 'pselect', 'epoll', 'edge', 'blocking', 'spin', 'sleep', 'threads'],
];

const folder = mkdtempSync(join(tmpdir(), 'uffd-handlers-'));
// Another user runs what is in it.
chmodSync(folder, 0o755);
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

/** The only result of a check. */
function only(report: CheckReport): ScenarioResult {
  assert.equal(report.results.length, 1);
  return report.results[0] as ScenarioResult;
}

/** Tests a handler as another user, without userfaultfd and what else Docker forbids. `built`: with the built package. */
async function restricted(
  command: readonly string[],
  options: CheckSimulatedOptions,
  built = false,
): Promise<{ uid: number; report: CheckReport }> {
  const file = fileURLToPath(new URL('./support/restricted.js', import.meta.url));
  const root = process.getuid?.() === 0;
  const user = root ? { uid: UNPRIVILEGED_UID, gid: UNPRIVILEGED_UID } : {};
  const readable = spawnSync(
    process.execPath,
    ['-e', `require('fs').readFileSync(${JSON.stringify(file)})`],
    user,
  );
  if (readable.status !== 0) skip(`the user ${UNPRIVILEGED_UID} cannot read this build`);
  const order: RestrictedOrder = { command, options, built };
  const child = spawn(process.execPath, [file, JSON.stringify(order)], {
    ...user,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  const said = { stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream].on('data', (bytes) => {
      said[stream] += bytes;
    });
  await once(child, 'close');
  process.off('exit', kill);
  assert.notEqual(said.stdout, '', said.stderr);
  return JSON.parse(said.stdout);
}

for (const way of WAYS) {
  test(`a handler that waits by ${way} passes`, async () => {
    const handler = compiled();
    const seeds = { from: 1, count: long ? 300 : 8 };
    const result = only(await checkSimulated([handler, '{socket}', '{memory}', way], { seeds }));
    assert.equal(result.verdict, 'pass', JSON.stringify(result));
    assert.match(result.reason ?? '', new RegExp(`^${seeds.count} guests with [1-9]`));
  });
}

let waits: string | undefined;

function compiled(): string {
  waits ??= compileProgram('supervisor/waits.c');
  return waits;
}

test('uffd serve passes', async () => {
  const uffd = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
  const command = [process.execPath, uffd, 'serve', '--socket', '{socket}', '--memory', '{memory}'];
  const seeds = { from: 1, count: long ? 300 : 8 };
  const result = only(await checkSimulated(command, { seeds }));
  assert.equal(result.verdict, 'pass', JSON.stringify(result));
}, 120_000);

test('without privileges and without userfaultfd, a race in a Rust handler is found, and its seed repeats', async () => {
  const command = [rustHandler(), '{socket}', '{memory}', 'racy'];
  const shrinks = 100;
  const first = await restricted(command, { seeds: 2000, shrinks });
  if (process.getuid?.() === 0) assert.equal(first.uid, UNPRIVILEGED_UID);
  const found = only(first.report);
  assert.equal(found.verdict, 'fail', JSON.stringify(found));
  assert.match(
    found.reason ?? '',
    /^a page that was removed holds data: COPY has put \d+ at byte 0 of page \d+/,
  );
  assert.deepEqual(found.repeats, { failed: 3, of: 3 });
  const { seed = 0, details = [] } = found;
  assert.ok(
    seed > 0 && details.some((line) => /handler {5}COPY page \d+ → done/.test(line)),
    details.join('\n'),
  );
  for (let repeat = 0; repeat < (long ? 10 : 1); repeat++) {
    const again = only((await restricted(command, { seeds: { from: seed, count: 1 }, shrinks })).report);
    assert.equal(again.seed, seed);
    assert.deepEqual(again.details, details);
  }
});

test('without privileges and without userfaultfd, the fixed handler passes', async () => {
  const command = [rustHandler(), '{socket}', '{memory}'];
  const { report } = await restricted(command, { seeds: long ? 2000 : 40 });
  assert.equal(only(report).verdict, 'pass', JSON.stringify(report));
});

test("the built package's checkHandler does the same under Docker's default profile, without privileges", async () => {
  const handler = rustHandler();
  const passed = await restricted([handler, '{socket}', '{memory}'], { seeds: 10 }, true);
  if (process.getuid?.() === 0) assert.equal(passed.uid, UNPRIVILEGED_UID);
  assert.equal(only(passed.report).verdict, 'pass', JSON.stringify(passed.report));
  const failed = only(
    (await restricted([handler, '{socket}', '{memory}', 'racy'], { seeds: 100 }, true)).report,
  );
  assert.equal(failed.verdict, 'fail', JSON.stringify(failed));
  assert.ok((failed.seed ?? 0) > 0);
  assert.deepEqual(failed.repeats, { failed: 3, of: 3 });
});

test('one process can get many hand-offs, and a handler that takes one gets a process for each', async () => {
  const command = [compiled(), '{socket}', '{memory}', 'poll'];
  const result = only(await checkSimulated(command, { seeds: 12, reuse: true }));
  assert.equal(result.verdict, 'pass', JSON.stringify(result));
});

/** Tests a handler that is a shell script. */
async function script(text: string): Promise<ScenarioResult> {
  const path = join(folder, 'script');
  writeFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  return only(await checkSimulated([path, '{socket}', '{memory}'], { seeds: 2 }));
}

test('a handler that ends before it listens fails with its status and its last words', async () => {
  const { verdict, reason } = await script('echo "no such option" >&2; exit 3');
  assert.equal(verdict, 'fail');
  assert.equal(reason, 'the handler has ended before it listened (exit status 3)\n  no such option');
});

test('a handler that does not exist fails with that reason', async () => {
  const result = only(await checkSimulated([join(folder, 'missing'), '{socket}'], { seeds: 2 }));
  assert.equal(result.verdict, 'fail');
  assert.match(result.reason ?? '', /^the handler cannot be executed/);
});

test('an abort ends the check, and removes its files', async () => {
  const { TMPDIR } = process.env;
  const own = mkdtempSync(join(folder, 'own-'));
  process.env.TMPDIR = own;
  try {
    const abort = new AbortController();
    const running = checkSimulated([compiled(), '{socket}', '{memory}', 'poll'], {
      seeds: 100_000,
      signal: abort.signal,
      progress: () => abort.abort(new Error('enough')),
    });
    await assert.rejects(running, /enough/);
    assert.deepEqual(readdirSync(own), []);
  } finally {
    if (TMPDIR === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = TMPDIR;
  }
});

test.run();
