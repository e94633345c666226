// A fault that cannot be answered yet is retried after a growing delay, and does not block other faults. A fault whose
// memory is gone is dropped. Time is an argument: these tests do not wait.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';
import {
  answer,
  bring,
  deliver,
  deliverAll,
  drive,
  EAGAIN,
  fault,
  feed,
  holding,
  type Message,
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
import { requested } from './transfers.js';

const test = suite('deferral');

test('delays are 1, 2, 4 … 64 ms, and 64 ms from then on, by the time that is passed alone', () => {
  const core = holding();
  bring(core, fault(page(1)));
  let now = 1e9;
  assert.equal(core.exports.delay(now), 0);
  for (const delay of [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]) {
    assert.equal(deliver(core, now).is, 'fault');
    assert.equal(core.exports.delay(now), -1);
    answer(core, false, now);
    assert.equal(core.waiting, 1);
    assert.equal(core.exports.delay(now), delay);
    assert.equal(core.exports.delay(now + delay / 2), delay / 2);
    assert.equal(deliver(core, now + delay - 0.001).is, 'none');
    now += delay;
    assert.equal(core.exports.delay(now), 0);
    assert.equal(core.exports.delay(now + 1000), 0);
  }
  assert.equal(deliver(core, now).is, 'fault');
  answer(core, true, now);
  assert.equal(core.exports.delay(now), -1);
  assert.equal(deliver(core, now + 1e6).is, 'none');
});

test('a deferred fault blocks no others, and comes in its turn', () => {
  const core = holding();
  bring(core, ...[1, 2, 3, 4].map((index) => fault(page(index))));
  const order: number[] = [];
  const deferrals = new Map([
    [1, 3],
    [3, 1],
  ]);
  for (let now = 0; core.waiting > 0; now += 0.5) {
    for (let delivered = deliver(core, now); delivered.is === 'fault'; delivered = deliver(core, now)) {
      const [index] = pagesOf([delivered]) as [number];
      order.push(index);
      const left = deferrals.get(index) ?? 0;
      deferrals.set(index, left - 1);
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
        assert.equal(deliver(core, now).is, 'fault');
        answer(core, false, now);
      }
      now += delay;
    }
    now -= 7;
    assert.equal(deliver(core, now).is, 'none');
    bring(core, change);
    assert.equal(core.exports.delay(now), 0);
    assert.notEqual(deliver(core, now).is, 'fault');
    assert.equal(core.exports.delay(now), 0);
    assert.deepEqual(pagesOf([deliver(core, now)]), [1]);
    answer(core, false, now);
    assert.deepEqual(pagesOf([deliver(core, now)]), [2]);
    answer(core, false, now);
    assert.equal(core.exports.delay(now), 1);
  }
});

test('a repeat of a page whose fault was deferred merges with it, and waits as it does', () => {
  const core = holding(fault(page(1)));
  deliver(core, 0);
  answer(core, false, 0);
  bring(core, fault(page(1), WRITE));
  assert.equal(core.waiting, 1);
  assert.equal(deliver(core, 0.5).is, 'none');
  const delivered = deliver(core, 1);
  assert.ok(delivered.is === 'fault' && delivered.write);
});

test('deferred faults are still known after the table has grown', () => {
  const core = makeCore();
  const some = Array.from({ length: 100 }, (_, i) => fault(page(i)));
  feed(core, ...some);
  for (const _ of some) {
    deliver(core);
    answer(core, false);
  }
  bring(core, ...Array.from({ length: 2000 }, (_, i) => fault(page(1000 + i))));
  bring(core, ...some);
  assert.equal(core.waiting, 2100);
  feed(core, unmap(page(0), page(50)));
  assert.equal(deliver(core).is, 'unmapped');
  assert.equal(core.waiting, 2050);
});

test('a repeat read while the handler has the fault is a question of its own', () => {
  for (const answered of [true, false]) {
    const core = holding(fault(page(1), WRITE));
    deliver(core, 0);
    bring(core, fault(page(1)));
    answer(core, answered, 0);
    // If the first fault is deferred, both merge again: the fault is due at once, and is a write as one of them was.
    const delivered = deliver(core, 0);
    assert.ok(delivered.is === 'fault' && delivered.write === !answered);
    answer(core, true, 0);
    assert.equal(deliver(core, 1000).is, 'none');
  }
});

// ---- how fills affect the current fault -------------------------------------------------------------------

/** Makes a fill with these results of its ioctls; its reads find an empty queue. Returns the outcome. */
function run(core: Core, first: number, count: number, ...results: number[]): number {
  let action = core.arguments(page(first), count * PAGE).beginFill(Op.ZEROPAGE, 0);
  while (action !== Action.FILLED) {
    if (action === Action.IOCTL) action = core.exports.handleResult(results.shift() ?? 0);
    else if (action === Action.READ) action = core.exports.handleRead(EAGAIN);
    else assert.fail(`action ${action}`);
  }
  return core.outcome;
}

test('a fault whose fill was cut short is deferred, whatever its handler believes', () => {
  const core = holding(fault(page(5)));
  deliver(core);
  assert.equal(run(core, 4, 4, EAGAIN, EAGAIN), Step.SHORT);
  answer(core, true);
  assert.equal(core.exports.delay(0), 1);
  assert.equal(deliver(core, 1).is, 'fault');
  // The fault is not deferred if the fill was of other pages, or if the fault's page was done before.
  assert.equal(run(core, 6, 4, EAGAIN, EAGAIN), Step.SHORT);
  assert.equal(run(core, 5, 4, -17, 0, EAGAIN, EAGAIN), Step.SHORT);
  answer(core, true);
  assert.equal(core.waiting, 0);
});

test('a fault whose memory or process is gone is over, whatever its handler says', () => {
  const ends: Record<string, (core: Core) => void> = {
    ENOENT: (core) => assert.equal(run(core, 5, 1, -2), Step.UNMAPPED),
    'ENOENT behind a part': (core) => assert.equal(run(core, 4, 4, -2, -2, 0, -2, -2), Step.UNMAPPED),
    ESRCH: (core) => assert.equal(run(core, 4, 4, -3), Step.EXITED),
    'short, then ENOENT': (core) => {
      assert.equal(run(core, 4, 4, EAGAIN, EAGAIN), Step.SHORT);
      assert.equal(run(core, 5, 1, -2), Step.UNMAPPED);
    },
    unregistered: (core) => take(core, 0, 100),
    // These changes are delivered after the answer.
    unmapped: (core) => feed(core, unmap(page(0), page(10))),
    'moved away': (core) => feed(core, remap(page(0), page(100), 10n * P)),
    'unmapped, which a fill has read': (core) => void bring(core, unmap(page(0), page(10))),
  };
  for (const [name, end] of Object.entries(ends)) {
    const core = holding(fault(page(5)));
    deliver(core);
    end(core);
    answer(core, false);
    const change = deliver(core);
    const expected = /^unmapped/.test(name) ? 'unmapped' : name === 'moved away' ? 'remapped' : 'none';
    assert.equal(change.is, name === 'ESRCH' ? 'gone' : expected, name);
    assert.equal(core.waiting, 0, name);
  }
  const elsewhere = holding(fault(page(5)));
  deliver(elsewhere);
  assert.equal(run(elsewhere, 6, 1, -2), Step.UNMAPPED);
  take(elsewhere, 6, 4);
  answer(elsewhere, false);
  assert.equal(elsewhere.waiting, 1);
});

test('a neighbour that is gone is not the end of a fault: its own page alone decides', () => {
  const before = holding(fault(page(5)));
  deliver(before);
  // Page 4 is unmapped; 5 to 7 are filled.
  assert.equal(run(before, 4, 4, -2, -2, -2, 0, 0), Step.DONE);
  answer(before, false);
  assert.equal(before.waiting, 1, 'the handler decides');
  const behind = holding(fault(page(5)));
  deliver(behind);
  // Page 6 is unmapped.
  assert.equal(run(behind, 4, 4, -2, 0, -2, -2), Step.UNMAPPED);
  answer(behind, false);
  assert.equal(behind.waiting, 1);
  const move = holding(fault(page(5)));
  deliver(move);
  // MOVE returned ENOENT, which is about all of its pages.
  move.arguments(page(4), 4 * PAGE, page(50)).beginFill(Op.MOVE, Option.ALLOW_HOLES);
  assert.equal(move.exports.handleResult(-2), Action.IOCTL);
  assert.equal(move.exports.handleResult(0), Action.FILLED);
  assert.equal(move.outcome, Step.UNMAPPED);
  answer(move, false);
  assert.equal(move.waiting, 0);
});

test('what a fault met does not stick to the next one', () => {
  const core = holding(fault(page(5)), fault(page(6)));
  deliver(core);
  run(core, 0, 10, EAGAIN, EAGAIN);
  assert.equal(run(core, 5, 1, -2), Step.UNMAPPED);
  answer(core, false);
  deliver(core);
  answer(core, true);
  assert.equal(core.waiting, 0);
  // While the handler has no fault, a fill changes nothing.
  run(core, 0, 10, EAGAIN, EAGAIN);
  assert.equal(core.waiting, 0);
  assert.equal(deliver(core, 1000).is, 'none');
});

/** Delivers a mapping change. */
function changes(core: Core, change: Message): void {
  feed(core, change);
  assert.notEqual(deliver(core).is, 'fault');
}

test('faults of memory that is gone are dropped; the others stay, in order', () => {
  const ends: Record<string, (core: Core) => void> = {
    unmapped: (core) => changes(core, unmap(page(2), page(5))),
    moved: (core) => changes(core, remap(page(2), page(200), 3n * P)),
    unregistered: (core) => take(core, 2, 3),
  };
  for (const [name, end] of Object.entries(ends)) {
    const core = holding(...[6, 4, 1, 2, 5, 3, 0].map((index) => fault(page(index))));
    // Two faults are deferred before that: one that stays (page 6), and one that is dropped (page 4).
    for (const _ of [6, 4]) {
      deliver(core);
      answer(core, false);
    }
    end(core);
    assert.equal(core.waiting, 4, name);
    const delivered = pagesOf(deliverAll(core, 100));
    assert.deepEqual(delivered.sort(), [0, 1, 5, 6], name);
    // The core accepts a new fault of a page whose fault it dropped.
    feed(core, fault(page(3)));
    assert.deepEqual(pagesOf(deliverAll(core)), [3], name);
  }
});

test('at the end the waiters of the current fault are woken first, then those of ready ones in order, then of deferred ones', () => {
  for (const reads of [false, true]) {
    const core = holding(...[1, 2, 3, 4, 5].map((index) => fault(page(index))));
    for (const _ of [1, 2]) {
      deliver(core);
      answer(core, false);
    }
    deliver(core);
    const woken: number[] = [];
    let action = drive(core, core.exports.beginEnd(reads));
    for (; action === Action.IOCTL; action = core.exports.handleResult(0)) {
      const call = requested(core);
      assert.deepEqual([call.is, call.pages], ['wake', 1]);
      woken.push(call.start);
    }
    assert.deepEqual(woken, [3, 4, 5, 1, 2]);
    assert.equal(action, Action.DONE);
    // The callback that ended the session returns.
    assert.equal(core.exports.handleAnswer(false, false), Action.DONE);
    assert.equal(core.waiting, 0);
  }
});

test.run();
