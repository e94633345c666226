// PAGEMAP_SCAN with WP_ASYNC (docs/kernel.md: async WP): which pages were written since the last scan, and the
// categories that the scan reports for a page.

import { strict as assert } from 'node:assert';
import { closeSync, openSync } from 'node:fs';
import { errnoName } from '../../src/errors/errors.js';
import { Feature, MISSING, PROTECT, type Uffd, WP } from './calls.js';
import { bring, type State } from './states.js';
import { at, checks, fill, P, type Setting, type SettingOptions, setting, source } from './support.js';
import type { MemoryKind, World } from './world.js';

const check = checks('semantics/scan');

const PAGEMAP_SCAN = 0xc0606610;
/** Flags: protect the matching pages; fail if memory is not registered for WP_ASYNC. */
const WP_MATCHING = 1n;
const CHECK_WPASYNC = 2n;

const WPALLOWED = 0x1;
const WRITTEN = 0x2;
const FILE = 0x4;
const PRESENT = 0x8;
const SWAPPED = 0x10;
const PFNZERO = 0x20;
const HUGE = 0x40;
const GUARD = 0x100;
const ALL = 0x1ffn;

const ARGUMENT_AT = 4096;
const REGIONS_AT = 8192;
const REGIONS_MOST = 16;
const REGION_WORDS = 3;

type Region = readonly [start: bigint, end: bigint, categories: number];

/** Scans `pages` pages from `start` for the categories in `mask`; the regions, or an errno's name. */
function scan(world: World, uffd: Uffd, start: bigint, pages: number, flags: bigint, mask: bigint) {
  const fd = openSync('/proc/self/pagemap', 'r');
  world.defer(() => closeSync(fd));
  const { buffer } = world.memory;
  const regions = new BigUint64Array(buffer, REGIONS_AT, REGIONS_MOST * REGION_WORDS);
  const vec = uffd.port.addressOf(regions);
  const words = [96n, flags, start, at(start, pages), 0n, vec, BigInt(REGIONS_MOST), 0n, 0n, mask, 0n, ALL];
  new BigUint64Array(buffer, ARGUMENT_AT, words.length).set(words);
  const found = uffd.port.ioctl(fd, PAGEMAP_SCAN, ARGUMENT_AT);
  if (found < 0) return errnoName(-found);
  return Array.from({ length: found }, (_, index): Region => {
    const [from, to, categories] = regions.subarray(index * REGION_WORDS) as unknown as bigint[];
    return [from as bigint, to as bigint, Number(categories)];
  });
}

const ASYNC: SettingOptions = { features: Feature.wpAsync, mode: WP };
const NEEDS = { has: ['descriptors'], features: Feature.wpAsync } as const;
const ARM = WP_MATCHING | CHECK_WPASYNC;

/** The pages written since the last call; the same ioctl protects them again. */
function written({ uffd, base, area }: Setting, world: World): unknown {
  const found = scan(world, uffd, base, area.length / P, ARM, BigInt(WRITTEN));
  return typeof found === 'string' ? found : found.map(([start, end]) => [start, end]);
}

check(
  'scan.written',
  'it returns the pages written since the last scan, and protects them again',
  (world) => {
    const set = setting(world, { ...ASYNC, filled: 1 });
    const { base, thread } = set;
    assert.deepEqual(written(set, world), [[base, at(base, 4)]], 'never armed: all of it');
    assert.deepEqual(written(set, world), []);
    for (const round of [1, 2]) {
      assert.equal(thread.write(at(base, 1), round), 0);
      assert.equal(thread.write(at(base, 3), round), 0);
      assert.equal(thread.read(at(base, 2)), 1);
      assert.deepEqual(written(set, world), [
        [at(base, 1), at(base, 2)],
        [at(base, 3), at(base, 4)],
      ]);
      assert.deepEqual(written(set, world), []);
    }
  },
  NEEDS,
);

check(
  'scan.writeprotect-arms',
  'WRITEPROTECT arms it too',
  (world) => {
    const set = setting(world, { ...ASYNC, filled: 1 });
    assert.equal(set.uffd.writeprotect(set.base, 4 * P, PROTECT), 'ok');
    assert.deepEqual(written(set, world), []);
  },
  NEEDS,
);

check(
  'scan.eperm',
  'CHECK_WPASYNC over memory that is not registered for it: EPERM',
  (world) => {
    const set = setting(world, { ...ASYNC, mode: 0n, filled: 1 });
    assert.equal(written(set, world), 'EPERM');
  },
  NEEDS,
);

const STATES: readonly (readonly [id: string, state: State, categories: number])[] = [
  ['scan.state.none', 'none', WPALLOWED | WRITTEN],
  ['scan.state.page', 'page', WPALLOWED | WRITTEN | PRESENT],
  ['scan.state.page-wp', 'page+wp', WPALLOWED | PRESENT],
  ['scan.state.zero', 'zero', WPALLOWED | WRITTEN | PRESENT | PFNZERO],
  ['scan.state.wp-marker', 'wp-marker', WPALLOWED | SWAPPED],
  ['scan.state.poison', 'poison', WPALLOWED | WRITTEN | SWAPPED],
  ['scan.state.guard', 'guard', WPALLOWED | WRITTEN | SWAPPED | GUARD],
];

for (const [id, state, categories] of STATES) {
  const features = Feature.wpAsync | Feature.poison;
  check(
    id,
    `a page that is ${state} has the categories 0x${categories.toString(16)}`,
    (world) => {
      const { uffd, base, thread } = setting(world, { features, mode: MISSING | WP });
      bring(state, base, { uffd, thread, bytes: source(world, 1) });
      assert.deepEqual(scan(world, uffd, base, 1, 0n, 0n), [[base, at(base, 1), categories]]);
    },
    { has: ['descriptors', ...(state === 'guard' ? (['guard'] as const) : [])], features },
  );
}

const KINDS: readonly (readonly [id: string, kind: MemoryKind, categories: number])[] = [
  ['scan.kind.shmem', 'shmem', WPALLOWED | WRITTEN | PRESENT | FILE],
  ['scan.kind.file', 'file', WPALLOWED | WRITTEN | PRESENT | FILE],
  ['scan.kind.thp', 'thp', WPALLOWED | WRITTEN | PRESENT | HUGE],
  ['scan.kind.hugetlb', 'hugetlb', WPALLOWED | WRITTEN | PRESENT | FILE | HUGE],
];

for (const [id, kind, categories] of KINDS) {
  check(
    id,
    `a page of ${kind} has the categories 0x${categories.toString(16)}`,
    (world) => {
      const pages = kind === 'thp' ? 512 : 1;
      const { uffd, area, base, thread } = setting(world, { ...ASYNC, kind, pages });
      fill(thread, area, 1);
      const small = area.length / P;
      assert.deepEqual(scan(world, uffd, base, small, 0n, 0n), [[base, at(base, small), categories]]);
    },
    { has: ['descriptors', kind], features: Feature.wpAsync | Feature.wpHugetlbShmem },
  );
}

check.run();
