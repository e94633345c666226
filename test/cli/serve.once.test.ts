// `uffd serve` as an operator runs it: how it reports readiness, what it writes, and how it ends.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, linkSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Guest } from '../../src/cli/guest/guest.js';
import { memoryFile, P } from '../serve/support/server.js';
import { suite } from '../support/harness.js';
import { inDirectory, needKernel, uffd, uffdOnTerminal } from './support/command.js';
import { PAGES, served, touchAll } from './support/serve-command.js';

const test = suite('cli/serve');

test('one guest: ready, served, logged; statistics at the end; exit 0', () =>
  served(['--once', '--stats-json', 'stats', '--window', '4'], async (it) => {
    assert.is(it.stdout(), `ready: ${it.socket}\n`);
    await touchAll(it);
    assert.is(await it.ended, 0);
    assert.not(existsSync(it.socket));
    assert.equal(
      it.log().map(({ msg }) => msg),
      ['a monitor has connected', 'a guest is served', 'a guest has ended'],
    );
    const { sessions, refused } = JSON.parse(readFileSync(join(it.directory, 'stats'), 'utf8'));
    assert.is(refused, 0);
    assert.is(sessions.length, 1);
    const [{ bytes, residentBytes, end, counts, regions }] = sessions;
    assert.equal([bytes, residentBytes, end, regions], [PAGES * P, PAGES * P, 'exited', 1]);
    assert.is(counts.copied, PAGES * P);
    assert.ok(counts.faults >= PAGES / 4 && counts.faults <= PAGES);
  }));

test('statistics are never written over what is served, read or recorded: refused at the start', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    const memory = memoryFile(directory, 1);
    const [served, before] = [['--socket', at('socket'), '--memory', memory], readFileSync(memory)];
    writeFileSync(at('trace'), 'a trace');
    writeFileSync(at('trace.3'), 'a trace of a third session');
    symlinkSync('memory', at('link'));
    linkSync(memory, at('second'));
    linkSync(at('trace.3'), at('third'));
    mkdirSync(at('folder'));
    for (const [file, message, options] of [
      [memory, /cannot write statistics to .*memory: it is the memory file .*memory\n/, []],
      [at('link'), /it is the memory file/, []],
      [at('second'), /it is the memory file/, []],
      [at('trace'), /it is the trace .*trace\n/, ['--prefetch', at('trace')]],
      [at('new'), /a session is recorded to it/, ['--record', at('new')]],
      [at('folder/../new.12'), /a session is recorded to it/, ['--record', at('new')]],
      [at('third'), /it is the recording .*trace\.3/, ['--record', at('trace')]],
      [at('folder'), /it is a directory/, []],
      [at('none/stats'), /ENOENT/, []],
    ] as const) {
      const ended = await uffd([
        'serve',
        ...served,
        '--accept-timeout',
        '1',
        '--stats-json',
        file,
        ...options,
      ]);
      assert.is(ended.code, 1, `${file}: ${ended.stderr}`);
      assert.match(ended.stderr, message);
      assert.not.match(ended.stderr, /no monitor|\n\s+at /);
    }
    assert.ok(readFileSync(memory).equals(before));
    assert.is(readFileSync(at('trace'), 'utf8'), 'a trace');
    assert.is(readFileSync(at('trace.3'), 'utf8'), 'a trace of a third session');
    assert.not(existsSync(at('new')));
  });
});

test('statistics whose file has become the recording meanwhile: nothing is overwritten; exit 1', () =>
  served(['--once', '--record', 'trace', '--stats-json', 'stats'], async (it) => {
    symlinkSync('trace', join(it.directory, 'stats'));
    await touchAll(it);
    assert.is(await it.ended, 1);
    assert.ok(readFileSync(join(it.directory, 'trace')).length > PAGES);
    assert.is(readFileSync(join(it.directory, 'trace')).includes('"sessions"'), false);
  }));

test('statistics through a pipe: its reader gets all of them, and no end before', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const [pipe, memory] = [join(directory, 'pipe'), memoryFile(directory, 1)];
    spawnSync('mkfifo', [pipe]);
    const reader = spawn('timeout', ['30', 'cat', pipe], { stdio: ['ignore', 'pipe', 'ignore'] });
    const served = ['--socket', join(directory, 'socket'), '--memory', memory, '--accept-timeout', '50'];
    const under = ['timeout', '30'];
    const [chunks, ended] = await Promise.all([
      reader.stdout.toArray(),
      uffd(['serve', ...served, '--stats-json', pipe], { under }),
    ]);
    assert.match(ended.stderr, /no monitor has connected/);
    assert.equal(JSON.parse(Buffer.concat(chunks).toString()).sessions, []);
  });
});

test('readiness on a descriptor of its own', () =>
  served(
    ['--ready-fd', '3'],
    async ({ child, socket }) => {
      const stream = child.stdio[3] as NodeJS.ReadableStream;
      const chunks: Buffer[] = [];
      for await (const chunk of stream) chunks.push(chunk as Buffer);
      // The stream ends because the command closes its descriptor.
      assert.is(Buffer.concat(chunks).toString(), `ready: ${socket}\n`);
    },
    { stdio: ['pipe'] },
  ));

test('systemd is notified: READY and STOPPING', async () => {
  await inDirectory(async (directory) => {
    const path = join(directory, 'notify');
    // Node has no Unix datagram sockets.
    const script = `import socket,sys
s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.bind(sys.argv[1]); print('bound',flush=True)
while True: print(s.recv(4096).decode().replace(chr(10),' '),flush=True)`;
    const listener = spawn('python3', ['-c', script, path], { stdio: ['ignore', 'pipe', 'ignore'] });
    let received = '';
    listener.stdout.setEncoding('utf8').on('data', (text: string) => {
      received += text;
    });
    try {
      while (!received.includes('bound')) await sleep(2);
      await served(
        [],
        async ({ child, ended }) => {
          while (!received.includes('READY=1')) await sleep(2);
          child.kill('SIGTERM');
          assert.is(await ended, 0);
          while (!received.includes('STOPPING=1')) await sleep(2);
        },
        { env: { NOTIFY_SOCKET: path } },
      );
    } finally {
      listener.kill('SIGKILL');
    }
  });
});

test('SIGTERM: guests that are served go on, and the exit code is 0', () =>
  served([], async (it) => {
    const guest = new Guest({ socket: it.socket, memory: it.memory });
    await guest.handedOver;
    await guest.touch({ threads: 1, order: 'sequential', seed: 1, to: 4 });
    it.child.kill('SIGTERM');
    while (existsSync(it.socket)) await sleep(2);
    const { wrongCount } = await guest.touch({ threads: 1, order: 'random', seed: 1 });
    assert.is(wrongCount, 0);
    await guest.end();
    assert.is(await it.ended, 0);
  }));

for (const [onError, monitors] of [
  ['kill', 'SIGKILL'],
  ['leave', 'alive'],
] as const) {
  test(`SIGTERM twice: at once, exit 143, and monitors: ${monitors}`, () =>
    served(['--on-error', onError], async (it) => {
      const guest = new Guest({ socket: it.socket, memory: it.memory });
      await guest.handedOver;
      await guest.touch({ threads: 1, order: 'sequential', seed: 1, to: 4 });
      it.child.kill('SIGTERM');
      while (existsSync(it.socket)) await sleep(2);
      it.child.kill('SIGTERM');
      assert.is(await it.ended, 143);
      if (onError === 'kill') assert.is(await guest.ended, 'SIGKILL');
      else process.kill(guest.pid, 0);
      guest.kill();
      await guest.ended;
    }));
}

test('several sockets with a memory each', () =>
  inDirectory(async (directory) => {
    const other = memoryFile(directory, PAGES, P, 'other');
    const socket = join(directory, 'other-socket');
    await served(['--vm', `socket=${socket},memory=${other}`], async (it) => {
      await Promise.all([touchAll(it), touchAll({ ...it, socket, memory: other })]);
      assert.is(it.stdout().split('\n').length, 3);
    });
  }));

test('what cannot begin says why: exit 1 for the world, 2 for the words', async () => {
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 1);
    const socket = join(directory, 'socket');
    const file = join(directory, 'file');
    writeFileSync(file, 'x');
    mkdirSync(join(directory, 'folder'));
    const both = ['--socket', socket, '--memory', memory];
    for (const [args, code, message] of [
      [[], 2, /nothing to serve: give --socket PATH and --memory FILE/],
      [['--socket', socket], 2, /--socket and --memory belong together/],
      [['--vm', 'memory=x'], 2, /It must be socket=PATH,memory=FILE/],
      [[...both, '--window', '0'], 2, /integer from 1 to/],
      [[...both, '--socket-mode', '9'], 2, /three octal digits/],
      [[...both, '--socket-owner', 'root'], 2, /two numbers/],
      [[...both, '--metrics', 'here'], 2, /a port, or a host and a port/],
      [[...both, '--on-error', 'pray'], 2, /Allowed choices are kill, leave/],
      [['--socket', socket, '--memory', join(directory, 'folder')], 1, /folder is a directory/],
      [['--socket', socket, '--memory', join(directory, 'none')], 1, /ENOENT.*none/],
      [['--socket', file, '--memory', memory], 1, /file is there already, and is no socket/],
      [[...both, '--prefetch', file], 1, /this is no trace/],
      [[...both, '--accept-timeout', '50'], 1, /no monitor has connected within 50 ms/],
      [[...both, '--metrics', '1.2.3.4:1'], 1, /metrics cannot be served/],
    ] as const) {
      const ended = await uffd(['serve', ...args]);
      assert.is(ended.code, code, `${args.join(' ')}: ${ended.stderr}`);
      assert.match(ended.stderr, message);
      assert.not.match(ended.stderr, /\n\s+at /);
      assert.not(existsSync(socket), args.join(' '));
    }
  });
});

test('on a terminal: a line for each guest, and no JSON', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, PAGES);
    const socket = join(directory, 'socket');
    const words = ['serve', '--socket', socket, '--memory', memory, '--once'];
    const { code, stdout } = await uffdOnTerminal(words, 100, {
      async started(_pid, saw) {
        while (!existsSync(socket)) await sleep(5);
        const guest = new Guest({ socket, memory });
        await guest.handedOver;
        await guest.touch({ threads: 1, order: 'random', seed: 1 });
        await saw(/vm 1 .*█.* of 256\.0 KiB/, 'stdout');
        await guest.end();
      },
    });
    assert.is(code, 0, stdout);
    assert.match(stdout, /vm 1 exited: 64 faults, 256\.0 KiB resident/);
    assert.not(stdout.includes('{"level"'));
  });
});

test.run();
