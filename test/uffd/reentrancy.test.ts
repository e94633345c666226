// Calls at the wrong moment or in the wrong order: inside callbacks, while another thread stops the loop, with a
// descriptor that another object owns. No fault or change is lost, leaked, delivered twice, or left hanging.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { libc } from '../../shim/libc.js';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { type Feature, Mapping, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  compileLibrary,
  endAll,
  holdings,
  kernelWith,
  map,
  needKernel,
  never,
  openWith,
  P,
  pageOf,
  skipWithout,
  sleepers,
  toucher,
  touchers,
  until,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('uffd/reentrancy');

for (const act of ['close', 'start', 'throw'] as const) {
  test(`release whose callback does ${act}: the descriptor is given away, and closed is called once`, async () => {
    needKernel();
    const closes: number[] = [];
    const kernel = kernelWith((port) => {
      const close = port.close.bind(port);
      return {
        close(fd) {
          closes.push(fd);
          return close(fd);
        },
      };
    });
    const uffd = Userfaultfd.open({ features: ['event-remove'], kernel });
    const base = map(4, 1);
    uffd.register(base, 4 * P);
    const calls: string[] = [];
    const handler = {
      pagefault: never,
      removed() {
        calls.push('removed');
        if (act === 'close') uffd.close();
        else if (act === 'start') assert.is(uffd.start(handler), false);
        else throw new Error('planted');
      },
      closed: () => void calls.push('closed'),
    };
    const thrown = new Promise<Error>((resolve) => {
      if (act === 'throw') process.once('uncaughtException', resolve);
      else resolve(new Error('planted'));
    });
    uffd.start(handler);
    uffd.stop();
    const thread = await toucher();
    const removal = thread.madvise(base, P, MADV_DONTNEED);
    await thread.asleep();
    uffd.copy(at(base, 2), pageOf(5));
    assert.is(await removal, 0);
    const fd = uffd.release();
    assert.is((await thrown).message, 'planted');
    assert.equal(calls, ['removed', 'closed']);
    assert.is(uffd.waiting, false);
    assert.is(new Set(closes).size, closes.length, 'no descriptor is closed twice');
    Userfaultfd.wrap(fd).close();
    await endAll();
  });
}

test('a start inside a callback is refused, and the fault that is out is not lost', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    let offered = 0;
    uffd.start({
      pagefault(fault) {
        offered++;
        if (offered > 1) return uffd.zero(fault.page, P) === P;
        uffd.stop();
        assert.throws(() => uffd.start({ pagefault: never }, { wait: 'block' }), /inside a callback/);
        return false;
      },
    });
    const read = thread.read(base);
    await until(() => !uffd.waiting, 'the loop to stop');
    uffd.start({ pagefault: (fault) => uffd.zero(fault.page, P) === P });
    assert.equal(await read, [0]);
  });
});

test('a stop from another thread lets no further callback through', async () => {
  for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
    const uffd = openWith();
    const base = map(8);
    uffd.register(base, 8 * P);
    const threads = await touchers(8);
    const reads = threads.map((thread, n) => thread.read(at(base, n)));
    await Promise.all(threads.map((thread) => thread.asleep()));
    let offered = 0;
    uffd.start(
      {
        pagefault(fault) {
          if (++offered === 1) Userfaultfd.stop(uffd.stopHandle);
          uffd.zero(fault.page, P);
        },
      },
      { wait },
    );
    await until(() => !uffd.waiting, 'the loop to stop');
    assert.is(offered, 1, wait);
    uffd.close();
    await Promise.all(reads);
    await endAll();
  }
});

test('a stop and its signal are used up together: the next loops run and sleep', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  for (let round = 0; round < 200; round++) {
    uffd.start({ pagefault: never });
    assert.is(uffd.waiting, true, `round ${round}`);
    Userfaultfd.stop(uffd.stopHandle);
    await until(() => !uffd.waiting, 'the loop to stop');
  }
  const counts = eventfdCounts();
  assert.ok(counts.includes(0), 'its eventfd is empty');
  uffd.close();
});

/** The counters of this process's eventfds. */
function eventfdCounts(): number[] {
  return readdirSync('/proc/self/fdinfo').flatMap((fd) => {
    try {
      const count = /^eventfd-count:\s*(\w+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'));
      return count ? [Number.parseInt(count[1] as string, 16)] : [];
    } catch {
      return [];
    }
  });
}

test('a stop that meets a handler that throws is used up by it', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const thrown = new Promise<Error>((resolve) => process.once('uncaughtException', resolve));
    uffd.start({
      pagefault() {
        Userfaultfd.stop(uffd.stopHandle);
        throw new Error('planted');
      },
    });
    const read = thread.read(base);
    assert.is((await thrown).message, 'planted');
    uffd.start({ pagefault: (fault) => uffd.zero(fault.page, P) === P });
    assert.equal(await read, [0]);
  });
});

test('features may be given as an iterator that can be used once', () => {
  needKernel();
  const wanted = new Set<Feature>(['event-remove', 'thread-id']);
  for (const options of [{ features: wanted.values() }, { optional: wanted.values() }]) {
    const uffd = Userfaultfd.open(options);
    assert.is(uffd.features.size, 2);
    uffd.close();
  }
});

test('wrap works on kernels that refuse to wake the lowest addresses', () => {
  const fd = openWith().release();
  const kernel = kernelWith((port, memory) => {
    const ioctl = port.ioctl.bind(port);
    return {
      ioctl(given, request, offset) {
        const low = new DataView(memory.buffer).getBigUint64(offset, true) < 65536n;
        return request === 0x8010aa02 && low ? -22 : ioctl(given, request, offset);
      },
    };
  });
  Userfaultfd.wrap(fd, { kernel }).close();
});

test('wrap refuses what another object owns, and ranges that are none; nothing is left of the attempt', () => {
  const uffd = openWith();
  assert.throws(() => Userfaultfd.wrap(uffd.fd), /belongs to another Userfaultfd of this thread/);
  const mapping = Mapping.anonymous(2 * P);
  uffd.register(mapping.address, P);
  const [good] = uffd.ranges;
  const fd = uffd.release();
  for (const bad of [
    { modes: new Set(['bogus']) },
    { operations: new Set(['nonsense']) },
    { pageSize: 5000 },
  ]) {
    const ranges = [good, { ...good, ...bad }] as never;
    assert.throws(() => Userfaultfd.wrap(fd, { ranges }), /mode|operation|power of two/);
  }
  libc().close(fd);
  // If a failed wrap had left an object behind, this would unregister through the closed descriptor.
  mapping.close();
});

test('start is false for a descriptor that was closed behind its back', () => {
  for (const wait of ['poll', 'block'] as const) {
    const uffd = openWith();
    libc().close(uffd.fd);
    assert.is(uffd.start({ pagefault: never }, { wait }), false);
    uffd.close();
  }
});

test('a start that cannot have its eventfd changes nothing', () => {
  needKernel();
  const kernel = kernelWith(() => ({ eventfd: () => -24 }));
  const uffd = Userfaultfd.open({ kernel });
  const calls: string[] = [];
  assert.throws(() => uffd.start({ pagefault: never, closed: () => void calls.push('closed') }), /EMFILE/);
  assert.is(uffd.waiting, false);
  uffd.close();
  assert.equal(calls, []);
});

test('release without a handler: changes that a fill has read are applied, and a forked child is closed', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const before = holdings().descriptors;
  const uffd = openWith(['event-fork']);
  const base = map(2, 1);
  uffd.register(base, P);
  const target = map(1);
  uffd.register(target, P);
  const thread = await toucher();
  const forked = thread.fork(library);
  await thread.asleep();
  while (uffd.copy(target, pageOf(1)) === 0);
  assert.is(await forked, 0);
  Userfaultfd.wrap(uffd.release()).close();
  await endAll();
  await until(() => holdings().descriptors <= before, 'descriptors to go');
});

test('a mapping that two userfaultfds watch can be closed', () => {
  const mapping = Mapping.anonymous(2 * P);
  const uffds = [openWith(), openWith()];
  uffds.forEach((uffd, n) => void uffd.register(at(mapping.address, n), P));
  mapping.close();
  assert.equal(
    uffds.flatMap((uffd) => uffd.ranges),
    [],
  );
  for (const uffd of uffds) uffd.close();
});

test('a page that was taken away unnoticed is filled again by its window', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    uffd.start({
      pagefault({ page }) {
        const { start, length } = uffd.window(page, 1);
        return uffd.copy(start, pageOf(7), length) === length;
      },
    });
    assert.equal(await thread.read(base), [7]);
    await thread.madvise(base, P, MADV_DONTNEED);
    assert.equal(await thread.read(base), [7]);
  });
});

test('a registration too large for the tables is undone in the kernel as well', () => {
  const uffd = openWith();
  const other = openWith();
  const length = 24 * 2 ** 40;
  const mapping = Mapping.anonymous(length);
  assert.throws(() => uffd.register(mapping.address, length), /ENOMEM/);
  assert.equal(uffd.ranges, []);
  other.register(mapping.address, P);
  uffd.close();
  other.close();
  mapping.close();
});

test('a fault deferred in a blocking loop comes again by itself', async () => {
  for (const wait of ['block', 'adaptive'] as const) {
    const uffd = openWith();
    const base = map(1);
    uffd.register(base, P);
    const thread = await toucher();
    const read = thread.read(base);
    await thread.asleep();
    let offered = 0;
    uffd.start(
      {
        pagefault(fault) {
          if (++offered < 4) return false;
          assert.is(sleepers(uffd.fd), 1);
          uffd.zero(fault.page, P);
          uffd.stop();
          return true;
        },
      },
      { wait },
    );
    assert.equal(await read, [0]);
    assert.is(offered, 4);
    uffd.close();
    await endAll();
  }
});

test('a process whose worker sleeps in its loop can exit', () => {
  needKernel();
  const index = fileURLToPath(new URL('../../src/index.js', import.meta.url));
  const script = `
    const { Worker, isMainThread, parentPort } = require('node:worker_threads');
    if (isMainThread) new Worker(__filename).on('message', () => process.exit(7));
    else import(${JSON.stringify(index)}).then(({ Userfaultfd }) => {
      const uffd = Userfaultfd.open();
      parentPort.postMessage('about to sleep');
      uffd.start({ pagefault() {} }, { wait: 'block' });
    });`;
  const file = join(mkdtempSync(join(tmpdir(), 'uffd-exits-')), 'exits.cjs');
  writeFileSync(file, script);
  assert.is(spawnSync(process.execPath, [file], { timeout: 30_000, killSignal: 'SIGKILL' }).status, 7);
});

test('an unknown event ends the loop with its bytes, and closes', () => {
  needKernel();
  let planted = false;
  const kernel = kernelWith((port, memory) => {
    const read = port.read.bind(port);
    return {
      read(fd, offset, length) {
        if (!planted) return read(fd, offset, length);
        new Uint8Array(memory.buffer, offset, 32).fill(0x99);
        return 32;
      },
    };
  });
  const uffd = Userfaultfd.open({ kernel });
  planted = true;
  const errors: (string | undefined)[] = [];
  const handler = { pagefault: never, closed: (error?: Error) => void errors.push(error?.message) };
  assert.throws(() => uffd.poll(handler), /event that this library does not know: 99 99/);
  assert.is(errors.length, 1);
  assert.match(errors[0] as string, /does not know/);
  assert.is(uffd.closed, true);
});

test('an interrupted call is made again, whichever it is', async () => {
  needKernel();
  let calls = 0;
  const interrupted =
    <A extends unknown[]>(call: (...args: A) => number) =>
    (...args: A) =>
      calls++ % 2 === 0 ? -4 : call(...args);
  const kernel = kernelWith((port) => ({
    ioctl: interrupted(port.ioctl.bind(port)),
    read: interrupted(port.read.bind(port)),
    poll: interrupted(port.poll.bind(port)),
  }));
  const uffd = Userfaultfd.open({ kernel, features: ['event-remove'] });
  const base = map(2);
  uffd.register(base, 2 * P);
  const thread = await toucher();
  const read = thread.read(base, at(base, 1));
  await thread.asleep();
  let offered = 0;
  uffd.start(
    {
      pagefault(fault) {
        assert.is(uffd.zero(fault.page, P), P);
        if (++offered === 2) uffd.stop();
      },
    },
    { wait: 'block' },
  );
  assert.equal(await read, [0, 0]);
  uffd.unregister(base, 2 * P);
  uffd.close();
  await sleep(1);
  await endAll();
});

test.run();
