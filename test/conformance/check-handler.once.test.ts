// `checkHandler` and `uffd check-handler`: a handler that does anything but serve is a result with a reason, nothing hangs,
// and no process is left.

import { strict as assert } from 'node:assert';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type CheckHandlerOptions,
  checkHandler,
  handlerScenarios,
  type ScenarioResult,
} from '../../src/testing/index.js';
import { commandLine, uffd } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { handler } from './support/handlers.js';

const test = suite('conformance/check-handler');

/** Checks one scenario. */
async function one(options: CheckHandlerOptions): Promise<ScenarioResult> {
  const { results } = await checkHandler({ scenarios: ['reads'], ...options });
  assert.equal(results.length, 1);
  return results[0] as ScenarioResult;
}

/** A handler that is a program of sh: `$0` is the socket, `$1` the memory file. */
const shell = (program: string): string[] => ['sh', '-c', program, '{socket}', '{memory}'];

/** Processes whose command line has a word. */
function processesWith(word: string): number[] {
  return readdirSync('/proc').flatMap((name) => {
    try {
      return readFileSync(`/proc/${name}/cmdline`, 'latin1').includes(word) && Number(name) > 0
        ? [Number(name)]
        : [];
    } catch {
      // It is no process, or it has ended.
      return [];
    }
  });
}

test('a handler that ends before it is ready', async () => {
  needKernel();
  const { verdict, reason, details } = await one({ command: shell('echo no luck >&2; exit 3') });
  assert.equal(verdict, 'fail');
  assert.equal(reason, 'the handler exited with status 3 before it was ready');
  assert.ok(details?.includes('stderr: no luck'));
});

test('a handler that never binds its socket, whose children are ended, too', async () => {
  needKernel();
  const word = `sleeper-${process.pid}`;
  const program = `sh -c 'sleep 1000' ${word} & sleep 1000`;
  const { verdict, reason, details } = await one({ command: shell(program), deadlineMs: 500 });
  assert.equal(verdict, 'fail');
  assert.match(reason ?? '', /bound no socket at \{socket\} within 500 ms/);
  assert.ok(details?.some((line) => /thread \d+ \((sh|sleep)\) waits in/.test(line)));
  // This process itself has the word in no command line.
  assert.deepEqual(processesWith(word), []);
});

test('a handler that says when it is ready, and one that does not', async () => {
  needKernel();
  const [program = ''] = handler();
  const command = ['sh', '-c', 'echo "listening soon"; exec "$0" "$@"', program, '{socket}', '{memory}'];
  assert.equal((await one({ command, ready: /^listening/m })).verdict, 'pass');
  const { reason } = await one({ command, ready: /never/, deadlineMs: 500 });
  assert.match(reason ?? '', /printed nothing that matches \/never\/ within 500 ms/);
});

test('a handler that kills its monitor is a result, and not the end of the check', async () => {
  needKernel();
  const { verdict, reason } = await one({ command: handler(13) });
  assert.equal(verdict, 'fail');
  assert.match(reason ?? '', /the monitor was ended by SIGKILL while it .*; the handler may have killed it/);
});

test('a program that is not there, and options that are wrong', async () => {
  needKernel();
  await assert.rejects(one({ command: ['./no-such-handler', '{socket}'] }), { code: 'ENOENT' });
  const wrong: [object, RegExp][] = [
    [{ command: 'handler' }, /command must be a list of words/],
    [{ command: [] }, /command must be a list of at least one word/],
    [{ command: ['handler'] }, /command must contain \{socket\}/],
    [{ command: handler(), scenario: [] }, /there is no 'scenario'/],
    [{ command: handler(), scenarios: ['no-such'] }, /no scenario's name begins with 'no-such'/],
    [{ command: handler(), repeat: 0 }, /repeat must be an integer from 1/],
    [{ command: handler(), deadlineMs: 1 }, /deadlineMs must be an integer from 100/],
    [{ command: handler(), ready: 'text' }, /ready must be a regular expression/],
  ];
  for (const [options, message] of wrong)
    await assert.rejects(checkHandler(options as CheckHandlerOptions), { message });
});

test('an aborted check ends the handler, and rejects with the reason', async () => {
  needKernel();
  const controller = new AbortController();
  const word = `aborted-${process.pid}`;
  const check = one({ command: [...shell('sleep 1000'), word], signal: controller.signal });
  controller.abort(new Error('enough'));
  await assert.rejects(check, /enough/);
  assert.deepEqual(processesWith(word), []);
});

test('repeats are counted, and the first failure is reported', async () => {
  needKernel();
  const { verdict, repeats } = await one({
    command: handler(7),
    scenarios: ['remove-after-read'],
    repeat: 2,
  });
  assert.equal(verdict, 'fail');
  assert.deepEqual(repeats, { failed: 2, of: 2 });
});

test('the command prints a table, exits with 1 on a failure, and keeps the evidence', async () => {
  needKernel();
  const folder = mkdtempSync(join(tmpdir(), 'uffd-evidence-'));
  try {
    const junit = join(folder, 'report.xml');
    const args = ['check-handler', '--scenario', 'remove-after-', '--evidence', folder, '--junit', junit];
    const broken = await uffd([...args, '--', ...handler(7)]);
    assert.equal(broken.code, 1, broken.stderr);
    assert.match(broken.stdout, /^FAIL {2}remove-after-read .*page 10 has the bytes of page 10/m);
    assert.match(broken.stdout, /^0 passed, 2 failed, 0 not applicable$/m);
    assert.match(readFileSync(junit, 'utf8'), /tests="2" failures="2"/);
    const kept = join(folder, 'remove-after-read');
    assert.match(
      readFileSync(join(kept, 'guest-steps.txt'), 'utf8'),
      /removes 2 pages from page 10 on\nreads/,
    );
    for (const name of ['handler.stdout.txt', 'handler.stderr.txt', 'handler.proc.txt', 'reason.txt'])
      assert.ok(existsSync(join(kept, name)), name);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('the command prints JSON and TAP, and exits with 0 if nothing fails', async () => {
  needKernel();
  const command = ['--', ...handler()];
  const json = await uffd(['check-handler', '--scenario', 'reads', '--json', ...command]);
  assert.equal(json.code, 0, json.stderr);
  const { results } = JSON.parse(json.stdout);
  assert.deepEqual([results[0].scenario, results[0].verdict], ['reads', 'pass']);
  const tap = await uffd(['check-handler', '--scenario', 'reads', '--tap', ...command]);
  assert.equal(tap.stdout, 'TAP version 13\n1..1\nok 1 - reads\n');
});

test('the list has every scenario, and why it matters', async () => {
  const { stdout } = await uffd(['check-handler', '--list', '--json']);
  const listed = JSON.parse(stdout) as { name: string; why: string }[];
  assert.deepEqual(listed, await handlerScenarios());
  assert.ok(listed.length >= 45, `${listed.length} scenarios`);
  assert.equal(new Set(listed.map(({ name }) => name)).size, listed.length);
  for (const { name, why } of listed) {
    assert.match(name, /^[a-z0-9-]+$/);
    assert.match(why, /^[A-Z0-9].*\.$/, name);
  }
});

test('uffd serve passes a scenario of each family', async () => {
  needKernel();
  const [program, ...words] = commandLine(['serve', '--socket', '{socket}', '--memory', '{memory}']);
  const scenarios = ['batch', 'stale-fill', 'many-regions', 'hand-off-in-pieces', 'monitor-killed'];
  const { results } = await checkHandler({ command: [program, ...words], scenarios });
  for (const { scenario, verdict, reason } of results)
    assert.equal(verdict, 'pass', `${scenario}: ${reason}`);
});

test('without userfaultfd the error says what to do, and no handler is started', async () => {
  needKernel();
  // A filter that refuses the system call, as Docker's default profile does.
  const { code, stderr } = await uffd(['check-handler', '--', 'no-such-program', '{socket}'], {
    preload: './seccomp.js',
  });
  assert.equal(code, 1);
  assert.match(stderr, /^uffd: .*userfaultfd/);
  assert.doesNotMatch(stderr, /no-such-program|\n\s+at /);
});

test('--simulated: the seed and the schedule of a failure, which the printed command repeats', async () => {
  const command = handler(6);
  const found = await uffd(['check-handler', '--simulated', '--', ...command]);
  assert.equal(found.code, 1, found.stderr);
  assert.match(found.stdout, /^FAIL {2}random guests +\d+ ms {2}a page that was removed holds data:/);
  assert.match(found.stdout, /\n {8}repeats\n/);
  assert.match(found.stdout, /\n0 passed, 1 failed, 0 not applicable\n$/);
  const [, seed] = /\nto repeat it: uffd check-handler --simulated --seed (\d+) -- /.exec(found.stdout) ?? [];
  const again = await uffd(['check-handler', '--simulated', '--seed', `${seed}`, '--', ...command]);
  const withoutTime = (text: string): string => text.replace(/ +\d+ ms /, ' ');
  assert.equal(withoutTime(again.stdout), withoutTime(found.stdout));
}, 120_000);

test('checkHandler({ simulated }): an honest handler passes; options of the other kind of kernel are refused', async () => {
  const command = handler();
  let runs = 0;
  const { simulated, results } = await checkHandler({
    ...{ command, simulated: true, seeds: { from: 5, count: 6 } },
    onProgress: (some) => {
      runs = some;
    },
  });
  assert.equal(simulated, true);
  assert.equal(results[0]?.verdict, 'pass', results[0]?.reason);
  assert.ok(runs <= 6);
  for (const [options, message] of [
    [{ simulated: true, repeat: 2 }, /'repeat' is for checks on the real kernel/],
    [{ seeds: 2 }, /'seeds' is for checks with simulated: true/],
    [{ simulated: true, seeds: { from: 5 } }, /seeds: count/],
    [{ simulated: 1 }, /simulated/],
  ] as const)
    await assert.rejects(checkHandler({ command, ...(options as object) }), { message });
}, 60_000);

test.run();
