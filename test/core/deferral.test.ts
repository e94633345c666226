// Faults that cannot be answered yet come again by themselves, on growing delays, and block nobody; those whose
// memory is gone do not come again at all. Time is an argument: nothing here waits.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option, Step } from '../../src/core.js';
import { suite } from '../harness.js';
import {
  answer,
  apply,
  drain,
  EAGAIN,
  fault,
  feed,
  hear,
  hearAll,
  holding,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  remap,
  remove,
  take,
  unmap,
  WRITE,
} from './support.js';

const test = suite('deferral');

test('delays are 1, 2, 4 … 64 ms, and 64 ms from then on, by the time that is passed alone', () => {
  const core = holding(fault(page(1)));
  let now = 1e9;
  assert.equal(core.exports.inboxDelay(now), 0);
  for (const delay of [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]) {
    assert.equal(hear(core, now).is, 'fault');
    assert.equal(core.exports.inboxDelay(now), -1);
    answer(core, false, now);
    assert.equal(core.exports.inboxWaiting(), 1);
    assert.equal(core.exports.inboxDelay(now), delay);
    assert.equal(core.exports.inboxDelay(now + delay / 2), delay / 2);
    assert.equal(hear(core, now + delay - 0.001).is, 'none');
    now += delay;
    assert.equal(core.exports.inboxDelay(now), 0);
    assert.equal(core.exports.inboxDelay(now + 1000), 0);
  }
  assert.equal(hear(core, now).is, 'fault');
  answer(core, true, now);
  assert.equal(core.exports.inboxDelay(now), -1);
  assert.equal(hear(core, now + 1e6).is, 'none');
});

test('a fault that is put off blocks nobody, and comes in its turn', () => {
  const core = holding(...[1, 2, 3, 4].map((index) => fault(page(index))));
  const order: number[] = [];
  const putOff = new Map([
    [1, 3],
    [3, 1],
  ]);
  for (let now = 0; core.exports.inboxWaiting() > 0; now += 0.5) {
    for (let heard = hear(core, now); heard.is === 'fault'; heard = hear(core, now)) {
      const [index] = pagesOf([heard]) as [number];
      order.push(index);
      const left = putOff.get(index) ?? 0;
      putOff.set(index, left - 1);
      answer(core, left <= 0, now);
    }
  }
  assert.deepEqual(order, [1, 2, 3, 4, 1, 3, 1, 1]);
});

test('a mapping change makes everything due, with the delays starting over', () => {
  for (const change of [
    remove(page(90), page(91)),
    unmap(page(90), page(91)),
    remap(page(90), page(95), P),
  ]) {
    const core = holding(fault(page(1)), fault(page(2)));
    let now = 0;
    for (const delay of [1, 2, 4, 8]) {
      for (const _ of [1, 2]) {
        assert.equal(hear(core, now).is, 'fault');
        answer(core, false, now);
      }
      now += delay;
    }
    now -= 7;
    assert.equal(hear(core, now).is, 'none');
    feed(core, change);
    assert.equal(core.exports.inboxDelay(now), 0);
    assert.notEqual(hear(core, now).is, 'fault');
    assert.equal(core.exports.inboxDelay(now), 0);
    drain(core);
    assert.deepEqual(pagesOf([hear(core, now)]), [1]);
    answer(core, false, now);
    assert.deepEqual(pagesOf([hear(core, now)]), [2]);
    answer(core, false, now);
    assert.equal(core.exports.inboxDelay(now), 1);
  }
});

test('a repeat of a page that was put off merges with it, and waits as it does', () => {
  const core = holding(fault(page(1)));
  hear(core, 0);
  answer(core, false, 0);
  feed(core, fault(page(1), WRITE));
  drain(core);
  assert.equal(core.exports.inboxWaiting(), 1);
  assert.equal(hear(core, 0.5).is, 'none');
  const heard = hear(core, 1);
  assert.ok(heard.is === 'fault' && heard.write);
});

test('faults that were put off are still known after the table has grown', () => {
  const core = makeCore();
  const some = Array.from({ length: 100 }, (_, i) => fault(page(i)));
  feed(core, ...some);
  drain(core);
  for (const _ of some) {
    hear(core);
    answer(core, false);
  }
  feed(core, ...Array.from({ length: 2000 }, (_, i) => fault(page(1000 + i))));
  feed(core, ...some);
  assert.equal(core.exports.inboxWaiting(), 2100);
  apply(core, unmap(page(0), page(50)));
  assert.equal(core.exports.inboxWaiting(), 2050);
});

test('a repeat read while the fault is out is a question of its own', () => {
  for (const answered of [true, false]) {
    const core = holding(fault(page(1), WRITE));
    hear(core, 0);
    feed(core, fault(page(1)));
    answer(core, answered, 0);
    drain(core);
    // Put off, the two are one again: it comes at once, and asks for what both wanted.
    const heard = hear(core, 0);
    assert.ok(heard.is === 'fault' && heard.write === !answered);
    answer(core, true, 0);
    assert.equal(hear(core, 1000).is, 'none');
  }
});

// ---- what transfers say of the fault that is out -----------------------------------------------------------

/** Runs a transfer with these results; reads that it asks for bring nothing. */
function run(core: Core, first: number, count: number, ...results: number[]): number {
  let step = core.arguments(page(first), count * PAGE).transferBegin(Op.zero, 0);
  while (step === Step.call || step === Step.read) {
    step =
      step === Step.call ? core.exports.transferResult(results.shift() ?? 0) : core.exports.transferResume();
  }
  return step;
}

test('a fault whose transfer was cut short is put off, whatever its handler believes', () => {
  const core = holding(fault(page(5)));
  hear(core);
  assert.equal(run(core, 4, 4, EAGAIN, EAGAIN), Step.short);
  answer(core, true);
  assert.equal(core.exports.inboxDelay(0), 1);
  assert.equal(hear(core, 1).is, 'fault');
  // Not if it was about other pages, or if the fault's page was done before.
  assert.equal(run(core, 6, 4, EAGAIN, EAGAIN), Step.short);
  assert.equal(run(core, 5, 4, -17, 0, EAGAIN, EAGAIN), Step.short);
  answer(core, true);
  assert.equal(core.exports.inboxWaiting(), 0);
});

test('a fault whose memory or process is gone is over, whatever its handler says', () => {
  const ends: Record<string, (core: Core) => void> = {
    ENOENT: (core) => assert.equal(run(core, 5, 1, -2), Step.unmapped),
    'ENOENT behind a part': (core) => assert.equal(run(core, 4, 4, -2, -2, 0, -2, -2), Step.unmapped),
    ESRCH: (core) => assert.equal(run(core, 4, 4, -3), Step.exited),
    'short, then ENOENT': (core) => {
      assert.equal(run(core, 4, 4, EAGAIN, EAGAIN), Step.short);
      assert.equal(run(core, 5, 1, -2), Step.unmapped);
    },
    unregistered: (core) => take(core, 0, 100),
    unmapped: (core) => apply(core, unmap(page(0), page(10))),
    'moved away': (core) => apply(core, remap(page(0), page(100), 10n * P)),
  };
  for (const [name, end] of Object.entries(ends)) {
    const core = holding(fault(page(5)));
    hear(core);
    end(core);
    answer(core, false);
    assert.equal(core.exports.inboxWaiting(), 0, name);
  }
  const elsewhere = holding(fault(page(5)));
  hear(elsewhere);
  assert.equal(run(elsewhere, 6, 1, -2), Step.unmapped);
  take(elsewhere, 6, 4);
  answer(elsewhere, false);
  assert.equal(elsewhere.exports.inboxWaiting(), 1);
});

test('a neighbour that is gone is not the end of a fault: its own page alone decides', () => {
  const before = holding(fault(page(5)));
  hear(before);
  // Page 4 is gone; 5 to 7 are filled.
  assert.equal(run(before, 4, 4, -2, -2, -2, 0, 0), Step.done);
  answer(before, false);
  assert.equal(before.exports.inboxWaiting(), 1, 'the handler decides');
  const behind = holding(fault(page(5)));
  hear(behind);
  // Page 6 is gone.
  assert.equal(run(behind, 4, 4, -2, 0, -2, -2), Step.unmapped);
  answer(behind, false);
  assert.equal(behind.exports.inboxWaiting(), 1);
  const move = holding(fault(page(5)));
  hear(move);
  // MOVE says ENOENT for all of it.
  move.arguments(page(4), 4 * PAGE, page(50)).transferBegin(Op.move, Option.allowHoles);
  move.exports.transferResult(-2);
  assert.equal(move.exports.transferResult(0), Step.unmapped);
  answer(move, false);
  assert.equal(move.exports.inboxWaiting(), 0);
});

test('what a fault met does not stick to the next one', () => {
  const core = holding(fault(page(5)), fault(page(6)));
  hear(core);
  run(core, 0, 10, EAGAIN, EAGAIN);
  assert.equal(run(core, 5, 1, -2), Step.unmapped);
  answer(core, false);
  hear(core);
  answer(core, true);
  assert.equal(core.exports.inboxWaiting(), 0);
  // Without a fault that is out, an answer and a transfer change nothing.
  answer(core, false);
  run(core, 0, 10, EAGAIN, EAGAIN);
  assert.equal(core.exports.inboxWaiting(), 0);
});

test('faults of memory that is gone are dropped; the others stay, in order', () => {
  const ends: Record<string, (core: Core) => void> = {
    unmapped: (core) => apply(core, unmap(page(2), page(5))),
    moved: (core) => apply(core, remap(page(2), page(200), 3n * P)),
    unregistered: (core) => take(core, 2, 3),
  };
  for (const [name, end] of Object.entries(ends)) {
    const core = holding(...[6, 4, 1, 2, 5, 3, 0].map((index) => fault(page(index))));
    // One of each is put off before.
    for (const _ of [6, 4]) {
      hear(core);
      answer(core, false);
    }
    end(core);
    assert.equal(core.exports.inboxWaiting(), 4, name);
    drain(core);
    const heard = pagesOf(hearAll(core, 100));
    assert.deepEqual(heard.sort(), [0, 1, 5, 6], name);
    // The page may fault again, elsewhere or when it is mapped anew.
    feed(core, fault(page(3)));
    assert.deepEqual(pagesOf(hearAll(core)), [3], name);
  }
});

test('eviction gives the fault that is out first, then those ready in order, then those put off', () => {
  const core = holding(...[1, 2, 3, 4, 5].map((index) => fault(page(index))));
  const evict = () => (core.exports.inboxEvict() ? Number((core.delivered(1) - page(0)) / P) : undefined);
  for (const _ of [1, 2]) {
    hear(core);
    answer(core, false);
  }
  hear(core);
  assert.deepEqual([evict(), evict(), evict(), evict(), evict(), evict()], [3, 4, 5, 1, 2, undefined]);
  answer(core, false);
  assert.equal(core.exports.inboxWaiting(), 0);
});

test.run();
