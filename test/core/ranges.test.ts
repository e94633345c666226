// The table of registered ranges: the ranges are disjoint, in order and as large as possible. After any sequence of
// registrations, unregistrations, unmappings and moves the table equals a plain array of pages.

import { strict as assert } from 'node:assert';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  apply,
  brief,
  listing,
  lookup,
  MISSING,
  makeCore,
  P,
  PAGE,
  page,
  put,
  type RangeReport,
  remap,
  take,
  unmap,
  WRITE_PROTECT,
} from './support.js';

const test = suite('ranges');

/** The registration of one page. */
interface Cell {
  modes: number;
  operations: bigint;
  pageShift: number;
}

/** The reference: a cell per page. */
class Line {
  readonly cells: (Cell | undefined)[];

  constructor(pages: number) {
    this.cells = new Array(pages).fill(undefined);
  }

  /** The kernel's rule: registering a subset of the modes changes nothing; any other modes replace the old ones. */
  put(first: number, count: number, cell: Cell): void {
    for (let i = first; i < first + count; i++) {
      const old = this.cells[i];
      if (!old || (old.modes & cell.modes) !== cell.modes) this.cells[i] = cell;
    }
  }

  take(first: number, count: number): void {
    this.cells.fill(undefined, first, first + count);
  }

  /** The move replaces the memory at the target. */
  move(from: number, to: number, count: number): void {
    this.take(to, count);
    for (let i = 0; i < count; i++) {
      const cell = this.cells[from + i];
      if (cell) this.put(to + i, 1, cell);
    }
  }

  /** The largest ranges of equal cells, from page `first` up to `end`. */
  ranges(first = 0, end = this.cells.length): RangeReport[] {
    const ranges: RangeReport[] = [];
    for (let i = first; i < end; i++) {
      const cell = this.cells[i];
      const last = ranges.at(-1);
      if (!cell) continue;
      if (last?.end === page(i) && same(last, cell)) last.end += P;
      else ranges.push({ ...cell, start: page(i), end: page(i + 1) });
    }
    return ranges;
  }

  /** The range around page `index`. */
  at(index: number): RangeReport | undefined {
    const cell = this.cells[index];
    if (!cell) return undefined;
    let first = index;
    let end = index + 1;
    while (first > 0 && same(this.cells[first - 1], cell)) first--;
    while (end < this.cells.length && same(this.cells[end], cell)) end++;
    return { ...cell, start: page(first), end: page(end) };
  }
}

function same(a: Cell | undefined, b: Cell): boolean {
  return a?.modes === b.modes && a.operations === b.operations && a.pageShift === b.pageShift;
}

type Step = (core: Core) => void;
const on = (first: number, end: number, modes = MISSING): Step => {
  return (core) => put(core, first, end - first, { modes });
};
const off = (first: number, end: number): Step => {
  return (core) => take(core, first, end - first);
};
const gone = (first: number, end: number): Step => {
  return (core) => apply(core, unmap(page(first), page(end)));
};
const moved = (from: number, to: number, count: number): Step => {
  return (core) => apply(core, remap(page(from), page(to), BigInt(count) * P));
};

const CASES: Record<string, [steps: Step[], ranges: [number, number, number][]]> = {
  'nothing is registered at first': [[], []],
  'one range': [[on(2, 5)], [[2, 5, 1]]],
  'neighbours that touch become one': [[on(0, 2), on(4, 6), on(2, 4)], [[0, 6, 1]]],
  'neighbours with other modes stay apart': [
    [on(0, 2), on(2, 4, 2)],
    [
      [0, 2, 1],
      [2, 4, 2],
    ],
  ],
  'a range that covers others': [[on(1, 2), on(3, 4), on(0, 6)], [[0, 6, 1]]],
  'holes are filled, what is there keeps its modes': [
    [on(1, 2, 3), on(3, 4, 2), on(0, 6, 2)],
    [
      [0, 1, 2],
      [1, 2, 3],
      [2, 6, 2],
    ],
  ],
  'a subset of the modes changes nothing': [[on(0, 4, 3), on(1, 3, 1)], [[0, 4, 3]]],
  'other modes replace, and split': [
    [on(0, 4, 1), on(1, 3, 2)],
    [
      [0, 1, 1],
      [1, 3, 2],
      [3, 4, 1],
    ],
  ],
  'a superset replaces, and merges what became alike': [
    [on(0, 4, 3), on(1, 2, 4), on(2, 3, 2), on(1, 3, 3)],
    [[0, 4, 3]],
  ],
  'a part in the middle goes': [
    [on(0, 6), off(2, 4)],
    [
      [0, 2, 1],
      [4, 6, 1],
    ],
  ],
  'the head goes': [[on(2, 6), off(0, 4)], [[4, 6, 1]]],
  'the tail goes': [[on(0, 4), off(2, 6)], [[0, 2, 1]]],
  'all goes, over holes': [[on(1, 2), on(3, 4, 2), off(0, 6)], []],
  'removing what is not there': [[on(0, 2), off(2, 4), off(6, 8)], [[0, 2, 1]]],
  'munmap is like unregistering': [
    [on(0, 6), gone(1, 2), gone(5, 9)],
    [
      [0, 1, 1],
      [2, 5, 1],
    ],
  ],
  'a move, then its UNMAP': [[on(0, 3, 3), moved(0, 10, 3), gone(0, 3)], [[10, 13, 3]]],
  'a move that leaves the old place (DONTUNMAP)': [
    [on(0, 3), moved(0, 10, 3)],
    [
      [0, 3, 1],
      [10, 13, 1],
    ],
  ],
  'a move of a part, with a hole': [
    [on(0, 2), on(3, 6, 2), moved(1, 11, 4), gone(1, 5)],
    [
      [0, 1, 1],
      [5, 6, 2],
      [11, 12, 1],
      [13, 15, 2],
    ],
  ],
  'a move next to a range that is alike': [
    [on(0, 2), on(12, 14), moved(0, 10, 2), gone(0, 2)],
    [[10, 14, 1]],
  ],
  'a move of what is not registered': [[on(0, 2), moved(4, 10, 2)], [[0, 2, 1]]],
};

for (const [name, [steps, expected]] of Object.entries(CASES)) {
  test(name, () => {
    const core = makeCore();
    for (const step of steps) step(core);
    assert.deepEqual(brief(core), expected);
  });
}

test('without EVENT_UNMAP a move takes the old place away by itself', () => {
  const core = makeCore(1n << 2n);
  put(core, 0, 3);
  apply(core, remap(page(0), page(10), 3n * P));
  assert.deepEqual(brief(core), [[10, 13, 1]]);
  // mremap with an old length of 0 duplicates a shared mapping: the old place stays, and no range is split.
  apply(core, remap(page(11), page(20), 0n));
  assert.deepEqual(brief(core), [[10, 13, 1]]);
});

test('operations that have no name here are kept, and keep ranges apart', () => {
  const core = makeCore();
  const all = 0xffff_ffff_ffff_ffffn;
  put(core, 0, 4, { operations: all });
  put(core, 4, 4, { operations: 1n << 40n });
  put(core, 8, 4, { operations: 1n << 40n, pageShift: 21 });
  take(core, 1, 1);
  const seen = listing(core).map((range) => [range.operations, range.pageShift]);
  assert.deepEqual(seen, [
    [all, 12],
    [all, 12],
    [1n << 40n, 12],
    [1n << 40n, 21],
  ]);
  assert.equal(lookup(core, page(9) + 17n)?.pageShift, 21);
});

test('a lookup finds the range of any byte, and none beside it', () => {
  const core = makeCore();
  put(core, 2, 3);
  for (const address of [page(2), page(2) + 1n, page(4), page(5) - 1n]) {
    assert.deepEqual(lookup(core, address), listing(core)[0]);
  }
  for (const address of [0n, page(2) - 1n, page(5), 0xffff_ffff_ffff_ffffn]) {
    assert.equal(lookup(core, address), undefined);
  }
  const meets = (first: number, count: number) => core.arguments(page(first), count * PAGE).rangeMeets();
  assert.deepEqual([meets(0, 2), meets(0, 3), meets(3, 1), meets(4, 9), meets(5, 9)], [0, 1, 1, 1, 0]);
});

/** Every possible step on `pages` pages: each registration in three sets of modes, and each unregistration. */
function steps(pages: number): { first: number; count: number; cell: Cell | undefined }[] {
  const all = [];
  const modes = [MISSING, WRITE_PROTECT, MISSING | WRITE_PROTECT, 0];
  for (let first = 0; first < pages; first++) {
    for (let count = 1; first + count <= pages; count++) {
      for (const mode of modes) {
        all.push({
          first,
          count,
          cell: mode ? { modes: mode, operations: BigInt(mode), pageShift: 12 } : undefined,
        });
      }
    }
  }
  return all;
}

/** Runs every sequence of `length` steps over `pages` pages, behind 0 to 40 other ranges: more than a block holds. */
function sweep(pages: number, length: number): void {
  const all = steps(pages);
  const core = makeCore();
  const before = 100;
  let prefix = 0;
  const sequence = new Array<number>(length).fill(0);
  for (let number = 0; number < all.length ** length; number++) {
    if (number % 1009 === 0) {
      take(core, 0, before + pages);
      prefix = (number / 1009) % 41;
      for (let i = 0; i < prefix; i++) put(core, i * 2, 1);
    } else {
      take(core, before, pages);
    }
    for (let i = 0, rest = number; i < length; i++, rest = Math.floor(rest / all.length)) {
      sequence[i] = rest % all.length;
    }
    const line = new Line(pages);
    for (const index of sequence) {
      const { first, count, cell } = all[index] as (typeof all)[number];
      if (cell) {
        line.put(first, count, cell);
        put(core, before + first, count, cell);
      } else {
        line.take(first, count);
        take(core, before + first, count);
      }
    }
    const expected = line.ranges();
    let right = core.exports.rangeCount() === prefix + expected.length;
    for (const range of expected) {
      range.start += BigInt(before) * P;
      range.end += BigInt(before) * P;
      const found = lookup(core, range.end - 1n);
      right &&= found?.start === range.start && found.end === range.end && same(range, found);
    }
    if (!right) {
      const steps = sequence.map((index) =>
        JSON.stringify(all[index], (_, v) => (typeof v === 'bigint' ? `${v}` : v)),
      );
      assert.deepEqual(
        listing(core).slice(prefix),
        expected,
        `behind ${prefix} ranges: ${steps.join(' then ')}`,
      );
      assert.fail('a lookup and the listing disagree');
    }
  }
}

test('every pair of steps over 8 pages', () => sweep(8, 2));
test('every triple of steps over 5 pages', () => sweep(5, 3));

test('100,000 random steps agree with an array of pages', () => {
  // After each step a lookup must equal the array; every 2,000 steps the whole listing must.
  const random = generator(seed());
  const pages = 4096;
  const core = makeCore();
  const line = new Line(pages);
  for (let step = 0; step < 100_000; step++) {
    // Sometimes a step covers much of the line. Phases of filling alternate with phases of emptying.
    const count = 1 + random(random(200) === 0 ? 1500 : 1 + random(6));
    const first = random(pages - count + 1);
    const kind = random(20);
    const emptying = step % 20_000 > 15_000;
    if (kind < (emptying ? 4 : 12)) {
      const modes = 1 + random(7);
      const cell = { modes, operations: BigInt(random(2)), pageShift: random(20) ? 12 : 21 };
      line.put(first, count, cell);
      put(core, first, count, cell);
    } else if (kind < 15) {
      line.take(first, count);
      take(core, first, count);
    } else if (kind < 18) {
      line.take(first, count);
      apply(core, unmap(page(first), page(first + count)));
    } else {
      const to = random(pages - count + 1);
      if (Math.abs(to - first) < count) continue;
      line.move(first, to, count);
      apply(core, remap(page(first), page(to), BigInt(count) * P));
      if (random(3)) {
        line.take(first, count);
        apply(core, unmap(page(first), page(first + count)));
      }
    }
    const index = random(pages);
    const offset = BigInt(random(PAGE));
    assert.deepEqual(lookup(core, page(index) + offset), line.at(index), `step ${step}, page ${index}`);
    if (step % 2000 === 1999) assert.deepEqual(listing(core), line.ranges(), `step ${step}`);
  }
});

test.run();
