// Scenarios zeropage, poison, sigbus, wp-unpopulated; and for each kind of memory: windows, claims, pages that are
// already present, removals, and which threads wake when the descriptor changes its owner.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../../shim/memory.js';
import { type Pagefault, Userfaultfd } from '../../../src/index.js';
import { suite } from '../../support/harness.js';
import { never, recorder, sleepers, until } from '../../support/real-kernel.js';
import { isHuge, isProtected, isShared, refused, type Stage, scenario, touch } from './support.js';

const test = suite('fill');
const SIGBUS = 7;
const MADV_REMOVE = 9;

/** The madvise advice that removes all pages of the memory, also from the page cache. */
function removal({ kind }: Stage): number {
  return isShared(kind) ? MADV_REMOVE : MADV_DONTNEED;
}

/** Asserts that every page holds its content, as the thread reads it. */
async function verify({ thread, pages, page, pageSize }: Stage): Promise<void> {
  for (let index = 0; index < pages; index++)
    assert.is(await thread.filling(page(index), pageSize), index + 1, `page ${index}`);
}

scenario(test, 'zeropage', {}, async ({ kind, uffd, thread, base, length, pages, page, pageSize }) => {
  // fill(0) makes the source resident: a copy from a missing source takes a huge page that is not reserved.
  const zeros = new Uint8Array(pageSize).fill(0);
  const zero = (address: bigint): number => {
    if (!isHuge(kind)) return uffd.zero(address, pageSize);
    refused(() => uffd.zero(address, pageSize), 'EINVAL', 'UFFDIO_ZEROPAGE', /copy zeros instead/);
    return uffd.copy(address, zeros);
  };
  assert.is(uffd.ranges[0]?.operations.has('zero'), !isHuge(kind));
  const { calls, handler } = recorder((fault) => zero(fault.page) === pageSize);
  uffd.start(handler);
  for (let index = 0; index < pages; index++) {
    if (index % 2) await thread.write(index, page(index));
    else assert.is(await thread.filling(page(index), pageSize), 0);
  }
  assert.equal(await thread.read(...Array.from({ length: pages }, (_, index) => page(index))), [0, 1, 0, 3]);
  assert.equal(await thread.read(page(1) + BigInt(pageSize - 1)), [0]);
  assert.equal(
    calls,
    Array.from({ length: pages }, (_, index) => ['pagefault', page(index), index % 2 ? 'write' : 'read']),
  );
  // A page that is already present stays unchanged, and counts.
  if (!isHuge(kind)) assert.is(uffd.zero(base, length), length);
  assert.equal(await thread.read(page(3)), [3]);
});

scenario(test, 'copy', { features: ['exact-address'] }, async (stage) => {
  const { uffd, thread, pages, page, pageSize, fill } = stage;
  const faults: Pagefault[] = [];
  uffd.start({
    pagefault(fault) {
      faults.push(fault);
      assert.is(fill(fault.page), pageSize);
    },
  });
  const inside = BigInt(pageSize / 2 + 8);
  for (let index = 0; index < pages; index++)
    assert.equal(await thread.read(page(index) + inside), [index + 1]);
  await verify(stage);
  const reported = faults.map((fault) => [fault.page, fault.address, fault.kind, fault.access]);
  assert.equal(
    reported,
    Array.from({ length: pages }, (_, index) => [page(index), page(index) + inside, 'missing', 'read']),
  );
});

scenario(test, 'poison', { features: ['poison'] }, async ({ uffd, thread, pages, page, indexOf, fill }) => {
  const { calls, handler } = recorder((fault) => {
    if (indexOf(fault.page) % 2) fill(fault.page);
    else assert.is(uffd.poison(fault.page, uffd.ranges[0]?.pageSize as number), uffd.ranges[0]?.pageSize);
  });
  uffd.start(handler);
  for (let index = 0; index < pages; index++) {
    const writes = index > 1 ? 5 : -1;
    assert.is(await touch(thread, page(index) + 9n, writes), index % 2 ? 0 : SIGBUS, `page ${index}`);
    assert.is(await touch(thread, page(index)), index % 2 ? 0 : SIGBUS, `page ${index}, again`);
  }
  assert.is(calls.length, pages, 'a poisoned page raises no further fault');
  assert.equal(await thread.read(page(1)), [2]);
});

scenario(
  test,
  'sigbus',
  { features: ['sigbus'] },
  async ({ uffd, thread, page, base, pageSize, fill, pages }) => {
    uffd.start({ pagefault: never });
    for (const value of [-1, 3]) assert.is(await touch(thread, page(1) + 5n, value), SIGBUS);
    // After the signal, a fill installs the page, and the next touch succeeds.
    assert.is(fill(page(1)), pageSize);
    assert.is(await touch(thread, page(1) + 5n), 0);
    assert.is(await thread.filling(page(1), pageSize), 2);
    assert.is(await touch(thread, base), SIGBUS);
    for (let index = 0; index < pages; index++) fill(page(index));
    assert.is(await touch(thread, base, 4), 0);
  },
);

scenario(
  test,
  'sigbus-wp',
  { features: ['sigbus'], modes: ['missing', 'write-protect'] },
  async ({ uffd, thread, base, pageSize, fill }) => {
    uffd.start({ pagefault: never });
    assert.is(fill(base, { writeProtect: true }), pageSize);
    assert.is(await touch(thread, base), 0);
    assert.is(await touch(thread, base, 8), SIGBUS);
    assert.is(uffd.writeProtect(base, pageSize, false), pageSize);
    assert.is(await touch(thread, base, 8), 0);
    assert.equal(await thread.read(base, base + 1n), [8, 1]);
  },
);

scenario(
  test,
  'wp-unpopulated',
  { features: ['wp-unpopulated'], modes: 'write-protect' },
  async ({ kind, uffd, thread, base, length, page, pageSize }) => {
    const kinds: string[] = [];
    const { calls, handler } = recorder((fault) => {
      kinds.push(fault.kind);
      uffd.writeProtect(fault.page, pageSize, false);
    });
    uffd.start(handler);
    // A missing page can be protected, and is still protected when it is installed.
    assert.is(uffd.writeProtect(base, length, true), length);
    assert.ok(isProtected(page(0)) && isProtected(page(3)));
    assert.ok(uffd.isWriteProtected(page(3)));
    assert.equal(await thread.read(page(1)), [0]);
    assert.ok(isProtected(page(1)), 'a page that was read stays protected');
    await thread.write(5, page(0), page(1));
    assert.not.ok(isProtected(page(0)) || isProtected(page(1)));
    assert.equal(await thread.read(page(0), page(1)), [5, 5]);
    // The protection is lifted before a write: no fault.
    uffd.writeProtect(page(2), pageSize, false);
    assert.not.ok(isProtected(page(2)));
    await thread.write(6, page(2));
    // Removing a page removes its protection as well, but only in anonymous memory of small pages.
    assert.is(await thread.madvise(page(3), pageSize, MADV_DONTNEED), 0);
    assert.is(isProtected(page(3)), kind !== 'anon');
    assert.equal(
      calls,
      [page(0), page(1)].map((address) => ['pagefault', address, 'write']),
    );
    assert.equal(kinds, ['write-protect', 'write-protect']);
  },
);

scenario(
  test,
  'without wp-unpopulated a page that is not there is not protected',
  { kinds: ['anon'], modes: 'write-protect' },
  async ({ uffd, thread, base, length }) => {
    uffd.start({ pagefault: never });
    assert.is(uffd.writeProtect(base, length, true), length);
    assert.not.ok(isProtected(base));
    await thread.write(5, base);
    assert.equal(await thread.read(base), [5]);
  },
);

// ---- what the library knows --------------------------------------------------------------------------------

scenario(test, 'a window is filled at once', { pages: 6 }, async (stage) => {
  const { uffd, thread, base, length, page, pageSize, indexOf, content, fill } = stage;
  assert.is(fill(page(3)), pageSize);
  const filled: [number, number][] = [];
  uffd.start({
    pagefault(fault) {
      const window = uffd.window(fault.address, 1024);
      filled.push([indexOf(window.start), window.length / pageSize]);
      const source = Buffer.concat(
        Array.from({ length: window.length / pageSize }, (_, n) => content(indexOf(window.start) + n)),
      );
      assert.is(uffd.copy(window.start, source), window.length);
    },
  });
  await verify(stage);
  // Windows are aligned, so their number depends on the address.
  assert.is(
    filled.reduce((sum, [, count]) => sum + count, 0),
    5,
  );
  assert.ok(
    filled.every(([first, count]) => first + count <= 3 || first > 3),
    'none reaches over the page that was there',
  );
  assert.equal(uffd.window(base, 4), { start: base, length: pageSize }, 'a page that is there comes alone');
  assert.is(await thread.filling(base, pageSize), 1);
  assert.is(uffd.window(base + BigInt(length), 1).length, uffd.pageSize);
});

scenario(test, 'claim, and what takes the claim away', { features: ['event-remove'] }, async (stage) => {
  const { uffd, thread, base, length, page, pageSize, fill } = stage;
  const { calls, handler } = recorder((fault) => uffd.copy(fault.page, zeros) === pageSize);
  const zeros = new Uint8Array(pageSize).fill(0);
  const states = () => [0, 1, 2, 3].map((index) => uffd.pageState(page(index) + BigInt(pageSize - 1)));
  assert.is(fill(page(1)), pageSize);
  assert.is(uffd.claim(base, length), 3);
  assert.is(uffd.claim(base, length), 0);
  assert.equal(states(), ['in-flight', 'present', 'in-flight', 'in-flight']);
  assert.is(uffd.window(page(2) + 1n, 2).length, 0);
  uffd.start(handler);
  assert.is(await thread.madvise(page(1), 2 * pageSize, removal(stage)), 0);
  assert.equal(states(), ['in-flight', 'removed', 'removed', 'in-flight']);
  assert.equal(calls, [['removed', page(1), page(3)]]);
  assert.equal(await thread.read(page(1), page(2)), [0, 0]);
  assert.equal(states(), ['in-flight', 'present', 'present', 'in-flight']);
  assert.is(fill(page(3)), pageSize);
  assert.equal(states(), ['in-flight', 'present', 'present', 'present']);
});

scenario(test, 'a page that is there is stepped over, whole', {}, async (stage) => {
  const { uffd, thread, base, length, pages, page, pageSize, content } = stage;
  for (const index of [0, 2]) assert.is(uffd.copy(page(index), new Uint8Array(pageSize).fill(77)), pageSize);
  const source = Buffer.concat(Array.from({ length: pages }, (_, index) => content(index)));
  assert.is(uffd.copy(base, source), length);
  for (let index = 0; index < pages; index++)
    assert.is(await thread.filling(page(index), pageSize), index % 2 ? index + 1 : 77);
});

scenario(
  test,
  'a thread that waits for a present page is woken',
  { features: ['exact-address'] },
  async (stage) => {
    const { uffd, thread, page, pageSize, fill } = stage;
    const read = thread.read(page(1) + BigInt(pageSize - 1));
    await thread.asleep();
    assert.is(uffd.poll({ pagefault: () => false }), 1);
    assert.is(fill(page(1), { dontWake: true }), pageSize);
    assert.is(sleepers(uffd.fd), 1);
    assert.is(fill(page(1)), pageSize, 'it counts as filled');
    assert.is(sleepers(uffd.fd), 0);
    assert.equal(await read, [2]);
  },
);

scenario(
  test,
  'release wakes threads whose faults were delivered and not answered: the next owner gets their faults',
  { features: ['exact-address'] },
  async ({ uffd, thread, page, pageSize, fill, content }) => {
    assert.is(fill(page(0)), pageSize);
    const read = thread.read(page(2) + BigInt(pageSize - 3));
    await thread.asleep();
    assert.is(uffd.poll({ pagefault: () => false }), 1);
    const { features, ranges } = uffd;
    const next = Userfaultfd.wrap(uffd.release(), { features, ranges });
    try {
      const offered: Pagefault[] = [];
      next.start({
        pagefault(fault) {
          offered.push(fault);
          assert.is(next.copy(fault.page, content(2)), pageSize);
        },
      });
      assert.equal(await read, [3]);
      assert.equal(
        offered.map((fault) => [fault.page, fault.address]),
        [[page(2), page(2) + BigInt(pageSize - 3)]],
      );
    } finally {
      next.close();
    }
  },
);

scenario(test, 'unregister and close let their sleepers go', {}, async (stage) => {
  const { uffd, thread, page, pageSize } = stage;
  const first = thread.read(page(1) + 5n);
  await thread.asleep();
  uffd.unregister(page(1), pageSize);
  assert.equal(await first, [0]);
  assert.is(uffd.ranges.length, 2);
  const second = thread.read(page(2) + 5n);
  await thread.asleep();
  uffd.poll({ pagefault: () => false });
  await until(() => sleepers(uffd.fd) === 1, 'the message to be read');
  uffd.close();
  assert.equal(await second, [0]);
});

test.run();
