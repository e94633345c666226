// Snapshots in a chunk store when something fails: the store, the network, the cache, the server. Guests wait, and then
// get the right pages, or are ended; they never get zeros because their data is missing.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Guest } from '../../src/cli/guest/guest.js';
import { commandLine } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { until } from '../support/real-kernel.js';
import { Running } from './support/serve-process.js';
import {
  type Answer,
  assertRight,
  CHUNK_PAGES,
  CHUNKS,
  cachedFiles,
  type StoreScene,
  withSnapshot,
} from './support/snapshot-store.js';

const test = suite('serve/stored-failures');

const status =
  (code: number): Answer =>
  (response) => {
    response.writeHead(code).end();
    return true;
  };

const FAILURES: [what: string, answer: Answer][] = [
  ['the store answers 500', status(500)],
  [
    'connections are cut in the middle of a chunk',
    (response, bytes) => {
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, bytes.length / 2), () => response.destroy());
      return true;
    },
  ],
  [
    'the store gives wrong bytes',
    (response, bytes) => {
      const wrong = Buffer.from(bytes);
      wrong.writeUInt8(wrong.readUInt8(bytes.length - 5) ^ 0x10, bytes.length - 5);
      response.writeHead(200, { 'content-length': bytes.length }).end(wrong);
      return true;
    },
  ],
  ['chunks are missing', status(404)],
];

for (const [what, answer] of FAILURES) {
  test(`${what}: the guest waits, the problem is reported, and then every page is right`, () =>
    withSnapshot(async ({ serve, store }) => {
      store.answer = answer;
      const { server, guest } = await serve();
      const monitor = await guest();
      const all = assertRight(monitor);
      await until(() => server.problems.has('store') || server.problems.has('chunks'));
      assert.equal([...server.sessions][0]?.tally.get('copied'), 0);
      store.answer = () => false;
      await all;
      await until(() => server.problems.size === 0);
      assert.ok((server.storage?.failed ?? 0) > 0);
    }));
}

test('a chunk that is damaged once is fetched once more, and that is no problem', () =>
  withSnapshot(async ({ serve, store }) => {
    let damaged = 0;
    const wrongBytes = FAILURES[2]?.[1] as Answer;
    store.answer = (...answered) => damaged++ === 0 && wrongBytes(...answered);
    const { server, guest } = await serve();
    await assertRight(await guest());
    assert.equal(store.requests.length, CHUNKS + 1);
    assert.equal(server.storage?.failed, 0);
  }));

test('the store goes away and comes back: guests of both servers wait, and then get every page', () =>
  withSnapshot(async ({ serve, store }) => {
    const [one, other] = [await serve(), await serve()];
    const guests = [await one.guest(), await other.guest()];
    for (const guest of guests)
      await guest.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES });
    await store.close();
    const all = Promise.all(guests.map((guest) => assertRight(guest)));
    await until(() => one.server.problems.has('store') && other.server.problems.has('store'));
    await store.open();
    await all;
    await until(() => one.server.problems.size + other.server.problems.size === 0);
  }));

test('with a deadline, a guest whose chunk does not come is ended, and gets no zeros', () =>
  withSnapshot(async ({ serve, store }) => {
    store.answer = () => true;
    const { ends, guest } = await serve({ storeDeadlineMs: 300 });
    const monitor = await guest();
    const touched = monitor.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: 1 });
    await assert.rejects(touched);
    assert.equal(await monitor.ended, 'SIGKILL');
    await until(() => ends.length === 1);
    const [end] = ends;
    assert.ok(
      end?.how === 'failed' && /ERR_UFFD_STORE_DEADLINE/.test(`${(end.error as { code?: string }).code}`),
    );
  }));

test('a server ends although chunks do not come', () =>
  withSnapshot(async ({ serve, store }) => {
    store.answer = () => true;
    const { server, guest } = await serve();
    const monitor = await guest();
    const touched = monitor.verify().catch(() => {});
    await until(() => store.requests.length > 0);
    monitor.kill();
    await touched;
    await server.close();
  }));

test('the folder of the cache is removed while guests are served: every page is right', () =>
  withSnapshot(async ({ serve, cache }) => {
    const { guest } = await serve();
    const monitor = await guest();
    await monitor.touch({ threads: 1, order: 'sequential', seed: 0, from: 0, to: CHUNK_PAGES });
    rmSync(cache, { recursive: true });
    await assertRight(monitor);
    await assertRight(await guest());
  }));

test('the disk of the cache is full: chunks are kept in memory, the problem is reported, and every page is right', () =>
  withSnapshot(async (scene) => {
    mkdirSync(scene.cache);
    // Room for three chunks; but half of each is needed for the next.
    const mount = 'mount -t tmpfs -o size=40k none "$1" && shift && exec "$@"';
    const inside = ['unshare', '-m', 'sh', '-c', mount, 'sh', scene.cache];
    const tried = spawnSync(inside[0] as string, [...inside.slice(1), 'true'], { encoding: 'utf8' });
    if (tried.status !== 0) skip(`a small disk cannot be mounted here: ${tried.stderr || tried.error}`);
    await apart(scene, inside, async (server, guest) => {
      await assertRight(await guest());
      await assertRight(await guest());
      assert.match(server.output.stderr, /chunks are kept in memory[^\n]*ENOSPC/);
      assert.equal(scene.store.requests.length, CHUNKS);
    });
  }));

test(
  'the server is killed at any moment while it fills the cache: what is left is whole, or not used',
  () =>
    withSnapshot(async (scene) => {
      const { store, cache } = scene;
      for (const after of [1, 3, 6]) {
        let kill = (): void => {};
        const begun = store.requests.length;
        store.answer = () => {
          if (store.requests.length === begun + after) setImmediate(kill);
          return false;
        };
        await apart(scene, [], async (server, guest) => {
          kill = () => server.kill();
          const monitor = await guest();
          const touched = monitor.touch({ threads: 2, order: 'random', seed: after }).catch(() => {});
          // With enough chunks in the cache it is never asked for so many.
          await Promise.race([server.ended, touched]);
          monitor.kill();
          await touched;
        });
      }
      store.answer = () => false;
      const { server, guest } = await scene.serve();
      await assertRight(await guest());
      assert.equal(cachedFiles(cache).length, CHUNKS);
      assert.equal(server.storage?.damaged, 0);
    }),
  120_000,
);

/** Runs `uffd serve` in a process of its own, after `before` in its command line. */
async function apart(
  { directory, memory, index, cache, store }: StoreScene,
  before: readonly string[],
  body: (server: Running, guest: () => Promise<Guest>) => Promise<void>,
): Promise<void> {
  const socket = join(directory, 'apart');
  const options = ['--socket', socket, '--memory', index, '--store', store.url, '--cache', cache];
  const server = new Running([...before, ...commandLine(['serve', ...options])]);
  const guests: Guest[] = [];
  try {
    await server.says(`ready: ${socket}\n`);
    await body(server, async () => {
      const guest = new Guest({ socket, memory });
      guests.push(guest);
      await guest.handedOver;
      return guest;
    });
  } finally {
    for (const guest of guests) guest.kill();
    await Promise.all(guests.map(({ ended }) => ended));
    server.kill();
    await server.ended;
    // The next server listens at the same path.
    rmSync(socket, { force: true });
  }
}

test.run();
