// Where the changes of a pager go, on the real kernel: to an overlay, to a sink, to a block device with a journal on a
// disk; and what a program sees that cannot have what it asked for.

import { strict as assert } from 'node:assert';
import {
  closeSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type CustomSource,
  fileSource,
  httpSource,
  moduleSource,
  Pager,
  type PagerOptions,
  type PagerSource,
  type Sink,
} from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { generator, seed, suite } from '../support/harness.js';
import { withLoopDevice } from '../support/loop-device.js';
import { needKernelFaults } from '../support/real-kernel.js';
import { FileServer } from './support/http-server.js';
import { killsAndRecovers } from './support/kills.js';
import makeSink, {
  ABORTED,
  FAILS,
  MOST_BYTES,
  SINK,
  type SinkControl,
  SYNCS,
  sinkControl,
  TAKES_MS,
  WRITES,
} from './support/pager-sink.js';
import { byteAt, fillBytes } from './support/pager-source.js';
import { dataOf, KIB, MIB, type PagerUser, program, withPager } from './support/pager-tools.js';

const test = suite('pager/writable-to');

const SIZE = 4 * MIB + 5000;
const BLOCK = 16 * KIB;

/** Changes that a test has made, and what each byte must be. */
class Changes {
  readonly expected = dataOf(SIZE);
  readonly #random = generator(seed());

  /** Fills some places at random. */
  async make(user: PagerUser, count: number): Promise<void> {
    for (let done = 0; done < count; done++) {
      const offset = this.#random(SIZE);
      const length = Math.min(1 + this.#random(3 * BLOCK), SIZE - offset);
      // Zeros are data.
      const value = this.#random(5) === 0 ? 0 : this.#random(256);
      await user.fill(offset, length, value);
      this.expected.fill(value, offset, offset + length);
    }
  }

  async check(user: PagerUser): Promise<void> {
    const found = await user.bytes(0, SIZE);
    const wrong = found.findIndex((byte, index) => byte !== this.expected[index]);
    assert.equal(wrong, -1, `byte ${wrong} is ${found[wrong]} instead of ${this.expected[wrong]}`);
  }
}

/** Each kind of source, of which an overlay can be made. */
async function withSources(
  body: (kind: string, source: PagerSource, to: string) => Promise<void>,
): Promise<void> {
  await inDirectory(async (folder) => {
    const path = join(folder, 'data');
    writeFileSync(path, dataOf(SIZE));
    const server = new FileServer(Buffer.from(dataOf(SIZE)));
    await server.listen();
    const control = sinkControl(SIZE);
    fillBytes(control.data, 0);
    try {
      await body('file', fileSource(path), join(folder, 'file'));
      assert.ok(readFileSync(path).equals(dataOf(SIZE)), 'the source stays as it is');
      await body('http', httpSource(server.url()), join(folder, 'http'));
      await body('module', moduleSource(SINK, control), join(folder, 'module'));
      assert.equal(Atomics.load(control.words, WRITES), 0);
      const read: CustomSource['read'] = (offset, into) => void fillBytes(into, offset);
      await body('program', { size: SIZE, identity: 'bytes 1', read }, join(folder, 'program'));
    } finally {
      server.close();
    }
  });
}

test('an overlay of each source: changes are read again, also when it is opened again; the source stays as it is', async () => {
  needKernelFaults();
  await withSources(async (kind, source, to) => {
    const options: PagerOptions = { source, resident: MIB, blockSize: BLOCK, writable: { to, flushMs: 20 } };
    const changes = new Changes();
    for (let times = 0; times < 2; times++) {
      await withPager(options, 1, async (pager, user) => {
        assert.ok(user);
        await changes.check(user);
        await changes.make(user, 40);
        await changes.check(user);
        await pager.evict();
        await changes.check(user);
        await pager.flush();
      });
      assert.equal(Pager.recover(to).recovered, 0, kind);
    }
    await withPager(options, 1, async (_, user) => changes.check(user as PagerUser));
  });
}, 120_000);

test('an overlay of another version, or without anything that tells versions apart, is refused', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const path = join(folder, 'data');
    const to = join(folder, 'overlay');
    writeFileSync(path, dataOf(MIB));
    const open = async (source: PagerSource, where = to, blockSize = BLOCK): Promise<string> => {
      try {
        const pager = await Pager.open({ source, resident: MIB, blockSize, writable: { to: where } });
        await pager.close();
        return '';
      } catch (error) {
        const { name, code, message } = error as NodeJS.ErrnoException;
        return `${name} ${code} ${message}`;
      }
    };
    assert.equal(await open(fileSource(path)), '');
    assert.equal(await open(fileSource(path)), '');
    assert.match(
      await open(fileSource(path), to, 2 * BLOCK),
      /^OverlayError ERR_UFFD_OVERLAY .*blockSize: 16384/,
    );
    utimesSync(path, 1, 1);
    assert.match(
      await open(fileSource(path)),
      /^OverlayError .* is the overlay of another source, or of another/,
    );
    truncateSync(path, MIB - 1);
    assert.match(
      await open(fileSource(path)),
      /^OverlayError .* of a source of 1048576 bytes, and this one has/,
    );
    assert.match(await open(fileSource(path), path), /^OverlayError .* is not an overlay/);
    assert.equal(statSync(path).size, MIB - 1);

    const server = new FileServer(Buffer.from(dataOf(MIB)));
    await server.listen();
    try {
      const remote = join(folder, 'remote');
      assert.equal(await open(httpSource(server.url()), remote), '');
      assert.match(
        await open(httpSource(server.url('/other')), remote),
        /^OverlayError .* of another source/,
      );
      server.etag = '"second"';
      assert.match(
        await open(httpSource(server.url()), remote),
        /^OverlayError .*etag "first", and this one is/,
      );
      server.etag = undefined;
      assert.match(
        await open(httpSource(server.url()), remote),
        /^SourceError .*neither a strong ETag nor Last-/,
      );
      server.modified = 'Wed, 21 Oct 2015 07:28:00 GMT';
      assert.equal(await open(httpSource(server.url()), join(folder, 'dated')), '');
    } finally {
      server.close();
    }
    const module = moduleSource(
      'data:text/javascript,export default () => ({ size: 1e6, read: (at, into) => into.fill(1) })',
    );
    assert.match(
      await open(module, join(folder, 'module')),
      /^SourceError .*the module's source has no identity/,
    );
  });
});

const KILLS = 24;

test(`an overlay after kill -9 at ${KILLS} moments: each block is whole, and as at the last flush or later`, async () => {
  needKernel();
  const { flushes, versions } = await killsAndRecovers(KILLS, seed(), 'overlay');
  console.log(`${flushes} of ${KILLS} with flushes, ${versions} versions`);
  assert.ok(flushes > KILLS / 2);
}, 180_000);

/** Each way to write to a sink. */
async function withSinks(
  body: (kind: string, options: PagerOptions, control: SinkControl) => Promise<void>,
): Promise<void> {
  for (const kind of ['module', 'program', 'file'] as const) {
    await inDirectory(async (folder) => {
      const control = sinkControl(SIZE);
      fillBytes(control.data, 0);
      const own = makeSink(control);
      const options = { resident: MIB, blockSize: BLOCK };
      if (kind === 'module') {
        await body(
          kind,
          { ...options, source: moduleSource(SINK, control), writable: { flushMs: 20 } },
          control,
        );
      } else if (kind === 'program') {
        await body(kind, { ...options, source: own, writable: { to: own, flushMs: 20 } }, control);
      } else {
        // A local file that the program writes to itself.
        const path = join(folder, 'data');
        writeFileSync(path, control.data);
        const fd = openSync(path, 'r+');
        const to: Sink = {
          async write(offset, bytes, signal) {
            await own.write(offset, bytes, signal);
            writeSync(fd, bytes, 0, bytes.length, offset);
          },
          sync: () => own.sync?.(),
        };
        await body(kind, { ...options, source: fileSource(path), writable: { to, flushMs: 0 } }, control);
        closeSync(fd);
      }
    });
  }
}

test('a sink in the program, in a module and of a file: it gets the changes, and they are read again', async () => {
  needKernelFaults();
  await withSinks(async (kind, options, { data, words }) => {
    const changes = new Changes();
    await withPager(options, 1, async (pager, user) => {
      assert.ok(user);
      Atomics.store(words, TAKES_MS, kind === 'file' ? 0 : 1);
      await changes.make(user, 40);
      await pager.flush();
      assert.ok(Buffer.from(data).equals(changes.expected), `${kind}: what was flushed`);
      assert.equal(Atomics.load(words, SYNCS), 1);
      await changes.check(user);
      await changes.make(user, 10);
      await pager.evict();
      await changes.check(user);
      await pager.flush();
      assert.ok(Buffer.from(data).equals(changes.expected));
      assert.ok(Atomics.load(words, MOST_BYTES) <= 8 * MIB);
      assert.equal(pager.stats.dirtyBytes, 0);
    });
  });
}, 120_000);

test('a sink that fails: flush rejects with its error, nothing is lost, and it is written when the sink works', async () => {
  needKernelFaults();
  await withSinks(async (kind, options, { data, words }) => {
    if (kind === 'file') return;
    const changes = new Changes();
    await withPager(options, 1, async (pager, user) => {
      assert.ok(user);
      Atomics.store(words, FAILS, 1);
      await changes.make(user, 2);
      await assert.rejects(() => pager.flush(), { code: 'ENOSPC', message: 'the test has said so' });
      await assert.rejects(() => pager.close(), { code: 'ENOSPC' });
      assert.ok(!pager.closed);
      assert.ok(Buffer.from(data).equals(dataOf(SIZE)));
      assert.ok(pager.stats.dirtyBytes > 0);
      Atomics.store(words, FAILS, 0);
      await pager.flush();
      assert.ok(Buffer.from(data).equals(changes.expected));
    });
  });
});

test('a sink that fails for long is reported once', async () => {
  needKernel();
  const { code, stdout, stderr } = await program('sink-fails', []);
  assert.equal(stdout, 'failed\nwritten\n', stderr);
  assert.equal(code, 0, stderr);
  const lines = stderr.split('\n').filter((line) => line.startsWith('userfaultfd: changes'));
  assert.deepEqual(lines, [
    'userfaultfd: changes cannot be written: the sink is full; they stay in memory, and it is tried again',
    'userfaultfd: changes can be written again',
  ]);
});

test('a flush writes pinned memory as it is then, even if older bytes of it are on their way to the sink', async () => {
  needKernelFaults();
  const data = dataOf(SIZE);
  /** Lets a write go on. */
  const writes: (() => void)[] = [];
  const source: CustomSource & Sink = {
    size: SIZE,
    read: (offset, into) => into.set(data.subarray(offset, offset + into.length)),
    async write(offset, bytes) {
      await new Promise<void>((resolve) => writes.push(resolve));
      data.set(bytes, offset);
    },
  };
  const takes = async (count: number): Promise<void> => {
    while (writes.length < count) await sleep(1);
  };
  await withPager({ source, writable: { to: source, flushMs: 0 }, resident: MIB }, 0, async (pager) => {
    await pager.withPinned(
      { length: BLOCK },
      async (pinned) => {
        pinned[5] = 1;
        const first = pager.flush();
        await takes(1);
        pinned[5] = 2;
        const others = Promise.all([pager.flush(), pager.flush()]);
        pinned[6] = 3;
        writes[0]?.();
        await first;
        assert.equal(data[5], 1, 'what a sink gets does not change any more');
        await takes(2);
        writes[1]?.();
        await others;
        assert.deepEqual([data[5], data[6], writes.length], [2, 3, 2]);
      },
      { write: true },
    );
  });
});

test('blocks larger than what a sink may have under way', async () => {
  needKernelFaults();
  const size = 80 * MIB;
  const control = sinkControl(size);
  const options = {
    source: moduleSource(SINK, control),
    resident: 64 * MIB,
    blockSize: 4 * MIB,
    writable: true,
  };
  await withPager(options, 1, async (pager, user) => {
    for (let at = 0; at < size; at += 4 * MIB) await user?.fill(at, 1, 7);
    Atomics.store(control.words, TAKES_MS, 1);
    await pager.flush();
    for (let at = 0; at < size; at += 4 * MIB) assert.equal(control.data[at], 7);
    const most = Atomics.load(control.words, MOST_BYTES);
    assert.ok(most > 0 && most <= 8 * MIB, `${most}`);
  });
});

test('closing with discard aborts writes that are under way', async () => {
  needKernelFaults();
  const control = sinkControl(SIZE);
  const own = makeSink(control);
  for (const options of [
    { source: moduleSource(SINK, control), writable: true },
    { source: own, writable: { to: own } },
  ]) {
    Atomics.store(control.words, ABORTED, 0);
    Atomics.store(control.words, MOST_BYTES, 0);
    Atomics.store(control.words, TAKES_MS, 100);
    await withPager({ ...options, resident: MIB }, 1, async (pager, user) => {
      await user?.fill(5, 1, 7);
      const flush = pager.flush().catch(() => 'rejected');
      while (Atomics.load(control.words, MOST_BYTES) === 0) await sleep(1);
      await pager.close({ discard: true });
      await flush;
    });
    while (Atomics.load(control.words, ABORTED) === 0) await sleep(1);
  }
});

test('a block device survives a loss of power with a journal on a disk', async () => {
  needKernelFaults();
  await inDirectory(async (folder) => {
    const image = join(folder, 'image');
    writeFileSync(image, dataOf(MIB));
    await withLoopDevice(image, async (device) => {
      const source = fileSource(device);
      const open = (journal?: string) =>
        Pager.open({
          ...{ source, resident: MIB },
          writable: { durability: 'power', ...(journal !== undefined && { journal }) },
        });
      await assert.rejects(
        open,
        /choose another path with the option writable\.journal, or durability: 'process'/,
      );
      const journal = join(folder, 'journal');
      await withPager(open(journal), 1, async (pager, user) => {
        await user?.fill(100_000, 5, 0);
        await pager.flush();
        assert.ok(statSync(journal).isFile());
      });
      assert.deepEqual(
        [...readFileSync(device).subarray(99_999, 100_006)],
        [...[byteAt(99_999), 0, 0, 0, 0, 0, byteAt(100_005)]],
      );
      assert.equal(Pager.recover(device, { journal }).recovered, 0);
    });
  });
});

test('a journal at another path is used, and recovered from there', async () => {
  needKernel();
  await inDirectory(async (folder) => {
    const path = join(folder, 'data');
    const journal = join(folder, 'elsewhere');
    writeFileSync(path, Buffer.alloc(MIB));
    const ran = await program('writes-until-killed', [path, 1, 1, '', journal], {
      async started(child, saw) {
        await saw(/^3$/m);
        child.kill('SIGKILL');
      },
    });
    assert.equal(ran.code, 'SIGKILL');
    assert.ok(statSync(journal).isFile());
    Pager.recover(path, { journal });
    assert.throws(() => statSync(journal), /ENOENT/);
    assert.throws(() => statSync(`${path}.uffd-journal`), /ENOENT/);
  });
});

test('what cannot be written to is refused, with the option that is wrong', () => {
  const file = fileSource('/tmp/x');
  const http = httpSource('http://localhost/x');
  const code: CustomSource = { size: 5, read() {} };
  const sink: Sink = { write() {} };
  const refused = (source: PagerSource, writable: unknown): string => {
    try {
      void Pager.open({ source, resident: MIB, writable: writable as boolean });
      return '';
    } catch (error) {
      return (error as Error).message;
    }
  };
  assert.match(
    refused(http, true),
    /^writable\.to must be a path, or an object with write: this source cannot/,
  );
  assert.match(
    refused(code, true),
    /^writable\.to must be a path, or an object with write: this source cannot/,
  );
  assert.match(
    refused(code, { to: 'x' }),
    /^source\.identity must be a string, because writable\.to is a file/,
  );
  assert.match(refused(http, { to: sink }), /^writable\.to must be a path: a remote file is pinned/);
  assert.match(refused(file, { to: '' }), /^writable\.to must be a path/);
  assert.match(refused(file, { to: 5 }), /^writable\.to must be an object/);
  assert.match(refused(file, { to: {} }), /^writable\.to must be a path, or an object with write/);
  assert.match(refused(file, { to: { ...sink, sync: 5 } }), /^writable\.to: sync must be a function/);
  assert.match(refused(file, { to: sink, durability: 'power' }), /^writable\.durability must be left out/);
  assert.match(refused(code, { to: sink, journal: 'x' }), /^writable\.journal must be left out/);
  assert.match(refused(moduleSource('x'), { journal: 'x' }), /^writable\.journal must be left out/);
  assert.match(refused(file, { journal: 5 }), /^writable\.journal must be a path/);
  assert.match(refused(file, 'yes'), /^writable must be an object/);
  assert.throws(() => Pager.recover('x', { journal: 5 as never }), /^TypeError.*journal must be a path/);
});

test('a module whose object has no write is refused', async () => {
  needKernel();
  const source = moduleSource('data:text/javascript,export default () => ({ size: 1e6, read() {} })');
  await assert.rejects(
    () => Pager.open({ source, resident: MIB, writable: true }),
    /the source that .* has made must be an object with write, because the pager is writable/,
  );
});

test("compress: without zstd, 'zstd' is an error and 'auto' says in stats that it does not compress", async () => {
  needKernel();
  await inDirectory(async (folder) => {
    // The loader finds this file first, and cannot use it.
    writeFileSync(join(folder, 'libzstd.so.1'), '');
    const preload = encodeURIComponent(
      'import zlib from "node:zlib"; delete zlib.zstdCompressSync; delete zlib.zstdDecompressSync;',
    );
    const under = [
      'env',
      `LD_LIBRARY_PATH=${folder}`,
      `NODE_OPTIONS=--import=data:text/javascript,${preload}`,
    ];
    const { code, stdout, stderr } = await program('without-zstd', [], { under });
    assert.equal(code, 0, stderr);
    assert.match(
      stdout,
      /^auto: none\nnone: none\nUnsupportedError ERR_UFFD_UNSUPPORTED compress: 'zstd' needs .* or use 'auto'/,
    );
  });
});

test.run();
