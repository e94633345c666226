// Watching descriptors become readable without libuv's poll, which not every runtime supports fully.

import * as assert from 'uvu/assert';
import { closeDescriptor } from '../../shim/descriptors.js';
import { libc } from '../../shim/libc.js';
import { hasPoll, pollByTimer } from '../../shim/watch.js';
import { skip, suite } from '../support/harness.js';

const test = suite('shim/watch');
const NONBLOCK = 0x800;
const nextTurns = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Opens an eventfd; skips if libc is not available. */
function eventfd(): number {
  try {
    return libc().eventfd(0, NONBLOCK);
  } catch (error) {
    return skip((error as Error).message);
  }
}

test('the timer calls back for a descriptor as long as it is readable, and for no closed watch', async () => {
  const [one, other] = [eventfd(), eventfd()];
  const calls: string[] = [];
  const first = pollByTimer(one, () => {
    calls.push('one');
    if (calls.length === 3) {
      first.close();
      second.close();
    }
  });
  const second = pollByTimer(other, () => void calls.push('other'));
  await nextTurns(10);
  assert.equal(calls, []);
  libc().eventfd_write(one, 1);
  while (calls.length < 3) await nextTurns(1);
  libc().eventfd_write(other, 1);
  await nextTurns(10);
  assert.equal(calls, ['one', 'one', 'one']);
  for (const fd of [one, other]) closeDescriptor(fd);
});

test('a watch that is closed in the turn in which it is ready gets no callback', async () => {
  const fds = [eventfd(), eventfd()];
  const calls: number[] = [];
  const watches = fds.map((fd) =>
    pollByTimer(fd, () => {
      calls.push(fd);
      for (const watch of watches) watch.close();
    }),
  );
  for (const fd of fds) libc().eventfd_write(fd, 1);
  while (calls.length === 0) await nextTurns(1);
  await nextTurns(10);
  assert.is(calls.length, 1);
  for (const fd of fds) closeDescriptor(fd);
});

test('libuv’s poll is called on Node, and on no other runtime', () => {
  const { bun: _, deno: __, ...node } = process.versions;
  assert.is(hasPoll(node as NodeJS.ProcessVersions), true);
  assert.is(hasPoll({ ...node, bun: '1.4.5' } as NodeJS.ProcessVersions), false);
  assert.is(hasPoll({ ...node, deno: '2.9.6' } as NodeJS.ProcessVersions), false);
});

test.run();
