// Peers of the server: an error of one peer ends that peer's connection and nothing else. Every received descriptor is
// closed, and the next monitor is served.

import { strict as assert } from 'node:assert';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectUnix, send } from '../../shim/socket.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { generator, seed, suite } from '../support/harness.js';
import { descriptors, P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/peers');
const PAGES = 16;

function connect(path: string): number {
  const fd = connectUnix(path);
  assert.ok(fd >= 0, `connect: ${fd}`);
  return fd;
}

const text = (members: object = {}): Buffer =>
  Buffer.from(
    JSON.stringify([
      { base_host_virt_addr: 0x7f00_0000_0000, size: PAGES * P, offset: 0, page_size: P, ...members },
    ]),
  );

/** Serves a guest from its first page to its last, and waits until its session has ended. */
async function assertServes({ guest, server }: Scene): Promise<void> {
  const monitor = await guest();
  const { wrongCount, touches } = await monitor.touch({ threads: 1, order: 'random', seed: 1 });
  assert.deepEqual({ wrongCount, touches }, { wrongCount: 0, touches: PAGES });
  await monitor.end();
  await until(() => server.sessions.size === 0);
}

/** Does something wrong on a connection, which must be refused for `reason`, and leaves nothing behind. */
async function assertRefused(wrong: (socket: number) => void | Promise<void>, reason: RegExp): Promise<void> {
  await serving({ pages: PAGES, handOffMs: 1000 }, async (scene) => {
    await assertServes(scene);
    const before = descriptors();
    const socket = connect(scene.socket);
    await wrong(socket);
    await until(() => scene.refusals.length > 0);
    assert.match(scene.refusals[0] as string, reason);
    assert.equal(scene.refusals.length, 1);
    closeSync(socket);
    await until(() => descriptors() <= before);
    await assertServes(scene);
  });
}

/** Sends bytes with `count` descriptors, and closes the sender's copies of these. */
function pass(socket: number, bytes: Uint8Array, count: number): void {
  const fds = Array.from({ length: count }, () => openSync('/dev/null', 'r'));
  assert.equal(send(socket, bytes, fds), bytes.length);
  for (const fd of fds) closeSync(fd);
}

test('nothing is sent', () => assertRefused(() => {}, /nothing was handed over within 1000 ms/));

test('half a text, and silence', () =>
  assertRefused((socket) => pass(socket, text().subarray(0, 20), 1), /was not finished within 1000 ms/));

test('a byte now and then: the time for a hand-off is not begun anew', () =>
  assertRefused(async (socket) => {
    pass(socket, text().subarray(0, 1), 1);
    // The loop ends when the server has closed the connection.
    while (send(socket, Buffer.from(' ')) > 0) await sleep(20);
  }, /was not finished within 1000 ms/));

test('a descriptor that is no userfaultfd', () =>
  assertRefused((socket) => pass(socket, text(), 1), /is no userfaultfd: \/dev\/null/));

test('a text without a descriptor, which does not follow either', () =>
  assertRefused((socket) => pass(socket, text(), 0), /came without a descriptor/));

test('three descriptors', () => assertRefused((socket) => pass(socket, text(), 3), /3 descriptors came/));

test('more descriptors than a message should have, in half a text', () =>
  assertRefused((socket) => pass(socket, text().subarray(0, 5), 200), /200 descriptors came/));

test('another protocol', () =>
  assertRefused((socket) => pass(socket, Buffer.from('GET /metrics HTTP/1.1\r\n'), 1), /is a JSON array/));

test('a connection that is closed at once is no failure', async () => {
  await serving({ pages: PAGES }, async (scene) => {
    await assertServes(scene);
    const before = descriptors();
    closeSync(connect(scene.socket));
    await assertServes(scene);
    assert.deepEqual(scene.refusals, []);
    await until(() => descriptors() <= before);
  });
});

test('a connection that is closed in the middle of a text', async () => {
  await serving({ pages: PAGES }, async (scene) => {
    await assertServes(scene);
    const before = descriptors();
    const socket = connect(scene.socket);
    pass(socket, text().subarray(0, 30), 2);
    closeSync(socket);
    await until(() => scene.refusals.length > 0);
    assert.match(scene.refusals.join(), /closed in the middle of a hand-off/);
    await until(() => descriptors() <= before);
    await assertServes(scene);
  });
});

test('a user that is not allowed', async () => {
  await serving({ pages: PAGES, allowUids: [4242] }, async (scene) => {
    const socket = connect(scene.socket);
    await until(() => scene.refusals.length > 0);
    assert.match(scene.refusals.join(), /user \d+ is not allowed/);
    closeSync(socket);
  });
});

test('a listener that throws, or whose promise is rejected: the other listeners run, a warning says why, guests are served', async () => {
  const warnings: string[] = [];
  const warned = ({ message }: Error): number => warnings.push(message);
  process.on('warning', warned);
  try {
    await serving({ pages: PAGES }, async (scene) => {
      scene.server.prependListener('connected', () => {
        throw new Error('thrown on purpose');
      });
      scene.server.prependListener('begun', async () => {
        throw new Error('rejected on purpose');
      });
      let begun = 0;
      scene.server.on('begun', () => begun++);
      await assertServes(scene);
      await assertServes(scene);
      assert.equal(begun, 2);
      await until(() => warnings.length >= 4);
      assert.match(warnings.join(), /listener of the server's event 'connected' has failed: Error: thrown/);
      assert.match(warnings.join(), /listener of the server's event 'begun' has failed: Error: rejected/);
    });
  } finally {
    process.off('warning', warned);
  }
});

// ---- tolerances --------------------------------------------------------------------------------------------

/** Registered memory of this process, for a hand-off that the test itself sends. */
function watched(): { uffd: Userfaultfd; members: object } {
  const mapping = Mapping.anonymous(PAGES * P);
  const uffd = Userfaultfd.open({ features: ['event-remove'] });
  uffd.register(mapping.address, mapping.length);
  return { uffd, members: { base_host_virt_addr: Number(mapping.address) } };
}

for (const [what, hand] of [
  [
    'in pieces of a byte',
    async (socket: number, whole: Buffer, fd: number) => {
      send(socket, whole.subarray(0, 1), [fd]);
      for (let at = 1; at < whole.length; at++) send(socket, whole.subarray(at, at + 1));
    },
  ],
  [
    'the descriptor behind the text',
    async (socket: number, whole: Buffer, fd: number) => {
      send(socket, whole);
      await sleep(150);
      send(socket, Buffer.from(' '), [fd]);
    },
  ],
  [
    'with a memfd behind the userfaultfd',
    async (socket: number, whole: Buffer, fd: number) => {
      const other = openSync('/dev/null', 'r');
      send(socket, whole, [fd, other]);
      closeSync(other);
    },
  ],
] as const) {
  test(`a hand-off ${what} is served`, async () => {
    await serving({ pages: PAGES }, async ({ socket: path, server }) => {
      const socket = connect(path);
      for (let time = 0; time < 2; time++) {
        // One connection carries several hand-offs.
        const { uffd, members } = watched();
        await hand(socket, text(members), uffd.fd);
        await until(() => server.sessions.size === time + 1);
        closeSync(uffd.release());
      }
      assert.equal(server.served, 2);
      closeSync(socket);
    });
  });
}

// ---- hostile -----------------------------------------------------------------------------------------------

const ROUNDS = 10_000;

test(`${ROUNDS} hand-offs that are mutated at random: nothing is lost, and the next guest is served`, async () => {
  const below = generator(seed());
  await serving({ pages: PAGES, onError: 'leave' }, async (scene) => {
    await assertServes(scene);
    const before = descriptors();
    for (let round = 0; round < ROUNDS; round++) {
      const socket = connect(scene.socket);
      const bytes = mutated(text(), below);
      pass(socket, bytes, [0, 0, 1, 1, 2, 3, 9][below(7)] as number);
      if (below(4) === 0) await sleep(0);
      closeSync(socket);
      // Connections that are not accepted yet wait in the listen queue, whose length is limited.
      if (round % 32 === 31) await until(() => descriptors() < before + 40);
    }
    await until(() => scene.server.sessions.size === 0 && descriptors() <= before);
    await assertServes(scene);
  });
}, 300_000);

/** A text with some bytes changed, cut, doubled, moved or inserted. It comes without a userfaultfd. */
function mutated(whole: Buffer, below: (bound: number) => number): Buffer {
  let bytes = Buffer.from(whole);
  for (let change = 0; change <= below(4); change++) {
    const at = below(Math.max(bytes.length, 1));
    const kind = below(5);
    if (kind === 0) bytes[at] = below(256);
    else if (kind === 1) bytes = bytes.subarray(0, at);
    else if (kind === 2) bytes = Buffer.concat([bytes, bytes.subarray(at)]);
    else if (kind === 3) bytes = Buffer.concat([bytes.subarray(at), bytes.subarray(0, at)]);
    else
      bytes = Buffer.concat([
        bytes.subarray(0, at),
        Buffer.from(`${below(2) ? '-' : ''}${below(2 ** 31)}`),
        bytes.subarray(at),
      ]);
  }
  return bytes.length > 0 ? bytes : Buffer.from('[');
}

test.run();
