// What the core knows of each page: always the same as a plain map of pages would say, never anything of
// memory that is not registered, in bitmaps whose size is bounded, and given back with the range.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  apply,
  BASE,
  brief,
  fault,
  feed,
  hearAll,
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
  WRITE_PROTECT,
  windowOf,
} from './support.js';

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
  for (const op of [Op.copy, Op.zero, Op.continue, Op.poison, Op.move]) {
    const core = makeCore();
    put(core, 0, 8);
    assert.deepEqual(states(core, 0, 8), [0, 0, 0, 0, 0, 0, 0, 0]);
    transfer(core, op, 1, 2, 0, page(100));
    assert.deepEqual(states(core, 0, 4), [missing, present, present, missing]);
    // Half of it, then something else is wrong.
    const { request } = core;
    core.arguments(page(4), 4 * PAGE, page(100)).transferBegin(op, 0);
    const resultAt = op === Op.copy || op === Op.move ? 32 : 24;
    core.words[(request + resultAt) >>> 3] = 2n * P;
    core.exports.transferResult(-11);
    core.exports.transferResult(-14);
    assert.deepEqual(states(core, 3, 5), [missing, present, present, missing, missing]);
  }
});

test('EEXIST says nothing of a page; a claim on it is over', () => {
  for (const op of [Op.copy, Op.zero, Op.continue, Op.poison, Op.move]) {
    const core = makeCore();
    put(core, 0, 4);
    transfer(core, Op.copy, 3, 1);
    apply(core, remove(page(2), page(3)));
    claim(core, 1, 1);
    for (const [index, state] of [missing, op === Op.move ? inFlight : missing, removed, present].entries()) {
      core.arguments(page(index), PAGE, page(100)).transferBegin(op, 0);
      core.exports.transferResult(-17);
      assert.equal(core.exports.transferResult(0), op === Op.move ? Step.failed : Step.done);
      assert.equal(stateOf(core, index), state, `page ${index}`);
    }
  }
});

test('MOVE takes the pages from their source, and their protection with them', () => {
  const core = makeCore();
  put(core, 0, 8, { modes: BOTH });
  transfer(core, Op.copy, 0, 4, Option.writeProtect);
  transfer(core, Op.move, 4, 3, 0, page(1));
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
  const fills = [Op.copy, Op.zero, Op.continue, Op.poison];
  for (const fill of fills) {
    const core = makeCore();
    put(core, 0, 2);
    const again = () => {
      feed(core, fault(page(0)), fault(page(1)));
      hearAll(core);
      return states(core, 0, 2);
    };
    transfer(core, Op.copy, 0, 2);
    assert.deepEqual(again(), [present, present], 'never removed');
    apply(core, remove(page(0), page(1)));
    for (let time = 0; time < 3; time++) {
      transfer(core, fill, 0, 1);
      assert.deepEqual(states(core, 0, 2), [present, present]);
      assert.deepEqual(again(), [removed, present]);
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
    transfer(core, Op.copy, 0, 1);
    assert.deepEqual(again(), [present, missing]);
  }
});

test('what is forgotten of memory that stays registered is missing, and may be claimed', () => {
  const core = makeCore();
  put(core, 0, 8, { modes: BOTH });
  transfer(core, Op.copy, 0, 2, Option.writeProtect);
  claim(core, 2, 1);
  apply(core, remove(page(3), page(4)));
  core.arguments(page(1), 3 * PAGE).rangeFresh();
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, missing, missing, missing]);
  assert.equal(claim(core, 0, 4), 3);
});

test('a removal takes pages and claims away', () => {
  const core = makeCore();
  put(core, 0, 6);
  transfer(core, Op.copy, 0, 2);
  assert.equal(claim(core, 1, 3), 2);
  assert.deepEqual(states(core, 0, 6), [present, present, inFlight, inFlight, missing, missing]);
  apply(core, remove(page(1), page(3)));
  assert.deepEqual(states(core, 0, 6), [present, removed, removed, inFlight, missing, missing]);
  // What is removed is not missing: its data would be zeros, never the source's.
  assert.equal(claim(core, 0, 6), 2);
  transfer(core, Op.zero, 1, 1);
  assert.deepEqual(states(core, 0, 6), [present, present, removed, inFlight, inFlight, inFlight]);
});

test('a removal counts from when the handler is told', () => {
  const core = makeCore();
  put(core, 0, 2);
  transfer(core, Op.copy, 0, 2);
  core.exports.inboxRoom();
  const message = new Uint8Array(32);
  message[0] = 0x15;
  new BigUint64Array(message.buffer).set([page(0), page(1)], 1);
  new Uint8Array(core.memory.buffer).set(message, core.messages);
  core.exports.inboxTake(32);
  assert.equal(stateOf(core, 0), present);
  core.exports.inboxNextEvent();
  assert.equal(stateOf(core, 0), removed);
});

test('write protection has a plane of its own', () => {
  const core = makeCore();
  put(core, 0, 4, { modes: BOTH });
  transfer(core, Op.writeProtect, 0, 2, Option.writeProtect);
  transfer(core, Op.copy, 1, 2, Option.writeProtect);
  transfer(core, Op.copy, 3, 1);
  const there = present + writeProtected;
  assert.deepEqual(states(core, 0, 4), [missing + writeProtected, there, there, present]);
  transfer(core, Op.writeProtect, 2, 2);
  transfer(core, Op.continue, 0, 1, Option.writeProtect);
  assert.deepEqual(states(core, 0, 4), [there, there, present, present]);
  // A fill keeps what is protected, whatever it is asked for; POISON cannot.
  for (const op of [Op.zero, Op.copy, Op.continue]) {
    transfer(core, op, 0, 4);
    assert.deepEqual(states(core, 0, 4), [there, there, present, present]);
  }
  transfer(core, Op.poison, 0, 2);
  assert.deepEqual(states(core, 0, 4), [present, present, present, present]);
  // Where the mode is off there is no protection to note, and no room was set aside for it.
  const off = makeCore();
  put(off, 0, 4);
  const bytes = off.exports.pagesBytes();
  transfer(off, Op.writeProtect, 0, 4, Option.writeProtect);
  assert.deepEqual(states(off, 0, 4), [missing, missing, missing, missing]);
  assert.equal(off.exports.pagesBytes(), bytes);
  // An option that an operation does not have does nothing.
  transfer(core, Op.zero, 0, 1, Option.writeProtect);
  transfer(core, Op.poison, 1, 1, Option.writeProtect);
  assert.deepEqual(states(core, 0, 2), [present, present]);
});

test('mode added later: protection is known from then on', () => {
  const core = makeCore();
  put(core, 0, 2);
  transfer(core, Op.copy, 0, 2);
  put(core, 0, 2, { modes: BOTH });
  transfer(core, Op.writeProtect, 0, 1, Option.writeProtect);
  assert.deepEqual(states(core, 0, 2), [present + writeProtected, present]);
});

test('mremap carries states; the target is not what it was, and the old place is empty', () => {
  const core = makeCore();
  put(core, 0, 6, { modes: BOTH });
  put(core, 8190, 7, { modes: BOTH });
  transfer(core, Op.copy, 8190, 7, Option.writeProtect);
  apply(core, remove(page(8192), page(8197)));
  transfer(core, Op.copy, 0, 2, Option.writeProtect);
  claim(core, 2, 1);
  apply(core, remove(page(3), page(5)));
  transfer(core, Op.zero, 4, 1);
  apply(core, remap(page(0), page(8190), 6n * P));
  // With MREMAP_DONTUNMAP it stays registered, and reads as zeros.
  assert.deepEqual(states(core, 0, 6), [removed, removed, removed, removed, removed, removed]);
  const there = present + writeProtected;
  const moved = [there, there, inFlight, removed, present, missing, removed + writeProtected];
  assert.deepEqual(states(core, 8190, 7), moved);
  // That page 4 was removed before it was filled goes along.
  feed(core, fault(page(8194)), fault(page(8190)));
  hearAll(core);
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
  transfer(core, Op.copy, 20, 4);
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
    transfer(core, Op.copy, 0, 4, Option.writeProtect);
    run(core);
    const there = present + writeProtected;
    assert.deepEqual(states(core, 0, 4), [there, missing, missing, there]);
    put(core, 0, 4, { modes: BOTH });
    assert.deepEqual(states(core, 0, 4), [there, missing, missing, there]);
  }
});

test('nothing is noted of memory that is not registered, however near', () => {
  // A removal that was under way when its range was unregistered, and a fill by way of a second mapping.
  const core = makeCore();
  put(core, 0, 2, { modes: BOTH });
  put(core, 6, 2, { modes: BOTH });
  apply(core, remove(page(0), page(8)));
  assert.deepEqual(states(core, 0, 8), [removed, removed, 0, 0, 0, 0, removed, removed]);
  transfer(core, Op.copy, 1, 6, Option.writeProtect);
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
  // Range: 3 to 23; windows of 16: 0 to 16 and 16 to 32.
  assert.deepEqual(windowOf(core, 5, 16), [3, 13]);
  assert.deepEqual(windowOf(core, 16, 16), [16, 7]);
  assert.deepEqual(windowOf(core, 5, 4), [4, 4]);
  assert.deepEqual(windowOf(core, 5, 1), [5, 1]);
  transfer(core, Op.copy, 8, 1);
  claim(core, 11, 1);
  assert.deepEqual(windowOf(core, 5, 16), [3, 5]);
  assert.deepEqual(windowOf(core, 9, 16), [9, 2]);
  assert.deepEqual(windowOf(core, 12, 16), [12, 4]);
  // There already, for all the core knows: tried alone. On its way: nothing to fill.
  assert.deepEqual(windowOf(core, 8, 16), [8, 1]);
  assert.deepEqual(windowOf(core, 11, 16), [11, 0]);
  // Removed pages are filled with zeros, so they are windows of their own.
  apply(core, remove(page(4), page(7)));
  assert.deepEqual(windowOf(core, 5, 16), [4, 3]);
  assert.deepEqual(windowOf(core, 3, 16), [3, 1]);
  assert.deepEqual(windowOf(core, 7, 16), [7, 1]);
  // A neighbour with other modes is another range.
  put(core, 23, 9, { modes: BOTH });
  assert.deepEqual(windowOf(core, 20, 16), [16, 7]);
  // Not registered: the page alone.
  assert.deepEqual(windowOf(core, 40, 16), [40, 1]);
});

// ---- against a map of pages --------------------------------------------------------------------------------

/** Three stretches of pages: two meet at the border of a bitmap's chunk (8192 pages), one lies far away. */
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

/** What is known of pages: of those that are registered, and of all that were removed. */
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

  /** MOVE, whose target is as it was asked for. */
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
  // For every page, registered or not, the core says what the map says; windows follow from it.
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
    const options = protectable && random(2) ? Option.writeProtect : 0;
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
        transfer(core, Op.writeProtect, first, count, options);
        map.each(first, count, (known) => {
          known.protect = options !== 0;
        });
        break;
      case 6: {
        // A move by mremap, or by MOVE, to where nothing is registered or all is.
        const to = pick().first;
        if (
          Math.abs(to - first) < count ||
          STRETCHES.every((s) => to < s.first || to + count > s.first + s.count)
        ) {
          break;
        }
        if (random(2)) {
          transfer(core, Op.move, to, count, 0, page(first));
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
          hearAll(core);
          map.fault(index);
        }
        break;
      case 8:
        if (random(3)) break;
        core.arguments(page(first), count * PAGE).rangeFresh();
        map.fresh(first, count);
        break;
      default: {
        const op = [Op.copy, Op.continue, Op.zero][random(3)] as number;
        transfer(core, op, first, count, options);
        map.fill(first, count, options !== 0 && op !== Op.zero);
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
