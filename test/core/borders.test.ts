// Fills over mappings that nobody has told of: whatever the mappings are, each page up to the first that is gone is filled,
// and so is the page that is asked for; a border is found in a few calls, and costs none from then on.

import { strict as assert } from 'node:assert';
import { type Core, Next, Op, Option, Step } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  answer,
  BASE,
  drain,
  EAGAIN,
  fault,
  feed,
  hear,
  makeCore,
  P,
  PAGE,
  page,
  put,
  windowOf,
} from './support.js';
import { DATA, EEXIST, EINTR, ENOENT, partly, requested } from './transfers.js';

const test = suite('borders');

/** Memory of several mappings; 0: nothing is mapped, or it is not registered. */
class Memory {
  readonly mapping: number[];
  readonly there = new Set<number>();
  /** Pages whose threads sleep, and who have been woken. */
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

  /** The first page from `first` on that is gone, before `end`. */
  gone(first: number, end: number): number {
    let index = first;
    while (index < end && this.mapping[index]) index++;
    return index;
  }

  /** Maximal pieces of [first, end) that lie in one mapping. */
  pieces(first: number, end: number): number {
    let count = 1;
    for (let index = first + 1; index < end; index++) {
      if (this.mapping[index] !== this.mapping[index - 1]) count++;
    }
    return count;
  }

  /** What it answers to a COPY or WAKE; `disturb`: how often anything else comes first. */
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

/** Carries out a copy; how it ended. */
function copy(core: Core, first: number, end: number, options: number, answers: () => number): number {
  let step = core
    .arguments(page(first), (end - first) * PAGE, DATA + BigInt(first) * P)
    .transferBegin(Op.copy, options);
  while (step === Step.call || step === Step.read) {
    if (step === Step.call) step = core.exports.transferResult(answers());
    else {
      drain(core);
      step = core.exports.transferResume();
    }
  }
  return step;
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
    // Two borders side by side may hide from one fill, not from as many fills as there are borders.
    for (let fill = 0; fill < pieces + 1; fill++) {
      memory.there.clear();
      memory.calls = memory.failed = 0;
      assert.equal(
        copy(core, 0, pages, 0, () => memory.answer(core, below, 0)),
        Step.done,
      );
      assert.equal(core.exports.transferDone(), pages * PAGE);
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
        drain(core);
        // What said EEXIST before waits first.
        now += 1000;
        if (hear(core, now).is === 'none') assert.equal(hear(core, now + 100).is, 'fault');
      }
      const disturb = below(2) * 6;
      const options = below(2) ? Option.dontWake : 0;
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
      assert.equal(step, last === end ? Step.done : Step.unmapped, why);
      if (last < end) {
        assert.ok(memory.woken.has(last), `${why}: whoever sleeps on the page that is gone`);
        assert.equal(BigInt.asUintN(64, core.exports.transferCursor()), page(last), why);
      }
      // Nobody sleeps on in front of a page that is gone: what comes behind it is a run of its own.
      for (let index = from; index < gone && gone < end; index++) assert.ok(memory.woken.has(index), why);
      const cuts = memory.pieces(from, end);
      if (!disturb)
        assert.ok(memory.failed <= (cuts + 1) * 2 * (log2(pages) + 1), `${why}: ${memory.failed} calls`);
      if (asked !== undefined) {
        assert.equal(
          core.exports.inboxAnswer(0),
          memory.mapping[asked] ? 1 : 0,
          `${why}: only its own page ends it`,
        );
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
    core.arguments(BASE, pages * PAGE, DATA).sourcePut(1 << below(7), 0);
    const asleep = new Set<number>();
    for (let round = 0; round < 60; round++) {
      const touched = new Set(Array.from({ length: 1 + below(6) }, () => below(pages)));
      for (const index of touched) if (!memory.there.has(index)) asleep.add(index);
      feed(core, ...[...asleep].map((index) => fault(page(index))));
      drain(core);
      memory.woken.clear();
      let next = core.exports.roundNext(round * 1000);
      for (let calls = 0; next !== Next.none; calls++) {
        assert.ok(calls < 2000, `run ${run}: it does not end`);
        if (next === Next.call) next = core.exports.roundResult(memory.answer(core, below, 8));
        else if (next === Next.reread) {
          drain(core);
          next = core.exports.roundResume();
        } else {
          // The handler copies the page by itself.
          if (next === Next.fault) {
            const index = Number((core.delivered(1) - BASE) / P);
            copy(core, index, index + 1, 0, () => memory.answer(core, below, 8));
            answer(core, true, round * 1000);
          }
          next = core.exports.roundNext(round * 1000);
        }
      }
      for (const index of [...asleep]) {
        // Woken: it has its page, or a signal, or faults anew.
        if (memory.woken.has(index) && (memory.there.has(index) || !memory.mapping[index]))
          asleep.delete(index);
      }
      for (const index of asleep) assert.ok(!memory.there.has(index), `run ${run}: page ${index} is there`);
    }
    // Whoever is left waits for its turn.
    assert.ok(core.exports.inboxWaiting() >= asleep.size, `run ${run}`);
    // In the end no window crosses a border that a fill has come upon.
    for (let index = 0; index < pages; index++) {
      if (!memory.mapping[index] || memory.there.has(index)) continue;
      const [start, count] = windowOf(core, index, 16);
      assert.ok(start <= index && start + count > index);
    }
  }
});

test.run();
