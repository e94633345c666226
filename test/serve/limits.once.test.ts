// At its limit of descriptors, the server still serves current guests, lets new monitors wait until descriptors are
// free, and leaves nothing behind.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { closeSync, readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectUnix, send } from '../../shim/socket.js';
import type { Guest } from '../../src/cli/guest/guest.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import { atRest, P, type Running, servingApart } from './support/serve-process.js';
import { descriptors, until } from './support/server.js';

const test = suite('serve/limits');
const PAGES = 64;
const MANY = 4096;

function descriptorsOf({ pid }: Running): number[] {
  return readdirSync(`/proc/${pid}/fd`).map(Number);
}

/** Waits until a server opens no more descriptors, then lowers its limit to leave `room` free ones. */
async function leaveRoom(server: Running, room: number): Promise<void> {
  await atRest(server.pid);
  const open = new Set(descriptorsOf(server));
  let limit = 0;
  for (let free = 0; free < room || open.has(limit); limit++) if (!open.has(limit)) free++;
  setLimit(server, limit);
}

function setLimit({ pid }: Running, limit: number): void {
  const { status, error, stderr } = spawnSync('prlimit', ['--pid', `${pid}`, `--nofile=${limit}:${MANY}`]);
  if (status !== 0) skip(`prlimit: ${error?.message ?? stderr}`);
}

/** CPU time of a process in milliseconds. */
function computed({ pid }: Running): number {
  const [user, system] =
    readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ').slice(11, 13) ?? [];
  // The kernel counts in hundredths of a second.
  return (Number(user) + Number(system)) * 10;
}

async function assertServed(guest: Guest): Promise<void> {
  const { wrongCount, touches } = await guest.touch({ threads: 2, order: 'random', seed: 1 });
  assert.deepEqual({ wrongCount, touches }, { wrongCount: 0, touches: PAGES });
}

const count = (text: string, what: string): number => text.split(what).length - 1;

for (const room of [0, 1, 2, 5, 9]) {
  test(`room for ${room} descriptors: monitors wait, and are served when there is more`, async () => {
    await servingApart({ pages: PAGES }, async ({ server, guest }) => {
      const bystander = await guest();
      await bystander.touch({ threads: 1, order: 'sequential', seed: 1, to: PAGES / 2 });
      await leaveRoom(server, room);
      const waiting = await Promise.all([guest(), guest()]);
      await server.says('"msg":"monitors wait"', 'stderr');
      const touching = waiting.map(assertServed);
      const before = computed(server);
      await sleep(1000);
      assert.ok(computed(server) - before < 500, 'it waits without computing');
      await assertServed(bystander);
      const { stderr } = server.output;
      assert.equal(count(stderr, '"msg":"monitors wait"'), 1);
      assert.match(stderr, /\d+ descriptors are left, and 64 may be needed; close some, or raise the limit/);
      setLimit(server, MANY);
      await Promise.all(touching);
      assert.equal(count(server.output.stderr, 'turned away'), 0);
    });
  });
}

test('monitors that had to wait leave nothing behind', async () => {
  await servingApart({ pages: PAGES }, async ({ server, guest }) => {
    const wave = async (limited: boolean): Promise<void> => {
      if (limited) await leaveRoom(server, 70);
      const guests = await Promise.all([guest(), guest(), guest()]);
      const touching = guests.map(assertServed);
      if (limited) {
        await server.says('"msg":"monitors wait"', 'stderr');
        setLimit(server, MANY);
      }
      await Promise.all(touching);
      const ended = count(server.output.stderr, 'a guest has ended');
      await Promise.all(guests.map((one) => one.end()));
      await until(() => count(server.output.stderr, 'a guest has ended') === ended + 3);
    };
    for (let round = 0; round < 3; round++) await wave(false);
    const before = descriptors(server.pid);
    for (let round = 0; round < 3; round++) await wave(true);
    await until(() => descriptors(server.pid) <= before);
  });
}, 300_000);

test('a second userfaultfd of one connection that finds no room is refused; the first is served, and the next monitor', async () => {
  await servingApart(
    { pages: PAGES, options: ['--on-error', 'leave'] },
    async ({ server, socket, guest }) => {
      // Two guests come and go, so the server has two idle threads for the next guests.
      const first = await Promise.all([guest(), guest()]);
      await Promise.all(first.map(assertServed));
      await Promise.all(first.map((one) => one.end()));
      await until(() => count(server.output.stderr, 'a guest has ended') === 2);
      const bystander = await guest();
      await bystander.touch({ threads: 1, order: 'sequential', seed: 1, to: PAGES / 2 });
      const mapping = Mapping.anonymous(PAGES * P);
      const uffd = Userfaultfd.open({ features: ['event-remove'] });
      uffd.register(mapping.address, mapping.length);
      const text = JSON.stringify([
        { base_host_virt_addr: Number(mapping.address), size: PAGES * P, offset: 0, page_size: P },
      ]);
      const connection = connectUnix(socket);
      assert.ok(connection >= 0);
      const pass = (): void =>
        assert.equal(send(connection, Buffer.from(text), [uffd.fd]), text.length) as void;
      pass();
      await until(() => count(server.output.stderr, 'a guest is served') === 4);
      await leaveRoom(server, 0);
      pass();
      await server.says('a descriptor was lost on the way: too many are open (ulimit -n)', 'stderr');
      closeSync(connection);
      await assertServed(bystander);
      setLimit(server, MANY);
      await assertServed(await guest());
      uffd.close();
    },
  );
});

test.run();
