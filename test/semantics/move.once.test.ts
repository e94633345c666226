// MOVE (docs/kernel.md): when the kernel refuses it, in the order of the checks, and what it does. `pages` tests the
// states of pages; `order` tests that the kernel checks every argument first.

import { strict as assert } from 'node:assert';
import { ALLOW_HOLES, Feature, MISSING, openUffd, WP } from './calls.js';
import { DONE, EBUSY, EEXIST, EINVAL, ENOENT } from './requests.js';
import { stateOf } from './states.js';
import { at, checks, elsewhere, fill, P, setting, source } from './support.js';

const check = checks('semantics/move');

const MOVE = { features: Feature.move } as const;

check(
  'move.ok',
  'the page is at the target, and no longer at the source, which need not be registered',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    const from = source(world, 2);
    assert.deepEqual(uffd.move(base, from, 2 * P), ['ok', 2 * P]);
    assert.equal(stateOf(base, thread), 'page a');
    assert.equal(stateOf(at(base, 1), thread), 'page b');
    assert.equal(stateOf(from, thread), 'none');
  },
  MOVE,
);

check(
  'move.einval.other-process',
  'a caller whose memory is not that of the userfaultfd: EINVAL, the output untouched',
  (world) => {
    const { uffd, base, process } = elsewhere(world, MOVE);
    assert.equal(process.write(at(base, 2), 1), 'fault');
    assert.deepEqual(uffd.move(base, at(base, 2), P), ['EINVAL', 'untouched']);
  },
  MOVE,
);

check(
  'move.ok.own-process',
  'the process itself can move what its userfaultfd watches',
  (world) => {
    const from = source(world, 1);
    const { uffd, base, process } = elsewhere(world, MOVE);
    // After the fork the page is shared; this write gives the process its own page.
    assert.equal(process.write(from, 0x61), 0);
    assert.deepEqual(uffd.by(process).move(base, from, P), DONE);
    assert.equal(process.read(base), 0x61);
  },
  MOVE,
);

check(
  'move.enoent.no-source',
  'no mapping at the source: ENOENT',
  (world) => {
    const { uffd, base } = setting(world, MOVE);
    assert.deepEqual(uffd.move(base, world.vacant(1), P), ENOENT);
    assert.deepEqual(uffd.move(base, world.vacant(1), P, ALLOW_HOLES), ENOENT, 'that is no hole');
  },
  MOVE,
);

check(
  'move.enoent.no-target',
  'no mapping at the target: ENOENT',
  (world) => {
    const { uffd } = setting(world, MOVE);
    assert.deepEqual(uffd.move(world.vacant(1), source(world, 1), P), ENOENT);
  },
  MOVE,
);

check(
  'move.enoent.hole',
  'a page that is not there at the source: ENOENT',
  (world) => {
    const { uffd, base } = setting(world, MOVE);
    const { address } = world.map('anonymous', 1);
    assert.deepEqual(uffd.move(base, address, P), ENOENT);
  },
  MOVE,
);

check(
  'move.holes-count',
  'with ALLOW_SRC_HOLES pages that are not there count as moved',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    const from = world.map('anonymous', 3);
    assert.equal(thread.write(at(from.address, 1), 0x7a), 0);
    assert.deepEqual(uffd.move(base, from.address, 3 * P, ALLOW_HOLES), ['ok', 3 * P]);
    assert.equal(stateOf(base, thread), 'none');
    assert.equal(stateOf(at(base, 1), thread), 'page z');
  },
  MOVE,
);

check(
  'move.einval.source-end',
  'a source that goes beyond the end of its mapping: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, MOVE);
    assert.deepEqual(uffd.move(base, source(world, 1), 2 * P), EINVAL);
  },
  MOVE,
);

check(
  'move.einval.target-end',
  'a target that goes beyond the end of its mapping: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, { ...MOVE, pages: 1 });
    assert.deepEqual(uffd.move(base, source(world, 2), 2 * P), EINVAL);
  },
  MOVE,
);

for (const [id, kind] of [
  ['move.einval.shmem', 'shmem'],
  ['move.einval.private-shmem', 'private-shmem'],
  ['move.einval.hugetlb', 'hugetlb'],
] as const) {
  const features = MOVE.features | Feature.missingShmem | Feature.missingHugetlb;
  check(
    id,
    `${kind} at both ends: EINVAL`,
    (world) => {
      const { uffd, area, base, thread } = setting(world, { kind, pages: 1, features });
      const from = world.map(kind, 1);
      fill(thread, from, 1);
      assert.deepEqual(uffd.move(base, from.address, area.length), EINVAL);
    },
    { has: [kind], features },
  );
}

check(
  'move.einval.protection',
  'ends of different protection: EINVAL',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    const from = source(world, 1);
    assert.equal(thread.mprotect(from, P, 1), 0);
    assert.deepEqual(uffd.move(base, from, P), EINVAL);
  },
  MOVE,
);

check(
  'move.einval.mlock',
  'one end locked: EINVAL',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    const from = source(world, 1);
    assert.equal(thread.mlock(from, P), 0);
    assert.deepEqual(uffd.move(base, from, P), EINVAL);
  },
  MOVE,
);

check(
  'move.einval.unregistered',
  'a target that is not registered: EINVAL',
  (world) => {
    const { uffd, base } = setting(world, { ...MOVE, mode: 0n });
    assert.deepEqual(uffd.move(base, source(world, 1), P), EINVAL);
  },
  MOVE,
);

check(
  'move.einval.other-uffd',
  'a target that another userfaultfd has registered: EINVAL',
  (world) => {
    const { base } = setting(world, MOVE);
    assert.deepEqual(openUffd(world, MOVE.features).move(base, source(world, 1), P), EINVAL);
  },
  MOVE,
);

/** The hole has a present page beside it, so that its page table exists. */
check(
  'move.eexist.before-hole',
  'a target that is not empty is seen before a hole at the source',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    assert.deepEqual(uffd.zeropage(base, P), DONE);
    const { address } = world.map('anonymous', 2);
    assert.equal(thread.write(at(address, 1), 1), 0);
    assert.deepEqual(uffd.move(base, address, P), EEXIST);
    assert.deepEqual(uffd.move(base, address, P, ALLOW_HOLES), EEXIST);
  },
  MOVE,
);

check(
  'move.enoent.no-table',
  'but where the source has no page table at all, its hole is seen first, unless holes are allowed',
  (world) => {
    const { uffd, base } = setting(world, MOVE);
    assert.deepEqual(uffd.copy(base, source(world, 1), P), DONE);
    const { address } = world.map('anonymous', 1);
    assert.deepEqual(uffd.move(base, address, P), ENOENT);
    assert.deepEqual(uffd.move(base, address, P, ALLOW_HOLES), EEXIST);
  },
  MOVE,
);

check(
  'move.ebusy.fork',
  'after a fork a page is EBUSY, after the child’s exit too, until it is written',
  (world) => {
    const { uffd, base, thread } = setting(world, MOVE);
    const from = source(world, 2);
    const child = thread.fork();
    assert.deepEqual(uffd.move(base, from, P), EBUSY);
    assert.equal(child.exit(), 'gone');
    assert.deepEqual(uffd.move(base, from, P), EBUSY);
    assert.equal(thread.write(from, 0x7a), 0);
    assert.deepEqual(uffd.move(base, from, P), DONE);
    assert.deepEqual(uffd.move(at(base, 1), at(from, 1), P), EBUSY, 'the other was not written');
  },
  MOVE,
);

check(
  'move.wp-mode',
  'a target in WP mode takes the page unprotected',
  (world) => {
    const features = MOVE.features | Feature.flagWp;
    const { uffd, base, thread } = setting(world, { mode: MISSING | WP, features });
    assert.deepEqual(uffd.move(base, source(world, 1), P), DONE);
    assert.equal(stateOf(base, thread), 'page a');
  },
  { features: MOVE.features | Feature.flagWp },
);

check.run();
