// Ranges of huge pages: a huge page has one state for all of its addresses. Claims, windows, fills and wakes take whole
// huge pages, and leave their neighbours alone.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, SourceKind, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  answer,
  apply,
  deliver,
  dispatch,
  EAGAIN,
  fault,
  feed,
  listing,
  MISSING,
  makeCore,
  P,
  PAGE,
  page,
  put,
  readOnce,
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
import { EEXIST, EFAULT, type Requested, requested, tallied, wordsOf } from './transfers.js';

const test = suite('huge pages');
const { missing, present, removed, inFlight, writeProtected } = State;

/** The number of 4 KiB pages in a huge page of 2 MiB. */
const HUGE = 512;
const SHIFT = 21;

/** Registers `count` huge pages from huge page number `first` on. Other helpers count in 4 KiB pages. */
function putHuge(core: Core, first: number, count: number, modes = MISSING): void {
  put(core, first * HUGE, count * HUGE, { modes, pageShift: SHIFT });
}

/** The states of huge pages. Checks that each has one state from its first address to its last. */
function states(core: Core, first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => {
    const from = (first + i) * HUGE;
    const state = stateOf(core, from);
    for (const inside of [1, 63, 64, 300, HUGE - 1])
      assert.equal(stateOf(core, from + inside), state, `huge page ${first + i}, at ${inside}`);
    return state;
  });
}

/** Claims 4 KiB pages; returns how many pages of the range that claimed. */
function claim(core: Core, first: number, count: number): number {
  return still(core, 'pageClaim', () => core.arguments(page(first), count * PAGE).pageClaim());
}

test('a claim takes huge pages, and counts each once', () => {
  const core = makeCore();
  putHuge(core, 0, 6);
  transfer(core, Op.COPY, HUGE, HUGE);
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
  // From the middle of the second huge page to the middle of the third.
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
  /** The page size of the last window. */
  const size = () => 2 ** core.pageShift;
  putHuge(core, 1, 6);
  // The addresses lie inside of huge pages. Windows of 4 begin at huge pages 0 and 4.
  assert.deepEqual(windowOf(core, 2 * HUGE + 17, 4), [HUGE, 3]);
  assert.equal(size(), HUGE * PAGE);
  assert.deepEqual(windowOf(core, 5 * HUGE - 1, 4), [4 * HUGE, 3]);
  assert.deepEqual(windowOf(core, 3 * HUGE + 1, 1), [3 * HUGE, 1]);
  transfer(core, Op.COPY, 2 * HUGE, HUGE);
  assert.deepEqual(windowOf(core, HUGE + 1, 4), [HUGE, 1]);
  assert.deepEqual(windowOf(core, 3 * HUGE + 1, 4), [3 * HUGE, 1]);
  // A present page is a window of its own, from its start. A claimed page gives an empty window.
  assert.deepEqual(windowOf(core, 2 * HUGE + 511, 4), [2 * HUGE, 1]);
  claim(core, 4 * HUGE, 1);
  assert.deepEqual(windowOf(core, 4 * HUGE + 3, 4), [4 * HUGE, 0]);
  apply(core, remove(page(5 * HUGE), page(7 * HUGE)));
  assert.deepEqual(windowOf(core, 5 * HUGE + 3, 4), [5 * HUGE, 2]);
  // An adjacent range of 4 KiB pages keeps its page size.
  put(core, 7 * HUGE, 16);
  assert.deepEqual(windowOf(core, 7 * HUGE + 5, 8), [7 * HUGE, 8]);
  assert.equal(size(), PAGE);
  assert.deepEqual(windowOf(core, 100 * HUGE + 1, 8), [100 * HUGE + 1, 1]);
  assert.equal(size(), PAGE, 'what is not registered has the size of the system');
});

test('a fill, a step over what is there, a removal: each is of whole huge pages', () => {
  const core = makeCore();
  putHuge(core, 0, 4, MISSING | WRITE_PROTECT);
  transfer(core, Op.COPY, 0, HUGE, Option.WRITE_PROTECT);
  // Huge page 1 returns EEXIST: its state is not recorded, and its claim ends as the fill was tried.
  claim(core, HUGE, 2 * HUGE);
  let action = core.arguments(page(HUGE), 2 * HUGE * PAGE).beginFill(Op.COPY, 0);
  // EEXIST of huge page 1 and its WAKE; then huge page 2 fails.
  for (const result of [EEXIST, 0, EFAULT]) {
    assert.equal(action, Action.IOCTL);
    action = core.exports.handleResult(result);
  }
  assert.equal(action, Action.FILLED);
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, missing, inFlight, missing]);
  apply(core, remove(page(HUGE), page(3 * HUGE)));
  assert.deepEqual(states(core, 0, 4), [present + writeProtected, removed, removed, missing]);
  transfer(core, Op.WRITEPROTECT, 0, HUGE);
  assert.deepEqual(states(core, 0, 1), [present]);
});

test('huge pages have no ZEROPAGE, so zeros are not copied to one in its place either', () => {
  // The buffer of zeros has 4 KiB: a copy of a huge page would read beyond its end.
  const core = makeCore();
  putHuge(core, 0, 2, MISSING | WRITE_PROTECT);
  transfer(core, Op.WRITEPROTECT, 0, 2 * HUGE, Option.WRITE_PROTECT);
  assert.equal(core.arguments(page(0), 2 * HUGE * PAGE).beginFill(Op.ZEROPAGE, 0), Action.IOCTL);
  assert.equal(core.code >>> 0, 0xc020aa04);
  assert.equal(core.exports.handleResult(-22), Action.FILLED);
  assert.deepEqual([core.outcome, core.errno], [Step.FAILED, 22]);
});

test('mremap carries huge pages with their size; unmap and unregister forget them', () => {
  const core = makeCore();
  putHuge(core, 0, 3);
  transfer(core, Op.COPY, 0, HUGE);
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

test('the end wakes the waiters of whole huge pages, wherever in them the fault was', () => {
  const core = makeCore();
  putHuge(core, 0, 4);
  put(core, 4 * HUGE, 1);
  // With the feature exact-address the kernel reports the address inside the page.
  feed(core, fault(page(HUGE + 9) + 5n), fault(page(3 * HUGE)), fault(page(4 * HUGE) + 77n));
  assert.equal(deliver(core).is, 'fault', 'the first is with the handler');
  const woken: Requested[] = [];
  let action = core.exports.beginEnd(false);
  for (; action === Action.IOCTL; action = core.exports.handleResult(0)) woken.push(requested(core));
  assert.equal(action, Action.DONE);
  assert.deepEqual(woken, [
    { is: 'wake', start: HUGE, pages: HUGE },
    { is: 'wake', start: 3 * HUGE, pages: HUGE },
    { is: 'wake', start: 4 * HUGE, pages: 1 },
  ]);
});

test('a fill cut short over any part of a huge page brings its fault again', () => {
  const core = makeCore();
  putHuge(core, 0, 2);
  feed(core, fault(page(HUGE + 100)));
  assert.equal(deliver(core).is, 'fault');
  feed(core, remove(page(HUGE), page(2 * HUGE)));
  assert.equal(core.arguments(page(HUGE), HUGE * PAGE).beginFill(Op.COPY, 0), Action.IOCTL);
  assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
  assert.equal(readOnce(core), Action.FILLED);
  assert.equal(core.outcome, Step.SHORT);
  answer(core, true);
  assert.equal(deliver(core).is, 'removed');
  const again = deliver(core);
  assert.equal(again.is === 'fault' && again.page, page(HUGE));
});

test('20,000 random steps on huge pages beside small ones agree with a map', () => {
  // Eight huge pages, then 512 small pages. A unit is a page of either size. Removals are remembered when the memory is
  // unregistered.
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
        transfer(core, [Op.COPY, Op.CONTINUE][random(2)] as Op, from, end - from);
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
        // The claim begins anywhere in the first page and ends anywhere in the last.
        const last = starts[first + count - 1] as number;
        const inside = first < 8 ? random(count === 1 ? HUGE - 1 : HUGE) : 0;
        const stop = count === 1 || first + count > 8 ? end : last + 1 + random(end - last);
        assert.equal(claim(core, from + inside, stop - from - inside), free.length, `step ${step}`);
        for (const i of free) map[i] = inFlight;
        // Sometimes all claims are dropped, so that later steps find missing pages.
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
  core.arguments(page(HUGE / 2), 2 * HUGE * PAGE, data).sourcePut(SourceKind.DATA, 1, 0);
  for (const index of [0, 2]) {
    feed(core, fault(page(index * HUGE)));
    assert.equal(deliver(core).is, 'fault', `huge page ${index} is the handler's`);
    answer(core, true);
  }
  feed(core, fault(page(HUGE)));
  assert.equal(dispatch(core), Action.IOCTL);
  const [dst, src, length] = wordsOf(core).subarray(core.request >>> 3);
  assert.deepEqual([dst, src, length], [page(HUGE), data + BigInt((HUGE / 2) * PAGE), BigInt(HUGE * PAGE)]);
  assert.equal(core.exports.handleResult(0), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: HUGE });
  // The same for a fill ahead of faults: the missing pages behind the source's last whole huge page have no source.
  assert.equal(core.arguments(page(HUGE), 3 * HUGE * PAGE).beginAhead(0), Action.FILLED);
  assert.deepEqual([core.outcome, core.passed], [Step.ASK, HUGE * PAGE]);
});

test('zeros in huge pages, which have no zero page, are for the handler', () => {
  const core = makeCore();
  putHuge(core, 0, 2);
  const data = 0x55aa_0000_0000n;
  core.arguments(page(0), HUGE * PAGE, data).sourcePut(SourceKind.DATA_OR_REMOVED, 1, 0);
  core.arguments(page(HUGE), HUGE * PAGE).sourcePut(SourceKind.ZEROS, 1, 0);
  feed(core, fault(page(HUGE)));
  assert.equal(deliver(core).is, 'fault', 'a hole');
  answer(core, true);
  assert.equal(core.arguments(page(HUGE), HUGE * PAGE).beginAhead(0), Action.FILLED);
  assert.equal(core.outcome, Step.ASK);
  apply(core, remove(page(0), page(HUGE)));
  feed(core, fault(page(0)));
  assert.equal(deliver(core).is, 'fault', 'a page that was removed');
});

test.run();
