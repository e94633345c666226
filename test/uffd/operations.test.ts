// The effect of the six operations on sleeping threads and on pages, on the real kernel: the cases that the contract's
// model never tested.

import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import {
  MADV_DONTNEED,
  MAP_SHARED,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  memfdCreate,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
  view,
} from '../../shim/memory.js';
import { UffdError } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  map,
  needKernelFaults,
  never,
  P,
  pageOf,
  recorder,
  toucher,
  touchers,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('uffd/operations');

test('a wake without a resolution brings the fault again', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const { calls, handler } = recorder((fault) => {
      if (calls.length === 1) uffd.wake(fault.page, P);
      else uffd.zero(fault.page, P);
    });
    uffd.start(handler);
    assert.equal(await thread.read(base), [0]);
    assert.equal(calls, [
      ['pagefault', base, 'read'],
      ['pagefault', base, 'read'],
    ]);
  });
});

test('a fill that does not wake leaves the thread asleep until a wake', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const { calls, handler } = recorder((fault) => {
      assert.is(uffd.copy(fault.page, pageOf(7), P, { dontWake: true }), P);
    });
    uffd.start(handler);
    const read = thread.read(base);
    while (calls.length === 0) await sleep(1);
    await thread.asleep();
    uffd.wake(base, P);
    assert.equal(await read, [7]);
    assert.is(calls.length, 1);
  });
});

test('unregister lets a blocked reader go, with zeros', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const read = thread.read(base);
    await thread.asleep();
    uffd.unregister(base, 2 * P);
    assert.equal(await read, [0]);
    assert.equal(uffd.ranges, []);
  });
});

test('unregister lets a thread go that waits to write a protected page', async () => {
  await withUffd(['pagefault-flag-wp'], async (uffd, thread) => {
    const base = map(1, 1);
    uffd.register(base, P, 'write-protect');
    assert.is(uffd.writeProtect(base, P, true), P);
    const write = thread.write(9, base);
    await thread.asleep();
    uffd.unregister(base, P);
    await write;
    assert.equal(await thread.read(base), [9]);
  });
});

test('a page that is present in the middle of a copy is counted and keeps its bytes', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    assert.is(uffd.copy(at(base, 2), pageOf('x')), P);
    assert.is(uffd.copy(base, new Uint8Array(4 * P).fill('a'.charCodeAt(0))), 4 * P);
    const bytes = await thread.read(base, at(base, 1), at(base, 2), at(base, 3));
    assert.is(String.fromCharCode(...bytes), 'aaxa');
  });
});

test('a thread that waits for a page that turns out to be present is woken', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const read = thread.read(at(base, 1));
    await thread.asleep();
    // Installed without a wake: the thread still sleeps, and only the EEXIST of the next copy can wake it.
    assert.is(uffd.copy(at(base, 1), pageOf('x'), P, { dontWake: true }), P);
    assert.is(uffd.copy(base, new Uint8Array(2 * P).fill(1)), 2 * P);
    assert.equal(await read, ['x'.charCodeAt(0)]);
  });
});

test('a change in progress elsewhere: the fill reads its event and does not spin', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(2, 1);
    uffd.register(base, 2 * P);
    const target = map(1);
    uffd.register(target, P);
    const { calls, handler } = recorder(never);
    const removal = thread.madvise(base, P, MADV_DONTNEED);
    await thread.asleep();
    // No loop reads: if the fill itself did not read the event, this loop would never end.
    let done = 0;
    while (done === 0) done = uffd.copy(target, pageOf(5));
    assert.is(done, P);
    assert.is(await removal, 0);
    uffd.poll(handler);
    assert.equal(calls, [['removed', base, at(base, 1)]]);
  });
});

test('a change over the same pages ends the fill short; once the change is delivered, the fill works', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(2, 1);
    uffd.register(base, 2 * P);
    const { calls, handler } = recorder(never);
    const removal = thread.madvise(base, 2 * P, MADV_DONTNEED);
    await thread.asleep();
    assert.is(uffd.copy(base, pageOf(5)), 0);
    assert.is(uffd.copy(base, pageOf(5)), 0, 'and again, until the change is delivered');
    assert.is(await removal, 0);
    uffd.poll(handler);
    assert.equal(calls, [['removed', base, at(base, 2)]]);
    assert.is(uffd.pageState(base), 'removed');
    assert.is(uffd.zero(base, 2 * P), 2 * P);
  });
});

test('a removal that arrives with a fault is delivered first, whatever the handler does with the fault', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    uffd.zero(base, P);
    const other = await toucher();
    const read = thread.read(at(base, 1));
    await thread.asleep();
    const removal = other.madvise(base, P, MADV_DONTNEED);
    await other.asleep();
    const { calls, handler } = recorder((fault) => {
      uffd.copy(fault.page, pageOf(3));
    });
    uffd.start(handler);
    assert.equal(await read, [3]);
    assert.is(await removal, 0);
    assert.equal(calls[0], ['removed', base, at(base, 1)]);
    assert.equal(calls[1], ['pagefault', at(base, 1), 'read']);
    assert.ok(calls.length >= 2);
  });
});

test('several threads on one page are one question', async () => {
  await withUffd([], async (uffd) => {
    const base = map(1);
    uffd.register(base, P);
    const threads = await touchers(8);
    const reads = threads.map((thread, n) => (n === 7 ? thread.write(4, base) : thread.read(base)));
    await Promise.all(threads.map((thread) => thread.asleep()));
    const { calls, handler } = recorder((fault) => {
      uffd.copy(fault.page, pageOf(3));
    });
    uffd.poll(handler);
    await Promise.all(reads);
    assert.equal(calls, [['pagefault', base, 'write']], 'and the one that writes makes it a write');
  });
});

test('a thread that waits in memory that is unmapped is woken, and faults again at the new address', async () => {
  await withUffd(['event-remap', 'event-unmap'], async (uffd, thread) => {
    const base = map(1);
    const target = map(1);
    uffd.register(base, P);
    const read = thread.read(base);
    await thread.asleep();
    const { calls, handler } = recorder((fault) => {
      if (fault.page === target) uffd.copy(target, pageOf(6));
      // A fill of the old place has no effect: only the unmap wakes its thread.
      else uffd.zero(fault.page, P);
    });
    const other = await toucher();
    // Moves fresh memory to the sleeping thread's address; the thread then reads unwatched zeros.
    const fresh = map(1);
    const swap = other.mremap(fresh, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, base);
    await other.asleep();
    uffd.start({
      ...handler,
      pagefault: () => {
        throw new Error('the fault went with its memory');
      },
    });
    assert.is(await swap, base);
    assert.equal(await read, [0]);
    assert.equal(calls, [['unmapped', base, at(base, 1)]]);
  });
});

test('a fill of memory that is gone wakes, and counts nothing', async () => {
  await withUffd([], async (uffd) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    munmap(base, P);
    assert.is(uffd.copy(base, pageOf(1)), 0);
    assert.is(uffd.zero(base, 2 * P), 0);
    assert.is(uffd.zero(at(base, 1), P), P);
  });
});

test('a source that cannot be read is an error with what was transferred', async () => {
  await withUffd([], async (uffd) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    const source = map(4, 1);
    munmap(at(source, 2), 2 * P);
    try {
      uffd.copy(base, source, 4 * P);
      assert.unreachable();
    } catch (error) {
      assert.instance(error, UffdError);
      const { code, errno, syscall, transferred, address, message } = error as UffdError;
      assert.equal([code, errno, syscall], ['EFAULT', -14, 'UFFDIO_COPY']);
      assert.is(transferred, 2 * P);
      assert.is(address, at(base, 2));
      assert.match(message, /source cannot be read/);
    }
  });
});

test('write-protect: a write waits for the handler, a read does not', async () => {
  await withUffd(['pagefault-flag-wp'], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P, ['missing', 'write-protect']);
    assert.is(uffd.copy(base, new Uint8Array(2 * P).fill(1), 2 * P, { writeProtect: true }), 2 * P);
    assert.ok(uffd.isWriteProtected(base));
    const kinds: string[] = [];
    const { calls, handler } = recorder((fault) => {
      kinds.push(fault.kind);
      assert.is(uffd.writeProtect(fault.page, P, false), P);
    });
    uffd.start(handler);
    assert.equal(await thread.read(base, at(base, 1)), [1, 1]);
    await thread.write(2, base);
    assert.equal(await thread.read(base), [2]);
    assert.equal(calls, [['pagefault', base, 'write']]);
    assert.equal(kinds, ['write-protect']);
    assert.not.ok(uffd.isWriteProtected(base));
    assert.ok(uffd.isWriteProtected(at(base, 1)));
  });
});

test('minor: edit through the alias, then continue', async () => {
  await withUffd(['minor-shmem'], async (uffd, thread) => {
    const fd = memfdCreate('minor', 2 * P);
    const base = mmap(0n, 2 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    const alias = new Uint8Array(view(mmap(0n, 2 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd), 2 * P));
    closeSync(fd);
    alias.fill(1);
    assert.ok(uffd.register(base, 2 * P, 'minor').has('continue'));
    const kinds: string[] = [];
    const { calls, handler } = recorder((fault) => {
      kinds.push(fault.kind);
      alias[Number(fault.page - base)] = 8;
      assert.is(uffd.continue(fault.page, P), P);
    });
    uffd.start(handler);
    assert.equal(await thread.read(base, at(base, 0, 1), at(base, 1)), [8, 1, 8]);
    assert.equal(calls, [
      ['pagefault', base, 'read'],
      ['pagefault', at(base, 1), 'read'],
    ]);
    assert.equal(kinds, ['minor', 'minor']);
    const waiter = thread.read(base);
    await waiter;
    uffd.unregister(base, 2 * P);
  });
});

test('unregister lets a thread go that waits for a minor fault', async () => {
  await withUffd(['minor-shmem'], async (uffd, thread) => {
    const fd = memfdCreate('minor', P);
    const base = mmap(0n, P, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    const alias = new Uint8Array(view(mmap(0n, P, PROT_READ | PROT_WRITE, MAP_SHARED, fd), P));
    closeSync(fd);
    alias.fill(3);
    uffd.register(base, P, 'minor');
    const read = thread.read(base);
    await thread.asleep();
    uffd.unregister(base, P);
    assert.equal(await read, [3]);
  });
});

test('poison: a touch of the page fails instead of waiting', async () => {
  needKernelFaults();
  await withUffd(['poison'], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const { calls, handler } = recorder((fault) => {
      if (fault.page === base) assert.is(uffd.poison(fault.page, P), P);
      else uffd.copy(fault.page, pageOf(1));
    });
    uffd.start(handler);
    const sink = memfdCreate('sink', 0);
    assert.is(await thread.send(sink, base, P), 'EFAULT');
    assert.is(await thread.send(sink, at(base, 1), P), P);
    closeSync(sink);
    assert.is(calls.length, 2);
  });
});

test('move: pages change their place without a copy, and the source is empty', async () => {
  await withUffd(['move'], async (uffd, thread) => {
    const source = map(3, 5);
    const target = map(3);
    uffd.register(target, 3 * P);
    assert.is(uffd.move(target, source, 2 * P), 2 * P);
    assert.equal(await thread.read(target, at(target, 1)), [5, 5]);
    assert.equal(await thread.read(source, at(source, 1), at(source, 2)), [0, 0, 5]);
    try {
      uffd.move(target, at(source, 2), P);
      assert.unreachable();
    } catch (error) {
      assert.is((error as UffdError).code, 'EEXIST');
      assert.match((error as UffdError).message, /the source keeps/);
    }
    assert.equal(await thread.read(at(source, 2)), [5]);
    assert.is(uffd.move(at(target, 2), map(1), P, { allowHoles: true }), P, 'a hole counts as moved');
  });
});

test.run();
