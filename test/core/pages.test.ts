// What the core knows of each page: always the same as a plain map of pages would say, never anything of
// memory that is not registered, in bitmaps whose size is bounded, and given back with the range.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  apply,
  BASE,
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

test('a page that was there already is present, except for MOVE', () => {
  const core = makeCore();
  put(core, 0, 4);
  core.arguments(page(0), 2 * PAGE).transferBegin(Op.copy, 0);
  core.exports.transferResult(-17);
  core.exports.transferResult(0);
  assert.deepEqual(states(core, 0, 2), [present, missing]);
  core.arguments(page(2), 2 * PAGE, page(100)).transferBegin(Op.move, 0);
  core.exports.transferResult(-17);
  core.exports.transferResult(0);
  assert.deepEqual(states(core, 2, 2), [missing, missing]);
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
  // A fill without protection puts a page without it.
  transfer(core, Op.zero, 0, 2);
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

test('mremap carries states; the old place is missing, then forgotten', () => {
  const core = makeCore();
  put(core, 0, 4, { modes: BOTH });
  transfer(core, Op.copy, 0, 2, Option.writeProtect);
  claim(core, 2, 1);
  apply(core, remap(page(0), page(8190), 4n * P));
  assert.deepEqual(states(core, 0, 4), [missing, missing, missing, missing]);
  const there = present + writeProtected;
  assert.deepEqual(states(core, 8190, 4), [there, there, inFlight, missing]);
  apply(core, unmap(page(0), page(4)));
  assert.deepEqual(states(core, 8190, 4), [there, there, inFlight, missing]);
});

test('unregister and munmap forget', () => {
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
  state: number;
  protect: boolean;
}

test('60,000 random steps agree with a map of pages', () => {
  // For every page, registered or not, the core says what the map says; windows follow from it.
  const random = generator(seed());
  const core = makeCore();
  const map = new Map<number, Known>();
  const said = (index: number) => {
    const known = map.get(index);
    return known ? known.state + (known.protect ? writeProtected : 0) : missing;
  };
  const all = STRETCHES.flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => first + i));
  const each = (first: number, count: number, change: (known: Known) => void) => {
    for (let i = first; i < first + count; i++) {
      const known = map.get(i);
      if (known) change(known);
    }
  };
  const pick = () => {
    const stretch = STRETCHES[random(3)] as (typeof STRETCHES)[number];
    const count = 1 + random(random(10) ? 12 : 300);
    return { first: stretch.first + random(stretch.count - count + 1), count, modes: stretch.modes };
  };
  const forget = (first: number, count: number) => {
    for (let i = first; i < first + count; i++) map.delete(i);
  };

  for (let step = 0; step < 60_000; step++) {
    const { first, count, modes } = pick();
    const protectable = Array.from({ length: count }, (_, i) => map.get(first + i)).every(
      (known) => known && known.modes & WRITE_PROTECT,
    );
    const options = protectable && random(2) ? Option.writeProtect : 0;
    switch (random(10)) {
      case 0:
      case 1:
        put(core, first, count, { modes });
        for (let i = first; i < first + count; i++) {
          const known = map.get(i);
          if (!known) map.set(i, { modes, state: missing, protect: false });
          else if ((known.modes & modes) !== modes) known.modes = modes;
        }
        break;
      case 2:
        if (random(2)) take(core, first, count);
        else apply(core, unmap(page(first), page(first + count)));
        forget(first, count);
        break;
      case 3:
        apply(core, remove(page(first), page(first + count)));
        each(first, count, (known) => {
          known.state = removed;
        });
        break;
      case 4: {
        let claimed = 0;
        each(first, count, (known) => {
          if (known.state !== missing) return;
          known.state = inFlight;
          claimed++;
        });
        assert.equal(claim(core, first, count), claimed);
        break;
      }
      case 5:
        if (!protectable) break;
        transfer(core, Op.writeProtect, first, count, options);
        each(first, count, (known) => {
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
          each(to, count, (known) => Object.assign(known, { state: present, protect: false }));
          each(first, count, (known) => Object.assign(known, { state: missing, protect: false }));
          break;
        }
        apply(core, unmap(page(to), page(to + count)), remap(page(first), page(to), BigInt(count) * P));
        forget(to, count);
        for (let i = 0; i < count; i++) {
          const known = map.get(first + i);
          if (!known) continue;
          map.set(to + i, { ...known });
          Object.assign(known, { state: missing, protect: false });
        }
        if (random(3) === 0) break;
        apply(core, unmap(page(first), page(first + count)));
        forget(first, count);
        break;
      }
      default:
        transfer(core, [Op.copy, Op.continue][random(2)] as number, first, count, options);
        each(first, count, (known) => Object.assign(known, { state: present, protect: options !== 0 }));
    }
    for (let i = first; i < first + count; i++) {
      if (stateOf(core, i) !== said(i)) assert.equal(stateOf(core, i), said(i), `step ${step}, page ${i}`);
    }
    checkWindow(core, map, all[random(all.length)] as number, 1 + random(40));
    if (step % 500 === 0)
      assert.deepEqual(
        all.map((i) => stateOf(core, i)),
        all.map(said),
        `step ${step}`,
      );
  }
  for (const { first, count } of STRETCHES) take(core, first, count);
  assert.equal(core.exports.pagesBytes() % 1024, (64 * 24) % 1024, 'all bitmaps were given back');
});

function checkWindow(core: Core, map: Map<number, Known>, index: number, size: number): void {
  const number = Number(BASE / P) + index;
  const lowest = index - (number % size);
  const own = map.get(index) ?? { modes: 0, state: missing };
  const alike = (other: number) => {
    const known = map.get(other);
    return known !== undefined && known.modes === own.modes && known.state === own.state;
  };
  let first = index;
  let end = index + 1;
  while (map.has(index) && first > lowest && alike(first - 1)) first--;
  while (map.has(index) && end < lowest + size && alike(end)) end++;
  const run = own.state === missing || own.state === removed ? [first, end - first] : undefined;
  const expected = run ?? [index, own.state === inFlight ? 0 : 1];
  const [start, count] = windowOf(core, index, size);
  assert.ok(
    start === expected[0] && count === expected[1],
    `${size} around ${index}: ${start}, ${count}; ${expected}`,
  );
}

test.run();
