// A fault that is read while other threads are left asleep: the core wakes its thread with them only if the page was
// installed for them. For each condition of that rule, one test fails if only that condition is missing.

import { strict as assert } from 'node:assert';
import { Action, SourceKind } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';
import {
  BASE,
  dispatch,
  FLAG_WP,
  fault,
  feed,
  MISSING,
  makeCore,
  PAGE,
  page,
  put,
  readOnce,
  still,
  WRITE_PROTECT,
} from './support.js';
import { DATA, requested, tallied } from './transfers.js';

const test = suite('held');

/** Pages 20 and 40 are installed for threads that still sleep; 19 and 41 were installed before. A read is due. */
function asleep(): Core {
  const core = makeCore();
  put(core, 0, 100, { modes: MISSING | WRITE_PROTECT });
  core.arguments(BASE, 100 * PAGE, DATA).sourcePut(SourceKind.DATA, 1, 0);
  for (const index of [19, 41]) {
    read(core, index);
    assert.equal(dispatch(core), Action.IOCTL);
    assert.equal(done(core, { is: 'copy', start: index }), Action.DONE);
  }
  read(core, 20, 40);
  assert.equal(dispatch(core), Action.IOCTL);
  assert.equal(done(core, { is: 'copy', start: 20 }), Action.IOCTL);
  assert.equal(done(core, { is: 'copy', start: 40 }), Action.READ);
  return core;
}

function read(core: Core, ...indexes: readonly number[]): void {
  feed(core, ...indexes.map((index) => fault(page(index))));
}

/** Checks that the core asks for this call, and lets it succeed. */
function done(core: Core, expected: { is: 'copy' | 'wake'; start: number; pages?: number }): number {
  const { is, start, pages } = requested(core);
  assert.deepEqual({ is, start, pages }, { pages: 1, ...expected });
  return still(core, 'handleResult', () => core.exports.handleResult(0));
}

/** The next call must be the WAKE of pages 20 to 40. */
function awake(core: Core, next: number): number {
  assert.equal(next, Action.IOCTL);
  return done(core, { is: 'wake', start: 20, pages: 21 });
}

for (const index of [20, 40]) {
  test(`page ${index}, which was installed for another thread, is no question`, () => {
    const core = asleep();
    read(core, index);
    assert.equal(awake(core, readOnce(core)), Action.DONE);
    assert.equal(tallied(core).faults, 3);
  });
}

for (const index of [19, 41]) {
  test(`page ${index}, which was there and lies beside what will be woken, is tried again`, () => {
    const core = asleep();
    read(core, index);
    assert.equal(readOnce(core), Action.IOCTL);
    assert.equal(done(core, { is: 'copy', start: index }), Action.READ);
  });
}

test('a page between them that is missing is copied', () => {
  const core = asleep();
  read(core, 30);
  assert.equal(readOnce(core), Action.IOCTL);
  assert.equal(done(core, { is: 'copy', start: 30 }), Action.READ);
  assert.equal(awake(core, readOnce(core)), Action.DONE);
  assert.equal(tallied(core).faults, 3);
});

test("a write to a page of them that is protected is the handler's", () => {
  const core = asleep();
  feed(core, fault(page(40), FLAG_WP | 1n));
  assert.equal(awake(core, readOnce(core)), Action.FAULT);
  assert.equal(core.start, page(40));
  assert.equal(tallied(core).faults, 2);
});

test('what is left asleep ends with its wake-up: the same page faults anew', () => {
  const core = asleep();
  assert.equal(awake(core, readOnce(core)), Action.DONE);
  read(core, 20);
  assert.equal(dispatch(core), Action.IOCTL);
  assert.equal(done(core, { is: 'copy', start: 20 }), Action.DONE);
});

test.run();
