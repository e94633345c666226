// The core's page states always equal those of a plain map of pages. Memory that is not registered has no states. The
// bitmaps have a bounded size and are freed with the range.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  apply,
  BASE,
  brief,
  deliver,
  deliverAll,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  fork,
  MISSING,
  makeCore,
  P,
  PAGE,
  page,
  put,
  remap,
  remove,
  State,
  stateOf,
  still,
  take,
  transfer,
  unmap,
  WRITE,
  WRITE_PROTECT,
  windowOf,
} from './support.js';
import { EEXIST, EFAULT, wordsOf } from './transfers.js';

const test = suite('pages');
const BOTH = MISSING | WRITE_PROTECT;
const { missing, present, removed, inFlight, writeProtected } = State;

/** States of `count` pages from `first` on. */
function states(core: Core, first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => stateOf(core, first + i));
}

function claim(core: Core, first: number, count: number): number {
  return still(core, 'pageClaim', () => core.arguments(page(first), count * PAGE).pageClaim());
}

test('pages are missing until a fill was done, and only what the kernel did counts', () => {
  for (const op of [Op.COPY, Op.ZEROPAGE, Op.CONTINUE, Op.POISON, Op.MOVE]) {
    const core = makeCore();
    put(core, 0, 8);
    assert.deepEqual(states(core, 0, 8), [0, 0, 0, 0, 0, 0, 0, 0]);
    transfer(core, op, 1, 2, 0, page(100));
    assert.deepEqual(states(core, 0, 4), [missing, present, present, missing]);
    // The kernel does half of the call, and the next call fails.
    const { request } = core;
    assert.equal(core.arguments(page(4), 4 * PAGE, page(100)).beginFill(op, 0), Action.IOCTL);
    const resultAt = op === Op.COPY || op === Op.MOVE ? 32 : 24;
    wordsOf(core)[(request + resultAt) >>> 3] = 2n * P;
    assert.equal(core.exports.handleResult(EAGAIN), Action.IOCTL);
    assert.equal(core.exports.handleResult(EFAULT), Action.FILLED);
    assert.deepEqual(states(core, 3, 5), [missing, present, present, missing, missing]);
  }
});

test('EEXIST says nothing of a page; a claim on it is over', () => {
  for (const op of [Op.COPY, Op.ZEROPAGE, Op.CONTINUE, Op.POISON, Op.MOVE]) {
    const core = makeCore();
    put(core, 0, 4);
    transfer(core, Op.COPY, 3, 1);
    apply(core, remove(page(2), page(3)));
    claim(core, 1, 1);
    for (const [index, state] of [missing, op === Op.MOVE ? inFlight : missing, removed, present].entries()) {
      assert.equal(core.arguments(page(index), PAGE, page(100)).beginFill(op, 0), Action.IOCTL);
      assert.equal(core.exports.handleResult(EEXIST), Action.IOCTL);
      assert.equal(core.exports.handleResult(0), Action.FILLED);
      assert.equal(core.outcome, op === Op.MOVE ? Step.FAILED : Step.DONE);
      assert.equal(stateOf(core, index), state, `page ${index}`);
    }
  }
});

test('MOVE takes the pages from their source, and their protection with them', () => {
  const core = makeCore();
  put(core, 0, 8, { modes: BOTH });
  transfer(core, Op.COPY, 0, 4, Option.WRITE_PROTECT);
  transfer(core, Op.MOVE, 4, 3, 0, page(1));
  const there = present + writeProtected;
  assert.deepEqual(states(core, 0, 8), [
    there,
    missing,
    missing,
    missing,
    present,
    present,
    present,
    missing,
  ]);
});

test('a removal is remembered through every fill, by unregistering too, and forgotten with the memory', () => {
  const fills = [Op.COPY, Op.ZEROPAGE, Op.CONTINUE, Op.POISON];
  for (const fill of fills) {
    const core = makeCore();
    put(core, 0, 2);
    const again = (flags = 0n) => {
      feed(core, fault(page(0), flags), fault(page(1), flags));
      deliverAll(core);
      return states(core, 0, 2);
    };
    transfer(core, Op.COPY, 0, 2);
    assert.deepEqual(again(), [present, present], 'never removed');
    apply(core, remove(page(0), page(1)));
    for (let time = 0; time < 3; time++) {
      transfer(core, fill, 0, 1);
      assert.deepEqual(states(core, 0, 2), [present, present]);
      assert.deepEqual(again(FLAG_WP | WRITE), [present, present], 'a protected page is there');
      // In a private mapping of shared memory, the fault of a removed page is a minor one.
      assert.deepEqual(again(time % 2 === 0 ? 0n : FLAG_MINOR), [removed, present]);
    }
    take(core, 0, 2);
    put(core, 0, 2);
    assert.deepEqual(states(core, 0, 2), [removed, missing]);
    core.arguments(page(1), PAGE).rangeFresh();
    assert.equal(stateOf(core, 0), removed, 'its neighbour is other memory');
    core.arguments(page(0), PAGE).rangeFresh();
    assert.equal(stateOf(core, 0), missing);
    apply(core, remove(page(0), page(1)));
    apply(core, unmap(page(0), page(1)));
    put(core, 0, 1);
    transfer(core, Op.COPY, 0, 1);
    assert.deepEqual(again(), [present, missing]);
  }
});

test('what is forgotten of memory that stays registered is missing, and may be claimed', () => {
  const core = makeCore();
  put(core, 0, 8, { modes: BOTH });
  transfer(core, Op.COPY, 0, 2, Option.WRITE_PROTECT);
  claim(core, 2, 1);
  apply(core, remove(page(3), page(4)));
  core.arguments(page(1), 3 * PAGE).rangeFresh();
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, missing, missing, missing]);
  assert.equal(claim(core, 0, 4), 3);
});

test('a removal takes pages and claims away', () => {
  const core = makeCore();
  put(core, 0, 6);
  transfer(core, Op.COPY, 0, 2);
  assert.equal(claim(core, 1, 3), 2);
  assert.deepEqual(states(core, 0, 6), [present, present, inFlight, inFlight, missing, missing]);
  apply(core, remove(page(1), page(3)));
  assert.deepEqual(states(core, 0, 6), [present, removed, removed, inFlight, missing, missing]);
  // A removed page cannot be claimed: it must be filled with zeros, never from the source.
  assert.equal(claim(core, 0, 6), 2);
  transfer(core, Op.ZEROPAGE, 1, 1);
  assert.deepEqual(states(core, 0, 6), [present, present, removed, inFlight, inFlight, inFlight]);
});

test('a removal counts from its delivery', () => {
  const core = makeCore();
  put(core, 0, 2);
  transfer(core, Op.COPY, 0, 2);
  feed(core, fork(9), remove(page(0), page(1)));
  assert.equal(deliver(core).is, 'forked', 'both were read');
  assert.equal(core.exports.delay(0), 0, 'the removal waits');
  assert.equal(stateOf(core, 0), present);
  assert.equal(deliver(core).is, 'removed');
  assert.equal(stateOf(core, 0), removed);
});

test('write protection has a plane of its own', () => {
  const core = makeCore();
  put(core, 0, 4, { modes: BOTH });
  transfer(core, Op.WRITEPROTECT, 0, 2, Option.WRITE_PROTECT);
  transfer(core, Op.COPY, 1, 2, Option.WRITE_PROTECT);
  transfer(core, Op.COPY, 3, 1);
  const there = present + writeProtected;
  assert.deepEqual(states(core, 0, 4), [missing + writeProtected, there, there, present]);
  transfer(core, Op.WRITEPROTECT, 2, 2);
  transfer(core, Op.CONTINUE, 0, 1, Option.WRITE_PROTECT);
  assert.deepEqual(states(core, 0, 4), [there, there, present, present]);
  // A fill without the option keeps protected pages protected. POISON cannot.
  for (const op of [Op.ZEROPAGE, Op.COPY, Op.CONTINUE]) {
    transfer(core, op, 0, 4);
    assert.deepEqual(states(core, 0, 4), [there, there, present, present]);
  }
  transfer(core, Op.POISON, 0, 2);
  assert.deepEqual(states(core, 0, 4), [present, present, present, present]);
  // Without the mode write-protect the core records no protection, and reserves no room for it.
  const off = makeCore();
  put(off, 0, 4);
  const bytes = off.exports.pagesBytes();
  transfer(off, Op.WRITEPROTECT, 0, 4, Option.WRITE_PROTECT);
  assert.deepEqual(states(off, 0, 4), [missing, missing, missing, missing]);
  assert.equal(off.exports.pagesBytes(), bytes);
  // ZEROPAGE and POISON ignore the option.
  transfer(core, Op.ZEROPAGE, 0, 1, Option.WRITE_PROTECT);
  transfer(core, Op.POISON, 1, 1, Option.WRITE_PROTECT);
  assert.deepEqual(states(core, 0, 2), [present, present]);
});

test('mode added later: protection is known from then on', () => {
  const core = makeCore();
  put(core, 0, 2);
  transfer(core, Op.COPY, 0, 2);
  put(core, 0, 2, { modes: BOTH });
  transfer(core, Op.WRITEPROTECT, 0, 1, Option.WRITE_PROTECT);
  assert.deepEqual(states(core, 0, 2), [present + writeProtected, present]);
});

test('mremap carries states; the target is not what it was, and the old place is empty', () => {
  const core = makeCore();
  put(core, 0, 6, { modes: BOTH });
  put(core, 8190, 7, { modes: BOTH });
  transfer(core, Op.COPY, 8190, 7, Option.WRITE_PROTECT);
  apply(core, remove(page(8192), page(8197)));
  transfer(core, Op.COPY, 0, 2, Option.WRITE_PROTECT);
  claim(core, 2, 1);
  apply(core, remove(page(3), page(5)));
  transfer(core, Op.ZEROPAGE, 4, 1);
  apply(core, remap(page(0), page(8190), 6n * P));
  // With MREMAP_DONTUNMAP the old range stays registered and reads as zeros.
  assert.deepEqual(states(core, 0, 6), [removed, removed, removed, removed, removed, removed]);
  const there = present + writeProtected;
  const moved = [there, there, inFlight, removed, present, missing, removed + writeProtected];
  assert.deepEqual(states(core, 8190, 7), moved);
  // The record that page 4 was removed before it was filled moves too: the page's next fault shows it.
  feed(core, fault(page(8194)), fault(page(8190)));
  deliverAll(core);
  moved[4] = removed;
  assert.deepEqual(states(core, 8190, 7), moved);
  apply(core, unmap(page(0), page(6)));
  assert.deepEqual(states(core, 8190, 7), moved);
  put(core, 0, 6);
  assert.deepEqual(states(core, 0, 6), [0, 0, 0, 0, 0, 0]);
});

test('mremap onto watched memory ends the registration of what the source does not cover', () => {
  const core = makeCore();
  put(core, 1, 2);
  put(core, 20, 4);
  transfer(core, Op.COPY, 20, 4);
  apply(core, remap(page(0), page(20), 4n * P));
  assert.deepEqual(brief(core), [
    [1, 3, 1],
    [21, 23, 1],
  ]);
  assert.deepEqual(states(core, 20, 4), [missing, missing, missing, missing]);
});

test('unregister and munmap forget what is there', () => {
  const forget = [(core: Core) => take(core, 1, 2), (core: Core) => apply(core, unmap(page(1), page(3)))];
  for (const run of forget) {
    const core = makeCore();
    put(core, 0, 4, { modes: BOTH });
    transfer(core, Op.COPY, 0, 4, Option.WRITE_PROTECT);
    run(core);
    const there = present + writeProtected;
    assert.deepEqual(states(core, 0, 4), [there, missing, missing, there]);
    put(core, 0, 4, { modes: BOTH });
    assert.deepEqual(states(core, 0, 4), [there, missing, missing, there]);
  }
});

test('nothing is noted of memory that is not registered, however near', () => {
  // A removal may arrive after its range was unregistered, and a fill may reach unregistered memory.
  const core = makeCore();
  put(core, 0, 2, { modes: BOTH });
  put(core, 6, 2, { modes: BOTH });
  apply(core, remove(page(0), page(8)));
  assert.deepEqual(states(core, 0, 8), [removed, removed, 0, 0, 0, 0, removed, removed]);
  transfer(core, Op.COPY, 1, 6, Option.WRITE_PROTECT);
  const there = present + writeProtected;
  assert.deepEqual(states(core, 0, 8), [removed, there, 0, 0, 0, 0, there, removed]);
  assert.equal(claim(core, 2, 4), 0);
  assert.equal(claim(core, 100_000, 4), 0);
  put(core, 2, 4, { modes: BOTH });
  assert.deepEqual(states(core, 2, 4), [0, 0, 0, 0]);
});

test('a window stays in its range, in its aligned place, and in one state', () => {
  const core = makeCore();
  put(core, 3, 20);
  // The range is 3 to 23. Windows of 16 begin at 0 and 16.
  assert.deepEqual(windowOf(core, 5, 16), [3, 13]);
  assert.deepEqual(windowOf(core, 16, 16), [16, 7]);
  assert.deepEqual(windowOf(core, 5, 4), [4, 4]);
  assert.deepEqual(windowOf(core, 5, 1), [5, 1]);
  transfer(core, Op.COPY, 8, 1);
  claim(core, 11, 1);
  assert.deepEqual(windowOf(core, 5, 16), [3, 5]);
  assert.deepEqual(windowOf(core, 9, 16), [9, 2]);
  assert.deepEqual(windowOf(core, 12, 16), [12, 4]);
  // A page that the core takes for present is tried alone. A claimed page needs no fill.
  assert.deepEqual(windowOf(core, 8, 16), [8, 1]);
  assert.deepEqual(windowOf(core, 11, 16), [11, 0]);
  // Removed pages are filled with zeros, so a window does not mix them with missing ones.
  apply(core, remove(page(4), page(7)));
  assert.deepEqual(windowOf(core, 5, 16), [4, 3]);
  assert.deepEqual(windowOf(core, 3, 16), [3, 1]);
  assert.deepEqual(windowOf(core, 7, 16), [7, 1]);
  // A neighbour with other modes is another range.
  put(core, 23, 9, { modes: BOTH });
  assert.deepEqual(windowOf(core, 20, 16), [16, 7]);
  // The window of an unregistered page is that page.
  assert.deepEqual(windowOf(core, 40, 16), [40, 1]);
});

// ---- against a map of pages --------------------------------------------------------------------------------

/** Three extents of pages: two meet at the border between chunks (8192 pages), one lies far away. */
const STRETCHES = [
  { first: 8192 - 300, count: 300, modes: BOTH },
  { first: 8192, count: 300, modes: MISSING },
  { first: 8192 * 50 - 150, count: 300, modes: BOTH },
] as const;

interface Known {
  modes: number;
  /** Missing, present or in flight. */
  state: number;
  protect: boolean;
}

/** The expected states: of registered pages, and which pages were ever removed. */
class Knowledge {
  readonly known = new Map<number, Known>();
  readonly gone = new Set<number>();

  said(index: number): number {
    const known = this.known.get(index);
    const state = known?.state || (this.gone.has(index) ? removed : missing);
    return state + (known?.protect ? writeProtected : 0);
  }

  each(first: number, count: number, change: (known: Known, index: number) => void): void {
    for (let i = first; i < first + count; i++) {
      const known = this.known.get(i);
      if (known) change(known, i);
    }
  }

  put(first: number, count: number, modes: number): void {
    for (let i = first; i < first + count; i++) {
      const known = this.known.get(i);
      if (!known) this.known.set(i, { modes, state: missing, protect: false });
      else if ((known.modes & modes) !== modes) known.modes = modes;
    }
  }

  take(first: number, count: number): void {
    for (let i = first; i < first + count; i++) this.known.delete(i);
  }

  unmap(first: number, count: number): void {
    this.take(first, count);
    for (let i = first; i < first + count; i++) this.gone.delete(i);
  }

  fresh(first: number, count: number): void {
    for (let i = first; i < first + count; i++) this.gone.delete(i);
    this.each(first, count, (known) => Object.assign(known, { state: missing, protect: false }));
  }

  remove(first: number, count: number): void {
    this.each(first, count, (known, index) => {
      known.state = missing;
      this.gone.add(index);
    });
  }

  claim(first: number, count: number): number {
    let claimed = 0;
    this.each(first, count, (known, index) => {
      if (known.state !== missing || this.gone.has(index)) return;
      known.state = inFlight;
      claimed++;
    });
    return claimed;
  }

  /** UFFDIO_MOVE; protection does not move with the pages. */
  move(from: number, to: number, count: number): void {
    this.each(to, count, (known) => Object.assign(known, { state: present, protect: false }));
    this.each(from, count, (known, index) => {
      Object.assign(known, { state: missing, protect: false });
      this.gone.delete(index);
    });
  }

  /** mremap. */
  remap(from: number, to: number, count: number): void {
    this.unmap(to, count);
    this.each(from, count, (known, index) => {
      const target = to + index - from;
      this.known.set(target, { ...known });
      if (this.gone.has(index)) this.gone.add(target);
      Object.assign(known, { state: missing, protect: false });
      this.gone.add(index);
    });
  }

  fill(first: number, count: number, protect: boolean): void {
    this.each(first, count, (known) =>
      Object.assign(known, { state: present, protect: known.protect || protect }),
    );
  }

  fault(index: number): void {
    const known = this.known.get(index);
    if (known?.state === present && this.gone.has(index)) known.state = missing;
  }
}

test('60,000 random steps agree with a map of pages', () => {
  // For every page, registered or not, the core's state equals the map's. The expected windows follow from the map.
  const random = generator(seed());
  const core = makeCore();
  const map = new Knowledge();
  const all = STRETCHES.flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => first + i));
  const pick = () => {
    const stretch = STRETCHES[random(3)] as (typeof STRETCHES)[number];
    const count = 1 + random(random(10) ? 12 : 300);
    return { first: stretch.first + random(stretch.count - count + 1), count, modes: stretch.modes };
  };

  for (let step = 0; step < 60_000; step++) {
    const { first, count, modes } = pick();
    const protectable = Array.from({ length: count }, (_, i) => map.known.get(first + i)).every(
      (known) => known && known.modes & WRITE_PROTECT,
    );
    const options = protectable && random(2) ? Option.WRITE_PROTECT : 0;
    switch (random(12)) {
      case 0:
      case 1:
        put(core, first, count, { modes });
        map.put(first, count, modes);
        break;
      case 2:
        if (random(2)) {
          take(core, first, count);
          map.take(first, count);
        } else {
          apply(core, unmap(page(first), page(first + count)));
          map.unmap(first, count);
        }
        break;
      case 3:
        apply(core, remove(page(first), page(first + count)));
        map.remove(first, count);
        break;
      case 4:
        assert.equal(claim(core, first, count), map.claim(first, count));
        break;
      case 5:
        if (!protectable) break;
        transfer(core, Op.WRITEPROTECT, first, count, options);
        map.each(first, count, (known) => {
          known.protect = options !== 0;
        });
        break;
      case 6: {
        // Move pages with mremap or MOVE, to memory that is registered as a whole or not at all.
        const to = pick().first;
        if (
          Math.abs(to - first) < count ||
          STRETCHES.every((s) => to < s.first || to + count > s.first + s.count)
        ) {
          break;
        }
        if (random(2)) {
          transfer(core, Op.MOVE, to, count, 0, page(first));
          map.move(first, to, count);
          break;
        }
        apply(core, remap(page(first), page(to), BigInt(count) * P));
        map.remap(first, to, count);
        if (random(3) === 0) break;
        apply(core, unmap(page(first), page(first + count)));
        map.unmap(first, count);
        break;
      }
      case 7:
        for (let i = 0; i < 5; i++) {
          const index = first + random(count);
          feed(core, fault(page(index)));
          deliverAll(core);
          map.fault(index);
        }
        break;
      case 8:
        if (random(3)) break;
        core.arguments(page(first), count * PAGE).rangeFresh();
        map.fresh(first, count);
        break;
      default: {
        const op = [Op.COPY, Op.CONTINUE, Op.ZEROPAGE][random(3)] as Op;
        transfer(core, op, first, count, options);
        map.fill(first, count, options !== 0 && op !== Op.ZEROPAGE);
      }
    }
    for (let i = first; i < first + count; i++) {
      if (stateOf(core, i) !== map.said(i))
        assert.equal(stateOf(core, i), map.said(i), `step ${step}, page ${i}`);
    }
    checkWindow(core, map, all[random(all.length)] as number, 1 + random(40));
    if (step % 500 === 0)
      assert.deepEqual(
        all.map((i) => stateOf(core, i)),
        all.map((i) => map.said(i)),
        `step ${step}`,
      );
  }
  for (const { first, count } of STRETCHES) take(core, first, count);
  for (const { first, count } of STRETCHES) core.arguments(page(first), count * PAGE).rangeFresh();
  assert.equal(core.exports.pagesBytes(), 64 * 32, 'all bitmaps were given back');
});

function checkWindow(core: Core, map: Knowledge, index: number, size: number): void {
  const number = Number(BASE / P) + index;
  const lowest = index - (number % size);
  const { known } = map;
  const own = map.said(index) & 3;
  const alike = (other: number) => {
    return known.get(other)?.modes === known.get(index)?.modes && (map.said(other) & 3) === own;
  };
  let first = index;
  let end = index + 1;
  while (known.has(index) && first > lowest && known.has(first - 1) && alike(first - 1)) first--;
  while (known.has(index) && end < lowest + size && known.has(end) && alike(end)) end++;
  const run = own === missing || own === removed ? [first, end - first] : undefined;
  const expected = run ?? [index, own === inFlight ? 0 : 1];
  const [start, count] = windowOf(core, index, size);
  assert.ok(
    start === expected[0] && count === expected[1],
    `${size} around ${index}: ${start}, ${count}; ${expected}`,
  );
}

test.run();
