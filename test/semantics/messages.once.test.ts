// Messages and reads (docs/kernel.md: uffd_msg): the contents of messages, their order, and what removes them from the
// queue.

import { strict as assert } from 'node:assert';
import { DONTWAKE, Feature, Flag, MISSING, OUTSIDE, openUffd } from './calls.js';
import { at, changing, checks, fault, P, setting, source } from './support.js';

const check = checks('semantics/messages');

const POLLIN = 1;
const POLLERR = 8;
const MADV_DONTNEED = 4;

// ---- addresses and threads --------------------------------------------------------------------------------

const ADDRESSES = [
  ['fault.address.page', 'anonymous', 0n, 'its page'],
  ['fault.address.exact', 'anonymous', Feature.exactAddress, 'the byte, with EXACT_ADDRESS'],
  ['fault.address.hugetlb', 'hugetlb', 0n, 'its huge page'],
  ['fault.address.hugetlb-exact', 'hugetlb', Feature.exactAddress, 'the byte, with EXACT_ADDRESS'],
] as const;

for (const [id, kind, exact, what] of ADDRESSES) {
  const features = exact | (kind === 'hugetlb' ? Feature.missingHugetlb : 0n);
  check(
    id,
    `a fault in ${kind} memory names ${what}`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, { kind, pages: 2, features });
      const page = base + BigInt(area.pageSize);
      // If the kernel did not mask the address to the huge page, it would report the fourth small page.
      const touched = page + BigInt(kind === 'hugetlb' ? 3 * P + 5 : 5);
      assert.equal(thread.read(touched), 'fault');
      assert.deepEqual(uffd.take(), [fault(exact ? touched : page)]);
    },
    { has: [kind], features },
  );
}

check('fault.ptid.off', 'ptid is 0 without THREAD_ID', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  assert.deepEqual(uffd.take(), [fault(base, 0, 0)]);
});

const THREAD_ID = { features: Feature.threadId } as const;

check(
  'fault.ptid.thread',
  'with THREAD_ID it is the thread that touches',
  (world) => {
    const { uffd, base, thread } = setting(world, THREAD_ID);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 0, thread.tid)]);
  },
  THREAD_ID,
);

check(
  'fault.ptid.remote',
  'where another process reads by process_vm_readv it is that one',
  (world) => {
    const { uffd, base, thread } = setting(world, THREAD_ID);
    const other = world.thread().fork();
    assert.equal(other.readOf(thread, base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 0, other.tid)]);
    assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ok', P]);
    assert.equal(other.outcome(), 0x61);
  },
  THREAD_ID,
);

// ---- reading ----------------------------------------------------------------------------------------------

check('read.eagain.empty', 'nothing to read: EAGAIN', (world) => {
  assert.equal(openUffd(world).read(), 'EAGAIN');
});

check('read.einval.short', 'a buffer of less than a message: EINVAL, the message stays', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  assert.equal(uffd.read(31), 'EINVAL');
  // Calls read(2) itself: the port may use another system call, which ignores an empty buffer.
  assert.equal(world.thread().readInto(uffd.fd, world.map('anonymous', 1).address, 0), 'EINVAL');
  assert.deepEqual(uffd.take(), [fault(base)]);
});

check('read.whole-messages', 'as many whole messages as the buffer holds, faults in their order', (world) => {
  const { uffd, base } = setting(world);
  for (const page of [2, 0, 1]) assert.equal(world.thread().read(at(base, page)), 'fault');
  assert.equal(uffd.read(2 * 32 + 31), 64);
  assert.deepEqual([uffd.message(0), uffd.message(1)], [fault(at(base, 2)), fault(base)]);
  assert.deepEqual(uffd.take(), [fault(at(base, 1))]);
});

check('read.faults-first', 'faults come before all events, whatever came first; each in order', (world) => {
  const { uffd, base } = setting(world, { features: Feature.eventRemove });
  for (const page of [3, 2]) assert.equal(world.thread().madvise(at(base, page), P, MADV_DONTNEED), 'event');
  for (const page of [1, 0]) assert.equal(world.thread().read(at(base, page)), 'fault');
  assert.deepEqual(uffd.take(), [
    fault(at(base, 1)),
    fault(base),
    { event: 'remove', start: at(base, 3), end: at(base, 4) },
    { event: 'remove', start: at(base, 2), end: at(base, 3) },
  ]);
});

check('read.first-blocks', 'without O_NONBLOCK only the first message is waited for', (world) => {
  const { uffd, base, thread } = setting(world, { flags: Flag.cloexec });
  const reader = world.thread();
  const buffer = world.map('anonymous', 1).address;
  assert.equal(reader.readInto(uffd.fd, buffer, 64), 'read');
  assert.equal(thread.read(base), 'fault');
  assert.equal(reader.outcome(), 32);
  assert.equal(reader.read(buffer), 0x12);
});

check(
  'read.efault.loses',
  'a buffer that cannot be written consumes the message; the thread sleeps on',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base), 'fault');
    assert.equal(uffd.read(32, OUTSIDE), 'EFAULT');
    assert.deepEqual(uffd.take(), []);
    assert.deepEqual(uffd.queue(), { pending: 0, total: 1 });
    assert.equal(thread.outcome(), 'fault');
  },
);

check(
  'read.fdinfo',
  'fdinfo: pending counts unread faults, total also threads that still sleep after the read',
  (world) => {
    const { uffd, base } = setting(world);
    assert.deepEqual(uffd.queue(), { pending: 0, total: 0 });
    for (const page of [0, 1]) assert.equal(world.thread().read(at(base, page)), 'fault');
    assert.deepEqual(uffd.queue(), { pending: 2, total: 2 });
    uffd.take(1);
    assert.deepEqual(uffd.queue(), { pending: 1, total: 2 });
    assert.deepEqual(uffd.zeropage(base, 2 * P), ['ok', 2 * P]);
    assert.deepEqual(uffd.queue(), { pending: 0, total: 0 });
  },
);

// ---- messages and what happens to their page --------------------------------------------------------------

check(
  'read.stale.dontwake',
  'an unread message is still delivered when its page was filled without a wake',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.zeropage(base, P, DONTWAKE), ['ok', P]);
    assert.deepEqual(uffd.take(), [fault(base)]);
    assert.equal(thread.outcome(), 'fault');
  },
);

check(
  'read.vanishes',
  'an unread message vanishes when its thread is woken: POLLIN, then EAGAIN',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base), 'fault');
    assert.equal(uffd.poll(), POLLIN);
    assert.deepEqual(uffd.zeropage(base, P), ['ok', P]);
    assert.equal(thread.outcome(), 0);
    assert.equal(uffd.read(), 'EAGAIN');
  },
);

check('read.two-waiters', 'two threads at one page are two messages; one COPY wakes both', (world) => {
  const { uffd, base, thread } = setting(world);
  const other = world.thread();
  assert.equal(thread.read(base), 'fault');
  assert.equal(other.write(base, 1), 'fault');
  assert.deepEqual(uffd.take(), [fault(base), fault(base, 1)]);
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ok', P]);
  assert.equal(other.outcome(), 0);
  assert.ok([1, 0x61].includes(thread.outcome() as number));
});

check('signal.user', 'a waiter that handles a signal faults again, and posts a second message', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  assert.deepEqual(uffd.take(), [fault(base)]);
  thread.interrupt();
  assert.equal(thread.outcome(), 'fault');
  assert.deepEqual(uffd.take(), [fault(base)]);
  assert.deepEqual(uffd.queue(), { pending: 0, total: 1 });
});

check('signal.user-unread', 'of a message that was not read, nothing is left but the second', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  thread.interrupt();
  assert.equal(thread.outcome(), 'fault');
  assert.deepEqual(uffd.take(), [fault(base)]);
});

check(
  'signal.kernel',
  'a waiter in a system call posts messages without end, until its page is there',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base, 'kernel'), 'fault');
    thread.interrupt();
    for (let messages = 0; messages < 20; ) {
      const taken = uffd.take();
      for (const message of taken) assert.deepEqual(message, fault(base));
      messages += taken.length;
    }
    assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ok', P]);
    assert.equal(thread.outcome(), 0x61);
  },
);

// ---- poll -------------------------------------------------------------------------------------------------

check('poll.readable', 'POLLIN while there is something to read', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(uffd.poll(), 0);
  assert.equal(thread.read(base), 'fault');
  assert.equal(uffd.poll(), POLLIN);
  assert.equal(uffd.poll(), POLLIN);
  uffd.take();
  assert.equal(uffd.poll(), 0);
});

check('poll.event', 'POLLIN for an event too', (world) => {
  const { uffd } = changing(world);
  assert.equal(uffd.poll(), POLLIN);
});

check('poll.blocking', 'without O_NONBLOCK always POLLERR', (world) => {
  const { uffd, base, thread } = setting(world, { flags: Flag.cloexec, mode: MISSING });
  assert.equal(uffd.poll(), POLLERR);
  assert.equal(thread.read(base), 'fault');
  assert.equal(uffd.poll(), POLLERR);
});

check('poll.watch', 'poll reports a message again and again, until it is read', async (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.read(base), 'fault');
  let times = 0;
  await new Promise<void>((resolve) => {
    const watch = uffd.port.watch(uffd.fd, () => {
      if (++times < 3) return;
      watch.close();
      resolve();
    });
  });
  assert.deepEqual(uffd.take(), [fault(base)]);
});

check.run();
