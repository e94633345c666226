// The life of a userfaultfd from open to closed: start, stop, and `closed`, which is called last and exactly once.
// Nothing is left behind.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { libc } from '../../shim/libc.js';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { type FaultHandler, type UffdError, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  endAll,
  holdings,
  map,
  needKernel,
  never,
  openWith,
  P,
  pageOf,
  recorder,
  sleepers,
  toucher,
  touchers,
  until,
} from '../support/real-kernel.js';

const test = suite('uffd/lifecycle');

const zero: FaultHandler['pagefault'] = (fault, uffd) => void uffd.zero(fault.page, P);

test('closed is called last, and exactly once', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  const { calls, handler } = recorder(zero);
  uffd.start(handler);
  const thread = await toucher();
  await thread.read(base);
  uffd.close();
  uffd.close();
  uffd[Symbol.dispose]();
  await sleep(5);
  assert.equal(calls, [['pagefault', base, 'read'], ['closed']]);
  assert.is(uffd.closed, true);
  assert.is(uffd.waiting, false);
  assert.is(uffd.fd, -1);
  await endAll();
});

test('close inside a callback: nothing more is offered, and closed comes when the callback has returned', async () => {
  const uffd = openWith();
  const base = map(4);
  uffd.register(base, 4 * P);
  const threads = await touchers(3);
  const reads = threads.map((thread, n) => thread.read(at(base, n)));
  await Promise.all(threads.map((thread) => thread.asleep()));
  const order: string[] = [];
  uffd.start({
    pagefault() {
      order.push('fault');
      uffd.close();
      order.push('callback returns');
    },
    closed: (error) => void order.push(`closed ${error?.code ?? 'without an error'}`),
  });
  assert.equal(await Promise.all(reads), [[0], [0], [0]], 'every reader goes on, with zeros');
  assert.equal(order, ['fault', 'callback returns', 'closed without an error']);
  await endAll();
});

test('close lets blocked readers go, read by the loop or not', async () => {
  const uffd = openWith();
  const base = map(2);
  uffd.register(base, 2 * P);
  const [first, second] = await touchers(2);
  const read = first?.read(base);
  await first?.asleep();
  uffd.poll({ pagefault: () => false });
  assert.is(sleepers(uffd.fd), 1);
  const unread = second?.read(at(base, 1));
  await second?.asleep();
  uffd.close();
  assert.equal(await read, [0]);
  assert.equal(await unread, [0]);
  await endAll();
});

test('a second start is true, warns, and keeps the first handler', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  const warned = new Promise<Error>((resolve) => process.once('warning', resolve));
  const first = recorder(zero);
  const second = recorder(never);
  assert.is(uffd.start(first.handler), true);
  assert.is(uffd.start(second.handler), true);
  assert.match((await warned).message, /running already/);
  const thread = await toucher();
  await thread.read(base);
  uffd.close();
  assert.is(first.calls.length, 2);
  assert.equal(second.calls, []);
  await endAll();
});

test('start after stop goes on with what is left, and may bring another handler', async () => {
  const uffd = openWith();
  const base = map(2);
  uffd.register(base, 2 * P);
  const first = recorder(() => {
    uffd.stop();
    return false;
  });
  uffd.start(first.handler);
  const thread = await toucher();
  const read = thread.read(base);
  await until(() => !uffd.waiting, 'the loop to stop');
  await thread.asleep();
  const second = recorder(zero);
  assert.is(uffd.start(second.handler), true);
  assert.equal(await read, [0]);
  assert.equal(first.calls, [['pagefault', base, 'read']]);
  assert.equal(second.calls, [['pagefault', base, 'read']]);
  uffd.close();
  assert.is(first.calls.length, 1, 'the replaced handler gets no `closed`');
  await endAll();
});

test('a stop from another thread and one of its own are one: the next loop goes on', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  const { handler } = recorder(zero);
  uffd.start(handler);
  Userfaultfd.stop(uffd.stopHandle);
  uffd.stop();
  assert.is(uffd.start(handler), true);
  const thread = await toucher();
  assert.equal(await thread.read(base), [0]);
  assert.is(uffd.waiting, true);
  uffd.close();
  await endAll();
});

test('release while waiting: watching ends, and the next owner gets the deferred faults', async () => {
  const uffd = openWith(['event-remove']);
  const base = map(2);
  uffd.register(base, 2 * P);
  const { calls, handler } = recorder(() => false);
  uffd.start(handler);
  const thread = await toucher();
  const read = thread.read(base);
  await until(() => calls.length >= 2, 'the fault to be offered twice');
  const { ranges, features } = uffd;
  const fd = uffd.release();
  const offered = calls.length;
  assert.equal(calls.at(-1), ['closed']);
  assert.throws(() => uffd.release(), /EBADF/);
  assert.throws(() => uffd.zero(base, P), /closed or was released/);
  const next = Userfaultfd.wrap(fd, { ranges, features });
  next.start({ pagefault: zero });
  assert.equal(await read, [0]);
  await sleep(100);
  assert.is(calls.length, offered, 'the old loop does not stir');
  uffd.close();
  assert.equal(await thread.read(at(base, 1)), [0], 'closing the old object leaves the descriptor alone');
  next.close();
  await endAll();
});

test('release inside a callback: mapping changes that were read are delivered before closed', async () => {
  const uffd = openWith(['event-remove']);
  const base = map(4, 1);
  uffd.register(base, 4 * P);
  const threads = await touchers(2);
  const removals = threads.map((thread, n) => thread.madvise(at(base, n * 2), P, MADV_DONTNEED));
  await Promise.all(threads.map((thread) => thread.asleep()));
  let fd = -1;
  const calls: string[] = [];
  uffd.poll({
    pagefault: never,
    removed() {
      calls.push('removed');
      if (!uffd.closed) fd = uffd.release();
    },
    closed: () => void calls.push('closed'),
  });
  assert.equal(calls, ['removed', 'removed', 'closed']);
  assert.equal(await Promise.all(removals), [0, 0]);
  Userfaultfd.wrap(fd).close();
  await endAll();
});

test('a handler that throws on the event loop: an uncaught exception, and the fault is still there', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  const thrown = new Promise<Error>((resolve) => process.once('uncaughtException', resolve));
  const failing = recorder(() => {
    throw new Error('planted');
  });
  uffd.start(failing.handler);
  const thread = await toucher();
  const read = thread.read(base);
  assert.is((await thrown).message, 'planted');
  assert.is(uffd.waiting, false);
  assert.is(uffd.closed, false);
  await thread.asleep();
  uffd.poll({ pagefault: zero });
  // The throw deferred the fault, so the handler gets it again after the retry delay.
  while (uffd.poll() === 0 && sleepers(uffd.fd) > 0) await sleep(1);
  assert.equal(await read, [0]);
  uffd.close();
  await endAll();
});

test('a handler that throws in poll() throws to its caller', async () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  const thread = await toucher();
  const read = thread.read(base);
  await thread.asleep();
  const fail = (): never => {
    throw new Error('planted');
  };
  assert.throws(() => uffd.poll({ pagefault: fail }), /planted/);
  uffd.close();
  assert.equal(await read, [0]);
  await endAll();
});

test('poll(): one round, without waiting', async () => {
  const uffd = openWith();
  const base = map(3);
  uffd.register(base, 3 * P);
  assert.throws(() => uffd.poll(), /no handler/);
  const { calls, handler } = recorder((_fault, given) => {
    assert.is(given, uffd);
    assert.throws(() => uffd.poll(), /inside a callback/);
    return zero(_fault, given);
  });
  assert.is(uffd.poll(handler), 0);
  const threads = await touchers(3);
  const reads = threads.map((thread, n) => thread.read(at(base, n)));
  await Promise.all(threads.map((thread) => thread.asleep()));
  assert.is(uffd.poll(), 3);
  await Promise.all(reads);
  assert.is(calls.length, 3);
  uffd.close();
  assert.throws(() => uffd.poll(), /EBADF/);
  await endAll();
});

test('a descriptor closed behind its back ends the loop without an error', () => {
  const uffd = openWith();
  const { calls, handler } = recorder(never);
  libc().close(uffd.fd);
  uffd.poll(handler);
  assert.equal(calls, [['closed']]);
  assert.is(uffd.closed, true);
});

test('the process whose memory it is has gone: closed says so', async () => {
  // A real fill gets ESRCH only if another process owns the memory; here the port simulates this answer.
  needKernel();
  const { linuxKernel } = await import('../../shim/linux.js');
  const real = linuxKernel();
  let gone = false;
  const uffd = Userfaultfd.open({
    kernel: {
      pageSize: real.pageSize,
      attach(memory) {
        const port = real.attach(memory);
        const ioctl = port.ioctl.bind(port);
        port.ioctl = (fd, request, offset) => (gone ? -3 : ioctl(fd, request, offset));
        return port;
      },
    },
  });
  const base = map(1);
  uffd.register(base, P);
  const errors: (UffdError | undefined)[] = [];
  const thread = await toucher();
  const read = thread.read(base);
  await thread.asleep();
  uffd.poll({
    pagefault(fault) {
      gone = true;
      assert.is(uffd.copy(fault.page, pageOf(1)), 0);
    },
    closed: (error) => void errors.push(error),
  });
  assert.equal(
    errors.map((error) => error?.code),
    ['ESRCH'],
  );
  assert.is(uffd.closed, true);
  assert.equal(await read, [0]);
  await endAll();
});

test('a thousand opens and closes leave no descriptor and no thread behind', async () => {
  needKernel();
  Userfaultfd.open().close();
  const before = holdings();
  const base = map(1);
  for (let n = 0; n < 1000; n++) {
    const uffd = Userfaultfd.open({ optional: ['event-remove'] });
    uffd.register(base, P);
    if (n % 2) uffd.start({ pagefault: never });
    if (n % 3) uffd.close();
    else Userfaultfd.wrap(uffd.release()).close();
  }
  // libuv releases its handles in the turn after their close.
  await sleep(20);
  assert.equal(holdings(), before);
});

test('a failed open leaves nothing behind', () => {
  needKernel();
  const before = holdings().descriptors;
  for (let n = 0; n < 50; n++) {
    assert.throws(() => Userfaultfd.open({ features: ['none' as 'sigbus'] }), /no feature 'none'/);
    assert.throws(() => Userfaultfd.wrap(0), /ENOTTY|no userfaultfd/);
  }
  assert.is(holdings().descriptors, before);
});

test.run();
