// ZEROPAGE, CONTINUE and POISON (docs/kernel.md: each ioctl): when the kernel refuses them and what they do, by kind of
// memory; and the addresses that neither they nor COPY can fill. `pages` tests page states, `order` the order of rules.

import { strict as assert } from 'node:assert';
import { DONTWAKE, MINOR, MISSING, PROTECT, PROTECT_DONTWAKE, WITH_WP, WP } from './calls.js';
import { DONE, EEXIST, EFAULT, EINVAL, ENOENT } from './requests.js';
import {
  at,
  checks,
  EVERY_KIND,
  fault,
  HUGETLB,
  P,
  type Setting,
  SHMEM,
  setting,
  source,
  watching,
} from './support.js';
import type { MemoryKind, World } from './world.js';

const check = checks('semantics/fills');

const MADV_DONTNEED = 4;
/** Punches a hole into the memfd. */
const MADV_REMOVE = 9;
const MADV_DONTDUMP = 16;
const MAYMOVE_FIXED = 3;

// ---- ranges that are not in one registered mapping --------------------------------------------------------

/** Four pages of memory, prepared so that the kernel refuses a fill of pages 1 and 2. */
const PLACES = {
  unmapped: (world: World) => {
    const set = setting(world, watching({}));
    assert.equal(set.thread.munmap(set.base, 4 * P), 0);
    return set;
  },
  'past-end': (world: World) => {
    const set = setting(world, watching({}));
    assert.equal(set.thread.munmap(at(set.base, 2), 2 * P), 0);
    return set;
  },
  'two-modes': (world: World) => {
    const set = setting(world, watching({ mode: 0n }));
    assert.equal(set.uffd.register(set.base, 2 * P, MISSING)[0], 'ok');
    assert.equal(set.uffd.register(at(set.base, 2), 2 * P, MISSING | WP)[0], 'ok');
    return set;
  },
  'two-protections': (world: World) => {
    const set = setting(world, watching({}));
    assert.equal(set.thread.mprotect(at(set.base, 2), 2 * P, 1), 0);
    return set;
  },
  advised: (world: World) => {
    const set = setting(world, watching({}));
    assert.equal(set.thread.madvise(at(set.base, 2), 2 * P, MADV_DONTDUMP), 0);
    return set;
  },
  unregistered: (world: World) => setting(world, watching({ mode: 0n })),
};

const NOWHERE = [
  ['copy.enoent.unmapped', 'copy', 'unmapped'],
  ['copy.enoent.past-end', 'copy', 'past-end'],
  ['copy.enoent.two-modes', 'copy', 'two-modes'],
  ['copy.enoent.two-protections', 'copy', 'two-protections'],
  ['copy.enoent.advised', 'copy', 'advised'],
  ['copy.enoent.unregistered', 'copy', 'unregistered'],
  ['zeropage.enoent.unmapped', 'zeropage', 'unmapped'],
  ['zeropage.enoent.past-end', 'zeropage', 'past-end'],
  ['zeropage.enoent.two-modes', 'zeropage', 'two-modes'],
  ['zeropage.enoent.two-protections', 'zeropage', 'two-protections'],
  ['zeropage.enoent.advised', 'zeropage', 'advised'],
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
    EVERY_KIND,
  );
}

// ---- borders ----------------------------------------------------------------------------------------------

/** Changes that split the mapping in front of page 2 (mlock: page 3) of 4, without a message. */
const BORDERS = {
  mprotect: ({ thread, base }: Setting) => assert.equal(thread.mprotect(at(base, 2), 2 * P, 1), 0),
  madvise: ({ thread, base }: Setting) => assert.equal(thread.madvise(at(base, 2), 2 * P, MADV_DONTDUMP), 0),
  mlock: ({ thread, base, uffd }: Setting) => {
    // Fill the page first: mlock would wait for a missing page.
    assert.deepEqual(uffd.zeropage(at(base, 3), P), DONE);
    assert.equal(thread.mlock(at(base, 3), P), 0);
  },
};

for (const [id, what, behind] of [
  ['border.mprotect', 'mprotect', 2],
  ['border.madvise', 'madvise', 2],
  ['border.mlock', 'mlock', 3],
] as const) {
  check(
    id,
    `a COPY over a border that ${what} has made: ENOENT, nothing is installed, no thread is woken; each side by itself: done`,
    (world) => {
      const set = setting(world, watching({}));
      const { uffd, base, thread } = set;
      const bytes = source(world, 2);
      BORDERS[what](set);
      const before = at(base, behind - 1);
      assert.equal(thread.read(before), 'fault');
      assert.deepEqual(uffd.copy(before, bytes, 2 * P), ENOENT);
      assert.equal(thread.outcome(), 'fault');
      assert.deepEqual(uffd.copy(before, bytes, P), DONE);
      assert.equal(thread.outcome(), 0x61);
      assert.deepEqual(uffd.copy(at(base, behind), at(bytes, 1), P), behind === 3 ? EEXIST : DONE);
    },
    EVERY_KIND,
  );
}

check(
  'border.hole',
  'a COPY over a hole: ENOENT; a page in the hole by itself: ENOENT; those beside it: done',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({}));
    const bytes = source(world, 3);
    assert.equal(thread.munmap(at(base, 1), P), 0);
    assert.deepEqual(uffd.copy(base, bytes, 3 * P), ENOENT);
    assert.deepEqual(uffd.copy(at(base, 1), bytes, P), ENOENT);
    assert.deepEqual(uffd.copy(base, bytes, P), DONE);
    assert.deepEqual(uffd.copy(at(base, 2), bytes, P), DONE);
  },
  EVERY_KIND,
);

check(
  'border.two-objects',
  'a COPY over the border of two memfds side by side, in one registered range: ENOENT; each side by itself: done',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ kind: 'shmem', mode: 0n }));
    const bytes = source(world, 2);
    const other = world.map('shmem', 2).address;
    assert.equal(thread.mremap(other, 2 * P, 2 * P, MAYMOVE_FIXED, at(base, 2)), Number(at(base, 2)));
    assert.equal(uffd.register(base, 4 * P, MISSING)[0], 'ok');
    assert.deepEqual(uffd.copy(at(base, 1), bytes, 2 * P), ENOENT);
    assert.deepEqual(uffd.copy(at(base, 1), bytes, P), DONE);
    assert.deepEqual(uffd.copy(at(base, 2), at(bytes, 1), P), DONE);
  },
  SHMEM,
);

check(
  'border.gone',
  'a COPY to one page: ENOENT if it is not mapped or not registered, and a thread that waits there sleeps on',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({}));
    const bytes = source(world, 1);
    assert.equal(thread.read(base), 'fault');
    const other = world.thread();
    assert.equal(other.munmap(base, P), 0);
    assert.deepEqual(uffd.copy(base, bytes, P), ENOENT);
    assert.equal(thread.outcome(), 'fault');
    assert.equal(uffd.unregister(at(base, 1), P), 'ok');
    assert.deepEqual(uffd.copy(at(base, 1), bytes, P), ENOENT);
  },
  EVERY_KIND,
);

// ---- markers ----------------------------------------------------------------------------------------------

check(
  'marker.zeropage',
  'a thread waits at a write-protect marker: ZEROPAGE is EEXIST, a WAKE brings the fault again, COPY with MODE_WP resolves it',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ mode: MISSING | WP }));
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)]);
    assert.deepEqual(uffd.zeropage(base, P), EEXIST);
    assert.equal(uffd.wake(base, P), 'ok');
    assert.equal(thread.outcome(), 'fault');
    assert.deepEqual(uffd.take(), [fault(base)]);
    assert.deepEqual(uffd.copy(base, source(world, 1), P, WITH_WP), DONE);
    assert.equal(thread.outcome(), 0x61);
    assert.equal(thread.write(base, 1), 'fault', 'it is protected as before');
    assert.deepEqual(uffd.take(), [fault(base, 3)]);
  },
  EVERY_KIND,
);

check(
  'marker.poison',
  'POISON of a write-protect marker is EEXIST; done after WRITEPROTECT has lifted the marker',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ mode: MISSING | WP }));
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.poison(base, P), EEXIST);
    assert.equal(uffd.writeprotect(base, P, PROTECT_DONTWAKE), 'ok');
    assert.deepEqual(uffd.poison(base, P), DONE);
    assert.equal(thread.outcome(), 'SIGBUS');
  },
  EVERY_KIND,
);

check(
  'marker.shmem',
  'a write-protect marker of shmem: ZEROPAGE is done, and the page is not protected any more; POISON is EEXIST',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ kind: 'shmem', mode: MISSING | WP }));
    assert.equal(uffd.writeprotect(base, 2 * P, PROTECT), 'ok');
    assert.deepEqual(uffd.zeropage(base, P), DONE);
    assert.equal(thread.write(base, 1), 0, 'no message');
    assert.deepEqual(uffd.poison(at(base, 1), P), EEXIST);
  },
  SHMEM,
);

/** Page 0: mapped and write-protected. Page 1: missing, with a marker. Both in the page cache, if `cached`. */
function marked(world: World, cached: boolean): Setting {
  const set = setting(world, watching({ kind: 'shmem', mode: MISSING | MINOR | WP }));
  const { uffd, area, base, thread } = set;
  for (const page of cached ? [0, 1] : [0]) assert.equal(thread.write(at(area.alias, page), 5), 0);
  assert.deepEqual(uffd.continue(base, P), DONE);
  assert.equal(uffd.writeprotect(base, 2 * P, PROTECT), 'ok');
  return set;
}

for (const [id, advice, name] of [
  ['marker.shmem.dontneed', MADV_DONTNEED, 'DONTNEED'],
  ['marker.shmem.hole', MADV_REMOVE, 'a punched hole'],
] as const) {
  check(
    id,
    `${name} leaves the markers of shmem, and one in place of a page that is write-protected`,
    (world) => {
      const { base, thread } = marked(world, false);
      assert.equal(thread.madvise(base, 2 * P, advice), 0);
      for (const page of [0, 1]) {
        const { present, uffdWp } = thread.page(at(base, page));
        assert.equal([present, uffdWp].join(), 'false,true', `page ${page}`);
      }
    },
    SHMEM,
  );
}

check(
  'marker.shmem.continue',
  'CONTINUE and COPY without MODE_WP overwrite a marker of shmem: a write posts no message',
  (world) => {
    const { uffd, base, thread } = marked(world, true);
    assert.deepEqual(uffd.continue(at(base, 1), P), DONE);
    assert.equal(thread.write(at(base, 1), 6), 0);
    assert.equal(uffd.writeprotect(at(base, 2), P, PROTECT), 'ok');
    assert.deepEqual(uffd.copy(at(base, 2), source(world, 1), P), DONE);
    assert.equal(thread.write(at(base, 2), 6), 0);
  },
  SHMEM,
);

check(
  'poison.shmem.dontneed',
  'DONTNEED removes poison of shmem, and a punched hole leaves it',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({ kind: 'shmem' }));
    assert.deepEqual(uffd.poison(base, 2 * P), ['ok', 2 * P]);
    assert.equal(thread.madvise(base, P, MADV_DONTNEED), 0);
    assert.equal(thread.madvise(at(base, 1), P, MADV_REMOVE), 0);
    assert.equal(thread.read(at(base, 1)), 'SIGBUS');
    assert.equal(thread.read(base), 'fault');
  },
  SHMEM,
);

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
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem' }));
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
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem' }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.zeropage(base, P), EEXIST);
  },
  SHMEM,
);

check(
  'zeropage.einval.hugetlb',
  'on huge pages: EINVAL',
  (world) => {
    const { uffd, area, base } = setting(world, watching({ kind: 'hugetlb', pages: 1 }));
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
      const { uffd, area, base, thread } = setting(world, watching({ kind, pages: 1, mode: MINOR }));
      assert.equal(thread.write(area.alias, 5), 0);
      assert.equal(thread.read(base), 'fault');
      assert.deepEqual(uffd.take(), [fault(base, 4)]);
      assert.equal(world.thread().write(area.alias, 6), 0);
      assert.deepEqual(uffd.continue(base, area.length), ['ok', area.length]);
      assert.equal(thread.outcome(), 6);
      assert.deepEqual(uffd.continue(base, area.length), EEXIST);
    },
    { ...EVERY_KIND, has: [kind] },
  );
}

check(
  'minor.write',
  'a minor fault by a write has the flags 5',
  (world) => {
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem', mode: MINOR }));
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
    const { uffd, base, thread } = setting(world, watching({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.read(base), 0);
    assert.deepEqual(uffd.take(), []);
  },
  SHMEM,
);

check(
  'minor.private-shmem',
  'a private mapping of shmem takes MINOR and CONTINUE too',
  (world) => {
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'private-shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 4)]);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.outcome(), 5);
  },
  { ...EVERY_KIND, has: ['private-shmem'] },
);

/** A private mapping of a memfd, watched as `uffd serve` wants it of monitors whose guests share pages. */
const shared = (world: World): Setting =>
  setting(world, watching({ kind: 'private-shmem', mode: MISSING | MINOR }));

const PRIVATE_SHMEM = { ...EVERY_KIND, has: ['private-shmem' as const] };

check(
  'minor.private-shmem.both',
  'in both modes, a touch of a private mapping of shmem is missing or minor by what the page cache has; a write copies',
  (world) => {
    const { uffd, area, base, thread } = shared(world);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 0)]);
    assert.equal(world.thread().write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.outcome(), 5);
    assert.equal(thread.write(base, 6), 0);
    assert.deepEqual(uffd.take(), []);
    assert.equal(world.thread().read(area.alias), 5);
    assert.equal(thread.read(base), 6);
  },
  PRIVATE_SHMEM,
);

check(
  'minor.private-shmem.removed',
  'after MADV_DONTNEED on a private mapping of shmem, the page of the page cache is a minor fault; ZEROPAGE makes it zeros',
  (world) => {
    const { uffd, area, base, thread } = shared(world);
    assert.equal(world.thread().write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P), DONE);
    assert.equal(thread.write(base, 6), 0);
    assert.equal(thread.madvise(base, P, MADV_DONTNEED), 0);
    assert.equal(thread.read(base), 'fault');
    assert.deepEqual(uffd.take(), [fault(base, 4)]);
    assert.deepEqual(uffd.zeropage(base, P), DONE);
    assert.equal(thread.outcome(), 0);
    assert.equal(world.thread().read(area.alias), 5);
    assert.equal(thread.write(base, 7), 0);
    assert.equal(thread.read(base), 7);
    assert.equal(world.thread().read(area.alias), 5);
  },
  PRIVATE_SHMEM,
);

check(
  'minor.private-shmem.filled',
  'COPY and ZEROPAGE fill a private mapping of shmem only, over the page cache too; CONTINUE needs the page cache',
  (world) => {
    const { uffd, area, base, thread } = shared(world);
    const bytes = source(world, 2);
    assert.deepEqual(uffd.continue(base, P), EFAULT);
    assert.deepEqual(uffd.copy(base, bytes, P), DONE);
    assert.deepEqual(uffd.zeropage(at(base, 1), P), DONE);
    assert.deepEqual(uffd.continue(base, P), EFAULT);
    assert.deepEqual(world.thread().write(at(area.alias, 2), 5), 0);
    assert.deepEqual(uffd.copy(at(base, 2), bytes + BigInt(P), P), DONE);
    assert.deepEqual(uffd.continue(at(base, 2), P), EEXIST);
    assert.deepEqual(
      [0, 1, 2].map((page) => thread.read(at(base, page))),
      [0x61, 0, 0x62],
    );
    assert.deepEqual(
      [0, 1, 2].map((page) => world.thread().read(at(area.alias, page))),
      [0, 0, 5],
    );
  },
  PRIVATE_SHMEM,
);

check(
  'continue.efault.not-cached',
  'a page that is not in the page cache: EFAULT',
  (world) => {
    const { uffd, base } = setting(world, watching({ kind: 'shmem', mode: MINOR }));
    assert.deepEqual(uffd.continue(base, P), EFAULT);
  },
  SHMEM,
);

check(
  'continue.einval.anonymous',
  'anonymous memory: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, watching({}));
    assert.deepEqual(uffd.continue(base, P), EINVAL);
  },
  EVERY_KIND,
);

check(
  'continue.einval.wp-mode',
  'MODE_WP where write-protection is not registered: EINVAL',
  (world) => {
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem', mode: MINOR }));
    assert.equal(thread.write(area.alias, 5), 0);
    assert.deepEqual(uffd.continue(base, P, WITH_WP), EINVAL);
  },
  SHMEM,
);

check(
  'continue.wp',
  'MODE_WP maps the page write-protected',
  (world) => {
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem', mode: MINOR | WP }));
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
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem' }));
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
    const { uffd, area, base, thread } = setting(world, watching({ kind: 'shmem', mode: MINOR }));
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
  'a thread that waits for the page gets SIGBUS, or EFAULT in a system call',
  (world) => {
    for (const [page, by, outcome] of [
      [0, 'user', 'SIGBUS'],
      [1, 'kernel', 'EFAULT'],
    ] as const) {
      const { uffd, base, thread } = setting(world, watching({}));
      assert.equal(thread.read(at(base, page), by), 'fault');
      assert.deepEqual(uffd.poison(at(base, page), P), DONE);
      assert.equal(thread.outcome(), outcome);
    }
  },
  EVERY_KIND,
);

for (const [id, kind] of [
  ['poison.ok.shmem', 'shmem'],
  ['poison.ok.hugetlb', 'hugetlb'],
] as const) {
  check(
    id,
    `${kind} can be poisoned; a touch raises SIGBUS; again: EEXIST`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, watching({ kind, pages: 1 }));
      assert.deepEqual(uffd.poison(base, area.length), ['ok', area.length]);
      assert.equal(thread.read(base), 'SIGBUS');
      assert.deepEqual(uffd.poison(base, area.length), EEXIST);
    },
    { ...EVERY_KIND, has: [kind] },
  );
}

check(
  'poison.survives.fork',
  'a forked process has it too',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({}));
    assert.deepEqual(uffd.poison(base, P), DONE);
    const child = thread.fork();
    assert.equal(child.read(base), 'SIGBUS');
  },
  EVERY_KIND,
);

check(
  'poison.survives.unregister',
  'it survives UNREGISTER, and is gone after DONTNEED',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({}));
    assert.deepEqual(uffd.poison(base, P), DONE);
    assert.equal(uffd.unregister(base, 4 * P), 'ok');
    assert.equal(thread.read(base), 'SIGBUS');
    assert.equal(thread.madvise(base, P, 4), 0);
    assert.equal(thread.read(base), 0);
  },
  EVERY_KIND,
);

check(
  'poison.survives.mremap',
  'it moves with mremap',
  (world) => {
    const { uffd, base, thread } = setting(world, watching({}));
    assert.deepEqual(uffd.poison(base, P), DONE);
    const to = world.vacant(4);
    assert.equal(thread.mremap(base, 4 * P, 4 * P, 3, to), Number(to));
    assert.equal(thread.read(to), 'SIGBUS');
  },
  EVERY_KIND,
);

check.run();
