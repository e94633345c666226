// What `uffd serve` does and reports if it cannot kill a monitor, or cannot start a thread.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { chmodSync, readdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandLine, inDirectory, UNPRIVILEGED } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { P, Running, writeMemory } from './support/serve-process.js';
import { until } from './support/server.js';
import { Bare, handOffText } from './support/sole-owner-monitor.js';

const test = suite('serve/unreachable');
const PAGES = 16;
/** The start of a command line that runs the rest as a user who has no other processes. */
const OTHER_USER = ['setpriv', '--reuid', '54321', '--clear-groups'];
const NAMESPACE = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc'];

interface Scene {
  server: Running;
  memory: string;
  bare(text?: string): Bare;
}

/** Runs `uffd serve` by a command such as `unshare`, and monitors outside of it. */
async function servedUnder(
  under: readonly string[],
  options: readonly string[],
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  needKernel();
  if (process.getuid?.() !== 0) skip('only root can be another user, and make namespaces');
  await inDirectory(async (directory) => {
    chmodSync(directory, 0o777);
    const [socket, memory] = [join(directory, 'socket'), join(directory, 'memory')];
    writeMemory(memory, PAGES, 1);
    const command = commandLine(['serve', '--socket', socket, '--memory', memory, ...options]);
    const server = new Running([...under, ...command]);
    const bares: Bare[] = [];
    try {
      await server.says('ready: ');
      await body({
        ...{ server, memory },
        bare(text = handOffText(PAGES)) {
          const bare = new Bare(socket, PAGES, text);
          bares.push(bare);
          return bare;
        },
      });
    } finally {
      for (const bare of bares) bare.kill();
      await Promise.all(bares.map(({ ended }) => ended));
      server.kill();
      await server.ended;
    }
  });
}

for (const [what, under, why] of [
  ['of another user', UNPRIVILEGED, /was not killed: EPERM/],
  ['outside of the PID namespace', NAMESPACE, /was not killed: EINVAL: it lives in a PID namespace/],
] as const) {
  for (const fails of ['a page', 'the hand-off'] as const) {
    test(`a monitor ${what} whose ${fails} cannot be served: it hangs, until it ends so does the handler; exit 1`, () =>
      servedUnder(under, ['--once'], async ({ server, memory, bare }) => {
        const monitor = bare(handOffText(PAGES, fails === 'a page' ? {} : { offset: P }));
        if (fails === 'a page') {
          await server.says('a guest is served', 'stderr');
          truncateSync(memory, 0);
        }
        monitor.touch(1);
        await server.says('"msg":"there is a problem"', 'stderr');
        assert.match(server.output.stderr, why);
        await monitor.waits();
        await sleep(300);
        assert.equal(monitor.over, false);
        assert.equal(monitor.said, 'handed over\n');
        monitor.end();
        assert.equal((await server.ended).code, 1);
        assert.match(server.output.stderr, /the problem is over/);
      }));
  }
}

test('a monitor outside of the PID namespace: its end is noticed, once and after SIGTERM', async () => {
  await servedUnder(NAMESPACE, ['--once'], async ({ server, bare }) => {
    const monitor = bare();
    await server.says('a guest is served', 'stderr');
    monitor.end();
    assert.equal((await server.ended).code, 0);
    assert.match(server.output.stderr, /"end":"exited"/);
  });
});

test('a limit of tasks: the guest that finds no thread is refused and says so, the others are served on', () =>
  servedUnder(OTHER_USER, [], async ({ server, bare }) => {
    const first = bare();
    await server.says('a guest is served', 'stderr');
    // The number of tasks is stable once the thread for the next guest has started.
    let tasks = 0;
    await until(() => {
      const now = readdirSync(`/proc/${server.pid}/task`).length;
      const same = now === tasks;
      tasks = now;
      return same;
    });
    const [setpriv, ...rest] = [...OTHER_USER, 'prlimit', '--nproc=1', '--pid', `${server.pid}`];
    assert.equal(spawnSync(setpriv as string, rest).status, 0);
    for (let one = 0; one < 3; one++) {
      const before = server.output.stderr.length;
      bare();
      await until(() => /a guest is served|a hand-off was refused/.test(server.output.stderr.slice(before)));
    }
    assert.match(server.output.stderr, /no thread can be made for a guest: .*raise the limit of tasks/);
    first.touch(1);
    await until(() => first.said.includes('page 1:'));
    assert.doesNotMatch(first.said, /page 1: 0{16}/);
  }));

test.run();
