// The process whose memory is served ends, in every way and under every wait strategy. `closed` is called once, last,
// with ESRCH, after everything that was read before; and the library releases all resources of the session.

import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import * as assert from 'uvu/assert';
import { type FaultHandler, Userfaultfd, type Wait } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  type Call,
  holdings,
  kernelWith,
  map,
  needKernel,
  never,
  numberedSource,
  openWith,
  P,
  pageOf,
  recorder,
  skipWithout,
  until,
  withOpened,
} from '../support/real-kernel.js';
import { rangeAt, type Watched, watched } from '../support/watched-process.js';

const test = suite('uffd/process-exit');

const UFFDIO_COPY = 0xc028aa03;

type Way = Wait | 'by hand';
const WAYS: Way[] = ['poll', 'block', 'spin', 'adaptive', 'by hand'];

const zero: FaultHandler['pagefault'] = (fault, uffd) => uffd.zero(fault.page, P) === P;

/** Serves until `closed`, without a call of stop or close. */
async function serve(uffd: Userfaultfd, handler: FaultHandler, way: Way): Promise<void> {
  if (way !== 'by hand') uffd.start(handler, { wait: way });
  while (!uffd.closed) {
    if (way !== 'by hand' || uffd.poll(handler) === 0) await sleep(1);
  }
}

/** The calls, with each error replaced by its code. */
function coded(calls: readonly Call[]): unknown[] {
  return calls.map(([name, ...rest]) => [
    name,
    ...rest.map((one) => ((one as { code?: string })?.code ? (one as { code?: string }).code : one)),
  ]);
}

/** Runs a body, and waits until its descriptors are closed. */
async function leavingNothing(body: () => Promise<void>): Promise<void> {
  const before = holdings().descriptors;
  await body();
  await until(() => holdings().descriptors <= before, 'descriptors to go');
}

/** Ways to end a process, as orders after the first touched pages; the last order ends it. */
const ENDS: Record<string, (it: Watched) => void> = {
  'it exits': (it) => it.order('exit 3'),
  'it is killed': (it) => it.order('kill'),
  'it calls exec': (it) => it.order('exec'),
};

for (const way of WAYS) {
  for (const [how, end] of Object.entries(ENDS)) {
    test(`${way}: ${how}`, async () => {
      needKernel();
      await leavingNothing(async () => {
        const it = await watched(4);
        // Sleeps longer than the interval of the periodic check for an exit: the check must change nothing.
        it.order('touch 0 1');
        it.order('sleep 300');
        it.order('touch 1 1');
        end(it);
        const { calls, handler } = recorder(zero);
        await serve(it.uffd, handler, way);
        assert.equal(coded(calls), [
          ['pagefault', it.base, 'read'],
          ['pagefault', at(it.base, 1), 'read'],
          ['closed', 'ESRCH'],
        ]);
        it.uffd.close();
        it.kill();
        await it.ended;
        assert.is(calls.length, 3, 'called once');
      });
    });
  }

  test(`${way}: on a kernel without pidfds`, async () => {
    needKernel();
    await leavingNothing(async () => {
      const it = await watched(4, [], { kernel: kernelWith(() => ({ pidfd: () => -38 })) });
      it.order('touch 0 1');
      it.order('exit 0');
      const { calls, handler } = recorder(zero);
      await serve(it.uffd, handler, way);
      assert.equal(coded(calls), [
        ['pagefault', it.base, 'read'],
        ['closed', 'ESRCH'],
      ]);
      await it.ended;
    });
  });

  test(`${way}: its memory lives on in another process`, async () => {
    needKernel();
    // As after vfork. Simulated: the copy that checks whether the memory still exists always answers yes (ENOENT).
    const living = kernelWith((port) => {
      const ioctl = port.ioctl.bind(port);
      return { ioctl: (...args) => (args[1] === UFFDIO_COPY ? -2 : ioctl(...args)) };
    });
    await leavingNothing(async () => {
      const it = await watched(4, [], { kernel: living });
      it.order('touch 0 1');
      it.order('exit 0');
      const { calls, handler } = recorder(zero);
      await serve(it.uffd, handler, way);
      assert.equal(coded(calls), [
        ['pagefault', it.base, 'read'],
        ['closed', 'ESRCH'],
      ]);
    });
  });

  test(`${way}: what was read before is delivered before`, async () => {
    needKernel();
    const it = await watched(8, ['event-remove']);
    await readRemoval(it, 0);
    await readRemoval(it, 1);
    it.kill();
    await it.ended;
    const { calls, handler } = recorder(never);
    await serve(it.uffd, handler, way);
    assert.equal(coded(calls), [
      ['removed', it.base, at(it.base, 1)],
      ['removed', at(it.base, 1), at(it.base, 2)],
      ['closed', 'ESRCH'],
    ]);
  });

  test(`${way}: a fill finds it gone before the start`, async () => {
    needKernel();
    const it = await watched(8, [], { withPid: false });
    it.kill();
    await it.ended;
    assert.is(it.uffd.copy(it.base, pageOf(1)), 0);
    const { calls, handler } = recorder(never);
    await serve(it.uffd, handler, way);
    assert.equal(coded(calls), [['closed', 'ESRCH']]);
  });

  test(`${way}: a fill that finds the process gone delivers what came before, too`, async () => {
    needKernel();
    const it = await watched(8, ['event-remove'], { withPid: false });
    await readRemoval(it, 0);
    it.kill();
    await it.ended;
    assert.is(it.uffd.copy(at(it.base, 5), pageOf(1)), 0);
    const { calls, handler } = recorder(never);
    await serve(it.uffd, handler, way);
    assert.equal(coded(calls), [
      ['removed', it.base, at(it.base, 1)],
      ['closed', 'ESRCH'],
    ]);
  });

  test(`${way}: killed while a fault of it is out`, async () => {
    needKernel();
    const it = await watched(4);
    it.order('touch 2 1');
    const { calls, handler } = recorder((fault, uffd) => {
      it.kill();
      // The first copy installs the page. The later ones find it present and still return P, until the process is gone.
      while (uffd.copy(fault.page, pageOf(1)) === P);
    });
    await serve(it.uffd, handler, way);
    assert.equal(coded(calls), [
      ['pagefault', at(it.base, 2), 'read'],
      ['closed', 'ESRCH'],
    ]);
    await it.ended;
  });

  test(`${way}: killed while a fault of it is deferred`, async () => {
    needKernel();
    const it = await watched(4);
    it.order('touch 2 1');
    const { calls, handler } = recorder(() => {
      if (calls.length === 2) it.kill();
      return false;
    });
    await serve(it.uffd, handler, way);
    assert.equal(coded(calls.slice(-1)), [['closed', 'ESRCH']]);
    assert.ok(calls.slice(0, -1).every(([name]) => name === 'pagefault'));
    await it.ended;
  });
}

/** Makes a fill read the event of a page's removal; the event is not delivered yet. */
async function readRemoval(it: Watched, page: number): Promise<void> {
  const dropped = it.request(`drop ${page} 1`);
  await untilRead(it, dropped);
  assert.is(await dropped, '0');
}

/** Fills the last page until `answer` settles: each fill reads the event that `answer` waits for. */
async function untilRead(it: Watched, answer: Promise<unknown>): Promise<void> {
  let done = false;
  void answer.then(() => {
    done = true;
  });
  while (!done) {
    it.uffd.zero(at(it.base, 7), P);
    await sleep(1);
  }
}

test('a stop during the delivery: the next start delivers the rest', async () => {
  needKernel();
  for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
    const it = await watched(8, ['event-remove']);
    await readRemoval(it, 0);
    await readRemoval(it, 1);
    it.kill();
    await it.ended;
    const { calls, handler } = recorder(never);
    const stopping: FaultHandler = {
      ...handler,
      removed(start, end) {
        handler.removed?.(start, end);
        it.uffd.stop();
      },
    };
    it.uffd.start(stopping, { wait });
    await until(() => !it.uffd.waiting, 'the loop to stop');
    assert.is(it.uffd.closed, false, wait);
    assert.is(calls.length, 1, wait);
    await serve(it.uffd, handler, wait);
    assert.equal(coded(calls.slice(1)), [
      ['removed', at(it.base, 1), at(it.base, 2)],
      ['closed', 'ESRCH'],
    ]);
  }
});

test('poll: an exit is reported at once, not at the next periodic check', async () => {
  needKernel();
  // The periodic check never runs here: only the pidfd reports the exit.
  const blind = kernelWith((port) => {
    const after = port.after.bind(port);
    return { after: (delayMs, due) => after(delayMs < 200 ? delayMs : 1e9, due) };
  });
  const it = await watched(2, [], { kernel: blind });
  it.order('touch 0 1');
  it.order('exit 0');
  const { calls, handler } = recorder(zero);
  await serve(it.uffd, handler, 'poll');
  assert.equal(coded(calls), [
    ['pagefault', it.base, 'read'],
    ['closed', 'ESRCH'],
  ]);
});

test('a stop while the last messages of an exited process are delivered', async () => {
  needKernel();
  // Simulates a message that another process causes between the last batch and the report of the exit.
  let reads = 0;
  const late = kernelWith((_port, memory) => ({
    read(_fd, offset) {
      if (++reads !== 2) return -11;
      const message = new DataView(memory.buffer, offset, 32);
      message.setUint8(0, 0x15);
      message.setBigUint64(8, 0n, true);
      message.setBigUint64(16, BigInt(P), true);
      return 32;
    },
  }));
  const it = await watched(2, [], { kernel: late });
  it.kill();
  await it.ended;
  const { calls, handler } = recorder(never);
  const stopping: FaultHandler = {
    ...handler,
    removed(start, end) {
      handler.removed?.(start, end);
      it.uffd.stop();
    },
  };
  it.uffd.start(stopping, { wait: 'block' });
  assert.equal(calls, [['removed', 0n, BigInt(P)]]);
  assert.is(it.uffd.closed, false);
  await serve(it.uffd, handler, 'block');
  assert.equal(coded(calls.slice(1)), [['closed', 'ESRCH']]);
});

test('a child whose fork is not delivered yet is delivered and served after its parent has exited', async () => {
  skipWithout('event-fork');
  await leavingNothing(async () => {
    const it = await watched(8, ['event-fork']);
    const started = it.request('start p 3 1');
    await untilRead(it, started);
    const childPid = Number(await started);
    it.kill();
    await it.ended;
    const children: Userfaultfd[] = [];
    const { calls, handler } = recorder(never);
    await serve(it.uffd, { ...handler, forked: (child) => void children.push(child) }, 'poll');
    assert.equal(coded(calls), [['closed', 'ESRCH']]);
    const [child] = children as [Userfaultfd];
    assert.equal(
      child.ranges.map(({ start, length }) => [start, length]),
      [[it.base, 8 * P]],
    );
    const served = recorder((fault, uffd) => {
      uffd.zero(fault.page, P);
      process.kill(childPid, 'SIGKILL');
    });
    await serve(child, served.handler, 'poll');
    assert.equal(coded(served.calls), [
      ['pagefault', at(it.base, 3), 'read'],
      ['closed', 'ESRCH'],
    ]);
  });
});

test('close, stop and release are not the end of the process', async () => {
  needKernel();
  await leavingNothing(async () => {
    const closed = await watched(2);
    const first = recorder(never);
    closed.uffd.start(first.handler);
    closed.uffd.close();
    closed.kill();
    await closed.ended;

    const released = await watched(2);
    const second = recorder(never);
    released.uffd.start(second.handler);
    const next = Userfaultfd.wrap(released.uffd.release());
    released.kill();
    await released.ended;

    const stopped = await watched(2);
    const third = recorder(never);
    stopped.uffd.start(third.handler);
    stopped.uffd.stop();
    stopped.kill();
    await stopped.ended;

    await sleep(500);
    for (const { calls } of [first, second]) assert.equal(calls, [['closed']]);
    assert.equal(third.calls, []);
    assert.is(stopped.uffd.closed, false);
    assert.is(next.closed, false);
    next.close();
    stopped.uffd.close();
    assert.equal(third.calls, [['closed']]);
  });
});

test('a handler that throws while the rest is delivered: the next start continues', async () => {
  needKernel();
  const it = await watched(8, ['event-remove']);
  await readRemoval(it, 0);
  await readRemoval(it, 1);
  it.kill();
  await it.ended;
  const { calls, handler } = recorder(never);
  const throwing: FaultHandler = {
    ...handler,
    removed() {
      throw new Error('planted');
    },
  };
  assert.throws(() => it.uffd.start(throwing, { wait: 'block' }), /planted/);
  assert.is(it.uffd.closed, false);
  await serve(it.uffd, handler, 'block');
  assert.equal(coded(calls), [
    ['removed', at(it.base, 1), at(it.base, 2)],
    ['closed', 'ESRCH'],
  ]);
});

test('an answer from a source finds the process gone: that alone ends the watch', async () => {
  // It is this process's own memory, so no pidfd is watched: only the failed copy shows the end.
  const kernel = kernelWith((port) => {
    const ioctl = port.ioctl.bind(port);
    return { ioctl: (...args) => (args[1] === UFFDIO_COPY ? -3 : ioctl(...args)) };
  });
  await withOpened(Userfaultfd.open({ kernel }), async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    uffd.answerFrom(base, 2 * P, numberedSource(2));
    const read = thread.read(base);
    await thread.asleep();
    const { calls, handler } = recorder(never);
    uffd.poll(handler);
    assert.equal(coded(calls), [['closed', 'ESRCH']]);
    assert.is(uffd.closed, true);
    // The memory still exists: pages that are no longer watched read as zeros.
    assert.equal(await read, [0]);
  });
}, 20_000);

test('a pid that is none: the descriptor still belongs to the caller, and nothing is kept', async () => {
  const fd = openWith().release();
  const before = holdings();
  const { pid } = spawnSync('true');
  assert.throws(() => Userfaultfd.wrap(fd, { pid }), /ESRCH: pidfd_open.*no process/);
  const worker = new Worker('setInterval(() => {}, 1000)', { eval: true });
  await new Promise((resolve) => worker.once('online', resolve));
  const threads = readdirSync('/proc/self/task').map(Number);
  const thread = threads.find((tid) => tid !== process.pid) as number;
  assert.throws(() => Userfaultfd.wrap(fd, { pid: thread }), /pidfd_open.*is a thread of a process/);
  await worker.terminate();
  for (const bad of [0, -1, 1.5, Number.NaN, 2 ** 31]) {
    assert.throws(() => Userfaultfd.wrap(fd, { pid: bad }), RangeError, String(bad));
  }
  assert.throws(() => Userfaultfd.wrap(fd, { pid: '1' as unknown as number }), TypeError);
  const full = kernelWith(() => ({ pidfd: () => -24 }));
  assert.throws(
    () => Userfaultfd.wrap(fd, { pid: process.pid, kernel: full }),
    (error: Error & { code: string }) => error.code === 'EMFILE' && !/no process/.test(error.message),
  );
  // Too many ranges for the core's memory: this fails after the process was found.
  const ranges = [rangeAt(0n, 2 ** 33)];
  assert.throws(() => Userfaultfd.wrap(fd, { pid: process.pid, ranges }), /ENOMEM/);
  // The thread that was terminated is listed for a moment after its end.
  await until(() => holdings().threads <= before.threads, 'the thread to go');
  assert.equal(holdings(), before);
  Userfaultfd.wrap(fd, { pid: process.pid }).close();
});

test.run();
