// `uffd pack` and the commands around it, as a user runs them: sparse files, diffs, interruptions, a full disk, damage.

import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { FolderStore } from '../../src/store/folder-store.js';
import { prune } from '../../src/store/index.js';
import { commandLine, inDirectory, sha256, uffd, uffdOnTerminal } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { CHUNK, PAGE, SPARSE_SIZE, someMemory, writeSparse } from './support/memory.js';
import { type Misbehave, withStoreServer } from './support/store-server.js';

const test = suite('store/pack');

/** The chunks in a store in a folder. */
function chunksIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.cacnk'));
}

const SMALL = ['--chunk', '64K'];
/** What moves the cursor of a terminal. */
const ESCAPES = new RegExp(`${String.fromCharCode(27)}\\[[0-9;?]*[A-Za-z]`, 'g');

test('holes and zeros are stored once and never fetched, equal chunks once; unpacking makes holes again', async () => {
  await inDirectory(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeSparse(path('memory'), SPARSE_SIZE);
    const packed = await uffd(['pack', 'memory', '--store', 'store', ...SMALL, '--json'], { cwd: folder });
    assert.is(packed.code, 0, packed.stderr);
    const { seconds: _, indexSha256, storedBytes, ...report } = JSON.parse(packed.stdout);
    assert.equal(report, {
      ...{ index: 'memory.caibx', store: path('store'), size: SPARSE_SIZE, chunkSize: CHUNK },
      ...{ digest: 'sha512-256', chunks: 8, zeroChunks: 3, distinctChunks: 5, presentChunks: 0 },
      ...{ storedChunks: 5, workingSet: null },
    });
    assert.is(indexSha256, sha256(path('memory.caibx')));
    assert.ok(storedBytes < 2 * CHUNK, `${storedBytes}`);
    const again = await uffd(['pack', 'memory', '--store', 'store', ...SMALL, '--json'], { cwd: folder });
    const { presentChunks, storedChunks } = JSON.parse(again.stdout);
    assert.equal([presentChunks, storedChunks], [5, 0]);
    // Without the chunks of zeros: they are not needed.
    const info = JSON.parse((await uffd(['info', 'memory.caibx', '--json'], { cwd: folder })).stdout);
    assert.equal([info.chunks, info.zeroChunks, info.distinctChunks, info.sha256], [8, 3, 5, indexSha256]);
    const unpacked = await uffd(['unpack', 'memory.caibx', 'copy', '--store', 'store', '--json'], {
      cwd: folder,
    });
    assert.is(unpacked.code, 0, unpacked.stderr);
    assert.is(JSON.parse(unpacked.stdout).writtenBytes, 3 * CHUNK + 2 * PAGE + 904);
    assert.is(sha256(path('copy')), sha256(path('memory')));
    assert.ok(statSync(path('copy')).blocks <= statSync(path('memory')).blocks);
    const refused = await uffd(['unpack', 'memory.caibx', 'copy', '--store', 'store'], { cwd: folder });
    assert.is(refused.code, 1);
    assert.match(refused.stderr, /copy is there already; --force replaces it/);
    writeFileSync(path('copy'), 'other');
    const forced = await uffd(['unpack', 'memory.caibx', 'copy', '--store', 'store', '--force'], {
      cwd: folder,
    });
    assert.is(forced.code, 0, forced.stderr);
    assert.is(sha256(path('copy')), sha256(path('memory')));
  });
});

test('on a terminal, pack, verify and unpack show how far they are', async () => {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    for (const [args, title] of [
      [['pack', 'memory', '--store', 'store', ...SMALL], 'packing'],
      [['verify', 'memory.caibx', '--store', 'store'], 'verifying'],
      [['unpack', 'memory.caibx', 'copy', '--store', 'store'], 'unpacking'],
    ] as const) {
      const { code, stdout } = await uffdOnTerminal(args, 80, { cwd: folder });
      assert.is(code, 0, stdout);
      assert.match(stdout, new RegExp(`${title} [█░]+ 100%`));
      for (const line of stdout.replaceAll(ESCAPES, '\r').split(/[\r\n]+/))
        assert.ok(line.length <= 80, line);
    }
  });
});

test('diffs: a hole is what is below, written zeros are zeros, and the last diff wins', async () => {
  await inDirectory(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeSparse(path('base'), SPARSE_SIZE);
    const expected = readFileSync(path('base'));
    const diff = (name: string, parts: [number, Buffer][]): void => {
      const fd = openSync(path(name), 'w');
      ftruncateSync(fd, SPARSE_SIZE);
      for (const [at, bytes] of parts) {
        writeSync(fd, bytes, 0, bytes.length, at);
        bytes.copy(expected, at);
      }
      closeSync(fd);
    };
    diff('one', [
      [PAGE, Buffer.alloc(PAGE)],
      [2 * CHUNK + PAGE, someMemory(2 * PAGE, 7)],
      [6 * CHUNK, someMemory(CHUNK, 8)],
    ]);
    diff('two', [
      [2 * CHUNK + 2 * PAGE, someMemory(PAGE, 9)],
      [6 * CHUNK, Buffer.alloc(CHUNK)],
    ]);
    const layers = ['--layer', 'one', '--layer', 'two', '-o', 'index'];
    const packed = await uffd(['pack', 'base', '--store', 'store', ...SMALL, ...layers], { cwd: folder });
    assert.is(packed.code, 0, packed.stderr);
    assert.is(packed.stderr, '');
    const unpacked = await uffd(['unpack', 'index', 'copy', '--store', 'store'], { cwd: folder });
    assert.is(unpacked.code, 0, unpacked.stderr);
    assert.ok(readFileSync(path('copy')).equals(expected));
    for (const output of ['base', 'two', 'none/index']) {
      const options = ['--store', 'store2', '--layer', 'one', '--layer', 'two', '-o', output];
      const ended = await uffd(['pack', 'base', ...options], { cwd: folder });
      assert.is(ended.code, output === 'none/index' ? 1 : 2, output);
      assert.match(ended.stderr, output === 'none/index' ? /ENOENT/ : /is an input, and would be replaced/);
    }
    assert.not(existsSync(path('store2')));
    writeFileSync(path('short'), 'too short');
    const wrong = await uffd(['pack', 'base', '--store', 'store', '--layer', 'short'], { cwd: folder });
    assert.is(wrong.code, 1);
    assert.match(wrong.stderr, /short has 9 bytes and the memory file 463752; a diff has the size/);
    assert.not(existsSync(path('base.caibx')));
  });
});

for (const at of [1, 3, 5]) {
  test(`pack is killed while it sends chunk ${at}: there is no index, and what is there is not sent again`, async () => {
    await inDirectory(async (folder) => {
      const path = (name: string): string => join(folder, name);
      writeSparse(path('memory'), SPARSE_SIZE);
      await withStoreServer(path('store'), async (server) => {
        const args = ['pack', 'memory', '--store', server.url, ...SMALL, '--parallel', '1'];
        const env = { http_proxy: undefined, HTTP_PROXY: undefined };
        const killed = await uffd(args, {
          cwd: folder,
          env,
          started: (pid) => {
            // Before its answer, so the process cannot know whether the chunk has arrived.
            server.always = ({ method }) => {
              if (method === 'PUT' && server.count('PUT') === at) process.kill(pid, 'SIGKILL');
              return false;
            };
          },
        });
        assert.is(killed.code, 'SIGKILL');
        assert.not(existsSync(path('memory.caibx')));
        const sent = chunksIn(path('store')).length;
        assert.is(sent, at);
        server.requests.length = 0;
        server.always = undefined;
        const resumed = await uffd([...args, '--json'], { cwd: folder, env });
        assert.is(resumed.code, 0, resumed.stderr);
        assert.is(server.count('PUT'), 5 - sent);
        assert.is(JSON.parse(resumed.stdout).presentChunks, sent);
      });
      const verified = await uffd(['verify', 'memory.caibx', '--store', 'store'], { cwd: folder });
      assert.is(verified.stdout, '5 chunks: all are there, and right\n');
    });
  });
}

test('an interruption ends pack with code 130, and leaves no index', async () => {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    await withStoreServer(join(folder, 'store'), async (server) => {
      const ended = await uffd(['pack', 'memory', '--store', server.url, ...SMALL, '--proxy', 'none'], {
        cwd: folder,
        started: (pid) => {
          const hang: Misbehave = () => process.kill(pid, 'SIGINT');
          server.answers.push(undefined, hang);
        },
      });
      assert.equal([ended.code, ended.stderr], [130, 'uffd: interrupted\n']);
      assert.not(existsSync(join(folder, 'memory.caibx')));
    });
  });
});

test('a full disk: pack and unpack fail with ENOSPC, and leave no index and no partial file', async () => {
  if (process.getuid?.() !== 0) skip('only root can mount a small disk');
  await inDirectory(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeFileSync(path('memory'), someMemory(16 * CHUNK, 3));
    const packed = await uffd(['pack', 'memory', '--store', 'store', ...SMALL], { cwd: folder });
    assert.is(packed.code, 0, packed.stderr);
    const onSmallDisk = (...args: string[]): { status: number | null; stderr: string; stdout: string } => {
      const script =
        'mkdir -p small && mount -t tmpfs -o size=300k none small && shift 0 && "$@"; code=$?; find small -type f; exit $code';
      return spawnSync('unshare', ['-m', 'sh', '-c', script, 'sh', ...args], {
        cwd: folder,
        encoding: 'utf8',
      });
    };
    if (onSmallDisk('true').status !== 0) skip('a small disk cannot be mounted here');
    const full = onSmallDisk(
      ...commandLine(['pack', 'memory', '--store', 'small/store', '-o', 'small/i', ...SMALL]),
    );
    assert.is(full.status, 1);
    assert.match(full.stderr, /^uffd: ENOSPC: no space left on device/);
    for (const file of full.stdout.trim().split('\n')) assert.match(file, /\.cacnk$/);
    const unpacked = onSmallDisk(
      ...commandLine(['unpack', 'memory.caibx', 'small/copy', '--store', 'store']),
    );
    assert.is(unpacked.status, 1);
    assert.match(unpacked.stderr, /^uffd: ENOSPC: no space left on device/);
    assert.is(unpacked.stdout, '');
  });
});

test('verify names missing and damaged chunks with code 3; unpack leaves no file; packing again mends', async () => {
  await inDirectory(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeSparse(path('memory'), SPARSE_SIZE);
    await uffd(['pack', 'memory', '--store', 'store', ...SMALL], { cwd: folder });
    const [one, two] = chunksIn(path('store')).sort((a, b) => sizeIn(b) - sizeIn(a)) as [string, string];
    function sizeIn(name: string): number {
      return statSync(join(path('store'), name)).size;
    }
    rmSync(join(path('store'), one));
    const bytes = readFileSync(join(path('store'), two));
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] as number) ^ 1;
    writeFileSync(join(path('store'), two), bytes);
    const verified = await uffd(['verify', 'memory.caibx', '--store', 'store', '--json'], { cwd: folder });
    assert.is(verified.code, 3, verified.stderr);
    const { bad } = JSON.parse(verified.stdout);
    const stateOf = (name: string): string =>
      bad.find(({ id }: { id: string }) => name.includes(id))?.state ?? 'fine';
    assert.equal([bad.length, stateOf(one), stateOf(two)], [2, 'missing', 'damaged']);
    const told = await uffd(['verify', 'memory.caibx', '--store', 'store'], { cwd: folder });
    assert.match(
      told.stdout,
      /^(missing|damaged) [0-9a-f]{64} at byte \d+: .*\n.*\n5 chunks: 2 cannot be used\n$/,
    );
    const unpacked = await uffd(['unpack', 'memory.caibx', 'copy', '--store', 'store'], { cwd: folder });
    assert.is(unpacked.code, 1);
    assert.equal(readdirSync(folder).sort(), ['memory', 'memory.caibx', 'store']);
    rmSync(join(path('store'), two));
    await uffd(['pack', 'memory', '--store', 'store', ...SMALL], { cwd: folder });
    assert.is((await uffd(['verify', 'memory.caibx', '--store', 'store'], { cwd: folder })).code, 0);
  });
});

test('prune removes what no index names and is old, and nothing else', async () => {
  await inDirectory(async (folder) => {
    const path = (name: string): string => join(folder, name);
    const store = ['--store', 'store'];
    for (const [name, seed] of [
      ['a', 1],
      ['b', 2],
      ['c', 3],
    ] as const) {
      writeSparse(path(name), SPARSE_SIZE, seed);
      await uffd(['pack', name, ...store, ...SMALL], { cwd: folder });
    }
    writeFileSync(path('store/notes.txt'), 'mine');
    // What a killed process leaves.
    const [chunk] = chunksIn(path('store')) as [string];
    const remains = join(path('store'), `${chunk}.123-0.uffd-partial`);
    writeFileSync(remains, 'part');
    const count = (): number => chunksIn(path('store')).length;
    // A chunk of zeros is common to all; four are each memory's own.
    assert.is(count(), 13);
    const run = async (...args: string[]): Promise<Record<string, number>> => {
      const ended = await uffd(['prune', ...args, ...store, '--json'], { cwd: folder });
      assert.is(ended.code, 0, ended.stderr);
      return JSON.parse(ended.stdout);
    };
    assert.is((await run('a.caibx', 'b.caibx')).youngChunks, 5);
    const old = new Date(Date.now() - 48 * 3600 * 1000);
    for (const name of chunksIn(path('store'))) utimesSync(join(path('store'), name), old, old);
    utimesSync(remains, old, old);
    assert.is((await run('a.caibx', 'b.caibx', '--dry-run')).removedChunks, 5);
    assert.equal([count(), existsSync(remains)], [13, true]);
    const { removedChunks, namedChunks, otherObjects } = await run('a.caibx', 'b.caibx');
    assert.equal([removedChunks, namedChunks, otherObjects], [5, 9, 1]);
    assert.equal([count(), existsSync(remains)], [9, false]);
    for (const name of ['a', 'b'])
      assert.is((await uffd(['verify', `${name}.caibx`, ...store], { cwd: folder })).code, 0);
    writeFileSync(path('b.caibx'), 'damaged');
    const refused = await uffd(['prune', 'a.caibx', 'b.caibx', ...store], { cwd: folder });
    assert.is(refused.code, 1);
    assert.match(refused.stderr, /b\.caibx: this is no index/);
    assert.is(count(), 9);
    const web = await uffd(['prune', 'a.caibx', '--store', 'http://127.0.0.1:1/'], { cwd: folder });
    assert.is(web.code, 1);
    assert.match(web.stderr, /cannot be pruned: this kind of store cannot list/);
  });
}, 300_000);

/** Makes all chunks of a store this many hours old. */
function age(store: string, hours: number): void {
  const then = new Date(Date.now() - hours * 3600 * 1000);
  for (const name of chunksIn(store)) utimesSync(join(store, name), then, then);
}

test('what pack finds and is old becomes young, so that prune leaves it, and nothing is sent again', async () => {
  await inDirectory(async (folder) => {
    const store = join(folder, 'store');
    for (const [name, seed] of [
      ['old', 1],
      ['other', 2],
    ] as const) {
      writeSparse(join(folder, name), SPARSE_SIZE, seed);
      await uffd(['pack', name, '--store', 'store', ...SMALL], { cwd: folder });
    }
    age(store, 48);
    const packed = await uffd(['pack', 'old', '--store', 'store', ...SMALL, '--json'], { cwd: folder });
    const { presentChunks, storedChunks } = JSON.parse(packed.stdout);
    assert.equal([presentChunks, storedChunks], [5, 0]);
    // The index of the pack is not known to this prune. Four old chunks are the other memory's.
    rmSync(join(folder, 'other.caibx'));
    writeSparse(join(folder, 'third'), SPARSE_SIZE, 3);
    await uffd(['pack', 'third', '--store', 'store', ...SMALL], { cwd: folder });
    const pruned = await uffd(['prune', 'third.caibx', '--store', 'store', '--json'], { cwd: folder });
    const { removedChunks, youngChunks } = JSON.parse(pruned.stdout);
    assert.equal([removedChunks, youngChunks], [4, 4]);
    assert.is((await uffd(['verify', 'old.caibx', '--store', 'store'], { cwd: folder })).code, 0);
  });
});

test('prune leaves a chunk that became young after it was listed', async () => {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    await uffd(['pack', 'memory', '--store', 'store', ...SMALL], { cwd: folder });
    const path = join(folder, 'store');
    age(path, 48);
    const [first] = chunksIn(path) as [string];
    class Refreshed extends FolderStore {
      override async *list(): ReturnType<FolderStore['list']> {
        const objects = [];
        for await (const object of super.list()) objects.push(object);
        utimesSync(join(path, first), new Date(), new Date());
        yield* objects;
      }
    }
    const { removedChunks, youngChunks } = await prune([], new Refreshed(path));
    assert.equal([removedChunks, youngChunks], [4, 1]);
    assert.equal(chunksIn(path), [first]);
  });
});

test('a chunk that is removed while memory is packed: no index, and the reason', async () => {
  await inDirectory(async (folder) => {
    writeSparse(join(folder, 'memory'), SPARSE_SIZE);
    await withStoreServer(folder, async (server) => {
      const store = ['--store', `${server.url}/store`, ...SMALL];
      assert.is((await uffd(['pack', 'memory', ...store], { cwd: folder })).code, 0);
      rmSync(join(folder, 'memory.caibx'));
      const [chunk] = chunksIn(join(folder, 'store')) as [string];
      // It is removed when its presence was told.
      server.always = (request) => {
        if (request.method === 'HEAD' && request.url?.endsWith(chunk))
          setImmediate(() => rmSync(join(folder, 'store', chunk), { force: true }));
        return false;
      };
      const { code, stderr } = await uffd(['pack', 'memory', ...store], { cwd: folder });
      assert.is(code, 1);
      assert.match(stderr, /was there, and was removed while memory was packed: pack it again/);
      assert.is(existsSync(join(folder, 'memory.caibx')), false);
      assert.is((await uffd(['pack', 'memory', ...store], { cwd: folder })).code, 0);
      assert.is((await uffd(['verify', 'memory.caibx', ...store.slice(0, 2)], { cwd: folder })).code, 0);
    });
  });
});

test.run();
