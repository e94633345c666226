// A fault that is read while others are left asleep: it is woken with them only if its page is one that was installed for
// them. Each condition of that has a case which it alone decides.

import { strict as assert } from 'node:assert';
import { type Core, Next } from '../../src/core.js';
import { suite } from '../harness.js';
import {
  BASE,
  drain,
  FLAG_WP,
  fault,
  feed,
  MISSING,
  makeCore,
  PAGE,
  page,
  put,
  still,
  WRITE_PROTECT,
} from './support.js';
import { DATA, requested, tallied } from './transfers.js';

const test = suite('held');

/** Pages 20 and 40 are installed for threads that sleep on, 19 and 41 were before; a read is due. */
function asleep(): Core {
  const core = makeCore();
  put(core, 0, 100, { modes: MISSING | WRITE_PROTECT });
  core.arguments(BASE, 100 * PAGE, DATA).sourcePut(1, 0);
  for (const index of [19, 41]) {
    read(core, index);
    core.exports.roundNext(0);
    assert.equal(done(core, { is: 'copy', start: index }), Next.answered);
  }
  read(core, 20, 40);
  assert.equal(core.exports.roundNext(0), Next.call);
  assert.equal(done(core, { is: 'copy', start: 20 }), Next.call);
  assert.equal(done(core, { is: 'copy', start: 40 }), Next.reread);
  return core;
}

function read(core: Core, ...indexes: readonly number[]): void {
  feed(core, ...indexes.map((index) => fault(page(index))));
  drain(core);
}

/** The kernel does what is asked for, which must be this. */
function done(core: Core, expected: { is: 'copy' | 'wake'; start: number; pages?: number }): number {
  const { is, start, pages } = requested(core);
  assert.deepEqual({ is, start, pages }, { pages: 1, ...expected });
  return still(core, 'roundResult', () => core.exports.roundResult(0));
}

/** Nobody is left to be asked for, and all are woken. */
function awake(core: Core, next: number): number {
  assert.equal(next, Next.call);
  return done(core, { is: 'wake', start: 20, pages: 21 });
}

for (const index of [20, 40]) {
  test(`page ${index}, which was installed for another thread, is no question`, () => {
    const core = asleep();
    read(core, index);
    assert.equal(awake(core, core.exports.roundResume()), Next.answered);
    assert.equal(tallied(core).faults, 3);
  });
}

for (const index of [19, 41]) {
  test(`page ${index}, which was there and lies beside what will be woken, is tried again`, () => {
    const core = asleep();
    read(core, index);
    assert.equal(core.exports.roundResume(), Next.call);
    assert.equal(done(core, { is: 'copy', start: index }), Next.reread);
  });
}

test('a page between them that is missing is copied', () => {
  const core = asleep();
  read(core, 30);
  assert.equal(core.exports.roundResume(), Next.call);
  assert.equal(done(core, { is: 'copy', start: 30 }), Next.reread);
  drain(core);
  assert.equal(awake(core, core.exports.roundResume()), Next.answered);
  assert.equal(tallied(core).faults, 3);
});

test("a write to a page of them that is protected is the handler's", () => {
  const core = asleep();
  feed(core, fault(page(40), FLAG_WP | 1n));
  drain(core);
  assert.equal(awake(core, core.exports.roundResume()), Next.fault);
  assert.equal(core.delivered(1), page(40));
  assert.equal(tallied(core).faults, 2);
});

test('what is left asleep ends with its wake-up: the same page faults anew', () => {
  const core = asleep();
  drain(core);
  assert.equal(awake(core, core.exports.roundResume()), Next.answered);
  read(core, 20);
  assert.equal(core.exports.roundNext(0), Next.call);
  assert.equal(done(core, { is: 'copy', start: 20 }), Next.answered);
});

test.run();
