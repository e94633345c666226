// Pages of which a fill said EEXIST: nothing is noted of them, and a thread that was woken and faults again waits longer
// each time, but is never forgotten. Time is an argument: nothing here waits.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  answer,
  apply,
  drain,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  hear,
  hearAll,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  put,
  remap,
  remove,
  State,
  stateOf,
  take,
  transfer,
  unmap,
} from './support.js';
import { EEXIST } from './transfers.js';

const test = suite('doubts');

function world(pages = 100): Core {
  const core = makeCore();
  put(core, 0, pages);
  return core;
}

/** A fill of one page, of which the kernel says that it is there. */
function inVain(core: Core, index: number, op: number = Op.copy, options = 0): void {
  core.arguments(page(index), PAGE).transferBegin(op, options);
  let step = core.exports.transferResult(EEXIST);
  if (step === Step.call) step = core.exports.transferResult(0);
  assert.equal(step, Step.done);
}

/** A page faults; the fault is read. */
function touch(core: Core, index: number, flags = 0n): void {
  feed(core, fault(page(index), flags));
  drain(core);
}

test('the n-th fault behind EEXIST waits 1, 2, 4 … 64 ms, once, and says how often it was', () => {
  const core = world();
  let now = 1e6;
  for (const [index, delay] of [0, 1, 2, 4, 8, 16, 32, 64, 64, 64].entries()) {
    touch(core, 3);
    assert.equal(core.exports.inboxPutOff(), index === 0 ? 0 : 1);
    if (delay > 0) {
      assert.equal(hear(core, now).is, 'none');
      assert.equal(core.exports.inboxWaiting(), 1);
      assert.equal(core.exports.inboxDelay(now), delay);
      assert.equal(hear(core, now + delay - 0.001).is, 'none');
      now += delay;
    }
    assert.deepEqual(pagesOf([hear(core, now)]), [3]);
    assert.equal(core.deliveredFault(3), index);
    inVain(core, 3, [Op.copy, Op.zero, Op.continue, Op.poison][index % 4]);
    answer(core, true, now);
    assert.equal(core.exports.inboxWaiting(), 0);
    assert.equal(stateOf(core, 3), State.missing);
  }
  // Others are not put off by it.
  touch(core, 4);
  assert.deepEqual(pagesOf([hear(core, now)]), [4]);
  assert.equal(core.deliveredFault(3), 0);
});

test('a fault that has waited is put off by its handler alone', () => {
  const core = world();
  for (let i = 0; i < 3; i++) inVain(core, 3);
  touch(core, 3);
  assert.equal(hear(core, 0).is, 'none');
  let now = 4;
  for (const delay of [8, 16, 32, 64, 64]) {
    assert.deepEqual(pagesOf([hear(core, now)]), [3]);
    assert.equal(core.deliveredFault(3), 3);
    answer(core, false, now);
    assert.equal(core.exports.inboxDelay(now), delay);
    now += delay;
  }
});

test('EEXIST without a WAKE counts as well, and so does that of a page among others', () => {
  const core = world();
  inVain(core, 3, Op.copy, Option.dontWake);
  core.arguments(page(4), 6 * PAGE).transferBegin(Op.copy, 0);
  for (const result of [EEXIST, 0, EEXIST, 0, 0]) core.exports.transferResult(result);
  for (const index of [3, 4, 5, 6]) touch(core, index);
  assert.deepEqual(pagesOf([hear(core, 0)]), [6]);
  answer(core, true);
  assert.deepEqual(pagesOf(hearAll(core, 1)), [3, 4, 5]);
});

test('only what succeeds ends a doubt, or news of the memory', () => {
  const ends: Record<string, (core: Core) => void> = {
    'a fill': (core) => transfer(core, Op.copy, 3, 1),
    'a fill of all around': (core) => transfer(core, Op.zero, 0, 50),
    CONTINUE: (core) => transfer(core, Op.continue, 3, 1),
    POISON: (core) => transfer(core, Op.poison, 3, 1),
    MOVE: (core) => transfer(core, Op.move, 3, 1, 0, page(300)),
    'a removal': (core) => apply(core, remove(page(2), page(4))),
    'an unmapping': (core) => apply(core, unmap(page(3), page(4))),
    'mremap of it': (core) => apply(core, remap(page(3), page(60), P)),
    'mremap onto it': (core) => apply(core, remap(page(60), page(3), P)),
    unregistered: (core) => take(core, 3, 1),
  };
  const goesOn: Record<string, (core: Core) => void> = {
    'a fill beside it': (core) => transfer(core, Op.copy, 4, 40),
    'write protection': (core) => transfer(core, Op.writeProtect, 3, 1),
    'a removal beside it': (core) => apply(core, remove(page(4), page(40))),
    'a fill that fails': (core) => {
      core.arguments(page(3), PAGE).transferBegin(Op.copy, 0);
      assert.equal(core.exports.transferResult(-14), Step.failed);
    },
    'a fill that is cut short': (core) => {
      core.arguments(page(3), PAGE).transferBegin(Op.copy, 0);
      for (let i = 0; i < 2; i++) {
        assert.equal(core.exports.transferResult(EAGAIN), Step.read);
        core.exports.transferResume();
      }
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
      assert.equal(hear(core, 0).is === 'fault', delay === 0, name);
      assert.equal(core.exports.inboxDelay(0), delay === 0 ? -1 : delay, name);
    }
  }
});

test('another kind of fault of such a page does not wait', () => {
  const core = world();
  inVain(core, 3);
  for (const flags of [FLAG_WP, FLAG_MINOR]) {
    touch(core, 3, flags);
    assert.deepEqual(pagesOf([hear(core, 0)]), [3]);
    assert.equal(core.deliveredFault(3), 0);
    answer(core, true);
  }
});

test('a change of the mapping makes a fault that waits due, and it does not wait again', () => {
  const core = world();
  for (let i = 0; i < 7; i++) inVain(core, 3);
  touch(core, 3);
  assert.equal(hear(core, 0).is, 'none');
  assert.equal(core.exports.inboxDelay(0), 64);
  apply(core, remove(page(90), page(91)));
  drain(core);
  assert.deepEqual(pagesOf([hear(core, 0)]), [3]);
  assert.equal(core.deliveredFault(3), 7);
});

test('who is evicted is everybody, also those who wait', () => {
  const core = world();
  inVain(core, 3);
  touch(core, 3);
  assert.equal(hear(core, 0).is, 'none');
  assert.equal(core.exports.inboxEvict(), 1);
  assert.equal(core.delivered(1), page(3));
  assert.equal(core.exports.inboxEvict(), 0);
});

test('in a pool that is dry no fault is offered without having waited, however many guests want a page', () => {
  // 64 huge pages, whichever they are: none may lose its count to another.
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
      drain(core);
      if (tries > 0) {
        const delay = 2 ** Math.min(tries - 1, 6);
        for (const at of [now, now + delay - 0.1]) {
          assert.equal(hear(core, at).is, 'none', `run ${run}, try ${tries}`);
        }
        now += delay;
      }
      for (const _ of pages) {
        const heard = hear(core, now);
        assert.ok(heard.is === 'fault');
        assert.equal(core.deliveredFault(3), tries);
        core.arguments(heard.page, huge * PAGE).transferBegin(Op.copy, 0);
        core.exports.transferResult(EEXIST);
        core.exports.transferResult(0);
        answer(core, true, now);
      }
      assert.equal(hear(core, now).is, 'none');
    }
  }
});

/** A thread's fault as it waits. */
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
          drain(core);
          break;
        case 1:
          now += [0.5, 1, 3, 20, 64][below(5)] as number;
          break;
        case 2:
          transfer(core, Op.copy, index, 1);
          tries.delete(index);
          break;
        default:
          touch(core, index);
          if (!waiting.has(index)) waiting.set(index, { level: 0, due: 0, waited: false });
      }
      // Those behind EEXIST begin to wait.
      for (const [who, one] of waiting) {
        const count = tries.get(who) ?? 0;
        if (one.waited || count === 0 || one.due > now) continue;
        one.level = Math.max(one.level, Math.min(count, 7) - 1);
        one.waited = true;
        defer(one);
      }
      const due = [...waiting].filter(([, one]) => one.due <= now).map(([who]) => who);
      const heard: number[] = [];
      for (;;) {
        const next = hear(core, now);
        if (next.is !== 'fault') break;
        const [who] = pagesOf([next]) as [number];
        heard.push(who);
        assert.equal(core.deliveredFault(3), tries.get(who) ?? 0, `run ${run}, step ${step}`);
        const one = waiting.get(who) as Waiting;
        waiting.delete(who);
        if (below(3) === 0) {
          answer(core, false, now);
          defer(one);
          waiting.set(who, one);
          continue;
        }
        if (below(3) === 0) {
          transfer(core, Op.copy, who, 1);
          tries.delete(who);
        } else {
          inVain(core, who);
          tries.set(who, (tries.get(who) ?? 0) + 1);
        }
        answer(core, true, now);
      }
      assert.deepEqual(heard.sort(), due.sort(), `run ${run}, step ${step}`);
      const soonest = Math.min(...[...waiting.values()].map(({ due: at }) => at));
      assert.equal(core.exports.inboxDelay(now), waiting.size === 0 ? -1 : soonest - now);
      assert.equal(core.exports.inboxWaiting(), waiting.size);
    }
    assert.equal(hearAll(core, now + 64).length, waiting.size, 'whoever waits comes within 64 ms');
  }
});

test.run();
