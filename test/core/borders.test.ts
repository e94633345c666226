// Fills across borders between mappings that the core does not know. A fill installs each page up to the first unmapped
// one, and the page of the current fault. It finds a border in a few calls, and later fills spend no failed call on it.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, SourceKind, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  answer,
  BASE,
  deliver,
  drive,
  EAGAIN,
  fault,
  feed,
  makeCore,
  P,
  PAGE,
  page,
  put,
  readOnce,
  windowOf,
} from './support.js';
import { DATA, EEXIST, EINTR, ENOENT, partly, requested } from './transfers.js';

const test = suite('borders');

/** Memory of several mappings. The number 0 marks a page that is not mapped or not registered. */
class Memory {
  readonly mapping: number[];
  readonly there = new Set<number>();
  /** Pages whose waiters were woken. */
  readonly woken = new Set<number>();
  calls = 0;
  failed = 0;

  constructor(below: (limit: number) => number, pages: number, borders: number, holes: number) {
    const cuts = new Set(Array.from({ length: borders }, () => 1 + below(pages - 1)));
    let id = 1;
    this.mapping = Array.from({ length: pages }, (_, index) => {
      if (cuts.has(index)) id++;
      return id;
    });
    for (let i = 0; i < holes; i++) {
      const first = below(pages);
      this.mapping.fill(0, first, first + 1 + below(4));
    }
    this.mapping.length = pages;
  }

  isOne(first: number, end: number): boolean {
    const id = this.mapping[first];
    if (!id) return false;
    for (let index = first; index < end; index++) if (this.mapping[index] !== id) return false;
    return true;
  }

  /** The first unmapped page from `first` on, or `end`. */
  gone(first: number, end: number): number {
    let index = first;
    while (index < end && this.mapping[index]) index++;
    return index;
  }

  /** The number of pieces into which the borders between mappings cut [first, end). */
  pieces(first: number, end: number): number {
    let count = 1;
    for (let index = first + 1; index < end; index++) {
      if (this.mapping[index] !== this.mapping[index - 1]) count++;
    }
    return count;
  }

  /** The kernel's answer to a COPY or WAKE. One call in `disturb` is interrupted or done in part; 0: none. */
  answer(core: Core, below: (limit: number) => number, disturb: number): number {
    const call = requested(core);
    const end = call.start + call.pages;
    if (disturb && below(disturb) === 0) return EINTR;
    if (call.is === 'wake') {
      for (let index = call.start; index < end; index++) this.woken.add(index);
      return 0;
    }
    this.calls++;
    if (!this.isOne(call.start, end)) {
      this.failed++;
      return ENOENT;
    }
    assert.equal(call.source, DATA + BigInt(call.start) * P);
    const part = disturb && below(disturb) === 0 ? 1 + below(call.pages) : call.pages;
    for (let index = call.start; index < call.start + part; index++) {
      if (this.there.has(index)) {
        if (index === call.start) return EEXIST;
        partly(core, index - call.start);
        return EAGAIN;
      }
      this.there.add(index);
      if (!(call.mode & 1n)) this.woken.add(index);
    }
    if (part === call.pages) return 0;
    partly(core, part);
    return EAGAIN;
  }
}

/** Carries out a copy and returns its outcome. */
function copy(core: Core, first: number, end: number, options: number, answers: () => number): number {
  let action = core
    .arguments(page(first), (end - first) * PAGE, DATA + BigInt(first) * P)
    .beginFill(Op.COPY, options);
  while (action !== Action.FILLED) {
    if (action === Action.READ) action = readOnce(core);
    else {
      assert.equal(action, Action.IOCTL);
      action = core.exports.handleResult(answers());
    }
  }
  return core.outcome;
}

const log2 = (count: number) => Math.ceil(Math.log2(count));

test('mappings without holes: all is filled, each border found in 2·log2(n) calls, and then it is one call a mapping', () => {
  const first = seed();
  for (let run = first; run < first + 400; run++) {
    const below = generator(run);
    const pages = 2 + below(200);
    const core = makeCore();
    put(core, 0, pages);
    const memory = new Memory(below, pages, below(6), 0);
    const pieces = memory.pieces(0, pages);
    let failed = 0;
    // One fill may miss one of two adjacent borders, but as many fills as there are borders find all of them.
    for (let fill = 0; fill < pieces + 1; fill++) {
      memory.there.clear();
      memory.calls = memory.failed = 0;
      assert.equal(
        copy(core, 0, pages, 0, () => memory.answer(core, below, 0)),
        Step.DONE,
      );
      assert.equal(core.resolved, pages * PAGE);
      assert.equal(memory.there.size, pages, `run ${run}`);
      assert.ok(memory.calls - memory.failed <= pieces + memory.failed + 1, `run ${run}`);
      failed += memory.failed;
    }
    assert.ok(
      failed <= (pieces - 1) * 2 * log2(pages),
      `run ${run}: ${failed} calls for ${pieces - 1} borders`,
    );
    assert.deepEqual([memory.failed, memory.calls], [0, pieces], `run ${run}: no border is wrong`);
  }
});

test('one border: what it costs at most, and nothing the second time', () => {
  for (const pages of [2, 3, 64, 100, 4096, 8192]) {
    for (const border of [1, 2, pages >> 1, pages - 1].filter((one) => one < pages)) {
      const core = makeCore();
      put(core, 0, pages);
      const memory = new Memory(() => border - 1, pages, 1, 0);
      assert.deepEqual([memory.pieces(0, pages), memory.gone(0, pages)], [2, pages]);
      copy(core, 0, pages, 0, () => memory.answer(core, () => 1, 0));
      assert.ok(memory.failed <= log2(pages) + 1, `${memory.failed} of ${pages} pages, border ${border}`);
      memory.there.clear();
      memory.failed = memory.calls = 0;
      copy(core, 0, pages, 0, () => memory.answer(core, () => 1, 0));
      assert.deepEqual([memory.failed, memory.calls], [0, 2], `${pages} pages, border ${border}`);
    }
  }
});

test('holes: all up to the first page that is gone is filled, and the page asked for, with what follows it', () => {
  const first = seed();
  for (let run = first; run < first + 2000; run++) {
    const below = generator(run);
    const pages = 2 + below(120);
    const core = makeCore();
    put(core, 0, pages);
    const memory = new Memory(below, pages, below(4), 1 + below(3));
    let now = 0;
    for (let fill = 0; fill < 6; fill++) {
      memory.there.clear();
      memory.woken.clear();
      for (let some = below(5); some > 0; some--) {
        const index = below(pages);
        if (memory.mapping[index]) memory.there.add(index);
      }
      const from = below(pages);
      const end = from + 1 + below(pages - from);
      const asked = below(3) ? from + below(end - from) : undefined;
      if (asked !== undefined) {
        feed(core, fault(page(asked)));
        // The core first delays the fault of a page for which a fill returned EEXIST.
        now += 1000;
        if (deliver(core, now).is === 'none') assert.equal(deliver(core, now + 100).is, 'fault');
      }
      const disturb = below(2) * 6;
      const options = below(2) ? Option.DONTWAKE : 0;
      const why = `run ${run}, fill ${fill}: ${from} to ${end}, asked ${asked}`;
      memory.failed = 0;
      const step = copy(core, from, end, options, () => memory.answer(core, below, disturb));
      const gone = memory.gone(from, end);
      for (let index = from; index < gone; index++) assert.ok(memory.there.has(index), why);
      let last = gone;
      if (asked !== undefined && asked > gone && memory.mapping[asked]) {
        last = memory.gone(asked, end);
        for (let index = asked; index < last; index++) assert.ok(memory.there.has(index), why);
      } else if (asked !== undefined && asked > gone) last = asked;
      assert.equal(step, last === end ? Step.DONE : Step.UNMAPPED, why);
      if (last < end) {
        assert.ok(memory.woken.has(last), `${why}: the threads that wait for the page that is gone`);
        assert.equal(core.start, page(last), why);
      }
      // A fill that stops at an unmapped page wakes the threads before it: what follows is a run of its own.
      for (let index = from; index < gone && gone < end; index++) assert.ok(memory.woken.has(index), why);
      const cuts = memory.pieces(from, end);
      if (!disturb)
        assert.ok(memory.failed <= (cuts + 1) * 2 * (log2(pages) + 1), `${why}: ${memory.failed} calls`);
      if (asked !== undefined) {
        const comesAgain = core.exports.handleAnswer(false, false) === Action.TIME;
        assert.equal(comesAgain, memory.mapping[asked] !== 0, `${why}: only its own page ends it`);
        if (!comesAgain) continue;
        assert.equal(core.exports.handleTime(now), Action.DONE);
        // Answer this fault before the next fill begins.
        for (let wait = 100; deliver(core, now + wait).is !== 'fault'; wait += 100)
          assert.ok(wait < 300, why);
        answer(core, true);
      }
    }
  }
});

test('a guest over many mappings, answered from a source: every thread has its page, and the calls come to an end', () => {
  const first = seed();
  for (let run = first; run < first + 150; run++) {
    const below = generator(run);
    const pages = 256;
    const core = makeCore();
    put(core, 0, pages);
    const memory = new Memory(below, pages, 12, 3);
    core.arguments(BASE, pages * PAGE, DATA).sourcePut(SourceKind.DATA, 1 << below(7), 0);
    const asleep = new Set<number>();
    for (let batch = 0; batch < 60; batch++) {
      const touched = new Set(Array.from({ length: 1 + below(6) }, () => below(pages)));
      for (const index of touched) if (!memory.there.has(index)) asleep.add(index);
      feed(core, ...[...asleep].map((index) => fault(page(index))));
      memory.woken.clear();
      let action = core.exports.begin();
      for (let calls = 0; action !== Action.DONE; calls++) {
        assert.ok(calls < 2000, `run ${run}: it does not end`);
        action = drive(core, action, batch * 1000);
        if (action === Action.IOCTL) action = core.exports.handleResult(memory.answer(core, below, 8));
        else if (action === Action.FAULT) {
          // The handler copies the page by itself.
          const index = Number((core.start - BASE) / P);
          copy(core, index, index + 1, 0, () => memory.answer(core, below, 8));
          action = core.exports.handleAnswer(true, true);
        } else if (action !== Action.DONE) {
          assert.equal(action, Action.ANSWERED);
          action = core.exports.next();
        }
      }
      for (const index of [...asleep]) {
        // A woken thread has its page, or gets a signal for unmapped memory, or faults again.
        if (memory.woken.has(index) && (memory.there.has(index) || !memory.mapping[index]))
          asleep.delete(index);
      }
      for (const index of asleep) assert.ok(!memory.there.has(index), `run ${run}: page ${index} is there`);
    }
    // Each thread that still sleeps has a fault in the queue.
    assert.ok(core.waiting >= asleep.size, `run ${run}`);
    // A window always contains the page it was asked for.
    for (let index = 0; index < pages; index++) {
      if (!memory.mapping[index] || memory.there.has(index)) continue;
      const [start, count] = windowOf(core, index, 16);
      assert.ok(start <= index && start + count > index);
    }
  }
});

test.run();
