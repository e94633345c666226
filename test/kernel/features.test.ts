// Features and mode bits that no other test covers: each test checks what a program sees of one.

import * as assert from 'uvu/assert';
import { linuxKernel } from '../../shim/linux.js';
import * as memory from '../../shim/memory.js';
import { type Feature, Mapping, type Mode, type Pagefault, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import {
  at,
  map,
  needKernel,
  never,
  P,
  pageOf,
  sleepers,
  type Toucher,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('features');

/** Answers the one queued fault, and returns it. */
function answer(uffd: Userfaultfd, pagefault: (fault: Pagefault) => void): Pagefault {
  const faults: Pagefault[] = [];
  uffd.poll({ pagefault: (fault) => pagefault(faults[faults.push(fault) - 1] as Pagefault) });
  assert.is(faults.length, 1);
  return faults[0] as Pagefault;
}

/** Huge pages that are not reserved (MAP_NORESERVE): they can be registered, but not filled. */
function hugeSpace(): { address: bigint; length: number; close(): void } {
  const length = 2 ** 21;
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE | memory.hugeFlags(length);
  const address = memory.mmap(0n, length, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (address < 0n) skip('this machine has no huge pages of 2 MiB');
  return { address, length, close: () => memory.munmap(address, length) };
}

test('by either way the descriptor is closed on exec and does not block', () => {
  needKernel();
  const [F_GETFD, FD_CLOEXEC, F_GETFL, O_NONBLOCK] = [1, 1, 3, 0x800];
  const port = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  for (const via of ['syscall', 'device'] as const) {
    const uffd = Userfaultfd.open({ via });
    assert.ok(port.fcntl(uffd.fd, F_GETFD, 0) & FD_CLOEXEC, via);
    assert.ok(port.fcntl(uffd.fd, F_GETFL, 0) & O_NONBLOCK, via);
    uffd.close();
  }
});

/** A way to make a thread wait for a page, and to resolve the fault without waking the thread. */
interface Quiet {
  features: Feature[];
  mode: Mode;
  /** Lets a thread touch the page. */
  touch(thread: Toucher, page: bigint): Promise<unknown>;
  resolve(uffd: Userfaultfd, page: bigint): number;
  /** The result of the touch. */
  result: unknown;
}

const quietly = { dontWake: true };

const QUIET: Record<string, Quiet> = {
  zero: {
    features: [],
    mode: 'missing',
    touch: (thread, page) => thread.read(page),
    resolve: (uffd, page) => uffd.zero(page, P, quietly),
    result: [0],
  },
  continue: {
    features: ['minor-shmem'],
    mode: 'minor',
    touch: (thread, page) => thread.read(page),
    resolve: (uffd, page) => uffd.continue(page, P, quietly),
    result: [7],
  },
  poison: {
    features: ['poison'],
    mode: 'missing',
    touch: (thread, page) => thread.send(memory.memfdCreate('sink', 0), page, P),
    resolve: (uffd, page) => uffd.poison(page, P, quietly),
    result: 'EFAULT',
  },
  move: {
    features: ['move'],
    mode: 'missing',
    touch: (thread, page) => thread.read(page),
    resolve: (uffd, page) => uffd.move(page, map(1, 9), P, quietly),
    result: [9],
  },
  writeProtect: {
    features: ['pagefault-flag-wp'],
    mode: 'write-protect',
    touch: (thread, page) => thread.write(3, page),
    resolve: (uffd, page) => uffd.writeProtect(page, P, false, quietly),
    result: undefined,
  },
};

/** A registered page in the state that a mode needs: missing, in the page cache (7), or write-protected. */
function pageFor(uffd: Userfaultfd, mode: Mode): bigint {
  if (mode === 'minor') {
    const shared = Mapping.memfd(P);
    shared.alias().bytes[0] = 7;
    uffd.register(shared.address, P, mode);
    return shared.address;
  }
  const page = mode === 'missing' ? map(1) : map(1, 1);
  uffd.register(page, P, mode);
  if (mode === 'write-protect') assert.is(uffd.writeProtect(page, P, true), P);
  return page;
}

for (const [name, { features, mode, touch, resolve, result }] of Object.entries(QUIET)) {
  test(`${name} with dontWake resolves, and leaves the thread asleep until a wake`, async () => {
    await withUffd(features, async (uffd, thread) => {
      const page = pageFor(uffd, mode);
      const touched = touch(thread, page);
      await thread.asleep();
      answer(uffd, () => assert.is(resolve(uffd, page), P));
      assert.is(sleepers(uffd.fd), 1);
      uffd.wake(page, P);
      assert.equal(await touched, result);
      uffd.poll({ pagefault: never });
    });
  });
}

test('continue with writeProtect: reads go on, and the first write is a fault', async () => {
  await withUffd(['minor-shmem', 'wp-hugetlbfs-shmem'], async (uffd, thread) => {
    const shared = Mapping.memfd(P);
    shared.alias().bytes[0] = 7;
    uffd.register(shared.address, P, ['minor', 'write-protect']);
    assert.is(uffd.continue(shared.address, P, { writeProtect: true }), P);
    assert.equal(await thread.read(shared.address), [7]);
    const written = thread.write(8, shared.address);
    await thread.asleep();
    const fault = answer(uffd, ({ page }) => assert.is(uffd.writeProtect(page, P, false), P));
    assert.equal([fault.kind, fault.access], ['write-protect', 'write']);
    await written;
    assert.equal(await thread.read(shared.address), [8]);
  });
});

test('missing-shmem: missing pages of shared memory are filled, for its alias too', async () => {
  await withUffd(['missing-shmem'], async (uffd, thread) => {
    const shared = Mapping.memfd(2 * P);
    uffd.register(shared.address, 2 * P);
    const read = thread.read(at(shared.address, 1));
    await thread.asleep();
    const fault = answer(uffd, ({ page }) => assert.is(uffd.copy(page, pageOf(5)), P));
    assert.is(fault.kind, 'missing');
    assert.equal(await read, [5]);
    assert.is(shared.alias().bytes[P], 5);
  });
});

test('missing-hugetlbfs: a fault in huge pages is about the whole huge page', async () => {
  await withUffd(['missing-hugetlbfs', 'poison'], async (uffd, thread) => {
    const { address, length, close } = hugeSpace();
    uffd.register(address, length);
    const sent = thread.send(memory.memfdCreate('sink', 0), at(address, 3), P);
    await thread.asleep();
    // No huge page is reserved, so a copy would fail; POISON needs no page.
    const fault = answer(uffd, ({ page }) => assert.is(uffd.poison(page, length), length));
    assert.equal([fault.page, fault.address, fault.kind], [address, address, 'missing']);
    assert.is(await sent, 'EFAULT');
    uffd.unregister(address, length);
    close();
  });
});

test('minor-hugetlbfs: huge pages can be registered for minor faults, and be continued', async () => {
  await withUffd(['minor-hugetlbfs'], async (uffd) => {
    const { address, length, close } = hugeSpace();
    assert.ok(uffd.register(address, length, 'minor').has('continue'));
    // The operation exists, but the page is not in the page cache.
    assert.throws(() => uffd.continue(address, length), /EFAULT.*not in the page cache/);
    uffd.unregister(address, length);
    close();
  });
});

test('sigbus: no thread waits and no handler is called: a system call gets EFAULT', async () => {
  await withUffd(['sigbus'], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    uffd.copy(base, pageOf(4));
    const sink = memory.memfdCreate('sink', 0);
    assert.is(await thread.send(sink, base, P), P);
    assert.is(await thread.send(sink, at(base, 1), P), 'EFAULT');
    assert.is(uffd.poll({ pagefault: never }), 0);
  });
});

/** The address that a fault reports when a thread touches byte 123 of the page after `base`. */
async function addressOfFault(
  features: Feature[],
  check: (address: bigint, page: bigint) => void,
): Promise<void> {
  await withUffd(features, async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const read = thread.read(at(base, 1, 123));
    await thread.asleep();
    const fault = answer(uffd, ({ page }) => assert.is(uffd.zero(page, P), P));
    assert.is(fault.page, at(base, 1));
    check(fault.address, fault.page);
    assert.equal(await read, [0]);
  });
}

test('exact-address: the address of a fault is that of the byte', async () => {
  await addressOfFault(['exact-address'], (address, page) => assert.is(address, page + 123n));
});

test('without exact-address the address of a fault is that of its page', async () => {
  await addressOfFault([], (address, page) => assert.is(address, page));
});

/** A thread writes to an empty, protected page; `whileWaiting` runs while the thread waits. */
async function writeToProtectedHole(
  features: Feature[],
  whileWaiting: (uffd: Userfaultfd, thread: Toucher) => Promise<void>,
): Promise<void> {
  await withUffd(features, async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P, 'write-protect');
    assert.is(uffd.writeProtect(base, P, true), P);
    const written = thread.write(6, base);
    await whileWaiting(uffd, thread);
    await written;
    assert.is(uffd.poll({ pagefault: never }), 0);
    assert.equal(await thread.read(base), [6]);
  });
}

test('wp-unpopulated: the first write to an empty page that is protected is a fault', async () => {
  await writeToProtectedHole(['wp-unpopulated'], async (uffd, thread) => {
    await thread.asleep();
    const fault = answer(uffd, ({ page }) => assert.is(uffd.writeProtect(page, P, false), P));
    assert.is(fault.kind, 'write-protect');
  });
});

test('without wp-unpopulated an empty page cannot be protected: its first write posts no message', async () => {
  await writeToProtectedHole(['pagefault-flag-wp'], async () => {});
});

test('wp-async: a write to a protected page goes on by itself; wp-unpopulated comes with it', async () => {
  await withUffd(['wp-async'], async (uffd, thread) => {
    assert.ok(uffd.features.has('wp-unpopulated'));
    const base = map(2, 1);
    uffd.register(base, 2 * P, 'write-protect');
    assert.is(uffd.writeProtect(base, 2 * P, true), 2 * P);
    await thread.write(2, base, at(base, 1));
    assert.equal(await thread.read(base, at(base, 1)), [2, 2]);
    assert.is(uffd.poll({ pagefault: never }), 0);
  });
});

test.run();
