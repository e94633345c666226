// Seeing descriptors become readable without libuv's poll, which not every runtime has whole.

import * as assert from 'uvu/assert';
import { closeDescriptor } from '../shim/descriptors.js';
import { libc } from '../shim/libc.js';
import { hasPoll, pollByTimer } from '../shim/watch.js';
import { skip, suite } from './harness.js';

const test = suite('watch');
const NONBLOCK = 0x800;
const nextTurns = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** An eventfd's number; skips where there is no libc to ask for one. */
function eventfd(): number {
  try {
    return libc().eventfd(0, NONBLOCK);
  } catch (error) {
    return skip((error as Error).message);
  }
}

test('a timer tells who is readable as long as it is, and nobody who was closed', async () => {
  const [one, other] = [eventfd(), eventfd()];
  const told: string[] = [];
  const first = pollByTimer(one, () => {
    told.push('one');
    if (told.length === 3) {
      first.close();
      second.close();
    }
  });
  const second = pollByTimer(other, () => void told.push('other'));
  await nextTurns(10);
  assert.equal(told, []);
  libc().eventfd_write(one, 1);
  while (told.length < 3) await nextTurns(1);
  libc().eventfd_write(other, 1);
  await nextTurns(10);
  assert.equal(told, ['one', 'one', 'one']);
  for (const fd of [one, other]) closeDescriptor(fd);
});

test('one that is closed in the turn in which it is ready is told nothing', async () => {
  const fds = [eventfd(), eventfd()];
  const told: number[] = [];
  const watches = fds.map((fd) =>
    pollByTimer(fd, () => {
      told.push(fd);
      for (const watch of watches) watch.close();
    }),
  );
  for (const fd of fds) libc().eventfd_write(fd, 1);
  while (told.length === 0) await nextTurns(1);
  await nextTurns(10);
  assert.is(told.length, 1);
  for (const fd of fds) closeDescriptor(fd);
});

test('libuv’s poll is called on Node, and on no other runtime', () => {
  const { bun: _, deno: __, ...node } = process.versions;
  assert.is(hasPoll(node as NodeJS.ProcessVersions), true);
  assert.is(hasPoll({ ...node, bun: '1.4.5' } as NodeJS.ProcessVersions), false);
  assert.is(hasPoll({ ...node, deno: '2.9.6' } as NodeJS.ProcessVersions), false);
});

test.run();
