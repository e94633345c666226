// Ranges of huge pages: a huge page is one page, in one state, whichever of its addresses is asked for; claims,
// windows, steps and wakes take it as a whole, and nothing of its neighbours.

import { strict as assert } from 'node:assert';
import { type Core, Next, Op, Option, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  answer,
  apply,
  drain,
  fault,
  feed,
  hear,
  listing,
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

const test = suite('huge pages');
const { missing, present, removed, inFlight, writeProtected } = State;

/** System pages of a huge page of 2 MiB. */
const HUGE = 512;
const SHIFT = 21;

/** Registers `count` huge pages from huge page number `first` on; others are asked for by system page. */
function putHuge(core: Core, first: number, count: number, modes = MISSING): void {
  put(core, first * HUGE, count * HUGE, { modes, pageShift: SHIFT });
}

/** The states of huge pages, each of which must be in one state from its first address to its last. */
function states(core: Core, first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => {
    const from = (first + i) * HUGE;
    const state = stateOf(core, from);
    for (const inside of [1, 63, 64, 300, HUGE - 1])
      assert.equal(stateOf(core, from + inside), state, `huge page ${first + i}, at ${inside}`);
    return state;
  });
}

/** Claims system pages. */
function claim(core: Core, first: number, count: number): number {
  return still(core, 'pageClaim', () => core.arguments(page(first), count * PAGE).pageClaim());
}

test('a claim takes huge pages, and counts each once', () => {
  const core = makeCore();
  putHuge(core, 0, 6);
  transfer(core, Op.copy, HUGE, HUGE);
  assert.equal(claim(core, 0, 4 * HUGE), 3);
  assert.deepEqual(states(core, 0, 6), [inFlight, present, inFlight, inFlight, missing, missing]);
  assert.equal(claim(core, 0, 6 * HUGE), 2);
});

test('a claim of a part claims the huge pages it touches, and nothing beyond them', () => {
  const core = makeCore();
  putHuge(core, 0, 3);
  put(core, 3 * HUGE, HUGE);
  assert.equal(claim(core, 5, 1), 1);
  assert.deepEqual(states(core, 0, 3), [inFlight, missing, missing]);
  // From the middle of the second to the middle of the third; then the last pages of the range.
  assert.equal(claim(core, HUGE + 7, HUGE), 2);
  assert.deepEqual(states(core, 0, 4), [inFlight, inFlight, inFlight, missing]);
  const other = makeCore();
  putHuge(other, 0, 2);
  put(other, 2 * HUGE, HUGE);
  assert.equal(claim(other, 2 * HUGE - 1, 2), 2, 'the huge page, and the small one behind it');
  assert.deepEqual(states(other, 0, 2), [missing, inFlight]);
  assert.equal(stateOf(other, 2 * HUGE), inFlight);
  assert.equal(stateOf(other, 2 * HUGE + 1), missing);
});

test('a window is counted in huge pages, and lies in its range, its aligned place and one state', () => {
  const core = makeCore();
  const size = () => core.exports.pagesWindowSize();
  putHuge(core, 1, 6);
  // Of addresses inside a page; windows of 4: 0 to 4 and 4 to 8.
  assert.deepEqual(windowOf(core, 2 * HUGE + 17, 4), [HUGE, 3]);
  assert.equal(size(), HUGE * PAGE);
  assert.deepEqual(windowOf(core, 5 * HUGE - 1, 4), [4 * HUGE, 3]);
  assert.deepEqual(windowOf(core, 3 * HUGE + 1, 1), [3 * HUGE, 1]);
  transfer(core, Op.copy, 2 * HUGE, HUGE);
  assert.deepEqual(windowOf(core, HUGE + 1, 4), [HUGE, 1]);
  assert.deepEqual(windowOf(core, 3 * HUGE + 1, 4), [3 * HUGE, 1]);
  // There already: tried alone, from its start. Claimed: nothing.
  assert.deepEqual(windowOf(core, 2 * HUGE + 511, 4), [2 * HUGE, 1]);
  claim(core, 4 * HUGE, 1);
  assert.deepEqual(windowOf(core, 4 * HUGE + 3, 4), [4 * HUGE, 0]);
  apply(core, remove(page(5 * HUGE), page(7 * HUGE)));
  assert.deepEqual(windowOf(core, 5 * HUGE + 3, 4), [5 * HUGE, 2]);
  // A range of small pages beside it keeps its own size.
  put(core, 7 * HUGE, 16);
  assert.deepEqual(windowOf(core, 7 * HUGE + 5, 8), [7 * HUGE, 8]);
  assert.equal(size(), PAGE);
  assert.deepEqual(windowOf(core, 100 * HUGE + 1, 8), [100 * HUGE + 1, 1]);
  assert.equal(size(), PAGE, 'what is not registered has the size of the system');
});

test('a fill, a step over what is there, a removal: each is of whole huge pages', () => {
  const core = makeCore();
  putHuge(core, 0, 4, MISSING | WRITE_PROTECT);
  transfer(core, Op.copy, 0, HUGE, Option.writeProtect);
  // What is there is not noted; whoever had claimed it has tried.
  claim(core, HUGE, 2 * HUGE);
  core.arguments(page(HUGE), 2 * HUGE * PAGE).transferBegin(Op.copy, 0);
  core.exports.transferResult(-17);
  core.exports.transferResult(0);
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, missing, inFlight, missing]);
  apply(core, remove(page(HUGE), page(3 * HUGE)));
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, removed, removed, missing]);
  transfer(core, Op.writeProtect, 0, HUGE);
  assert.deepEqual(states(core, 0, 1), [present]);
});

test('huge pages have no ZEROPAGE, so zeros are not copied to one in its place either', () => {
  // Zeros of one small page are all that there are: whatever lies behind them would be copied as well.
  const core = makeCore();
  putHuge(core, 0, 2, MISSING | WRITE_PROTECT);
  transfer(core, Op.writeProtect, 0, 2 * HUGE, Option.writeProtect);
  assert.equal(core.arguments(page(0), 2 * HUGE * PAGE).transferBegin(Op.zero, 0), Step.call);
  assert.equal(core.code >>> 0, 0xc020aa04);
  assert.equal(core.exports.transferResult(-22), Step.failed);
  assert.equal(core.exports.transferErrno(), 22);
});

test('mremap carries huge pages with their size; unmap and unregister forget them', () => {
  const core = makeCore();
  putHuge(core, 0, 3);
  transfer(core, Op.copy, 0, HUGE);
  claim(core, HUGE, HUGE);
  apply(core, remap(page(0), page(20 * HUGE), 3n * BigInt(HUGE) * P), unmap(page(0), page(3 * HUGE)));
  assert.deepEqual(states(core, 0, 3), [missing, missing, missing]);
  assert.deepEqual(states(core, 20, 3), [present, inFlight, missing]);
  assert.deepEqual(
    listing(core).map(({ start, pageShift }) => [start, pageShift]),
    [[page(20 * HUGE), SHIFT]],
  );
  assert.equal(claim(core, 22 * HUGE, 1), 1, 'a huge page still');
  apply(core, unmap(page(20 * HUGE), page(21 * HUGE)));
  take(core, 21 * HUGE, HUGE);
  assert.deepEqual(states(core, 20, 3), [missing, missing, inFlight]);
});

test('who is woken when the descriptor goes away: whole huge pages, wherever in them the fault was', () => {
  const core = makeCore();
  putHuge(core, 0, 4);
  put(core, 4 * HUGE, 1);
  // With exact-address the kernel says where in the page it was.
  feed(core, fault(page(HUGE + 9) + 5n), fault(page(3 * HUGE)), fault(page(4 * HUGE) + 77n));
  drain(core);
  assert.equal(hear(core).is, 'fault', 'the first is with the handler');
  const woken: [bigint, bigint][] = [];
  while (core.exports.inboxEvict()) woken.push([core.delivered(1), core.delivered(2)]);
  assert.deepEqual(woken, [
    [page(HUGE), BigInt(HUGE) * P],
    [page(3 * HUGE), BigInt(HUGE) * P],
    [page(4 * HUGE), P],
  ]);
});

test('a fill cut short over any part of a huge page brings its fault again', () => {
  const core = makeCore();
  putHuge(core, 0, 2);
  feed(core, fault(page(HUGE + 100)));
  drain(core);
  assert.equal(hear(core).is, 'fault');
  feed(core, remove(page(HUGE), page(2 * HUGE)));
  core.arguments(page(HUGE), HUGE * PAGE).transferBegin(Op.copy, 0);
  answer(core, true);
  assert.equal(hear(core).is, 'removed');
  drain(core);
  const again = hear(core);
  assert.equal(again.is === 'fault' && again.page, page(HUGE));
});

test('20,000 random steps on huge pages beside small ones agree with a map', () => {
  // Eight huge pages, then as many small pages as one huge page has; a unit is a page of its range. What was removed is
  // remembered when the memory is unregistered.
  const random = generator(seed());
  const core = makeCore();
  putHuge(core, 0, 8);
  put(core, 8 * HUGE, HUGE);
  const starts = [
    ...Array.from({ length: 9 }, (_, i) => i * HUGE),
    ...Array.from({ length: HUGE }, (_, i) => 8 * HUGE + i + 1),
  ];
  const units = starts.length - 1;
  const map: number[] = Array(units).fill(missing);
  const gone = new Set<number>();
  for (let step = 0; step < 20_000; step++) {
    const first = random(3) ? random(9) : random(units);
    const count = 1 + random(Math.min(random(4) ? 5 : 200, units - first));
    const from = starts[first] as number;
    const end = starts[first + count] as number;
    const unit = Array.from({ length: count }, (_, i) => first + i);
    switch (random(3)) {
      case 0:
        transfer(core, [Op.copy, Op.continue][random(2)] as number, from, end - from);
        for (const i of unit) map[i] = present;
        break;
      case 1:
        apply(core, remove(page(from), page(end)));
        for (const i of unit) {
          map[i] = missing;
          gone.add(i);
        }
        break;
      default: {
        const free = unit.filter((i) => map[i] === missing && !gone.has(i));
        // From anywhere in the first page to anywhere in the last.
        const last = starts[first + count - 1] as number;
        const inside = first < 8 ? random(count === 1 ? HUGE - 1 : HUGE) : 0;
        const stop = count === 1 || first + count > 8 ? end : last + 1 + random(end - last);
        assert.equal(claim(core, from + inside, stop - from - inside), free.length, `step ${step}`);
        for (const i of free) map[i] = inFlight;
        // What was claimed long enough is given up, so that the others have their turn.
        if (random(4) === 0) {
          take(core, 0, 9 * HUGE);
          putHuge(core, 0, 8);
          put(core, 8 * HUGE, HUGE);
          map.fill(missing);
          if (random(2) === 0) {
            core.arguments(page(0), 9 * HUGE * PAGE).rangeFresh();
            gone.clear();
          }
        }
      }
    }
    for (const i of [...unit, random(units), random(9)]) {
      const start = starts[i] as number;
      const address = start + random((starts[i + 1] as number) - start);
      const expected = map[i] === missing && gone.has(i) ? removed : map[i];
      assert.equal(stateOf(core, address), expected, `step ${step}, unit ${i}`);
    }
  }
});

test('a source that begins or ends inside of a huge page answers for whole huge pages alone', () => {
  const core = makeCore();
  putHuge(core, 0, 4);
  const data = 0x55aa_0000_0000n;
  // From the middle of the first huge page to the middle of the third.
  core.arguments(page(HUGE / 2), 2 * HUGE * PAGE, data).sourcePut(1, 0);
  for (const index of [0, 2]) {
    feed(core, fault(page(index * HUGE)));
    drain(core);
    assert.equal(hear(core).is, 'fault', `huge page ${index} is the handler's`);
    answer(core, true);
  }
  feed(core, fault(page(HUGE)));
  drain(core);
  assert.equal(core.exports.roundNext(0), Next.call);
  const [dst, src, length] = core.words.subarray(core.request >>> 3);
  assert.deepEqual([dst, src, length], [page(HUGE), data + BigInt((HUGE / 2) * PAGE), BigInt(HUGE * PAGE)]);
  assert.equal(core.exports.roundResult(0), Next.answered);
  // The same ahead of any fault: what is missing behind the last whole page has no source.
  core.arguments(page(HUGE), 3 * HUGE * PAGE);
  assert.equal(core.exports.aheadBegin(0), Step.ask);
  assert.equal(core.exports.aheadPassed(), HUGE * PAGE);
});

test.run();
