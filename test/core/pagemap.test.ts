// Planes: bitmaps of a range's pages, set from PAGEMAP_SCAN or from entries of /proc/PID/pagemap and read as runs. They
// are compared with sets of numbers. The core also refuses answers that no kernel should give.

import { strict as assert } from 'node:assert';
import { Plane, Scan } from '../../src/bindings/core.js';
import { type Core, instantiate } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import { BASE, P, PAGE, page } from './support.js';

const test = suite('pagemap');

const PAGES = 200;

function open(pages = PAGES, planes = 3): Core {
  const core = instantiate();
  assert.equal(core.arguments(BASE, pages * PAGE).dirtyOpen(12, 12, planes), 1);
  return core;
}

/** The pages between `from` and `to` that are in a plane (or are not in it), read as runs. */
function pagesIn(core: Core, plane: Plane, inside = true, from = 0, to = PAGES): number[] {
  const pages: number[] = [];
  let at = page(from);
  while (at < page(to) && core.arguments(at, Number(page(to))).planeNext(plane, inside)) {
    const { start, end } = core;
    assert.ok(start >= at && start < end && end <= page(to), 'a run lies where it was asked for');
    for (let address = start; address < end; address += P) pages.push(Number((address - BASE) / P));
    at = end;
    // A run is as long as possible: the page after its end is not part of the plane.
    if (at < page(to)) {
      const next = core.arguments(at, Number(at + P)).planeNext(plane, inside);
      assert.equal(next, 0, 'a run ends where it has to');
    }
  }
  return pages;
}

const sorted = (set: Set<number>): number[] => [...set].sort((a, b) => a - b);

test('random marks, moves and clears are those of sets', () => {
  const random = generator(seed());
  for (let round = 0; round < 300; round++) {
    const core = open();
    const sets = [new Set<number>(), new Set<number>(), new Set<number>()] as const;
    for (let step = 0; step < 30; step++) {
      const first = random(PAGES);
      const count = 1 + random(PAGES - first);
      const some = Array.from({ length: count }, (_, index) => first + index);
      const plane = random(3) as 0 | 1 | 2;
      switch (random(4)) {
        case 0:
          core.arguments(page(first), count * PAGE).dirtyMark();
          for (const marked of [Plane.UNTOLD, Plane.UNSAVED]) for (const one of some) sets[marked].add(one);
          break;
        case 1:
          core.arguments(page(first), count * PAGE).planeSet(plane);
          for (const one of some) sets[plane].add(one);
          break;
        case 2:
          core.exports.planeClear(plane);
          sets[plane].clear();
          break;
        default: {
          const target = ((plane + 1) % 3) as 0 | 1 | 2;
          core.exports.planeMove(plane, target);
          for (const one of sets[plane]) sets[target].add(one);
          sets[plane].clear();
        }
      }
      for (const each of [0, 1, 2] as const) assert.deepEqual(pagesIn(core, each), sorted(sets[each]));
      const [from, to] = [random(PAGES), random(PAGES)].sort((a, b) => a - b) as [number, number];
      const outside = Array.from({ length: to - from }, (_, index) => from + index).filter(
        (one) => !sets[plane].has(one),
      );
      assert.deepEqual(pagesIn(core, plane, false, from, to), outside);
    }
  }
});

/** Answers a scan as the kernel would: with these regions, and the page at which the walk ended. */
function scan(core: Core, regions: [number, number][], walkedTo: number): number {
  assert.equal(core.arguments(0x1234n).scanRequest() >>> 0, 0xc0606610);
  const struct = new BigUint64Array(core.memory.buffer, core.scan, 12);
  assert.equal(struct[5], 0x1234n, 'vec');
  struct[4] = page(walkedTo);
  const out = new BigUint64Array(core.memory.buffer, core.exports.scanBuffer(), regions.length * 3);
  for (const [index, [from, to]] of regions.entries()) out.set([page(from), page(to), 2n], index * 3);
  return core.exports.scanTake(regions.length);
}

test('a round is two scans: pages that are gone, then pages written, each to the end of the range', () => {
  const core = open();
  core.exports.scanBegin();
  const words = (): bigint[] => [...new BigUint64Array(core.memory.buffer, core.scan, 12)];
  assert.equal(scan(core, [[3, 5]], 100), Scan.MORE);
  const gone = words();
  // size, flags, start, end; the inverted and required categories: neither present nor swapped.
  assert.deepEqual([...gone.slice(0, 4), gone[8], gone[9]], [96n, 3n, BASE, page(PAGES), 0x18n, 0x18n]);
  assert.equal(scan(core, [], PAGES), Scan.MORE);
  assert.equal(words()[2], page(100), 'it goes on where the walk ended');
  assert.equal(
    scan(
      core,
      [
        [4, 6],
        [50, 51],
      ],
      PAGES,
    ),
    Scan.DONE,
  );
  const written = words();
  assert.deepEqual([written[2], written[8], written[9]], [BASE, 0n, 2n]);
  for (const plane of [Plane.UNTOLD, Plane.UNSAVED]) assert.deepEqual(pagesIn(core, plane), [3, 4, 5, 50]);
  assert.deepEqual(pagesIn(core, Plane.SAVING), []);
});

test('answers that make no sense are refused', () => {
  const answers: [[number, number][], number][] = [
    [[], 0],
    [[], PAGES + 1],
    [[[-1, 2]], PAGES],
    [[[5, PAGES + 1]], PAGES],
    [[[5, 5]], PAGES],
    [[[6, 5]], PAGES],
  ];
  for (const [regions, walkedTo] of answers) {
    const core = open();
    core.exports.scanBegin();
    assert.equal(scan(core, regions, walkedTo), Scan.NONSENSE);
  }
  const core = open();
  core.exports.scanBegin();
  core.arguments(0n).scanRequest();
  assert.equal(core.exports.scanTake(100_000), Scan.NONSENSE);
});

test('entries of pagemap: runs of those that are not protected, in whole pages of the range', () => {
  const core = instantiate();
  // Each page of this range has four entries of pagemap.
  assert.equal(core.arguments(BASE, 16 * 4 * PAGE).dirtyOpen(14, 12, 1), 1);
  core.exports.entriesBegin();
  const room = core.exports.entriesRoom();
  assert.equal(core.start, (BASE / P) * 8n, 'where in /proc/PID/pagemap');
  assert.equal(room, 64 * 8);
  const entries = new BigUint64Array(core.memory.buffer, core.exports.scanBuffer(), 64).fill(1n << 57n);
  for (const at of [5, 30, 31, 32, 63]) entries[at] = 1n << 63n;
  core.exports.entriesTake(room);
  const runs: [number, number][] = [];
  while (core.exports.entriesNext()) {
    const { start, end } = core;
    runs.push([Number((start - BASE) / P), Number((end - BASE) / P)]);
  }
  assert.deepEqual(runs, [
    [4, 8],
    [28, 36],
    [60, 64],
  ]);
  assert.equal(core.exports.entriesRoom(), 0, 'that was all');
});

/** Feeds entries of pagemap, from the first page on, and returns the pages of the runs. */
function lookAt(core: Core, entries: bigint[]): number[] {
  core.exports.entriesBegin();
  const room = core.exports.entriesRoom();
  new BigUint64Array(core.memory.buffer, core.exports.scanBuffer(), entries.length).set(entries);
  core.exports.entriesTake(room);
  const pages: number[] = [];
  while (core.exports.entriesNext()) {
    const { start, end } = core;
    assert.ok(end > start, 'a run has a page at least');
    for (let at = start; at < end; at += P) pages.push(Number((at - BASE) / P));
  }
  return pages;
}

test('guard pages in entries of pagemap: reported when they come, and again when they are none any more', () => {
  const core = open(200, 4);
  const [isProtected, guard, written] = [1n << 57n, (1n << 58n) | (1n << 62n), 1n << 63n];
  const entries = Array.from({ length: 200 }, () => isProtected);
  const at = (pages: number[], value: bigint): void => {
    for (const page of pages) entries[page] = value;
  };
  at([3, 63, 64, 65, 199], guard);
  at([4], written);
  assert.deepEqual(lookAt(core, entries), [3, 4, 63, 64, 65, 199]);
  assert.deepEqual(lookAt(core, entries), [4], 'nothing protects a guard, so it is reported once');
  at([64, 199], 0n);
  assert.deepEqual(lookAt(core, entries), [4, 64, 199]);
  at([4, 199], isProtected);
  at([64], guard);
  assert.deepEqual(lookAt(core, entries), [64], 'a guard that came again');
  assert.deepEqual(lookAt(core, entries), []);
  // The other planes are unchanged.
  for (const plane of [Plane.UNTOLD, Plane.UNSAVED, Plane.SAVING]) assert.deepEqual(pagesIn(core, plane), []);
});

test('without a plane for guards each of them is reported each time, and nothing else is written', () => {
  const core = open(200, 3);
  const entries = Array.from({ length: 200 }, (_, page) => (page === 7 ? 1n << 58n : 1n << 57n));
  for (const _ of [1, 2]) assert.deepEqual(lookAt(core, entries), [7]);
});

test('the scan that checks protects nothing, and asks the kernel to look at no page', () => {
  const core = open();
  core.exports.scanBegin();
  assert.equal(core.arguments(0x1234n).scanCheckRequest() >>> 0, 0xc0606610);
  const words = [...new BigUint64Array(core.memory.buffer, core.scan, 12)];
  // size, flags (check only), start, end, walk_end, vec; then the masks: mappings without asynchronous protection.
  assert.deepEqual(words.slice(0, 6), [96n, 2n, BASE, page(PAGES), 0n, 0x1234n]);
  assert.deepEqual(words.slice(7), [0n, 1n, 1n, 0n, 1n]);
  // A round after the check works as usual.
  assert.equal(scan(core, [], PAGES), Scan.MORE);
});

test('more pages than its memory can hold are refused', () => {
  const core = instantiate();
  assert.equal(core.arguments(0n, 2 ** 46).dirtyOpen(12, 12, 3), 0);
});

test.run();
