// The server notices the end of a guest, whatever its monitor or the remaining processes do. No descriptor that a peer
// sends blocks the server.

import { strict as assert } from 'node:assert';
import { readFileSync } from 'node:fs';
import { connectUnix, send } from '../../shim/socket.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { servingApart } from './support/serve-process.js';
import { descriptors, P, type Scene, serving, until } from './support/server.js';
import { Bare, handOffText } from './support/sole-owner-monitor.js';

const test = suite('serve/session-ends');
const PAGES = 16;

/** The first word of a page of the memory file, as the guest prints it. */
function wordAt(memory: string, page: number): string {
  return readFileSync(memory)
    .readBigUInt64LE(page * P)
    .toString(16)
    .padStart(16, '0');
}

async function assertServes({ guest, ends }: Scene): Promise<void> {
  const before = ends.length;
  const monitor = await guest();
  const { wrongCount, touches } = await monitor.verify();
  assert.deepEqual({ wrongCount, touches }, { wrongCount: 0, touches: PAGES });
  await monitor.end();
  await until(() => ends.length === before + 1);
}

/** Calls `body` with a monitor that behaves as `does` says, and ends it afterwards. */
async function withBare(
  scene: Scene,
  does: readonly string[],
  body: (bare: Bare) => Promise<void>,
): Promise<void> {
  const bare = new Bare(scene.socket, PAGES, handOffText(PAGES), does);
  try {
    await body(bare);
  } finally {
    bare.kill();
    await bare.ended;
  }
}

for (const wait of ['adaptive', 'block', 'poll'] as const) {
  test(`${wait}: O_NONBLOCK is cleared again and again: pages are right, the end is noticed, and a stop works`, () =>
    serving({ pages: PAGES, wait }, async (scene) => {
      await withBare(scene, ['unblocks'], async (bare) => {
        for (let page = 0; page < PAGES; page++) {
          bare.touch(page);
          await until(() => bare.said.includes(`page ${page}: ${wordAt(scene.memory, page)}`));
        }
        bare.end();
        await until(() => scene.ends.length === 1);
        assert.equal(scene.ends[0]?.end.how, 'exited');
      });
      await withBare(scene, ['unblocks'], async () => {
        await until(() => scene.server.sessions.size === 1);
        await scene.server.close();
        assert.equal(scene.ends[1]?.end.how, 'stopped');
      });
    }));
}

test('a monitor that exits while its child keeps the connection: the session ends, and the connection is closed', () =>
  serving({ pages: PAGES }, async (scene) => {
    await assertServes(scene);
    const before = descriptors();
    await withBare(scene, ['leaves'], async (bare) => {
      await until(() => scene.server.sessions.size === 1);
      bare.end();
      await until(() => scene.ends.length === 2 && bare.said.includes('closed'));
      assert.equal(scene.ends[1]?.end.how, 'exited');
    });
    await until(() => descriptors() <= before);
  }));

test('once: it ends when its guest has, though the monitor keeps connection and userfaultfd', () =>
  serving({ pages: PAGES, once: true }, async (scene) => {
    await withBare(scene, ['leaves', 'keeps'], async (bare) => {
      await until(() => scene.server.sessions.size === 1);
      bare.end();
      await scene.server.done;
      assert.equal(scene.ends[0]?.end.how, 'exited');
    });
  }));

for (const does of ['lingers', 'queues'] as const) {
  // The server runs in another process: here, a forked process would inherit the descriptors, and its exec would block.
  test(`a descriptor whose close blocks for an hour (${does}): others are served meanwhile, and the server ends`, () =>
    servingApart({ pages: PAGES, options: ['--on-refused', 'leave'] }, async ({ server, socket, guest }) => {
      const bares: Bare[] = [];
      try {
        for (let one = 0; one < 6; one++) bares.push(new Bare(socket, PAGES, handOffText(PAGES), [does]));
        const said = does === 'lingers' ? 'is no userfaultfd: socket:' : 'a guest is served';
        await until(() => server.output.stderr.split(said).length === 7);
        const monitor = await guest();
        const { wrongCount, touches } = await monitor.verify();
        assert.deepEqual({ wrongCount, touches }, { wrongCount: 0, touches: PAGES });
        await monitor.end();
        await server.says('a guest has ended', 'stderr');
        for (const bare of bares) bare.end();
        server.signal('SIGTERM');
        assert.equal((await server.ended).code, 0);
      } finally {
        for (const bare of bares) bare.kill();
        await Promise.all(bares.map(({ ended }) => ended));
      }
    }));
}

test('a connection has 16 guests at a time: one more is refused, and what was served is served on', () =>
  serving({ pages: PAGES }, async (scene) => {
    const mapping = Mapping.anonymous(PAGES * P);
    const uffd = Userfaultfd.open({ features: ['event-remove'] });
    uffd.register(mapping.address, mapping.length);
    const text = Buffer.from(handOffText(PAGES).replace('BASE', `${mapping.address}`));
    const socket = connectUnix(scene.socket);
    assert.ok(socket >= 0);
    for (let one = 0; one < 17; one++) {
      assert.equal(send(socket, text, [uffd.fd]), text.length);
      await until(() => scene.server.served === one + 1 || scene.refusals.length > 0);
    }
    assert.equal(scene.server.served, 16);
    assert.match(scene.refusals.join(), /a connection may have 16 guests at a time/);
    assert.equal(scene.server.sessions.size, 16);
    await assertServes(scene);
    uffd.close();
  }));

test.run();
