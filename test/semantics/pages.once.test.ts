// The effect of each operation on a page of private anonymous memory in each state (docs/kernel.md: the table
// op \\ PTE). A row is a cell: the state before, the answer, the state afterwards. If the answer is 'ok', a call that
// counts bytes has counted the page; if the answer is an errno, the output field is the negative errno.

import { strict as assert } from 'node:assert';
import { Errno } from '../../src/errors/errors.js';
import { ALLOW_HOLES, type Answer, Feature, MISSING, PROTECT, WITH_WP, WP } from './calls.js';
import { bring, type Means, type State, stateOf } from './states.js';
import { at, checks, P, setting, source } from './support.js';

const check = checks('semantics/pages');

const FEATURES = Feature.flagWp | Feature.wpUnpopulated | Feature.poison | Feature.move;
const MADV_DONTNEED = 4;
const MADV_FREE = 8;

/** Acts on the page at `base`; the page to copy or move begins with 'b'. The page at `base` + 2 pages is free. */
type Operation = (means: Means, base: bigint) => Answer | string | number;

const OPERATIONS = {
  copy: ({ uffd, bytes }, base) => uffd.copy(base, bytes, P),
  'copy-wp': ({ uffd, bytes }, base) => uffd.copy(base, bytes, P, WITH_WP),
  zeropage: ({ uffd }, base) => uffd.zeropage(base, P),
  poison: ({ uffd }, base) => uffd.poison(base, P),
  continue: ({ uffd }, base) => uffd.continue(base, P),
  protect: ({ uffd }, base) => uffd.writeprotect(base, P, PROTECT),
  unprotect: ({ uffd }, base) => uffd.writeprotect(base, P, 0n),
  'move-to': ({ uffd, bytes }, base) => uffd.move(base, bytes, P),
  'move-from': ({ uffd }, base) => uffd.move(at(base, 2), base, P),
  'move-from-holes': ({ uffd }, base) => uffd.move(at(base, 2), base, P, ALLOW_HOLES),
  dontneed: ({ thread }, base) => thread.madvise(base, P, MADV_DONTNEED),
  free: ({ thread }, base) => thread.madvise(base, P, MADV_FREE),
  unregister: ({ uffd }, base) => uffd.unregister(base, P),
  close: ({ uffd }) => {
    uffd.close();
    return 'ok';
  },
} satisfies Record<string, Operation>;

type Row = readonly [id: string, before: State, result: string, after: string, target?: string];

const TABLE: Record<keyof typeof OPERATIONS, readonly Row[]> = {
  copy: [
    ['pte.copy.none', 'none', 'ok', 'page b'],
    ['pte.copy.zero', 'zero', 'EEXIST', 'zero'],
    ['pte.copy.zero-wp', 'zero+wp', 'EEXIST', 'zero+wp'],
    ['pte.copy.page', 'page', 'EEXIST', 'page a'],
    ['pte.copy.page-wp', 'page+wp', 'EEXIST', 'page+wp a'],
    ['pte.copy.shared', 'shared', 'EEXIST', 'shared a'],
    ['pte.copy.wp-marker', 'wp-marker', 'ok', 'page b'],
    ['pte.copy.poison', 'poison', 'ok', 'page b'],
    ['pte.copy.guard', 'guard', 'ok', 'page b'],
  ],
  'copy-wp': [
    ['pte.copy-wp.none', 'none', 'ok', 'page+wp b'],
    ['pte.copy-wp.zero', 'zero', 'EEXIST', 'zero'],
    ['pte.copy-wp.zero-wp', 'zero+wp', 'EEXIST', 'zero+wp'],
    ['pte.copy-wp.page', 'page', 'EEXIST', 'page a'],
    ['pte.copy-wp.page-wp', 'page+wp', 'EEXIST', 'page+wp a'],
    ['pte.copy-wp.shared', 'shared', 'EEXIST', 'shared a'],
    ['pte.copy-wp.wp-marker', 'wp-marker', 'ok', 'page+wp b'],
    ['pte.copy-wp.poison', 'poison', 'ok', 'page+wp b'],
    ['pte.copy-wp.guard', 'guard', 'ok', 'page+wp b'],
  ],
  zeropage: [
    ['pte.zeropage.none', 'none', 'ok', 'zero'],
    ['pte.zeropage.zero', 'zero', 'EEXIST', 'zero'],
    ['pte.zeropage.zero-wp', 'zero+wp', 'EEXIST', 'zero+wp'],
    ['pte.zeropage.page', 'page', 'EEXIST', 'page a'],
    ['pte.zeropage.page-wp', 'page+wp', 'EEXIST', 'page+wp a'],
    ['pte.zeropage.shared', 'shared', 'EEXIST', 'shared a'],
    ['pte.zeropage.wp-marker', 'wp-marker', 'EEXIST', 'wp-marker'],
    ['pte.zeropage.poison', 'poison', 'EEXIST', 'poison'],
    ['pte.zeropage.guard', 'guard', 'EEXIST', 'guard'],
  ],
  poison: [
    ['pte.poison.none', 'none', 'ok', 'poison'],
    ['pte.poison.zero', 'zero', 'EEXIST', 'zero'],
    ['pte.poison.zero-wp', 'zero+wp', 'EEXIST', 'zero+wp'],
    ['pte.poison.page', 'page', 'EEXIST', 'page a'],
    ['pte.poison.page-wp', 'page+wp', 'EEXIST', 'page+wp a'],
    ['pte.poison.shared', 'shared', 'EEXIST', 'shared a'],
    ['pte.poison.wp-marker', 'wp-marker', 'EEXIST', 'wp-marker'],
    ['pte.poison.poison', 'poison', 'EEXIST', 'poison'],
    ['pte.poison.guard', 'guard', 'EEXIST', 'guard'],
  ],
  continue: [
    ['pte.continue.none', 'none', 'EINVAL', 'none'],
    ['pte.continue.zero', 'zero', 'EINVAL', 'zero'],
    ['pte.continue.zero-wp', 'zero+wp', 'EINVAL', 'zero+wp'],
    ['pte.continue.page', 'page', 'EINVAL', 'page a'],
    ['pte.continue.page-wp', 'page+wp', 'EINVAL', 'page+wp a'],
    ['pte.continue.shared', 'shared', 'EINVAL', 'shared a'],
    ['pte.continue.wp-marker', 'wp-marker', 'EINVAL', 'wp-marker'],
    ['pte.continue.poison', 'poison', 'EINVAL', 'poison'],
    ['pte.continue.guard', 'guard', 'EINVAL', 'guard'],
  ],
  protect: [
    ['pte.protect.none', 'none', 'ok', 'wp-marker'],
    ['pte.protect.zero', 'zero', 'ok', 'zero+wp'],
    ['pte.protect.zero-wp', 'zero+wp', 'ok', 'zero+wp'],
    ['pte.protect.page', 'page', 'ok', 'page+wp a'],
    ['pte.protect.page-wp', 'page+wp', 'ok', 'page+wp a'],
    ['pte.protect.shared', 'shared', 'ok', 'shared+wp a'],
    ['pte.protect.wp-marker', 'wp-marker', 'ok', 'wp-marker'],
    ['pte.protect.poison', 'poison', 'ok', 'poison'],
    ['pte.protect.guard', 'guard', 'ok', 'guard'],
  ],
  unprotect: [
    ['pte.unprotect.none', 'none', 'ok', 'none'],
    ['pte.unprotect.zero', 'zero', 'ok', 'zero'],
    ['pte.unprotect.zero-wp', 'zero+wp', 'ok', 'zero'],
    ['pte.unprotect.page', 'page', 'ok', 'page a'],
    ['pte.unprotect.page-wp', 'page+wp', 'ok', 'page a'],
    ['pte.unprotect.shared', 'shared', 'ok', 'shared a'],
    ['pte.unprotect.wp-marker', 'wp-marker', 'ok', 'none'],
    ['pte.unprotect.poison', 'poison', 'ok', 'poison'],
    ['pte.unprotect.guard', 'guard', 'ok', 'guard'],
  ],
  'move-to': [
    ['pte.move-to.none', 'none', 'ok', 'page b'],
    ['pte.move-to.zero', 'zero', 'EEXIST', 'zero'],
    ['pte.move-to.zero-wp', 'zero+wp', 'EEXIST', 'zero+wp'],
    ['pte.move-to.page', 'page', 'EEXIST', 'page a'],
    ['pte.move-to.page-wp', 'page+wp', 'EEXIST', 'page+wp a'],
    ['pte.move-to.shared', 'shared', 'EEXIST', 'shared a'],
    ['pte.move-to.wp-marker', 'wp-marker', 'EEXIST', 'wp-marker'],
    ['pte.move-to.poison', 'poison', 'EEXIST', 'poison'],
    ['pte.move-to.guard', 'guard', 'EEXIST', 'guard'],
  ],
  'move-from': [
    ['pte.move-from.none', 'none', 'ENOENT', 'none'],
    ['pte.move-from.zero', 'zero', 'ok', 'none', 'zero'],
    ['pte.move-from.zero-wp', 'zero+wp', 'ok', 'none', 'zero'],
    ['pte.move-from.page', 'page', 'ok', 'none', 'page a'],
    ['pte.move-from.page-wp', 'page+wp', 'ok', 'none', 'page a'],
    ['pte.move-from.shared', 'shared', 'EBUSY', 'shared a'],
    ['pte.move-from.wp-marker', 'wp-marker', 'EFAULT', 'wp-marker'],
    ['pte.move-from.poison', 'poison', 'EFAULT', 'poison'],
    ['pte.move-from.guard', 'guard', 'EFAULT', 'guard'],
  ],
  'move-from-holes': [
    ['pte.move-from-holes.none', 'none', 'ok', 'none', 'none'],
    ['pte.move-from-holes.zero', 'zero', 'ok', 'none', 'zero'],
    ['pte.move-from-holes.zero-wp', 'zero+wp', 'ok', 'none', 'zero'],
    ['pte.move-from-holes.page', 'page', 'ok', 'none', 'page a'],
    ['pte.move-from-holes.page-wp', 'page+wp', 'ok', 'none', 'page a'],
    ['pte.move-from-holes.shared', 'shared', 'EBUSY', 'shared a'],
    ['pte.move-from-holes.wp-marker', 'wp-marker', 'EFAULT', 'wp-marker'],
    ['pte.move-from-holes.poison', 'poison', 'EFAULT', 'poison'],
    ['pte.move-from-holes.guard', 'guard', 'EFAULT', 'guard'],
  ],
  dontneed: [
    ['pte.dontneed.none', 'none', 'ok', 'none'],
    ['pte.dontneed.zero', 'zero', 'ok', 'none'],
    ['pte.dontneed.zero-wp', 'zero+wp', 'ok', 'none'],
    ['pte.dontneed.page', 'page', 'ok', 'none'],
    ['pte.dontneed.page-wp', 'page+wp', 'ok', 'none'],
    ['pte.dontneed.shared', 'shared', 'ok', 'none'],
    ['pte.dontneed.wp-marker', 'wp-marker', 'ok', 'none'],
    ['pte.dontneed.poison', 'poison', 'ok', 'none'],
    ['pte.dontneed.guard', 'guard', 'ok', 'guard'],
  ],
  free: [
    ['pte.free.none', 'none', 'ok', 'none'],
    ['pte.free.zero', 'zero', 'ok', 'zero'],
    ['pte.free.zero-wp', 'zero+wp', 'ok', 'zero+wp'],
    ['pte.free.page', 'page', 'ok', 'page a'],
    ['pte.free.page-wp', 'page+wp', 'ok', 'page+wp a'],
    ['pte.free.shared', 'shared', 'ok', 'shared a'],
    ['pte.free.wp-marker', 'wp-marker', 'ok', 'wp-marker'],
    ['pte.free.poison', 'poison', 'ok', 'none'],
    ['pte.free.guard', 'guard', 'ok', 'guard'],
  ],
  unregister: [
    ['pte.unregister.none', 'none', 'ok', 'none'],
    ['pte.unregister.zero', 'zero', 'ok', 'zero'],
    ['pte.unregister.zero-wp', 'zero+wp', 'ok', 'zero'],
    ['pte.unregister.page', 'page', 'ok', 'page a'],
    ['pte.unregister.page-wp', 'page+wp', 'ok', 'page a'],
    ['pte.unregister.shared', 'shared', 'ok', 'shared a'],
    ['pte.unregister.wp-marker', 'wp-marker', 'ok', 'none'],
    ['pte.unregister.poison', 'poison', 'ok', 'poison'],
    ['pte.unregister.guard', 'guard', 'ok', 'guard'],
  ],
  close: [
    ['pte.close.none', 'none', 'ok', 'none'],
    ['pte.close.zero', 'zero', 'ok', 'zero'],
    ['pte.close.zero-wp', 'zero+wp', 'ok', 'zero'],
    ['pte.close.page', 'page', 'ok', 'page a'],
    ['pte.close.page-wp', 'page+wp', 'ok', 'page a'],
    ['pte.close.shared', 'shared', 'ok', 'shared a'],
    ['pte.close.wp-marker', 'wp-marker', 'ok', 'none'],
    ['pte.close.poison', 'poison', 'ok', 'poison'],
    ['pte.close.guard', 'guard', 'ok', 'guard'],
  ],
};

/** COPY overwrites every marker up to Linux 6.18; a newer kernel may refuse to overwrite these two. */
const NARROWED = ['pte.copy.poison', 'pte.copy.guard', 'pte.copy-wp.poison', 'pte.copy-wp.guard'];

/** The complete answer of an operation. */
function expected(result: string, got: Answer | string | number): Answer | string | number {
  if (typeof got === 'number') return result === 'ok' ? 0 : result;
  if (typeof got === 'string') return result;
  return [result, result === 'ok' ? P : -(Errno[result] as number)];
}

for (const [name, rows] of Object.entries(TABLE)) {
  for (const [id, before, result, after, target] of rows) {
    check(
      id,
      `${name} on ${before}: ${result}, then ${after}`,
      (world) => {
        const { uffd, base, thread } = setting(world, { features: FEATURES, mode: MISSING | WP });
        const bytes = source(world, 2);
        bring(before, base, { uffd, thread, bytes });
        assert.equal(stateOf(base, thread).split(' ')[0], before);
        const means: Means = { uffd, thread, bytes: at(bytes, 1) };
        const got = OPERATIONS[name as keyof typeof OPERATIONS](means, base);
        const left = NARROWED.includes(id) && (got as Answer)[0] === 'EEXIST';
        assert.deepEqual(got, expected(left ? 'EEXIST' : result, got));
        assert.equal(stateOf(base, thread), left ? before : after);
        if (target !== undefined) assert.equal(stateOf(at(base, 2), thread), target, 'the target');
      },
      { features: FEATURES, has: before === 'guard' ? ['guard'] : [] },
    );
  }
}

check.run();
