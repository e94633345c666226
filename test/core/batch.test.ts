// Faults that were read together and have sources: when the core wakes each thread, and which counts it reports.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, SourceKind } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  apply,
  BASE,
  dispatch,
  drive,
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
  readOnce,
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

const test = suite('batch');
const FLAG_WRITE = 1n;

/** Registered pages from BASE on, all with a source. */
function world(pages = 1000, window = 1): Core {
  const core = makeCore();
  put(core, 0, pages);
  core.arguments(BASE, pages * PAGE, DATA).sourcePut(SourceKind.DATA, window, 0);
  return core;
}

/** These pages fault, and one read returns all the faults. */
function together(core: Core, ...indexes: readonly number[]): void {
  feed(core, ...indexes.map((index) => fault(page(index))));
}

const copyOf = (start: number, pages = 1, mode = 1n): Requested => ({
  is: 'copy',
  start,
  pages,
  source: DATA + BigInt(start) * P,
  mode,
});
const wakeOf = (start: number, end: number): Requested => ({ is: 'wake', start, pages: end - start });

/** Checks the call that the core asks for, and lets it succeed. */
function done(core: Core, next: number, expected: Requested): number {
  assert.equal(next, Action.IOCTL);
  assert.deepEqual(requested(core), expected);
  return still(core, 'handleResult', () => core.exports.handleResult(0));
}

/** Performs the read that the core asks for. The read returns faults of these pages. */
function reread(core: Core, next: number, ...indexes: readonly number[]): number {
  assert.equal(next, Action.READ);
  together(core, ...indexes);
  return readOnce(core);
}

test('a thread that is alone is woken by the copy itself', () => {
  const core = world();
  together(core, 5);
  assert.equal(done(core, dispatch(core), copyOf(5, 1, 0n)), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: 1 });
  assert.equal(dispatch(core), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 0, writes: 0, deferred: 0, pages: 0 });
});

test('several are answered asleep, and woken together once a read finds no others', () => {
  const core = world();
  feed(core, fault(page(40)), fault(page(20), FLAG_WRITE), fault(page(60)));
  let next = dispatch(core);
  for (const index of [40, 20, 60]) next = done(core, next, copyOf(index));
  next = reread(core, next, 10);
  next = done(core, next, copyOf(10));
  next = done(core, reread(core, next), wakeOf(10, 61));
  assert.equal(next, Action.DONE);
  assert.deepEqual(tallied(core), { faults: 4, writes: 1, deferred: 0, pages: 4 });
  assert.equal(dispatch(core), Action.DONE);
});

test('however many come: it is read three times, and no thread waits for more than a MiB', () => {
  const core = world();
  together(core, 1, 2);
  let next = dispatch(core);
  next = done(core, next, copyOf(1, 2));
  for (const index of [10, 20, 30]) next = done(core, reread(core, next, index), copyOf(index));
  next = done(core, next, wakeOf(1, 31));
  assert.equal(next, Action.DONE);

  const wide = world(2000, 128);
  together(wide, 64, 320, 576, 832);
  next = dispatch(wide);
  next = done(wide, next, copyOf(0, 128));
  next = done(wide, next, copyOf(256, 128));
  // The faults answered so far are reported while others still wait.
  assert.equal(done(wide, next, wakeOf(0, 384)), Action.ANSWERED);
  assert.deepEqual(tallied(wide), { faults: 2, writes: 0, deferred: 0, pages: 256 });
  next = done(wide, wide.exports.next(), copyOf(512, 128));
  next = done(wide, next, copyOf(768, 128));
  assert.equal(done(wide, next, wakeOf(512, 896)), Action.DONE);
  assert.deepEqual(tallied(wide), { faults: 2, writes: 0, deferred: 0, pages: 256 });
  assert.equal(dispatch(wide), Action.DONE);
});

test('no thread is left asleep by a change that was read, nor by a fault for the handler', () => {
  const core = world();
  together(core, 1, 5, 7);
  let next = dispatch(core);
  next = done(core, next, copyOf(1));
  partly(core, 0);
  assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
  feed(core, remove(page(5), page(6)));
  // The fault of the removed page 5 is deferred; for that `drive` passes the time.
  next = done(core, drive(core, Action.READ), wakeOf(1, 2));
  assert.equal(next, Action.ANSWERED);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 1, pages: 1 });
  assert.equal(core.exports.next(), Action.REMOVED);
  next = done(core, core.exports.next(), copyOf(7));
  // Page 5 was removed meanwhile, so its fault goes to the handler.
  next = done(core, next, wakeOf(7, 8));
  assert.equal(next, Action.FAULT);
  assert.equal(core.start, page(5));
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: 1 });
});

test('the handler is asked for a page whose copy fails, when the others are awake', () => {
  const core = world();
  together(core, 1, 5, 9);
  let next = done(core, dispatch(core), copyOf(1));
  assert.equal(core.exports.handleResult(EFAULT), Action.IOCTL);
  next = done(core, Action.IOCTL, wakeOf(1, 2));
  assert.equal(next, Action.FAULT);
  assert.equal(core.start, page(5));
  next = done(core, core.exports.handleAnswer(true, true), copyOf(9, 1, 0n));
  assert.equal(next, Action.DONE);
});

test('a thread that faults in what was installed for others is woken with them, and is no question', () => {
  const core = world(100, 8);
  together(core, 1, 20);
  let next = done(core, dispatch(core), copyOf(0, 8));
  next = done(core, next, copyOf(16, 8));
  next = done(core, reread(core, next, 3, 50), copyOf(48, 8));
  assert.equal(done(core, reread(core, next), wakeOf(0, 56)), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 4, writes: 0, deferred: 0, pages: 24 });
  assert.equal(dispatch(core), Action.DONE);
  // Page 3 faults again. The core takes it for missing, so the source fills it again, alone.
  together(core, 3);
  assert.equal(done(core, dispatch(core), copyOf(3, 1, 0n)), Action.DONE);
  // A page that was removed once counts as removed when it faults again.
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.COPY, 3, 1, 0, DATA);
  together(core, 3);
  assert.equal(dispatch(core), Action.FAULT);
  assert.equal(stateOf(core, 3), State.removed);
});

test('only a missing page that was installed for others, between them, is no question', () => {
  /** Pages 16 to 23 and 40 to 47 are installed for threads that sleep on 20 and 40; then a read returns this fault. */
  const held = (message: Message, prepare?: (core: Core) => void): { core: Core; next: number } => {
    const core = world(100, 8);
    prepare?.(core);
    together(core, 20, 40);
    let next = done(core, dispatch(core), copyOf(16, 8));
    next = done(core, next, copyOf(40, 8));
    assert.equal(next, Action.READ);
    feed(core, message);
    return { core, next: readOnce(core) };
  };
  const faults = (core: Core) => [core.answered, core.deferred];
  // Installed for others: the next call is the WAKE.
  for (const index of [16, 23, 47]) {
    const { core, next } = held(fault(page(index)));
    assert.equal(done(core, next, wakeOf(16, 48)), Action.DONE, `page ${index}`);
    assert.deepEqual(faults(core), [3, 0]);
  }
  // Before and after the installed pages: each page is present, and the core tries the copy once more.
  for (const index of [15, 48]) {
    const before = (core: Core) => {
      transfer(core, Op.COPY, 15, 1, 0, DATA);
      transfer(core, Op.COPY, 48, 1, 0, DATA);
    };
    const { core, next } = held(fault(page(index)), before);
    assert.equal(next, Action.IOCTL);
    assert.deepEqual(requested(core), copyOf(index), `page ${index}`);
  }
  // Between the installed pages, but not installed: the page is missing, and is filled like any other.
  {
    const { core, next } = held(fault(page(30)));
    assert.equal(next, Action.IOCTL);
    assert.deepEqual(requested(core), copyOf(24, 8));
  }
  // Faults of another kind go to the handler once the other threads are awake.
  for (const flags of [FLAG_WP | FLAG_WRITE, FLAG_MINOR]) {
    const { core, next } = held(fault(page(21), flags));
    assert.equal(done(core, next, wakeOf(16, 48)), Action.FAULT);
    assert.deepEqual(faults(core), [2, 0]);
  }
  // Removed before it was installed: the fault shows that the page is gone, and goes to the handler.
  {
    const { core, next } = held(fault(page(30)), (one) => {
      apply(one, remove(page(30), page(31)));
      transfer(one, Op.COPY, 30, 1, 0, DATA);
    });
    assert.equal(done(core, next, wakeOf(16, 48)), Action.FAULT);
    assert.equal(stateOf(core, 30), State.removed);
  }
});

test('a WAKE that was interrupted is made again, until it is done', () => {
  const core = world();
  together(core, 1, 5);
  let next = done(core, dispatch(core), copyOf(1));
  next = reread(core, done(core, next, copyOf(5)));
  for (let i = 0; i < 5; i++) {
    assert.equal(next, Action.IOCTL);
    assert.deepEqual(requested(core), wakeOf(1, 6));
    next = core.exports.handleResult(EINTR);
  }
  assert.equal(done(core, next, wakeOf(1, 6)), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 2, writes: 0, deferred: 0, pages: 2 });
  // No thread is left asleep now: the copy for the next one wakes it.
  together(core, 9);
  assert.equal(done(core, dispatch(core), copyOf(9, 1, 0n)), Action.DONE);
});

test('a page of the window that is gone: the fault is answered, threads that sleep in front of that page are awake', () => {
  const core = world(100, 8);
  together(core, 5, 50, 9);
  // Page 3 is unmapped.
  assert.equal(dispatch(core), Action.IOCTL);
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
  let next: number = Action.IOCTL;
  for (const [call, result] of calls) {
    assert.equal(next, Action.IOCTL);
    assert.deepEqual(requested(core), call);
    next = core.exports.handleResult(result);
  }
  assert.equal(done(core, reread(core, next), wakeOf(5, 56)), Action.DONE);
  assert.deepEqual(tallied(core), { faults: 3, writes: 0, deferred: 0, pages: 22 });
  assert.equal(core.waiting, 0);
});

test('a fault whose own page is gone is over; the others are answered', () => {
  const core = world();
  together(core, 1, 5);
  assert.equal(dispatch(core), Action.IOCTL);
  assert.deepEqual(requested(core), copyOf(1));
  assert.equal(core.exports.handleResult(ENOENT), Action.IOCTL);
  let next = done(core, Action.IOCTL, wakeOf(1, 2));
  next = done(core, next, copyOf(5, 1, 0n));
  assert.equal(next, Action.DONE);
  assert.deepEqual(tallied(core), { faults: 1, writes: 0, deferred: 0, pages: 1 });
  assert.equal(core.waiting, 0);
});

test('a fault behind EEXIST waits, and is left to the handler; others are answered meanwhile', () => {
  const core = world();
  together(core, 1);
  assert.equal(dispatch(core), Action.IOCTL);
  assert.equal(core.exports.handleResult(EEXIST), Action.IOCTL);
  assert.deepEqual(requested(core), wakeOf(1, 2));
  assert.equal(core.exports.handleResult(0), Action.DONE);
  together(core, 1, 7);
  // Page 1 is delayed and nothing else waits, so the copy of page 7 wakes its thread.
  let next = dispatch(core, 10);
  next = done(core, next, copyOf(7, 1, 0n));
  assert.equal(next, Action.ANSWERED);
  assert.equal(core.exports.delay(10), 1);
  assert.equal(dispatch(core, 10.9), Action.DONE);
  assert.equal(dispatch(core, 11), Action.FAULT);
  assert.equal(core.start, page(1));
  assert.equal(core.tries, 1);
});

test('a page that is there already is woken with the others; the end of the process is reported', () => {
  const core = world();
  together(core, 1, 5, 9);
  done(core, dispatch(core), copyOf(1));
  assert.equal(core.exports.handleResult(EEXIST), Action.IOCTL);
  assert.deepEqual(requested(core), copyOf(9));
  assert.equal(core.exports.handleResult(ESRCH), Action.IOCTL);
  assert.equal(done(core, Action.IOCTL, wakeOf(1, 6)), Action.ANSWERED);
  assert.equal(core.exited, 1);
  assert.equal(core.answered, 2);
  assert.equal(core.exports.next(), Action.GONE);
});

test('neighbours that others wait for come in one call, inside the range and the source, 32 at most', () => {
  const core = world(100);
  together(core, 5, 7, 6, 3, 40, 4, 41);
  let next = done(core, dispatch(core), copyOf(3, 5));
  next = done(core, next, copyOf(40, 2));
  done(core, reread(core, next), wakeOf(3, 42));
  assert.deepEqual(tallied(core), { faults: 7, writes: 0, deferred: 0, pages: 7 });
  // A later fault of such a page is answered by a copy of its own; its neighbours are present already.
  together(core, 6);
  assert.equal(done(core, dispatch(core), copyOf(6, 1, 0n)), Action.DONE);

  const many = world(100);
  together(many, ...Array.from({ length: 60 }, (_, index) => index + 10));
  next = done(many, dispatch(many), copyOf(10, 33));
  done(many, next, copyOf(43, 27));

  const edges = makeCore();
  put(edges, 0, 50);
  put(edges, 50, 50, { operations: 0n });
  edges.arguments(page(2), 90 * PAGE, DATA + 2n * P).sourcePut(SourceKind.DATA, 1, 0);
  together(edges, 49, 50, 48, 2, 1);
  next = done(edges, dispatch(edges), copyOf(48, 2));
  next = done(edges, next, copyOf(50));
  next = done(edges, next, copyOf(2));
  assert.equal(done(edges, next, wakeOf(2, 51)), Action.FAULT);
});

/** A kernel whose threads each wait for one page. Its answers to a COPY are random. */
class Kernel {
  /** Pages with a fault that was not read yet; pages with a sleeping thread; pages that are present. */
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

  /** The kernel's answer to the call that the core has prepared. */
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

  /** A woken thread whose page is not present faults again. */
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

test('whatever the kernel answers: no thread sleeps on whose page is there, and none is lost', () => {
  const first = seed();
  for (let run = first; run < first + 200; run++) {
    const below = generator(run);
    const core = world(200, 1 + below(8));
    const kernel = new Kernel(below);
    for (let round = 0; round < 30; round++) {
      for (let touches = below(20); touches > 0; touches--) kernel.touch(below(200));
      kernel.read(core);
      for (let next = dispatch(core), over = false; !over; ) {
        if (next === Action.IOCTL) next = core.exports.handleResult(kernel.answer(core));
        else if (next === Action.READ) {
          if (below(2) === 0) kernel.touch(below(200));
          kernel.read(core);
          next = readOnce(core);
        } else {
          const asks = next === Action.FAULT;
          if (asks) {
            // The handler installs the page and wakes the thread.
            const index = Number((core.start - BASE) / P);
            kernel.there.add(index);
            kernel.sleeping.delete(index);
            kernel.queued.delete(index);
          } else if (next !== Action.ANSWERED) {
            assert.equal(next, Action.DONE);
            over = true;
          }
          const asleep = [...kernel.sleeping].filter((index) => kernel.there.has(index));
          assert.deepEqual(asleep, [], `run ${run}, round ${round}`);
          if (!over) next = drive(core, asks ? core.exports.handleAnswer(true, true) : core.exports.next());
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
