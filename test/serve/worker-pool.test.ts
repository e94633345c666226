// The threads of sessions: how many the pool keeps when no guest needs them, and when their priority is lowered.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { IDLE_MOST as KEPT, type SessionThread, WorkerPool } from '../../src/serve/worker-pool.js';
import { skip, suite } from '../support/harness.js';
import { needKernel, until } from '../support/real-kernel.js';

const test = suite('serve/worker-pool');

/** How the threads serve scratch guests while they warm up. */
const SERVED = { window: 1, wait: 'adaptive' } as const;

test(`of ${KEPT + 2} threads that are given back ${KEPT} are kept, and serve again`, async () => {
  needKernel();
  const threads = new WorkerPool(false, SERVED);
  const taken = Array.from({ length: KEPT + 2 }, () => threads.take());
  await Promise.all(taken.map(({ ready }) => ready));
  const ends = taken.map(
    (thread) => new Promise<SessionThread>((resolve) => thread.worker.once('exit', () => resolve(thread))),
  );
  for (const thread of taken) threads.giveBack(thread);
  const ended = await Promise.all(ends.slice(KEPT));
  const again = Array.from({ length: KEPT }, () => threads.take());
  assert.deepEqual(
    [...again].reverse(),
    taken.filter((thread) => !ended.includes(thread)),
    'the last that was given back comes first',
  );
  for (const thread of again) threads.giveBack(thread);
  await threads.close();
  await Promise.all(ends);
}, 60_000);

/** The thread IDs of this process that have the lowest priority, the lowest ID first. */
function lowest(): number[] {
  const nice = (tid: number): string | undefined => {
    try {
      const stat = readFileSync(`/proc/self/task/${tid}/stat`, 'latin1');
      return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16];
    } catch {
      // The thread has ended.
      return undefined;
    }
  };
  const tids = readdirSync('/proc/self/task').map(Number);
  return tids.filter((tid) => nice(tid) === '19').sort((one, other) => one - other);
}

test('while a guest is served, the spare thread has the lowest priority; it loses that with its own guest', async () => {
  needKernel();
  const threads = new WorkerPool(true, SERVED);
  const first = threads.take();
  await first.ready;
  await until(() => lowest().length > 0, 'a spare thread');
  // The spare thread is the first. The reader that its warm-up starts inherits the priority, and ends by itself.
  const [spare = 0] = lowest();
  const second = threads.take();
  // The second guest got the spare thread, whose priority was raised again.
  assert.ok(!lowest().includes(spare));
  await second.ready;
  threads.giveBack(second);
  threads.giveBack(first);
  await threads.close();
}, 60_000);

const TRIES = `
  import { setPriority } from 'node:os';
  import { mayRaisePriority } from ${JSON.stringify(new URL('../../shim/process.js', import.meta.url))};
  let raised = true;
  setPriority(0, 19);
  try { setPriority(0, 0); } catch { raised = false; }
  console.log(mayRaisePriority(), raised);`;

test('a priority is lowered only if the kernel lets this process raise it again: not in a user namespace', () => {
  const node = [process.execPath, '--input-type=module', '-e', TRIES];
  for (const [under, expected] of [
    [[], /^(true true|false false)$/m],
    [['unshare', '--user', '--map-root-user'], /^false false$/m],
  ] as const) {
    const [program = '', ...words] = [...under, ...node];
    const { stdout, stderr } = spawnSync(program, words, { encoding: 'utf8', timeout: 30_000 });
    if (/unshare/.test(stderr)) skip(stderr);
    assert.match(stdout, expected);
  }
});

test.run();
