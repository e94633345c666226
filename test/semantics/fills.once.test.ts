// COPY, ZEROPAGE, CONTINUE and POISON by themselves (kernel-semantics 2: each ioctl): what they refuse and what
// they do, by kind of memory. What they make of a page's state is in pages, the order of rules in order.

import { strict as assert } from 'node:assert';
import { type Answer, DONTWAKE, Feature, MINOR, MISSING, openUffd, WITH_WP, WP } from './calls.js';
import { stateOf } from './states.js';
import { at, checks, elsewhere, fault, fill, P, type SettingOptions, setting, source } from './support.js';
import type { MemoryKind, World } from './world.js';

const check = checks('semantics/fills');

const ENOENT: Answer = ['ENOENT', -2];
const EFAULT: Answer = ['EFAULT', -14];
const EEXIST: Answer = ['EEXIST', -17];
const EINVAL: Answer = ['EINVAL', -22];
const DONE: Answer = ['ok', P];

const FEATURES =
  Feature.flagWp |
  Feature.poison |
  Feature.minorShmem |
  Feature.minorHugetlb |
  Feature.missingShmem |
  Feature.missingHugetlb |
  Feature.wpHugetlbShmem |
  Feature.wpUnpopulated;
const SHMEM = { has: ['shmem'], features: FEATURES } as const;
const HUGETLB = { has: ['hugetlb'], features: FEATURES } as const;
const NEEDS = { features: FEATURES } as const;
const with_ = (more: SettingOptions): SettingOptions => ({ features: FEATURES, ...more });

// ---- ranges that are not in one registered mapping --------------------------------------------------------

/** Watched memory of 4 pages of which something is not in order for a fill of pages 1 and 2. */
const PLACES = {
  unmapped: (world: World) => {
    const set = setting(world, KNOWN);
    assert.equal(set.thread.munmap(set.base, 4 * P), 0);
    return set;
  },
  'past-end': (world: World) => {
    const set = setting(world, KNOWN);
    assert.equal(set.thread.munmap(at(set.base, 2), 2 * P), 0);
    return set;
  },
  'two-modes': (world: World) => {
    const set = setting(world, with_({ mode: 0n }));
    assert.equal(set.uffd.register(set.base, 2 * P, MISSING)[0], 'ok');
    assert.equal(set.uffd.register(at(set.base, 2), 2 * P, MISSING | WP)[0], 'ok');
    return set;
  },
  'two-protections': (world: World) => {
    const set = setting(world, KNOWN);
    assert.equal(set.thread.mprotect(at(set.base, 2), 2 * P, 1), 0);
    return set;
  },
  unregistered: (world: World) => setting(world, with_({ mode: 0n })),
};
const KNOWN = with_({ mode: MISSING });

const NOWHERE = [
  ['copy.enoent.unmapped', 'copy', 'unmapped'],
  ['copy.enoent.past-end', 'copy', 'past-end'],
  ['copy.enoent.two-modes', 'copy', 'two-modes'],
  ['copy.enoent.two-protections', 'copy', 'two-protections'],
  ['copy.enoent.unregistered', 'copy', 'unregistered'],
  ['zeropage.enoent.unmapped', 'zeropage', 'unmapped'],
  ['zeropage.enoent.past-end', 'zeropage', 'past-end'],
  ['zeropage.enoent.two-modes', 'zeropage', 'two-modes'],
  ['zeropage.enoent.two-protections', 'zeropage', 'two-protections'],
  ['zeropage.enoent.unregistered', 'zeropage', 'unregistered'],
  ['poison.enoent.unmapped', 'poison', 'unmapped'],
  ['poison.enoent.past-end', 'poison', 'past-end'],
  ['poison.enoent.unregistered', 'poison', 'unregistered'],
  ['continue.enoent.unmapped', 'continue', 'unmapped'],
  ['continue.enoent.past-end', 'continue', 'past-end'],
  ['continue.enoent.unregistered', 'continue', 'unregistered'],
] as const;

for (const [id, request, place] of NOWHERE) {
  check(
    id,
    `${request} of a range that is ${place}: ENOENT`,
    (world) => {
      const { uffd, base } = PLACES[place](world);
      const start = at(base, 1);
      const answer =
        request === 'copy' ? uffd.copy(start, source(world, 2), 2 * P) : uffd[request](start, 2 * P);
      assert.deepEqual(answer, ENOENT);
    },
    NEEDS,
  );
}

// ---- COPY -------------------------------------------------------------------------------------------------

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
    const { uffd, base } = setting(world, KNOWN);
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WITH_WP), EINVAL);
  },
  NEEDS,
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
      const { uffd, area, base, thread } = setting(world, with_({ kind, pages: 1 }));
      assert.equal(thread.write(area.alias, 5), 0);
      assert.ok(!thread.page(base).present);
      const bytes = world.map(kind, 1);
      fill(thread, bytes, 7);
      assert.deepEqual(uffd.copy(base, bytes.address, area.length), EEXIST);
    },
    { ...NEEDS, has: [kind] },
  );
}

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
    const { uffd, base } = setting(world, with_({ kind: 'shmem', map: { objectLength: P } }));
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
      const { uffd, area, base, thread } = setting(world, with_({ kind: 'hugetlb', pages: 2 }));
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
    const { uffd, base, thread } = setting(world, with_({ mode: WP }));
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WITH_WP), DONE);
    assert.equal(stateOf(base, thread), 'page+wp a');
  },
  NEEDS,
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
  // Since the fork the two have a page each there.
  assert.equal(world.thread().write(bytes, 0x7a), 0);
  assert.deepEqual(uffd.copy(base, bytes, P), DONE);
  assert.equal(process.read(base), 0x7a);
  assert.deepEqual(uffd.by(process).copy(at(base, 1), bytes, P), DONE);
  assert.equal(process.read(at(base, 1)), 0x61);
});

// ---- ZEROPAGE ---------------------------------------------------------------------------------------------

check('zeropage.shared-zero-page', 'on anonymous memory it maps the shared zero page', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.deepEqual(uffd.zeropage(base, P), DONE);
  assert.deepEqual(thread.page(base), { present: true, swap: false, uffdWp: false, exclusive: false });
});

check(
  'zeropage.ok.shmem',
  'it works on shmem',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem' }));
    assert.deepEqual(uffd.zeropage(base, P), DONE);
    assert.equal(thread.write(base, 3), 0);
    assert.equal(thread.read(area.alias), 3);
  },
  SHMEM,
);

check(
  'zeropage.eexist.shmem-cached',
  'a page of shmem that is in the page cache: EEXIST',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem' }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.zeropage(base, P), EEXIST);
  },
  SHMEM,
);

check(
  'zeropage.einval.hugetlb',
  'on huge pages: EINVAL',
  (world) => {
    const { uffd, area, base } = setting(world, with_({ kind: 'hugetlb', pages: 1 }));
    assert.deepEqual(uffd.zeropage(base, area.length), EINVAL);
  },
  HUGETLB,
);

// ---- CONTINUE ---------------------------------------------------------------------------------------------

const CACHED: readonly (readonly [id: string, kind: MemoryKind])[] = [
  ['continue.ok.shmem', 'shmem'],
  ['continue.ok.hugetlb', 'hugetlb'],
];

for (const [id, kind] of CACHED) {
  check(
    id,
    `${kind}: a page in the page cache faults as minor; edited through an alias, CONTINUE maps and wakes; again: EEXIST`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, with_({ kind, pages: 1, mode: MINOR }));
      assert.equal(thread.write(area.alias, 5), 0);
      assert.equal(thread.read(base), 'fault');
      assert.deepEqual(uffd.take(), [fault(base, 4)]);
      assert.equal(world.thread().write(area.alias, 6), 0);
      assert.deepEqual(uffd.continue(base, area.length), ['ok', area.length]);
      assert.equal(thread.outcome(), 6);
      assert.deepEqual(uffd.continue(base, area.length), EEXIST);
    },
    { ...NEEDS, has: [kind] },
  );
}

check(
  'minor.write',
  'a minor fault by a write has the flags 5',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.equal(thread.write(base, 6), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 5)]);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.outcome(), 0);
    assert.equal(thread.read(area.alias), 6);
  },
  SHMEM,
);

check(
  'minor.not-cached',
  'in MINOR mode a page that is not in the page cache is filled silently',
  (world) => {
    const { uffd, base, thread } = setting(world, with_({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.read(base), 0);
    assert.deepEqual(uffd.take(), []);
  },
  SHMEM,
);

check(
  'minor.private-shmem',
  'a private mapping of shmem takes MINOR and CONTINUE too',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'private-shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 4)]);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.outcome(), 5);
  },
  { ...NEEDS, has: ['private-shmem'] },
);

check(
  'continue.efault.not-cached',
  'a page that is not in the page cache: EFAULT',
  (world) => {
    const { uffd, base } = setting(world, with_({ kind: 'shmem', mode: MINOR }));
    assert.deepEqual(uffd.continue(base, P), EFAULT);
  },
  SHMEM,
);

check(
  'continue.einval.anonymous',
  'anonymous memory: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, KNOWN);
    assert.deepEqual(uffd.continue(base, P), EINVAL);
  },
  NEEDS,
);

check(
  'continue.einval.wp-mode',
  'MODE_WP where write-protection is not registered: EINVAL',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P, WITH_WP), EINVAL);
  },
  SHMEM,
);

check(
  'continue.wp',
  'MODE_WP maps the page write-protected',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem', mode: MINOR | WP }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P, WITH_WP), DONE);
    assert.equal(thread.write(base, 6), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 3)]);
  },
  SHMEM,
);

check(
  'continue.ok.missing-only',
  'it works where only MISSING is registered',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem' }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.read(base), 5);
  },
  SHMEM,
);

check(
  'wakes.dontwake.continue',
  'CONTINUE with DONTWAKE leaves the thread asleep until a WAKE',
  (world) => {
    const { uffd, area, base, thread } = setting(world, with_({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.continue(base, P, DONTWAKE), DONE);
    assert.equal(thread.outcome(), 'fault');
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 5);
  },
  SHMEM,
);

// ---- POISON -----------------------------------------------------------------------------------------------

check(
  'poison.wakes',
  'who waits for the page gets SIGBUS, or EFAULT in a system call',
  (world) => {
    for (const [page, by, outcome] of [
      [0, 'user', 'SIGBUS'],
      [1, 'kernel', 'EFAULT'],
    ] as const) {
      const { uffd, base, thread } = setting(world, KNOWN);
      assert.equal(thread.read(at(base, page), by), 'fault');
      assert.deepEqual(uffd.poison(at(base, page), P), DONE);
      assert.equal(thread.outcome(), outcome);
    }
  },
  NEEDS,
);

for (const [id, kind] of [
  ['poison.ok.shmem', 'shmem'],
  ['poison.ok.hugetlb', 'hugetlb'],
] as const) {
  check(
    id,
    `${kind} can be poisoned; a touch raises SIGBUS; again: EEXIST`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, with_({ kind, pages: 1 }));
      assert.deepEqual(uffd.poison(base, area.length), ['ok', area.length]);
      assert.equal(thread.read(base), 'SIGBUS');
      assert.deepEqual(uffd.poison(base, area.length), EEXIST);
    },
    { ...NEEDS, has: [kind] },
  );
}

check(
  'poison.survives.fork',
  'a forked process has it too',
  (world) => {
    const { uffd, base, thread } = setting(world, KNOWN);
    assert.deepEqual(uffd.poison(base, P), DONE);
    const child = thread.fork();
    assert.equal(child.read(base), 'SIGBUS');
  },
  NEEDS,
);

check(
  'poison.survives.unregister',
  'it survives UNREGISTER, and is gone after DONTNEED',
  (world) => {
    const { uffd, base, thread } = setting(world, KNOWN);
    assert.deepEqual(uffd.poison(base, P), DONE);
    assert.equal(uffd.unregister(base, 4 * P), 'ok');
    assert.equal(thread.read(base), 'SIGBUS');
    assert.equal(thread.madvise(base, P, 4), 0);
    assert.equal(thread.read(base), 0);
  },
  NEEDS,
);

check(
  'poison.survives.mremap',
  'it moves with mremap',
  (world) => {
    const { uffd, base, thread } = setting(world, KNOWN);
    assert.deepEqual(uffd.poison(base, P), DONE);
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 4 * P, 4 * P, 3, to), Number(to));
    assert.equal(thread.read(to), 'SIGBUS');
  },
  NEEDS,
);

check.run();
