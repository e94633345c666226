// How a server starts and ends, what it does to monitors whose guests cannot be served, and that it leaves nothing
// behind.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { kindOf } from '../../shim/descriptors.js';
import { Guest } from '../../src/cli/guest/guest.js';
import type { Wait } from '../../src/index.js';
import { type SessionEnd, serve } from '../../src/serve/index.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, suite } from '../support/harness.js';
import { compileProgram, needKernel, needKernelFaults } from '../support/real-kernel.js';
import { descriptors, memoryFile, P, serving, until } from './support/server.js';

const test = suite('serve/lifecycle');

/** How a session has ended; the error message if it has failed. */
function endedBy(end: SessionEnd | undefined): string {
  return end?.how === 'failed' ? end.error.message : `${end?.how}`;
}

/** How many threads this process has. */
function threads(): number {
  return readdirSync('/proc/self/task').length;
}

/** The kinds of this process's open descriptors. */
function openFiles(): string[] {
  return readdirSync('/proc/self/fd').map((fd) => kindOf(Number(fd)) ?? '');
}

// ---- start -------------------------------------------------------------------------------------------------

test('a memory file that cannot be served is refused before a monitor connects', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    mkdirSync(at('directory'));
    spawnSync('mkfifo', [at('fifo')]);
    writeFileSync(at('empty'), '');
    for (const [name, message] of [
      ['directory', /directory is a directory/],
      ['fifo', /fifo is a FIFO/],
      ['empty', /empty is empty/],
      ['none', /ENOENT/],
    ] as const) {
      const socket = at('socket');
      const before = threads();
      await assert.rejects(serve({ vms: [{ socket, memory: at(name) }] }), message);
      assert.deepEqual([existsSync(socket), threads()], [false, before]);
    }
  });
});

test('the scratch hand-off at the start is no guest: nothing is recorded, counted, ended or left behind', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const record = join(directory, 'trace');
    const vms = [{ socket: join(directory, 'socket'), memory: memoryFile(directory, 1) }];
    const watched = (): string[] => openFiles().filter((kind) => kind.includes('userfaultfd'));
    const sockets = (): string[] => openFiles().filter((kind) => kind.startsWith('socket:'));
    const before = sockets().length;
    const server = await serve({ vms, record, once: true, handOffMs: 1 });
    let over = false;
    void server.done.then(() => {
      over = true;
    });
    // The thread's warm-up opens userfaultfds of its own for a while.
    await until(() => watched().length === 0 && sockets().length === before + 1);
    const { served, sessions, problems } = server;
    assert.deepEqual(
      [served, sessions.size, problems.size, over, existsSync(record)],
      [0, 0, 0, false, false],
    );
    await server.close();
  });
});

test('a thread that cannot be started is an error of serve, and nothing else', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const vms = [{ socket: join(directory, 'socket'), memory: memoryFile(directory, 1) }];
    const program = `
      import { embed } from ${JSON.stringify(new URL('../../src/embed.js', import.meta.url))};
      import { serve } from ${JSON.stringify(new URL('../../src/serve/index.js', import.meta.url))};
      embed({ entry: 'none.js' });
      await serve({ vms: ${JSON.stringify(vms)} }).catch(({ code }) => console.log('caught', code));`;
    const node = ['--input-type=module', '-e', program];
    const { stdout, stderr, status } = spawnSync(process.execPath, node, {
      encoding: 'utf8',
      timeout: 30_000,
    });
    assert.deepEqual([status, stdout], [0, 'caught ERR_WORKER_PATH\n'], stderr);
    assert.equal(existsSync(join(directory, 'socket')), false);
  });
});

test('a socket path is replaced only if no process listens on it', async () => {
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 1);
    const socket = join(directory, 'socket');
    writeFileSync(socket, 'mine');
    await assert.rejects(serve({ vms: [{ socket, memory }] }), /is there already, and is no socket/);
    assert.equal(lstatSync(socket).isFile(), true);

    const path = join(directory, 'other');
    const server = await serve({ vms: [{ socket: path, memory }] });
    await assert.rejects(serve({ vms: [{ socket: path, memory }] }), /a process already listens at /);
    await server.close();
    assert.equal(existsSync(path), false);

    // A server that is killed leaves its socket behind.
    const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', script]);
    assert.equal(lstatSync(path).isSocket(), true);
    await (await serve({ vms: [{ socket: path, memory }] })).close();
  });
});

test('a path that is too long, or in a folder that is not there, is an error', async () => {
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 1);
    await assert.rejects(
      serve({ vms: [{ socket: join(directory, 'x'.repeat(200)), memory }] }),
      /ENAMETOOLONG/,
    );
    await assert.rejects(serve({ vms: [{ socket: join(directory, 'no/socket'), memory }] }), /ENOENT/);
  });
});

test('mode and owner of a socket', async () => {
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 1);
    const socket = join(directory, 'socket');
    const owner = process.getuid?.() === 0 ? { socketOwner: { uid: 1234, gid: 4321 } } : {};
    const server = await serve({ vms: [{ socket, memory }], socketMode: 0o640, ...owner });
    const { mode, uid, gid } = lstatSync(socket);
    assert.equal(mode & 0o777, 0o640);
    if (process.getuid?.() === 0) assert.deepEqual({ uid, gid }, { uid: 1234, gid: 4321 });
    await server.close();
  });
});

test('a path that another process has taken in the meantime is not removed', async () => {
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 1);
    const socket = join(directory, 'socket');
    const server = await serve({ vms: [{ socket, memory }] });
    rmSync(socket);
    const other = createServer().listen(socket);
    await until(() => existsSync(socket));
    await server.close();
    assert.equal(existsSync(socket), true);
    other.close();
  });
});

test('no monitor connects in time', async () => {
  await inDirectory(async (directory) => {
    const socket = join(directory, 'socket');
    const server = await serve({ vms: [{ socket, memory: memoryFile(directory, 1) }], acceptMs: 50 });
    await assert.rejects(server.done, /no monitor has connected within 50 ms/);
    assert.equal(existsSync(socket), false);
  });
});

// ---- end ---------------------------------------------------------------------------------------------------

for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
  test(`once, wait ${wait}: it ends with the first guest`, () => endsWithTheFirst(wait));
}

async function endsWithTheFirst(wait: Wait): Promise<void> {
  await serving({ pages: 8, once: true, wait }, async ({ guest, server, socket, ends }) => {
    const monitor = await guest();
    await monitor.touch({ threads: 1, order: 'sequential', seed: 1 });
    await monitor.end();
    await server.done;
    assert.equal(existsSync(socket), false);
    assert.deepEqual(
      ends.map(({ end }) => end),
      [{ how: 'exited' }],
    );
  });
}

test('a server that is closed while its thread is being made does not take the process with it', async () => {
  await inDirectory(async (directory) => {
    const vm = { socket: join(directory, 'socket'), memory: memoryFile(directory, 1) };
    for (let moment = 0; moment < 100; moment++) {
      const server = await serve({ vms: [vm] });
      await sleep(moment);
      await server.close();
    }
  });
}, 300_000);

test('finish: no new monitors, and those that are served go on', async () => {
  await serving({ pages: 64 }, async ({ guest, server, socket }) => {
    const monitor = await guest();
    await monitor.touch({ threads: 1, order: 'sequential', seed: 1, to: 10 });
    server.finish();
    assert.equal(existsSync(socket), false);
    const { wrongCount } = await monitor.touch({ threads: 2, order: 'random', seed: 1 });
    assert.equal(wrongCount, 0);
    await monitor.end();
    await server.done;
  });
});

for (const [onError, outcome] of [
  ['kill', 'SIGKILL'],
  ['leave', 'still there'],
] as const) {
  test(`13. a memory file that shrinks while it is served: its own monitor is ${onError === 'kill' ? 'killed' : 'left'}, others are served`, async () => {
    await serving({ pages: 64, onError }, async ({ guest, server, memory, ends, directory }) => {
      const other = memoryFile(directory, 64, P, 'other');
      const socket = join(directory, 'other-socket');
      await using unharmed = await serve({ vms: [{ socket, memory: other }] });
      const monitor = await guest();
      const bystander = await guest({ socket, memory: other });
      await monitor.touch({ threads: 1, order: 'sequential', seed: 1, to: 8 });
      truncateSync(memory, 8 * P);
      const hangs = monitor
        .touch({ threads: 1, order: 'sequential', seed: 1, from: 8 })
        .catch((error) => error);
      await until(() => ends.length > 0);
      const { end } = ends[0] as (typeof ends)[number];
      assert.equal(end.how, 'failed');
      assert.match(end.how === 'failed' ? end.error.message : '', /EFAULT/);
      assert.equal(ends[0]?.session.tally.get('retried'), 3);
      const ended = await Promise.race([
        monitor.ended,
        sleep(onError === 'kill' ? 10_000 : 100, 'still there'),
      ]);
      assert.equal(ended, outcome);
      const { wrongCount, touches } = await bystander.touch({ threads: 2, order: 'random', seed: 1 });
      assert.deepEqual({ wrongCount, touches }, { wrongCount: 0, touches: 64 });
      assert.equal(server.sessions.size, 0);
      assert.equal(unharmed.sessions.size, 1);
      monitor.kill();
      await hangs;
    });
  });
}

test('13. a memory file that shrinks, and is whole again before the last try: its guest goes on with the right pages', async () => {
  await serving({ pages: 64, window: 4 }, async ({ guest, server, memory, ends }) => {
    const content = readFileSync(memory);
    const monitor = await guest();
    await monitor.touch({ threads: 1, order: 'sequential', seed: 1, to: 8 });
    const [session] = server.sessions;
    truncateSync(memory, 16 * P);
    const touching = monitor.touch({ threads: 2, order: 'random', seed: 1, from: 16 });
    await until(() => session?.tally.get('retried') !== 0);
    writeFileSync(memory, content, { flag: 'r+' });
    for (const { touches, wrong, wrongCount } of [await touching, await monitor.verify()]) {
      assert.equal(wrongCount, 0, wrong.join('\n'));
      assert.ok(touches >= 48);
    }
    assert.equal(ends.length, 0);
    await monitor.end();
    await until(() => ends.length === 1);
    assert.deepEqual(ends[0]?.end, { how: 'exited' });
  });
});

test('a memory file that has shrunk before its guest came is not served: what lies behind its end is not its own', async () => {
  await serving({ pages: 64 }, async ({ server, socket, memory, ends }) => {
    truncateSync(memory, 8 * P);
    // The guest maps as many bytes as the memory file had before.
    const whole = memoryFile(dirname(memory), 64, P, 'whole');
    const monitor = new Guest({ socket, memory: whole });
    await until(() => ends.length === 1);
    assert.match(endedBy(ends[0]?.end), /has shrunk: 32768 bytes, of which 262144 are served/);
    assert.equal(await monitor.ended, 'SIGKILL');
    assert.equal(server.sessions.size, 0);
  });
});

test('a monitor that is gone before its guest is served has exited', async () => {
  needKernelFaults();
  const program = compileProgram('guest/monitor.c');
  await serving({ pages: 64 }, async ({ socket, memory, ends, guest }) => {
    // spawnSync blocks this process, so the server accepts no connection before the monitor's time limit ends it.
    assert.equal(spawnSync(program, ['-l', '3', socket, memory]).status, 1);
    await until(() => ends.length === 1);
    assert.equal(endedBy(ends[0]?.end), 'exited');
    const { wrongCount } = await (await guest()).verify();
    assert.equal(wrongCount, 0);
  });
});

/** Number of moments at which a monitor is killed. */
const KILLS = 200;

test(`a monitor is killed at ${KILLS} random moments: memory and descriptors are as before, and the next is served`, async () => {
  needKernel();
  const below = generator(seed());
  await serving({ pages: 512, window: 4, eager: true }, async ({ guest, server, socket, memory }) => {
    const one = async (): Promise<void> => {
      const monitor = new Guest({ socket, memory });
      // The monitor is killed before it connects, during its hand-off, or while it touches pages.
      await Promise.race([sleep(below(150)), monitor.handedOver.catch(() => {})]);
      const touching = monitor.touch({ threads: 2, order: 'random', seed: 1 }).catch(() => {});
      await sleep(below(60));
      monitor.kill();
      await monitor.ended;
      await touching;
    };
    await one();
    await until(() => server.sessions.size === 0);
    const before = descriptors();
    for (let round = 0; round < KILLS; round += 2) await Promise.all([one(), one()]);
    await until(() => server.sessions.size === 0 && descriptors() <= before);
    const monitor = await guest();
    const { wrongCount } = await monitor.touch({ threads: 2, order: 'random', seed: 1 });
    assert.equal(wrongCount, 0);
  });
}, 300_000);

test.run();
