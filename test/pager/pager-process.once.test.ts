// The pager and its process: forks, signals, ends, kills, full disks, users without privileges; and that nothing is
// left of pagers that were closed.

import { strict as assert } from 'node:assert';
import { chmodSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileSource, httpSource, moduleSource, Pager, type PagerOptions } from '../../src/pager/index.js';
import { inDirectory, needKernel, needUnprivileged, UNPRIVILEGED } from '../cli/support/command.js';
import { leaveOut, seed, skip, suite } from '../support/harness.js';
import { compileLibrary, holdings, until } from '../support/real-kernel.js';
import { FileServer } from './support/http-server.js';
import { killsAndRecovers } from './support/kills.js';
import { CLOSED, controlOf, DOES, Does, SOURCE } from './support/pager-source.js';
import {
  closedMappings,
  dataOf,
  MIB,
  memfds,
  privateBytes,
  program,
  userOf,
  withPager,
} from './support/pager-tools.js';

const test = suite('pager/process');

const SIGSEGV = 11;
/** A module whose source never opens. */
const HANGS = new URL('./support/pager-hangs.js', import.meta.url);

async function inFile(body: (path: string, directory: string) => Promise<void>): Promise<void> {
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, dataOf(4 * MIB));
    await body(path, directory);
  });
}

test('a forked child that touches the memory gets SIGSEGV, and the parent its bytes', async () => {
  needKernel();
  const library = compileLibrary('support/fork.c');
  await inFile(async (path) => {
    const options = { source: fileSource(path), resident: MIB, writable: true };
    await withPager(options, 1, async (_, user) => {
      // A page that is in memory, and one that is not.
      assert.equal(await user?.wrong(0, 100), -1);
      assert.equal(await user?.forkTouch(library, 0), SIGSEGV);
      assert.equal(await user?.forkTouch(library, 800), SIGSEGV);
      assert.equal(await user?.wrong(0, 4 * MIB), -1);
    });
  });
});

for (const [name, what, code, stdout] of [
  ['a program that ends', 'end-open', 0, /^\d+\n$/],
  ['a program that fails', 'uncaught', 1, /^\d+\n$/],
  ['a worker that is terminated', 'worker-ends', 0, /^terminated\n$/],
] as const) {
  test(`${name} while its pager is open: it ends, and reads no zeros`, async () => {
    needKernel();
    await inFile(async (path) => {
      const started = async (child: { kill(signal: 'SIGKILL'): boolean }): Promise<void> =>
        void setTimeout(() => child.kill('SIGKILL'), 20_000).unref();
      const ran = await program(what, [path], { started });
      assert.match(ran.stdout, stdout, ran.stderr);
      assert.equal(ran.code, code, ran.stderr);
    });
  });
}

for (const how of ['exit', 'end']) {
  for (const source of [
    'module that stalls',
    'module that fails',
    'server that stalls',
    'read that stalls',
  ]) {
    test(`process ${how} while a thread waits for a ${source}: it ends, and reads no zeros`, async () => {
      needKernel();
      const ran = await program('end-asleep', [how, source], {
        started: async (child) => void setTimeout(() => child.kill('SIGKILL'), 20_000).unref(),
      });
      assert.equal(ran.stdout, 'asleep\n', ran.stderr);
      assert.equal(ran.code, 7, ran.stderr);
    });
  }
}

/** What `user-mode-only` prints: EFAULT for what is missing, or dropped; 1000 bytes of what is pinned; all are right. */
const USER_MODE = 'true\nEFAULT\n1000\n-1\nEFAULT\nclosed\n';

for (const [name, under] of [
  ['userModeOnly', undefined],
  ['a user without privileges', UNPRIVILEGED],
] as const) {
  test(`${name}: a system call on missing memory gets EFAULT, withPinned works, one warning; swap works`, async () => {
    needKernel();
    if (under) needUnprivileged();
    await inFile(async (path, directory) => {
      // The other user makes files there.
      chmodSync(directory, 0o777);
      const ran = await program('user-mode-only', [path, join(directory, 'out')], under && { under });
      assert.equal(ran.stdout, USER_MODE, ran.stderr);
      assert.equal(ran.code, 0, ran.stderr);
      assert.equal(ran.stderr.match(/a pager without privileges/g)?.length, 2, ran.stderr);
    });
  });
}

test('a pager that the user has no privilege to open is refused, and leaves nothing', async () => {
  needKernel();
  needUnprivileged();
  await inFile(async (path, directory) => {
    chmodSync(directory, 0o777);
    const ran = await program('refused-user', [path, join(directory, 'out')], { under: UNPRIVILEGED });
    if (ran.stdout.startsWith('opened')) leaveOut('this machine allows every user to open a userfaultfd');
    assert.equal(ran.stdout, 'EPERM\ndescriptors 0\n', ran.stderr);
  });
});

for (const what of ['reads-slowly', 'swaps']) {
  test(`SIGSTOP and SIGCONT of a process that ${what}: the bytes are right`, async () => {
    needKernel();
    const ran = await program(what, [], {
      async started(child, saw) {
        await saw(/ready/);
        for (let times = 0; times < 30 && child.exitCode === null; times++) {
          child.kill('SIGSTOP');
          await sleep(times % 7);
          child.kill('SIGCONT');
          await sleep(times % 11);
        }
      },
    });
    assert.equal(ran.stdout, 'ready\nread -1\n', ran.stderr);
    assert.equal(ran.code, 0);
  });
}

const KILLS = 24;

test(`kill -9 at ${KILLS} moments: each block is whole, and as at the last flush or later`, async () => {
  needKernel();
  const { flushes, versions } = await killsAndRecovers(KILLS, seed());
  console.log(`${flushes} of ${KILLS} with flushes, ${versions} versions`);
  assert.ok(flushes > KILLS / 2);
}, 180_000);

test('hundreds of pagers, opened and closed, refused and aborted: nothing is left of them', async () => {
  needKernel();
  const gc = globalThis.gc ?? skip('needs --expose-gc');
  await inFile(async (path, swap) => {
    const server = new FileServer(Buffer.from(dataOf(MIB)));
    await server.listen();
    const absent = join(swap, 'absent', 'file');
    const aborted = (options: PagerOptions, ms: number): Promise<Pager> =>
      Pager.open({ ...options, signal: AbortSignal.timeout(ms) });
    const once = async (open: () => Promise<Pager>): Promise<void> => {
      const pager = await open();
      await pager.prefetch({ offset: 0, length: 200_000 });
      assert.ok(pager.view(5, 1).length === 1);
      await pager.close();
      await pager.close();
    };
    const refused = (open: () => Promise<Pager>): Promise<void> => assert.rejects(open);
    const works: (() => Promise<void>)[] = [
      () => once(() => Pager.open({ source: fileSource(path), resident: MIB })),
      () => once(() => Pager.open({ source: fileSource(path), resident: MIB, writable: true })),
      () => once(() => Pager.anonymous(4 * MIB, { resident: MIB, swap, encrypt: true })),
      () => once(() => Pager.open({ source: moduleSource(SOURCE, controlOf(MIB)), resident: MIB })),
      () => once(() => Pager.open({ source: httpSource(server.url()), resident: MIB })),
      () => refused(() => Pager.open({ source: fileSource(absent), resident: MIB })),
      () => refused(() => Pager.open({ source: fileSource(path), resident: MIB, record: absent })),
      () => refused(() => Pager.open({ source: moduleSource(absent), resident: MIB })),
      () => refused(() => Pager.anonymous(MIB, { resident: MIB, swap: absent })),
      () => refused(() => aborted({ source: moduleSource(HANGS), resident: MIB }, 20)),
    ];
    // A file has one writable pager at a time, so only one of them is opened in each round.
    const round = (): Promise<unknown> => Promise.all(works.map((work) => work()));
    const settle = async (): Promise<[number, number, number]> => {
      for (let times = 0; times < 5; times++) {
        gc();
        await sleep(20);
      }
      const { descriptors, threads } = holdings();
      return [descriptors - server.sockets.size, threads, closedMappings(4 * MIB, MIB)];
    };
    const ROUNDS = 20;
    let half = 0;
    for (let times = 0; times < 3; times++) await round();
    const before = await settle();
    for (let times = 0; times < ROUNDS; times++) {
      await round();
      if (times === ROUNDS / 2) half = privateBytes();
    }
    let after = await settle();
    // Sockets and threads end, and views are collected, a moment later.
    const left = (): boolean => after[0] > before[0] || after[1] > before[1] || after[2] > before[2] + 2;
    for (let times = 0; times < 50 && left(); times++) after = await settle();
    const grown = privateBytes() - half;
    server.close();
    console.log(
      `${ROUNDS * works.length} pagers, ${(grown / MIB).toFixed(1)} MiB more after the second half`,
    );
    assert.deepEqual(memfds(), []);
    assert.ok(after[0] <= before[0], `descriptors: ${before[0]}, then ${after[0]}`);
    assert.ok(after[1] <= before[1], `threads: ${before[1]}, then ${after[1]}`);
    assert.ok(after[2] <= before[2] + 2, `mappings: ${before[2]}, then ${after[2]}`);
    // Each has a mebibyte in memory, and a thread of some mebibytes, so a leak of either is far more.
    assert.ok(grown < 64 * MIB, `${grown} bytes of private memory more`);
  });
}, 300_000);

test('an opening that is aborted rejects with the reason, and leaves nothing', async () => {
  needKernel();
  const hangs = moduleSource(HANGS);
  await inFile(async (path) => {
    const reason = new Error('of the test');
    const open = async (options: PagerOptions, ms: number | undefined): Promise<Pager> => {
      const abort = new AbortController();
      if (ms === undefined) abort.abort(reason);
      else setTimeout(() => abort.abort(reason), ms);
      return Pager.open({ ...options, signal: abort.signal });
    };
    await assert.rejects(open({ source: hangs, resident: MIB }, 100), reason);
    await assert.rejects(open({ source: fileSource(path), resident: MIB }, undefined), reason);
    const { descriptors, threads } = holdings();
    let [opened, aborted] = [0, 0];
    for (let ms = 0; ms < 120; ms += 4) {
      const source = ms % 8 === 0 ? fileSource(path) : moduleSource(SOURCE, controlOf(MIB));
      try {
        const pager = await open({ source, resident: MIB }, ms);
        opened++;
        // It works, and an abort after the opening has no effect.
        const user = await userOf(pager);
        assert.equal(await user.wrong(0, MIB), -1);
        await sleep(20);
        assert.equal(pager.closed, false);
        await pager.evict();
        assert.equal(await user.wrong(0, MIB), -1);
        await user.end();
        await pager.close();
      } catch (error) {
        assert.equal(error, reason);
        aborted++;
      }
    }
    console.log(`${opened} opened, ${aborted} aborted`);
    await until(() => holdings().threads <= threads, 'the threads to end');
    await until(() => holdings().descriptors <= descriptors, 'the descriptors to be closed');
    assert.deepEqual(memfds(), []);
  });
});

test('a source is closed with its pager, and if the opening fails', async () => {
  needKernel();
  const control = controlOf(MIB);
  await (await Pager.open({ source: moduleSource(SOURCE, control), resident: MIB })).close();
  assert.equal(Atomics.load(control.words, CLOSED), 1);
  const stalls = controlOf(MIB);
  Atomics.store(stalls.words, DOES, Does.STALL);
  const pager = await Pager.open({ source: moduleSource(SOURCE, stalls), resident: MIB });
  const fetching = pager.prefetch({ offset: 0, length: 100 });
  await pager.close({ discard: true });
  await assert.rejects(fetching);
  assert.equal(Atomics.load(stalls.words, CLOSED), 1);
});

test('wrong arguments, and what cannot be opened: each error says what is wrong', async () => {
  needKernel();
  await inFile(async (path, directory) => {
    const source = fileSource(path);
    const empty = join(directory, 'empty');
    writeFileSync(empty, '');
    const wide = join(directory, 'wide');
    writeFileSync(wide, '');
    truncateSync(wide, 15 * 2 ** 40);
    const wrong: [options: unknown, message: RegExp][] = [
      [undefined, /options must be an object/],
      [{ resident: MIB }, /source must be an object/],
      [{ source, resident: 'x' }, /resident must be/],
      [{ source }, /resident must be/],
      [{ source, resident: MIB - 1 }, /resident must be an integer from 1048576/],
      [{ source, resident: MIB, blockSize: 5000 }, /blockSize must be a power of two/],
      [
        { source, resident: 2 ** 30, blockSize: 8 * MIB },
        /blockSize must be an integer from 4096 to 4194304/,
      ],
      [{ source, resident: MIB, readAhead: -1 }, /readAhead must be/],
      [{ source, resident: MIB, onError: 'zeros' }, /onError must be one of retry, poison/],
      [{ source, resident: MIB, deadlineMs: 1.5 }, /deadlineMs must be/],
      [{ source, resident: MIB, signal: {} }, /signal must be an AbortSignal/],
      [{ source, resident: MIB, userModeOnly: 'yes' }, /userModeOnly must be one of/],
      [{ source, resident: MIB, writable: { flushMs: -1 } }, /writable.flushMs must be/],
      [{ source, resident: MIB, writable: { durability: 'all' } }, /writable.durability must be one of/],
      [
        { source: { size: 1, read() {} }, resident: MIB, writable: true },
        /writable.to must be a path, or an object with write: this source cannot be written to/,
      ],
      [{ source: { size: 0, read() {} }, resident: MIB }, /source: size must be an integer from 1/],
      [{ source: { size: 5 }, resident: MIB }, /source.*read/],
      [{ source: { size: 5, read() {}, parallel: 0 }, resident: MIB }, /source: parallel must be/],
      [{ source: { kind: 'nothing' }, resident: MIB }, /source/],
      [{ source: fileSource(directory), resident: MIB }, /neither a file nor a block device/],
      [{ source: fileSource('/dev/null'), resident: MIB }, /neither a file nor a block device/],
      [{ source: fileSource(join(directory, 'absent')), resident: MIB }, /ENOENT/],
      [{ source: fileSource(empty), resident: MIB }, /empty/],
      [{ source: fileSource(wide), resident: MIB, blockSize: 4096 }, /blockSize must be larger/],
      [{ source: moduleSource(join(directory, 'absent.mjs')), resident: MIB }, /absent\.mjs/],
      [
        { source: moduleSource('data:text/javascript,export default 5'), resident: MIB },
        /no default export that makes/,
      ],
      [
        {
          source: moduleSource('data:text/javascript,export default () => ({ size: -1, read() {} })'),
          resident: MIB,
        },
        /size must be/,
      ],
      [
        {
          source: moduleSource('data:text/javascript,export default () => { throw new Error("no data") }'),
          resident: MIB,
        },
        /no data/,
      ],
    ];
    for (const [options, message] of wrong) {
      await assert.rejects(
        async () => void (await Pager.open(options as PagerOptions)),
        message,
        `${message}`,
      );
    }
    const code = await Pager.open({ source: fileSource(join(directory, 'absent')), resident: MIB }).catch(
      (error) => error.code,
    );
    assert.equal(code, 'ENOENT');
    for (const [length, options, message] of [
      [0, { resident: MIB }, /length must be/],
      [MIB, {}, /resident must be/],
      [MIB, { resident: MIB, swap: 5 }, /swap must be/],
      [MIB, { resident: MIB, swap: path }, /ENOTDIR|EEXIST/],
      [MIB, { resident: MIB, compress: 'lz4' }, /compress must be one of/],
      [MIB, { resident: MIB, encrypt: 1 }, /encrypt must be/],
    ] as [number, never, RegExp][]) {
      await assert.rejects(async () => void (await Pager.anonymous(length, options)), message, `${message}`);
    }
    await withPager({ source, resident: Number.MAX_SAFE_INTEGER }, 1, async (pager, user) => {
      assert.equal(await user?.wrong(0, 4 * MIB), -1, 'a limit beyond all memory');
      await assert.rejects(() => pager.prefetch({ offset: -1 }), /offset must be/);
      await assert.rejects(() => pager.prefetch({ offset: 1, length: 4 * MIB }), /length must be/);
      await assert.rejects(() => pager.evict({ offset: 4 * MIB + 1 }), /offset must be/);
      await assert.rejects(() => pager.prefetch(null as never), /range must be/);
      await assert.rejects(() => pager.withPinned({}, 5 as never), /use must be/);
      assert.throws(() => pager.view(4 * MIB, 1), /length must be/);
      assert.throws(() => pager.view(0.5, 1), /offset must be/);
      assert.equal(pager.view(4 * MIB, 0).length, 0);
    });
  });
});

test.run();
