// Faults that were read together and have sources: who is left asleep until when, and what the handler hears of it.

import { strict as assert } from 'node:assert';
import { type Core, Next, Op } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  apply,
  BASE,
  drain,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  type Message,
  makeCore,
  P,
  PAGE,
  page,
  put,
  remove,
  State,
  stateOf,
  still,
  transfer,
} from './support.js';
import {
  DATA,
  EEXIST,
  EFAULT,
  EINTR,
  ENOENT,
  ESRCH,
  partly,
  type Requested,
  requested,
  tallied,
} from './transfers.js';

const test = suite('round');
const FLAG_WRITE = 1n;

/** Registered pages from BASE on, all with a source. */
function world(pages = 1000, window = 1): Core {
  const core = makeCore();
  put(core, 0, pages);
  core.arguments(BASE, pages * PAGE, DATA).sourcePut(window, 0);
  return core;
}

/** Pages fault, all read together. */
function together(core: Core, ...indexes: readonly number[]): void {
  feed(core, ...indexes.map((index) => fault(page(index))));
  drain(core);
}

const copyOf = (start: number, pages = 1, mode = 1n): Requested => ({
  is: 'copy',
  start,
  pages,
  source: DATA + BigInt(start) * P,
  mode,
});
const wakeOf = (start: number, end: number): Requested => ({ is: 'wake', start, pages: end - start });

/** The call that the core asks for, which the kernel does. */
function done(core: Core, next: number, expected: Requested): number {
  assert.equal(next, Next.call);
  assert.deepEqual(requested(core), expected);
  return still(core, 'roundResult', () => core.exports.roundResult(0));
}

/** The read that the core asks for, which finds these pages' faults. */
function reread(core: Core, next: number, ...indexes: readonly number[]): number {
  assert.equal(next, Next.reread);
  together(core, ...indexes);
  return still(core, 'roundResume', () => core.exports.roundResume());
}

test('who is alone is woken by the copy itself', () => {
  const core = world();
  together(core, 5);
  assert.equal(done(core, core.exports.roundNext(0), copyOf(5, 1, 0n)), Next.answered);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 0, pages: 1 });
  assert.equal(core.exports.roundNext(0), Next.none);
});

test('several are answered asleep, and woken together once a read finds nobody else', () => {
  const core = world();
  feed(core, fault(page(40)), fault(page(20), FLAG_WRITE), fault(page(60)));
  drain(core);
  let next = core.exports.roundNext(0);
  for (const index of [40, 20, 60]) next = done(core, next, copyOf(index));
  next = reread(core, next, 10);
  next = done(core, next, copyOf(10));
  next = done(core, reread(core, next), wakeOf(10, 61));
  assert.equal(next, Next.answered);
  assert.deepEqual(tallied(core), { faults: 4, writes: 1, putOff: 0, pages: 4 });
  assert.equal(core.exports.roundNext(0), Next.none);
});

test('however many come: it is read three times, and nobody waits for more than a MiB', () => {
  const core = world();
  together(core, 1, 2);
  let next = core.exports.roundNext(0);
  next = done(core, next, copyOf(1, 2));
  for (const index of [10, 20, 30]) next = done(core, reread(core, next, index), copyOf(index));
  next = done(core, next, wakeOf(1, 31));
  assert.equal(next, Next.answered);

  const wide = world(2000, 128);
  together(wide, 64, 320, 576, 832);
  next = wide.exports.roundNext(0);
  next = done(wide, next, copyOf(0, 128));
  next = done(wide, next, copyOf(256, 128));
  next = done(wide, next, wakeOf(0, 384));
  next = done(wide, next, copyOf(512, 128));
  next = done(wide, next, copyOf(768, 128));
  assert.equal(done(wide, next, wakeOf(512, 896)), Next.answered);
  assert.equal(wide.exports.roundNext(0), Next.none);
});

test('nobody is left asleep by a change that was read, nor by a fault for the handler', () => {
  const core = world();
  together(core, 1, 5, 7);
  let next = core.exports.roundNext(0);
  next = done(core, next, copyOf(1));
  partly(core, 0);
  assert.equal(core.exports.roundResult(EAGAIN), Next.reread);
  feed(core, remove(page(5), page(6)));
  drain(core);
  next = done(core, core.exports.roundResume(), wakeOf(1, 2));
  assert.equal(next, Next.answered);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 1, pages: 1 });
  assert.equal(core.exports.roundNext(0), Next.removed);
  next = done(core, core.exports.roundNext(0), copyOf(7));
  // The other one was removed meanwhile.
  next = done(core, next, wakeOf(7, 8));
  assert.equal(next, Next.fault);
  assert.equal(core.delivered(1), page(5));
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 0, pages: 1 });
});

test('of a copy that fails the handler is asked, when the others are awake', () => {
  const core = world();
  together(core, 1, 5, 9);
  let next = done(core, core.exports.roundNext(0), copyOf(1));
  assert.equal(core.exports.roundResult(EFAULT), Next.call);
  next = done(core, Next.call, wakeOf(1, 2));
  assert.equal(next, Next.fault);
  assert.equal(core.delivered(1), page(5));
  assert.equal(core.exports.inboxAnswer(1), 0);
  next = done(core, core.exports.roundNext(0), copyOf(9, 1, 0n));
  assert.equal(next, Next.answered);
});

test('who faults in what was installed for others is woken with them, and is no question', () => {
  const core = world(100, 8);
  together(core, 1, 20);
  let next = done(core, core.exports.roundNext(0), copyOf(0, 8));
  next = done(core, next, copyOf(16, 8));
  next = done(core, reread(core, next, 3, 50), copyOf(48, 8));
  assert.equal(done(core, reread(core, next), wakeOf(0, 56)), Next.answered);
  assert.deepEqual(tallied(core), { faults: 4, writes: 0, putOff: 0, pages: 24 });
  assert.equal(core.exports.roundNext(0), Next.none);
  // Once more: it is missing, so it is copied, alone.
  together(core, 3);
  assert.equal(done(core, core.exports.roundNext(0), copyOf(3, 1, 0n)), Next.answered);
  // And if it was ever removed, it is removed now.
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.copy, 3, 1, 0, DATA);
  together(core, 3);
  assert.equal(core.exports.roundNext(0), Next.fault);
  assert.equal(stateOf(core, 3), State.removed);
});

test('only a missing page that was installed for others, between them, is no question', () => {
  /** Pages 20 to 27 are installed for who sleeps on 20, and 40 to 47; then what was read finds this fault. */
  const held = (message: Message, prepare?: (core: Core) => void): { core: Core; next: number } => {
    const core = world(100, 8);
    prepare?.(core);
    together(core, 20, 40);
    let next = done(core, core.exports.roundNext(0), copyOf(16, 8));
    next = done(core, next, copyOf(40, 8));
    assert.equal(next, Next.reread);
    feed(core, message);
    drain(core);
    return { core, next: core.exports.roundResume() };
  };
  const faults = (core: Core) => [core.answered(0), core.answered(2)];
  // It is: nothing but the WAKE is next.
  for (const index of [16, 23, 47]) {
    const { core, next } = held(fault(page(index)));
    assert.equal(done(core, next, wakeOf(16, 48)), Next.answered, `page ${index}`);
    assert.deepEqual(faults(core), [3, 0]);
  }
  // In front of them, and behind them: each is present, and asked for once more.
  for (const index of [15, 48]) {
    const before = (core: Core) => {
      transfer(core, Op.copy, 15, 1, 0, DATA);
      transfer(core, Op.copy, 48, 1, 0, DATA);
    };
    const { core, next } = held(fault(page(index)), before);
    assert.equal(next, Next.call);
    assert.deepEqual(requested(core), copyOf(index), `page ${index}`);
  }
  // Between them, but not installed: it is as missing as any.
  {
    const { core, next } = held(fault(page(30)));
    assert.equal(next, Next.call);
    assert.deepEqual(requested(core), copyOf(24, 8));
  }
  // Of another kind: the handler's, once the others are awake.
  for (const flags of [FLAG_WP | FLAG_WRITE, FLAG_MINOR]) {
    const { core, next } = held(fault(page(21), flags));
    assert.equal(done(core, next, wakeOf(16, 48)), Next.fault);
    assert.deepEqual(faults(core), [2, 0]);
  }
  // Removed before it was installed: the removal takes it away as well.
  {
    const { core, next } = held(fault(page(30)), (one) => {
      apply(one, remove(page(30), page(31)));
      transfer(one, Op.copy, 30, 1, 0, DATA);
    });
    assert.equal(done(core, next, wakeOf(16, 48)), Next.fault);
    assert.equal(stateOf(core, 30), State.removed);
  }
});

test('a WAKE that was interrupted is made again, until it is done', () => {
  const core = world();
  together(core, 1, 5);
  let next = done(core, core.exports.roundNext(0), copyOf(1));
  next = reread(core, done(core, next, copyOf(5)));
  for (let i = 0; i < 5; i++) {
    assert.equal(next, Next.call);
    assert.deepEqual(requested(core), wakeOf(1, 6));
    next = core.exports.roundResult(EINTR);
  }
  assert.equal(done(core, next, wakeOf(1, 6)), Next.answered);
  assert.deepEqual(tallied(core), { faults: 2, writes: 0, putOff: 0, pages: 2 });
  // Nobody is held now: the next one is woken by its own copy.
  together(core, 9);
  assert.equal(done(core, core.exports.roundNext(0), copyOf(9, 1, 0n)), Next.answered);
});

test('a page of the window that is gone: who was asked for is answered, whoever sleeps in front of it is awake', () => {
  const core = world(100, 8);
  together(core, 5, 50, 9);
  // Page 3 is gone.
  assert.equal(core.exports.roundNext(0), Next.call);
  const calls: [Requested, number][] = [
    [copyOf(0, 8), ENOENT],
    [copyOf(0, 4), ENOENT],
    [copyOf(0, 2), 0],
    [copyOf(2, 2), ENOENT],
    [copyOf(2, 1), 0],
    [copyOf(3, 1), ENOENT],
    [wakeOf(0, 4), 0],
    [copyOf(5, 3), 0],
    [copyOf(48, 8), 0],
    [copyOf(8, 8), 0],
  ];
  let next: number = Next.call;
  for (const [call, result] of calls) {
    assert.equal(next, Next.call);
    assert.deepEqual(requested(core), call);
    next = core.exports.roundResult(result);
  }
  assert.equal(done(core, reread(core, next), wakeOf(5, 56)), Next.answered);
  assert.deepEqual(tallied(core), { faults: 3, writes: 0, putOff: 0, pages: 22 });
  assert.equal(core.exports.inboxWaiting(), 0);
});

test('a fault whose own page is gone is over; the others are answered', () => {
  const core = world();
  together(core, 1, 5);
  assert.equal(core.exports.roundNext(0), Next.call);
  assert.deepEqual(requested(core), copyOf(1));
  assert.equal(core.exports.roundResult(ENOENT), Next.call);
  let next = done(core, Next.call, wakeOf(1, 2));
  next = done(core, next, copyOf(5, 1, 0n));
  assert.equal(next, Next.answered);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, putOff: 0, pages: 1 });
  assert.equal(core.exports.inboxWaiting(), 0);
});

test('a fault behind EEXIST waits, and is left to the handler; others are answered meanwhile', () => {
  const core = world();
  together(core, 1);
  assert.equal(core.exports.roundNext(0), Next.call);
  assert.equal(core.exports.roundResult(EEXIST), Next.call);
  assert.deepEqual(requested(core), wakeOf(1, 2));
  assert.equal(core.exports.roundResult(0), Next.answered);
  together(core, 1, 7);
  // Between them nothing is to be answered, so 7 is woken alone; or with others where the first still may be.
  let next = core.exports.roundNext(10);
  next = done(core, next, copyOf(7, 1, 0n));
  assert.equal(next, Next.answered);
  assert.equal(core.exports.inboxDelay(10), 1);
  assert.equal(core.exports.roundNext(10.9), Next.none);
  assert.equal(core.exports.roundNext(11), Next.fault);
  assert.equal(core.delivered(1), page(1));
  assert.equal(core.deliveredFault(3), 1);
});

test('a page that is there already is woken with the others; the end of the process is told', () => {
  const core = world();
  together(core, 1, 5, 9);
  done(core, core.exports.roundNext(0), copyOf(1));
  assert.equal(core.exports.roundResult(EEXIST), Next.call);
  assert.deepEqual(requested(core), copyOf(9));
  assert.equal(core.exports.roundResult(ESRCH), Next.call);
  assert.equal(done(core, Next.call, wakeOf(1, 6)), Next.answered);
  assert.equal(core.answered(3), 1);
  assert.equal(core.answered(0), 2);
});

test('neighbours that others wait for come in one call, inside the range and the source, 32 at most', () => {
  const core = world(100);
  together(core, 5, 7, 6, 3, 40, 4, 41);
  let next = done(core, core.exports.roundNext(0), copyOf(3, 5));
  next = done(core, next, copyOf(40, 2));
  done(core, reread(core, next), wakeOf(3, 42));
  assert.deepEqual(tallied(core), { faults: 7, writes: 0, putOff: 0, pages: 7 });
  // A fault of such a page that is read later is a new question; its neighbours are there.
  together(core, 6);
  assert.equal(done(core, core.exports.roundNext(0), copyOf(6, 1, 0n)), Next.answered);

  const many = world(100);
  together(many, ...Array.from({ length: 60 }, (_, index) => index + 10));
  next = done(many, many.exports.roundNext(0), copyOf(10, 33));
  done(many, next, copyOf(43, 27));

  const edges = makeCore();
  put(edges, 0, 50);
  put(edges, 50, 50, { operations: 0n });
  edges.arguments(page(2), 90 * PAGE, DATA + 2n * P).sourcePut(1, 0);
  together(edges, 49, 50, 48, 2, 1);
  next = done(edges, edges.exports.roundNext(0), copyOf(48, 2));
  next = done(edges, next, copyOf(50));
  next = done(edges, next, copyOf(2));
  assert.equal(done(edges, next, wakeOf(2, 51)), Next.fault);
});

/** A kernel whose threads each wait for a page, and which does what it likes. */
class Kernel {
  /** Pages whose sleepers have not been read of, have been, and sleep on though their page is there. */
  readonly queued = new Set<number>();
  readonly sleeping = new Set<number>();
  readonly there = new Set<number>();
  readonly #below: (limit: number) => number;

  constructor(below: (limit: number) => number) {
    this.#below = below;
  }

  touch(index: number): void {
    if (this.there.has(index) || this.sleeping.has(index)) return;
    this.queued.add(index);
    this.sleeping.add(index);
  }

  /** What it answers to the call that the core has prepared. */
  answer(core: Core): number {
    const call = requested(core);
    if (call.is === 'wake') {
      this.#wake(call.start, call.pages);
      return 0;
    }
    const chance = this.#below(20);
    if (chance === 0) return EFAULT;
    if (chance === 1) return ENOENT;
    if (this.there.has(call.start)) return EEXIST;
    let pages = 0;
    while (pages < call.pages && !this.there.has(call.start + pages)) this.there.add(call.start + pages++);
    if (call.mode === 0n) this.#wake(call.start, pages);
    if (pages === call.pages) return 0;
    partly(core, pages);
    return EAGAIN;
  }

  /** Who is woken, and has no page, faults anew. */
  #wake(start: number, pages: number): void {
    for (let index = start; index < start + pages; index++) {
      this.queued.delete(index);
      if (this.sleeping.delete(index) && !this.there.has(index)) this.touch(index);
    }
  }

  read(core: Core): void {
    const indexes = [...this.queued];
    this.queued.clear();
    together(core, ...indexes);
  }
}

test('whatever the kernel answers: nobody sleeps on whose page is there, nobody is lost', () => {
  const first = seed();
  for (let run = first; run < first + 200; run++) {
    const below = generator(run);
    const core = world(200, 1 + below(8));
    const kernel = new Kernel(below);
    for (let round = 0; round < 30; round++) {
      for (let touches = below(20); touches > 0; touches--) kernel.touch(below(200));
      kernel.read(core);
      let next = core.exports.roundNext(0);
      while (next !== Next.none) {
        if (next === Next.call) next = core.exports.roundResult(kernel.answer(core));
        else if (next === Next.reread) {
          if (below(2) === 0) kernel.touch(below(200));
          kernel.read(core);
          next = core.exports.roundResume();
        } else {
          if (next === Next.fault) {
            // The handler does it by itself.
            const index = Number((core.delivered(1) - BASE) / P);
            kernel.there.add(index);
            kernel.sleeping.delete(index);
            kernel.queued.delete(index);
            core.exports.inboxAnswer(1);
          }
          const asleep = [...kernel.sleeping].filter((index) => kernel.there.has(index));
          assert.deepEqual(asleep, [], `run ${run}, round ${round}`);
          next = core.exports.roundNext(0);
        }
      }
      for (let index = 0; index < 200; index++)
        assert.ok(stateOf(core, index) !== State.present || kernel.there.has(index), `run ${run}`);
    }
    const lost = [...kernel.sleeping].filter((index) => !kernel.queued.has(index));
    assert.deepEqual(lost, [], `run ${run}`);
  }
});

test.run();
