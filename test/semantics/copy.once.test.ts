// COPY (docs/kernel.md: each ioctl): when the kernel refuses it and what it does, by kind of memory. `pages` tests the
// states of pages, `order` the order of the rules, `fills` the addresses that no operation can fill.

import { strict as assert } from 'node:assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { MISSING, openUffd, WITH_WP, WP } from './calls.js';
import { DONE, EEXIST, EFAULT, EINVAL, ENOMEM } from './requests.js';
import { stateOf } from './states.js';
import {
  at,
  checks,
  EVERY_KIND,
  elsewhere,
  fault,
  fill,
  HUGETLB,
  P,
  SHMEM,
  setting,
  source,
  watching,
} from './support.js';
import type { Actor, World } from './world.js';

const check = checks('semantics/copy');

check('copy.bytes', 'the bytes are those of the source', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.deepEqual(uffd.copy(base, source(world, 2), 2 * P), ['ok', 2 * P]);
  assert.equal(thread.read(at(base, 1)), 0x62);
  assert.equal(thread.read(at(base, 1, 1)), 0);
});

check(
  'copy.einval.wp-mode',
  'MODE_WP where write-protection is not registered: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, watching({}));
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WITH_WP), EINVAL);
  },
  EVERY_KIND,
);

check(
  'copy.eexist.thp',
  'any page under a transparent huge page: EEXIST',
  (world) => {
    const { uffd, area, base, thread } = setting(world, { kind: 'thp', pages: 512, mode: 0n });
    assert.equal(thread.write(base, 1), 0);
    assert.ok(thread.page(at(base, 511)).present, 'the touch of one page brought them all');
    assert.equal(uffd.register(base, area.length, MISSING)[0], 'ok');
    assert.deepEqual(uffd.copy(at(base, 300), source(world, 1), P), EEXIST);
    assert.equal(thread.madvise(base, area.length, MADV_DONTNEED), 0);
    assert.deepEqual(uffd.copy(at(base, 300), source(world, 1), P), DONE, 'after DONTNEED');
  },
  { has: ['thp'] },
);

for (const [id, kind] of [
  ['copy.eexist.shmem-cached', 'shmem'],
  ['copy.eexist.hugetlb-cached', 'hugetlb'],
] as const) {
  check(
    id,
    `a page of ${kind} that is not mapped here, but is in the page cache: EEXIST`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, watching({ kind, pages: 1 }));
      assert.equal(thread.write(area.alias, 5), 0);
      assert.ok(!thread.page(base).present);
      const bytes = world.map(kind, 1);
      fill(thread, bytes, 7);
      assert.deepEqual(uffd.copy(base, bytes.address, area.length), EEXIST);
    },
    { ...EVERY_KIND, has: [kind] },
  );
}

// ---- a pool of huge pages that is empty ---------------------------------------------------------------------

const MADV_POPULATE_WRITE = 23;
/** More huge pages than the pool has free. */
const HOARD_MOST = 64;

/** Watched private huge pages, bytes to fill one of them, and other memory that has taken every page of the pool. */
function emptied(world: World) {
  const set = setting(world, watching({ kind: 'private-hugetlb', pages: 1 }));
  const bytes = source(world, set.area.length / P);
  const hoarder = world.thread();
  const hoard = world.map('private-hugetlb', HOARD_MOST);
  let taken = 0;
  while (populate(hoarder, at(hoard.address, 0, taken * hoard.pageSize), hoard.pageSize)) taken++;
  assert.ok(taken < HOARD_MOST, 'the pool was emptied');
  /** Returns one page to the pool. */
  const release = (): void => {
    assert.equal(hoarder.madvise(hoard.address, hoard.pageSize, MADV_DONTNEED), 0);
  };
  return { ...set, bytes, release, size: set.area.length };
}

function populate(thread: Actor, address: bigint, length: number): boolean {
  return thread.madvise(address, length, MADV_POPULATE_WRITE) === 0;
}

const POOL = { ...EVERY_KIND, has: ['private-hugetlb'] } as const;

check(
  'copy.eexist.empty-pool',
  'private huge pages, not reserved, and none is free: EEXIST, though no page is there; when one is free: done',
  (world) => {
    const { uffd, base, thread, bytes, release, size } = emptied(world);
    assert.equal(thread.read(base), 'fault');
    assert.equal(uffd.take().length, 1);
    assert.deepEqual(uffd.copy(base, bytes, size), EEXIST);
    assert.ok(!thread.page(base).present, 'nothing is there');
    assert.equal(uffd.wake(base, size), 'ok');
    assert.equal(thread.outcome(), 'fault', 'it faults again');
    assert.deepEqual(uffd.take(), [fault(base)]);
    release();
    assert.deepEqual(uffd.copy(base, bytes, size), ['ok', size]);
    assert.equal(thread.outcome(), 0x61);
  },
  POOL,
);

check(
  'copy.enomem.absent-source',
  'one huge page is free, and the source is not in memory: ENOMEM; again, when it is: done',
  (world) => {
    const { uffd, base, release, size } = emptied(world);
    release();
    const absent = world.map('anonymous', size / P).address;
    assert.deepEqual(uffd.copy(base, absent, size), ENOMEM);
    assert.deepEqual(uffd.copy(base, absent, size), ['ok', size]);
  },
  // 'hugetlb' excludes the simulated kernel, in which every source is resident.
  { ...EVERY_KIND, has: ['private-hugetlb', 'hugetlb'] },
);

// ---- sources and targets ------------------------------------------------------------------------------------

check('copy.efault.source', 'a source that is not mapped: EFAULT', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.deepEqual(uffd.copy(base, world.vacant(1), P), EFAULT);
  assert.equal(thread.read(base), 'fault');
});

check('copy.efault.source-protection', 'a source that cannot be read: EFAULT', (world) => {
  const { uffd, base } = setting(world);
  const hidden = world.map('anonymous', 1, { protection: 0 });
  assert.deepEqual(uffd.copy(base, hidden.address, P), EFAULT);
});

check(
  'copy.efault.source-partial',
  'a source of which the second page is not mapped: the first is counted',
  (world) => {
    const { uffd, base, thread } = setting(world);
    const bytes = source(world, 2);
    assert.equal(thread.munmap(at(bytes, 1), P), 0);
    assert.deepEqual(uffd.copy(base, bytes, 2 * P), ['EAGAIN', P]);
    assert.deepEqual(uffd.copy(at(base, 1), at(bytes, 1), P), EFAULT);
  },
);

check(
  'copy.efault.beyond-size',
  'a place behind the end of the object: EFAULT',
  (world) => {
    const { uffd, base } = setting(world, watching({ kind: 'shmem', map: { objectLength: P } }));
    assert.deepEqual(uffd.copy(base, source(world, 1), P), DONE);
    assert.deepEqual(uffd.copy(at(base, 1), source(world, 1), P), EFAULT);
  },
  SHMEM,
);

for (const [id, offset, length] of [
  ['copy.einval.hugetlb-start', P, 0],
  ['copy.einval.hugetlb-length', 0, P],
] as const) {
  check(
    id,
    'a target in huge pages that is not whole huge pages: EINVAL',
    (world) => {
      const { uffd, area, base, thread } = setting(world, watching({ kind: 'hugetlb', pages: 2 }));
      const bytes = world.map('hugetlb', 1);
      fill(thread, bytes, 7);
      const wanted = length || area.pageSize;
      assert.deepEqual(uffd.copy(base + BigInt(offset), bytes.address, wanted), EINVAL);
      assert.deepEqual(uffd.copy(base, bytes.address, area.pageSize), ['ok', area.pageSize]);
      assert.equal(thread.read(base), 7);
    },
    HUGETLB,
  );
}

for (const [id, protection] of [
  ['copy.ok.prot-read', 1],
  ['copy.ok.prot-none', 0],
] as const) {
  check(id, `memory with protection ${protection} can be filled`, (world) => {
    const { uffd, base, thread } = setting(world, { map: { protection } });
    assert.deepEqual(uffd.copy(base, source(world, 1), P), DONE);
    assert.equal(thread.mprotect(base, P, 1), 0);
    assert.equal(thread.read(base), 0x61);
  });
}

check(
  'copy.ok.wp-only',
  'memory that is registered for write-protection only can be filled',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ mode: WP }));
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WITH_WP), DONE);
    assert.equal(stateOf(base, thread), 'page+wp a');
  },
  EVERY_KIND,
);

check(
  'copy.other-uffd',
  'COPY through another userfaultfd of the same process: ok, the waiter sleeps on',
  (world) => {
    const { uffd, base, thread } = setting(world);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(openUffd(world).copy(base, source(world, 1), P), DONE);
    assert.equal(thread.outcome(), 'fault');
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 0x61);
  },
);

check('copy.other-process', 'the target is in the owner’s memory, the source in the caller’s', (world) => {
  const bytes = source(world, 1);
  const { uffd, base, process } = elsewhere(world);
  // Since the fork, this write gives the parent its own page; the child keeps the old one.
  assert.equal(world.thread().write(bytes, 0x7a), 0);
  assert.deepEqual(uffd.copy(base, bytes, P), DONE);
  assert.equal(process.read(base), 0x7a);
  assert.deepEqual(uffd.by(process).copy(at(base, 1), bytes, P), DONE);
  assert.equal(process.read(at(base, 1)), 0x61);
});

check.run();
