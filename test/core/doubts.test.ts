// Pages for which a fill returned EEXIST: the core does not record their state. It delays each further fault of such a
// page longer, but never loses it. Time is an argument: these tests do not wait.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  answer,
  apply,
  deliver,
  deliverAll,
  dispatch,
  drive,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  put,
  readOnce,
  remap,
  remove,
  State,
  stateOf,
  take,
  transfer,
  unmap,
} from './support.js';
import { EEXIST, EFAULT, requested } from './transfers.js';

const test = suite('doubts');

function world(pages = 100): Core {
  const core = makeCore();
  put(core, 0, pages);
  return core;
}

/** Fills one page; the kernel answers EEXIST. */
function inVain(core: Core, index: number, op: Op = Op.COPY, options = 0): void {
  assert.equal(core.arguments(page(index), PAGE).beginFill(op, options), Action.IOCTL);
  let action = core.exports.handleResult(EEXIST);
  if (action === Action.IOCTL) action = core.exports.handleResult(0);
  assert.equal(action, Action.FILLED);
  assert.equal(core.outcome, Step.DONE);
}

/** A page faults. */
function touch(core: Core, index: number, flags = 0n): void {
  feed(core, fault(page(index), flags));
}

test('the n-th fault behind EEXIST waits 1, 2, 4 … 64 ms, once, and says how often it was', () => {
  const core = world();
  let now = 1e6;
  for (const [index, delay] of [0, 1, 2, 4, 8, 16, 32, 64, 64, 64].entries()) {
    touch(core, 3);
    // While no fault is deferred, the core asks for the time only if there are such pages.
    const first = core.exports.begin();
    assert.equal(first, index === 0 ? Action.READ : Action.TIME);
    let action = drive(core, first, now);
    if (delay > 0) {
      assert.equal(action, Action.DONE);
      assert.equal(core.waiting, 1);
      assert.equal(core.exports.delay(now), delay);
      assert.equal(dispatch(core, now + delay - 0.001), Action.DONE);
      now += delay;
      action = dispatch(core, now);
    }
    assert.equal(action, Action.FAULT);
    assert.equal(core.start, page(3));
    assert.equal(core.tries, index);
    inVain(core, 3, [Op.COPY, Op.ZEROPAGE, Op.CONTINUE, Op.POISON][index % 4]);
    answer(core, true, now);
    assert.equal(core.waiting, 0);
    assert.equal(stateOf(core, 3), State.missing);
  }
  // Faults of other pages are not delayed.
  touch(core, 4);
  assert.deepEqual(pagesOf([deliver(core, now)]), [4]);
  assert.equal(core.tries, 0);
});

test('a fault that has waited is deferred by its handler alone', () => {
  const core = world();
  for (let i = 0; i < 3; i++) inVain(core, 3);
  touch(core, 3);
  assert.equal(deliver(core, 0).is, 'none');
  let now = 4;
  for (const delay of [8, 16, 32, 64, 64]) {
    assert.deepEqual(pagesOf([deliver(core, now)]), [3]);
    assert.equal(core.tries, 3);
    answer(core, false, now);
    assert.equal(core.exports.delay(now), delay);
    now += delay;
  }
});

test('EEXIST without a WAKE counts as well, and so does that of a page among others', () => {
  const core = world();
  inVain(core, 3, Op.COPY, Option.DONTWAKE);
  let action = core.arguments(page(4), 6 * PAGE).beginFill(Op.COPY, 0);
  for (const result of [EEXIST, 0, EEXIST, 0, 0]) {
    assert.equal(action, Action.IOCTL);
    action = core.exports.handleResult(result);
  }
  assert.equal(action, Action.FILLED);
  for (const index of [3, 4, 5, 6]) touch(core, index);
  assert.deepEqual(pagesOf([deliver(core, 0)]), [6]);
  answer(core, true);
  assert.deepEqual(pagesOf(deliverAll(core, 1)), [3, 4, 5]);
});

test('only a call that succeeds or a change of the mapping ends a doubt', () => {
  const ends: Record<string, (core: Core) => void> = {
    'a fill': (core) => transfer(core, Op.COPY, 3, 1),
    'a fill of all around': (core) => transfer(core, Op.ZEROPAGE, 0, 50),
    CONTINUE: (core) => transfer(core, Op.CONTINUE, 3, 1),
    POISON: (core) => transfer(core, Op.POISON, 3, 1),
    MOVE: (core) => transfer(core, Op.MOVE, 3, 1, 0, page(300)),
    'a removal': (core) => apply(core, remove(page(2), page(4))),
    'an unmapping': (core) => apply(core, unmap(page(3), page(4))),
    'mremap of it': (core) => apply(core, remap(page(3), page(60), P)),
    'mremap onto it': (core) => apply(core, remap(page(60), page(3), P)),
    unregistered: (core) => take(core, 3, 1),
  };
  const goesOn: Record<string, (core: Core) => void> = {
    'a fill beside it': (core) => transfer(core, Op.COPY, 4, 40),
    'write protection': (core) => transfer(core, Op.WRITEPROTECT, 3, 1),
    'a removal beside it': (core) => apply(core, remove(page(4), page(40))),
    'a fill that fails': (core) => {
      core.arguments(page(3), PAGE).beginFill(Op.COPY, 0);
      assert.equal(core.exports.handleResult(EFAULT), Action.FILLED);
      assert.equal(core.outcome, Step.FAILED);
    },
    'a fill that is cut short': (core) => {
      core.arguments(page(3), PAGE).beginFill(Op.COPY, 0);
      for (const next of [Action.IOCTL, Action.FILLED]) {
        assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
        assert.equal(readOnce(core), next);
      }
      assert.equal(core.outcome, Step.SHORT);
    },
  };
  for (const [cases, delay] of [
    [ends, 0],
    [goesOn, 1],
  ] as const) {
    for (const [name, run] of Object.entries(cases)) {
      const core = world();
      inVain(core, 3);
      run(core);
      put(core, 0, 100);
      touch(core, 3);
      assert.equal(deliver(core, 0).is === 'fault', delay === 0, name);
      assert.equal(core.exports.delay(0), delay === 0 ? -1 : delay, name);
    }
  }
});

test('another kind of fault of such a page does not wait', () => {
  const core = world();
  inVain(core, 3);
  for (const flags of [FLAG_WP, FLAG_MINOR]) {
    touch(core, 3, flags);
    assert.deepEqual(pagesOf([deliver(core, 0)]), [3]);
    assert.equal(core.tries, 0);
    answer(core, true);
  }
});

test('a change of the mapping makes a fault that waits due, and it does not wait again', () => {
  const core = world();
  for (let i = 0; i < 7; i++) inVain(core, 3);
  touch(core, 3);
  assert.equal(deliver(core, 0).is, 'none');
  assert.equal(core.exports.delay(0), 64);
  apply(core, remove(page(90), page(91)));
  assert.deepEqual(pagesOf([deliver(core, 0)]), [3]);
  assert.equal(core.tries, 7);
});

test('the end wakes every waiter, those included whose fault was delayed', () => {
  const core = world();
  inVain(core, 3);
  touch(core, 3);
  assert.equal(deliver(core, 0).is, 'none');
  assert.equal(core.exports.beginEnd(false), Action.IOCTL);
  assert.deepEqual(requested(core), { is: 'wake', start: 3, pages: 1 });
  assert.equal(core.exports.handleResult(0), Action.DONE);
});

test('in a pool that is dry no fault is offered without having waited, however many guests want a page', () => {
  // 64 huge pages, adjacent or scattered: no page's count may be lost to another's.
  const random = generator(seed());
  const huge = 512;
  for (let run = 0; run < 50; run++) {
    const core = makeCore();
    put(core, 0, 16_384 * huge, { pageShift: 21 });
    const pages = new Set<number>();
    const near = random(2) === 0 ? 1 : 100;
    while (pages.size < 64) pages.add(near === 1 ? pages.size : random(16_384));
    let now = 0;
    for (let tries = 0; tries < 9; tries++) {
      feed(core, ...[...pages].map((index) => fault(page(index * huge))));
      if (tries > 0) {
        const delay = 2 ** Math.min(tries - 1, 6);
        for (const at of [now, now + delay - 0.1]) {
          assert.equal(deliver(core, at).is, 'none', `run ${run}, try ${tries}`);
        }
        now += delay;
      }
      for (const _ of pages) {
        const delivered = deliver(core, now);
        assert.ok(delivered.is === 'fault');
        assert.equal(core.tries, tries);
        core.arguments(delivered.page, huge * PAGE).beginFill(Op.COPY, 0);
        assert.equal(core.exports.handleResult(EEXIST), Action.IOCTL);
        assert.equal(core.exports.handleResult(0), Action.FILLED);
        answer(core, true, now);
      }
      assert.equal(deliver(core, now).is, 'none');
    }
  }
});

/** A waiting fault. */
interface Waiting {
  level: number;
  due: number;
  waited: boolean;
}

test('whatever the kernel says: each fault comes when it is due, and none is lost', () => {
  const first = seed();
  for (let run = first; run < first + 300; run++) {
    const below = generator(run);
    const core = world();
    const tries = new Map<number, number>();
    const waiting = new Map<number, Waiting>();
    let now = 1000;
    const defer = (one: Waiting) => {
      one.level = Math.min(one.level + 1, 7);
      one.due = now + 2 ** (one.level - 1);
    };
    const change = (start: number, end: number) => {
      for (let index = start; index < end; index++) tries.delete(index);
      for (const one of waiting.values()) Object.assign(one, { level: 0, due: 0 });
    };
    for (let step = 0; step < 200; step++) {
      const index = below(16);
      switch (below(8)) {
        case 0:
          apply(core, remove(page(index), page(index + 1)));
          change(index, index + 1);
          break;
        case 1:
          now += [0.5, 1, 3, 20, 64][below(5)] as number;
          break;
        case 2:
          transfer(core, Op.COPY, index, 1);
          tries.delete(index);
          break;
        default:
          touch(core, index);
          if (!waiting.has(index)) waiting.set(index, { level: 0, due: 0, waited: false });
      }
      // Faults of pages that returned EEXIST begin their delay.
      for (const [who, one] of waiting) {
        const count = tries.get(who) ?? 0;
        if (one.waited || count === 0 || one.due > now) continue;
        one.level = Math.max(one.level, Math.min(count, 7) - 1);
        one.waited = true;
        defer(one);
      }
      const due = [...waiting].filter(([, one]) => one.due <= now).map(([who]) => who);
      const delivered: number[] = [];
      for (;;) {
        const next = deliver(core, now);
        if (next.is !== 'fault') break;
        const [who] = pagesOf([next]) as [number];
        delivered.push(who);
        assert.equal(core.tries, tries.get(who) ?? 0, `run ${run}, step ${step}`);
        const one = waiting.get(who) as Waiting;
        waiting.delete(who);
        if (below(3) === 0) {
          answer(core, false, now);
          defer(one);
          waiting.set(who, one);
          continue;
        }
        if (below(3) === 0) {
          transfer(core, Op.COPY, who, 1);
          tries.delete(who);
        } else {
          inVain(core, who);
          tries.set(who, (tries.get(who) ?? 0) + 1);
        }
        answer(core, true, now);
      }
      assert.deepEqual(delivered.sort(), due.sort(), `run ${run}, step ${step}`);
      const soonest = Math.min(...[...waiting.values()].map(({ due: at }) => at));
      assert.equal(core.exports.delay(now), waiting.size === 0 ? -1 : soonest - now);
      assert.equal(core.waiting, waiting.size);
    }
    assert.equal(deliverAll(core, now + 64).length, waiting.size, 'those that wait come within 64 ms');
  }
});

test.run();
