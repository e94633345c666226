// Where a server listens: it sets owner and mode of its socket, and of nothing that another user puts in its place. It
// removes an existing file only if that is a socket that no process has bound.

import { strict as assert } from 'node:assert';
import { spawn, spawnSync } from 'node:child_process';
import {
  chownSync,
  closeSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { libc } from '../../shim/libc.js';
import { acceptUnix, connectUnix, isBound, listenUnix } from '../../shim/socket.js';
import { Guest } from '../../src/cli/guest/guest.js';
import { Directory } from '../../src/serve/directory.js';
import { serve } from '../../src/serve/index.js';
import { ListeningSocket, SocketError } from '../../src/serve/socket-path.js';
import { inDirectory, uffd } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { descriptors, memoryFile, until } from './support/server.js';

const test = suite('serve/sockets');
const OTHER = 1234;
const AS_IT_COMES = { mode: undefined, owner: undefined };

/** Calls `body` with a folder that another user owns, and with the folder around it. */
async function inFolderOfOther(
  body: (folder: string, directory: string) => Promise<void> | void,
): Promise<void> {
  if (process.geteuid?.() !== 0) skip('root is needed to act as two users');
  await inDirectory(async (directory) => {
    spawnSync('chmod', ['755', directory]);
    const folder = join(directory, 'jail');
    mkdirSync(folder);
    chownSync(folder, OTHER, OTHER);
    await body(folder, directory);
  });
}

/** Leaves a stale socket: a process has bound it, and has closed it. */
function leaveStale(path: string): void {
  const fd = listenUnix(path);
  assert.ok(fd >= 0, `${fd}`);
  closeSync(fd);
}

/** Binds a socket without listening, like a datagram socket or a server before listen(2). */
function bind(path: string, kind: number): number {
  const fd = libc().socket(1, kind, 0);
  const address = Buffer.from(`\x01\0${path}\0`);
  assert.equal(libc().bind(fd, address, address.length), 0);
  return fd;
}

/** A client can connect to the path, and `fd` accepts the connection. */
function assertListens(path: string, fd: number): void {
  const client = connectUnix(path);
  assert.ok(client >= 0, `connect: ${client}`);
  const accepted = acceptUnix(fd);
  assert.ok(accepted >= 0, `accept: ${accepted}`);
  closeSync(client);
  closeSync(accepted);
}

test('owner and mode are set before the socket has its name; nothing else is left there', () =>
  inFolderOfOther((folder) => {
    const path = join(folder, 's');
    const socket = ListeningSocket.listen(path, { mode: 0o620, owner: { uid: OTHER, gid: OTHER + 1 } });
    const { uid, gid, mode } = statSync(path);
    assert.deepEqual({ uid, gid, mode: mode & 0o777 }, { uid: OTHER, gid: OTHER + 1, mode: 0o620 });
    assert.deepEqual(readdirSync(folder), ['s']);
    assertListens(path, socket.fd);
    socket.close();
    assert.deepEqual(readdirSync(folder), []);
  }));

test('a user who puts links in the socket’s place gets nothing of root’s', () =>
  inFolderOfOther(async (folder, directory) => {
    const target = join(directory, 'secret');
    writeFileSync(target, 'secret', { mode: 0o600 });
    const program = join(directory, 'racer');
    writeFileSync(
      `${program}.c`,
      `#include <sys/stat.h>
#include <unistd.h>
int main(int c, char **v) { struct stat s; write(1, "+", 1);
for (;;) if (!lstat(v[1], &s) && S_ISSOCK(s.st_mode)) { unlink(v[1]); symlink(v[2], v[1]); } }`,
    );
    if (spawnSync('cc', ['-O2', '-w', '-o', program, `${program}.c`]).status !== 0)
      skip('a C compiler is needed');
    const path = join(folder, 's');
    const user = ['--reuid', `${OTHER}`, '--regid', `${OTHER}`, '--clear-groups'];
    const racer = spawn('setpriv', [...user, program, path, target], { stdio: ['ignore', 'pipe', 'ignore'] });
    try {
      await new Promise((resolve) => racer.once('exit', resolve).stdout.once('data', resolve));
      if (racer.exitCode !== null) skip('setpriv is needed');
      let made = 0;
      for (let round = 0; round < 300; round++) {
        try {
          ListeningSocket.listen(path, { mode: 0o666, owner: { uid: OTHER, gid: OTHER } }).close();
          made++;
        } catch (error) {
          // The racer made its link after the last socket was removed, so the path is refused.
          if (!(error instanceof SocketError)) throw error;
        }
        rmSync(path, { force: true });
      }
      assert.ok(made > 0);
      const { uid, mode } = statSync(target);
      assert.deepEqual({ uid, mode: mode & 0o777 }, { uid: 0, mode: 0o600 });
    } finally {
      racer.kill('SIGKILL');
    }
  }));

test('links in the path: root’s are followed, another user’s are not', () =>
  inFolderOfOther((folder, directory) => {
    mkdirSync(join(directory, 'elsewhere'));
    symlinkSync('../elsewhere', join(folder, 'link'));
    const path = join(folder, 'link', '.', 's');
    const socket = ListeningSocket.listen(path, AS_IT_COMES);
    assert.ok(existsSync(join(directory, 'elsewhere', 's')));
    socket.close();
    lchownSync(join(folder, 'link'), OTHER, OTHER);
    assert.throws(
      () => ListeningSocket.listen(path, AS_IT_COMES),
      /through link, a link that user 1234 can change/,
    );
    assert.deepEqual(readdirSync(join(directory, 'elsewhere')), []);
    symlinkSync('loop', join(folder, 'loop'));
    assert.throws(() => ListeningSocket.listen(join(folder, 'loop', 's'), AS_IT_COMES), /too many links/);
  }));

test('only a socket that no process has bound makes room', async () => {
  needKernel();
  await inDirectory((directory) => {
    const path = join(directory, 's');
    leaveStale(path);
    const first = ListeningSocket.listen(path, AS_IT_COMES);
    const refused = (why: RegExp): void =>
      assert.throws(() => ListeningSocket.listen(path, AS_IT_COMES), why);
    refused(/a process already listens at .*s/);
    assertListens(path, first.fd);
    first.close();
    for (const kind of [1, 2, 5]) {
      // A socket that does not listen yet, or never will.
      const fd = bind(path, kind);
      refused(/a process already listens at .*s/);
      assert.equal(isBound(path), true);
      closeSync(fd);
      ListeningSocket.listen(path, AS_IT_COMES).close();
    }
    writeFileSync(path, 'file');
    refused(/is there already, and is no socket/);
    assert.equal(readFileSync(path, 'utf8'), 'file');
    rmSync(path);
    mkdirSync(path);
    refused(/is no socket/);
    rmSync(path, { recursive: true });
    symlinkSync('nowhere', path);
    refused(/is no socket/);
    assert.ok(lstatSync(path).isSymbolicLink());
    assert.deepEqual(readdirSync(directory), ['s']);
  });
});

test('what replaces an entry while it is looked at is put back', async () => {
  await inDirectory((place) => {
    const directory = Directory.open(place);
    const kinds: Record<string, (path: string) => void> = {
      file: (path) => writeFileSync(path, 'file'),
      socket: (path) => leaveStale(path),
      link: (path) => symlinkSync('nowhere', path),
      directory: (path) => mkdirSync(join(path, 'inside'), { recursive: true }),
    };
    for (const [kind, make] of Object.entries(kinds)) {
      const path = join(place, kind);
      make(path);
      writeFileSync(`${path}.old`, '');
      const { ino } = lstatSync(path);
      renameSync(path, `${path}.new`);
      renameSync(`${path}.old`, path);
      let looks = 0;
      directory.removeIf(kind, (stat) => {
        if (looks++ === 0) {
          rmSync(path);
          renameSync(`${path}.new`, path);
        }
        return stat.ino !== ino;
      });
      assert.deepEqual([looks, lstatSync(path).ino], [2, ino], kind);
    }
    directory.close();
    assert.deepEqual(readdirSync(place).sort(), Object.keys(kinds).sort());
  });
});

test('at the end a path is left that is another’s by then', async () => {
  needKernel();
  await inDirectory((directory) => {
    const path = join(directory, 's');
    const first = ListeningSocket.listen(path, AS_IT_COMES);
    rmSync(path);
    const second = ListeningSocket.listen(path, AS_IT_COMES);
    first.close();
    assertListens(path, second.fd);
    rmSync(directory, { recursive: true });
    second.close();
    mkdirSync(directory);
  });
});

test('at the end nothing is made in a private folder, which may be removed at the same moment', async () => {
  await inDirectory((directory) => {
    const path = join(directory, 's');
    const socket = ListeningSocket.listen(path, AS_IT_COMES);
    const { withPrivate } = Directory.prototype;
    Directory.prototype.withPrivate = () => {
      throw new Error('a folder was made');
    };
    try {
      socket.close();
    } finally {
      Directory.prototype.withPrivate = withPrivate;
    }
    assert.equal(existsSync(path), false);
  });
});

test('a path of more than 107 bytes is listened at and connected to, a name of more is refused', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const folder = join(directory, 'f'.repeat(120));
    mkdirSync(folder);
    const memory = memoryFile(directory, 16);
    for (const name of ['s', 'n'.repeat(80)]) {
      const socket = join(folder, name);
      const server = await serve({ vms: [{ socket, memory }] });
      const guest = new Guest({ socket, memory });
      await guest.handedOver;
      const { wrongCount, touches } = await guest.touch({ threads: 1, order: 'random', seed: 1 });
      assert.deepEqual([wrongCount, touches], [0, 16]);
      await guest.end();
      await server.close();
      assert.deepEqual(readdirSync(folder), []);
    }
    const socket = join(folder, 'ü'.repeat(54));
    await assert.rejects(serve({ vms: [{ socket, memory }] }), /has 108 bytes; 107 are the most/);
  });
});

test('abstract names: served, closed, and refused with a reason', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, 16);
    const before = descriptors();
    const unique = `uffd-test-${process.pid}`;
    for (const socket of [`@${unique}`, `\0${unique}`]) {
      const server = await serve({ vms: [{ socket, memory }] });
      await assert.rejects(serve({ vms: [{ socket, memory }] }), /cannot listen at .*EADDRINUSE/);
      const guest = new Guest({ socket: `@${unique}`, memory });
      await guest.handedOver;
      assert.equal((await guest.touch({ threads: 1, order: 'random', seed: 1 })).wrongCount, 0);
      await guest.end();
      await server.close();
    }
    // Another thread closes them.
    await until(() => descriptors() <= before);
    const refused = (socket: string, why: RegExp, options = {}): Promise<void> =>
      assert.rejects(serve({ vms: [{ socket, memory }], ...options }), why);
    await refused('@', /at least one byte/);
    await refused(`@${'x'.repeat(107)}`, /108 bytes; 107 are the most/);
    await refused('@x', /neither owner nor mode.*--allow-uid/, { socketMode: 0o600 });
    await refused('@x', /neither owner nor mode/, { socketOwner: { uid: 1, gid: 1 } });
    await refused('', /is no path of a socket/);
    await refused('a\0b', /is no path of a socket/);
    await refused(join(directory, 'none', 's'), /cannot listen at .*ENOENT.*there is no such folder/);
    await refused(join(memory, 's'), /cannot listen at .*ENOTDIR/);
    await refused('s', /socketMode must be/, { socketMode: 0o1000 });
    await refused('s', /socketOwner.uid must be/, { socketOwner: { uid: 2 ** 32 - 1, gid: 0 } });
  });
});

test('--socket-owner without the privileges for it: says which are missing', async () => {
  if (process.geteuid?.() !== 0) skip('root is needed to have some privileges and not others');
  await inDirectory(async (directory) => {
    const places = ['--socket', join(directory, 'socket'), '--memory', memoryFile(directory, 1)];
    for (const kept of ['+kill', '+kill,+chown']) {
      const ended = await uffd(
        ['serve', ...places, '--socket-owner', `${OTHER}:${OTHER}`, '--accept-timeout', '1'],
        {
          under: ['setpriv', '--inh-caps', '-all', '--bounding-set', `-all,${kept}`],
        },
      );
      assert.equal(ended.code, 1);
      assert.match(
        ended.stderr,
        /cannot listen at .*: EPERM: .* needs CAP_CHOWN and CAP_FOWNER; .*--socket-mode/,
      );
      assert.deepEqual(readdirSync(directory), ['memory']);
    }
  });
});

test.run();
