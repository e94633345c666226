// A guest that cannot be served never runs on, since it would read zeros once its userfaultfd is closed: its monitor is
// killed and has ended before the close, or the userfaultfd stays open. No other process is killed.

import { strict as assert } from 'node:assert';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ServeOptions, ServerEvents } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { descriptors, P, type Scene, serving, until } from './support/server.js';
import { Bare, handOffText } from './support/sole-owner-monitor.js';

const test = suite('serve/refused');
const PAGES = 16;

interface Outcome extends Scene {
  bare(text?: string, does?: readonly string[], under?: readonly string[]): Bare;
  refused: ServerEvents['refused'][];
  killed: number[];
}

/** Serves monitors that keep no copy of their userfaultfd. They are killed afterwards. */
function scene(options: Partial<ServeOptions>, body: (outcome: Outcome) => Promise<void>): Promise<void> {
  return serving({ pages: PAGES, ...options }, async (it) => {
    const bares: Bare[] = [];
    const outcome: Outcome = {
      ...it,
      refused: [],
      killed: [],
      bare(text = handOffText(PAGES), does = [], under = []) {
        const bare = new Bare(it.socket, PAGES, text, does, under);
        bares.push(bare);
        return bare;
      },
    };
    it.server.on('refused', (...args) => outcome.refused.push(args));
    it.server.on('killed', ({ id }) => outcome.killed.push(id));
    try {
      await body(outcome);
    } finally {
      for (const bare of bares) bare.kill();
      await Promise.all(bares.map(({ ended }) => ended));
    }
  });
}

const TOO_LARGE = handOffText(PAGES, { offset: P });

test('a page that cannot be read: the monitor is killed, and no thread of it has read zeros', () =>
  scene({}, async ({ bare, server, memory, killed, ends }) => {
    const content = readFileSync(memory);
    for (let round = 1; round <= 3; round++) {
      writeFileSync(memory, content);
      const monitor = bare();
      await until(() => server.sessions.size === 1);
      truncateSync(memory, 0);
      for (let page = 0; page < PAGES; page++) monitor.touch(page);
      assert.equal(await monitor.ended, 'SIGKILL');
      assert.equal(monitor.said, 'handed over\n');
      await until(() => ends.length === round);
    }
    assert.deepEqual(killed, [1, 2, 3]);
    assert.equal(server.problems.size, 0);
  }));

test('left instead: its guest hangs, its userfaultfd stays open until it ends, and is closed then', () =>
  scene({ onError: 'leave' }, async ({ bare, server, memory, killed, ends, guest }) => {
    await (await guest()).end();
    await until(() => ends.length === 1);
    const before = descriptors();
    const monitor = bare();
    await until(() => server.sessions.size === 1);
    truncateSync(memory, 0);
    monitor.touch(3);
    await until(() => ends.length === 2);
    await sleep(300);
    assert.equal(monitor.said, 'handed over\n');
    assert.equal(monitor.over, false);
    assert.deepEqual(killed, []);
    monitor.kill();
    await until(() => descriptors() <= before);
  }));

test('a hand-off that cannot be served: its monitor is killed', () =>
  scene({}, async ({ bare, refused, server }) => {
    const monitor = bare(TOO_LARGE);
    monitor.touch(1);
    assert.equal(await monitor.ended, 'SIGKILL');
    assert.doesNotMatch(monitor.said, /page/);
    await until(() => refused.length === 1);
    assert.match(refused[0]?.[0].message ?? '', /of the memory file, which has 65536/);
    assert.deepEqual(refused[0]?.[3], { killed: true });
    await until(() => server.problems.size === 0);
  }));

for (const options of [{ onRefused: 'leave' }, { onError: 'leave' }] as const) {
  test(`the same with ${JSON.stringify(options)}: it is left, and hangs until it ends`, () =>
    scene(options, async ({ bare, refused }) => {
      const before = descriptors();
      const monitor = bare(TOO_LARGE);
      monitor.touch(1);
      await until(() => refused.length === 1);
      assert.deepEqual(refused[0]?.[3], { killed: false });
      await monitor.waits();
      await sleep(300);
      assert.equal(monitor.said, 'handed over\n');
      assert.equal(monitor.over, false);
      monitor.end();
      await until(() => descriptors() <= before);
    }));
}

test('onRefused kill beside onError leave', () =>
  scene({ onError: 'leave', onRefused: 'kill' }, async ({ bare }) => {
    assert.equal(await bare(TOO_LARGE).ended, 'SIGKILL');
  }));

for (const [what, text, reason] of [
  ['bad JSON', '[nonsense]', /not JSON/],
  ['JSON that is no hand-off', '[1]', /region 0 is not an object/],
  ['nothing like JSON', 'GET / HTTP/1.1', /is a JSON array/],
  ['JSON nested deep', `[${'['.repeat(900)}`, /nested at most 16 deep/],
  ['a text without an end', '[{"size":', /not finished within 1000 ms/],
] as const) {
  test(`${what} kills no process, even with a userfaultfd`, () =>
    scene({ handOffMs: 1000 }, async ({ bare, refused }) => {
      const before = descriptors();
      const sender = bare(text);
      await until(() => refused.length === 1);
      assert.match(refused[0]?.[0].message ?? '', reason);
      assert.equal(refused[0]?.[3], undefined);
      await sleep(100);
      assert.equal(sender.over, false);
      sender.kill();
      await until(() => descriptors() <= before);
    }));
}

test('a stranger is closed, and lives on', () =>
  scene({ allowUids: [4242] }, async ({ bare, refused }) => {
    const stranger = bare(TOO_LARGE);
    await until(() => refused.length === 1);
    assert.match(refused[0]?.[0].message ?? '', /user 0 is not allowed/);
    await sleep(100);
    assert.equal(stranger.over, false);
  }));

test('once: a refused hand-off ends the server, a probe does not', () =>
  scene({ once: true }, async ({ bare, refused, server }) => {
    const probe = bare('[1]');
    await until(() => refused.length === 1);
    const monitor = bare(TOO_LARGE);
    assert.equal(await monitor.ended, 'SIGKILL');
    await server.done;
    assert.equal(probe.over, false);
    assert.deepEqual(refused[1]?.[3], { killed: true });
  }));

test('close with kill: monitors have ended, and no thread has read zeros', () =>
  scene({}, async ({ bare, server }) => {
    const monitors = [bare(), bare(), bare()];
    await until(() => server.sessions.size === 3);
    // The guests fault while the server is closing, when no thread resolves faults any more.
    const closing = server.close({ kill: true });
    for (const monitor of monitors) for (let page = 0; page < PAGES; page++) monitor.touch(page);
    await closing;
    assert.deepEqual(await Promise.all(monitors.map(({ ended }) => ended)), Array(3).fill('SIGKILL'));
    for (const { said } of monitors) assert.doesNotMatch(said, /page \d+: 0{16}/);
  }));

test('close without kill: guests hang, and read no zeros, as long as this process lives', () =>
  scene({}, async ({ bare, server }) => {
    const before = descriptors();
    const monitor = bare();
    await until(() => server.sessions.size === 1);
    await server.close();
    monitor.touch(1);
    await monitor.waits();
    await sleep(300);
    assert.equal(monitor.said, 'handed over\n');
    monitor.kill();
    await until(() => descriptors() <= before);
  }));

test.run();
