// A fill of memory that was never registered fails; a fill of registered memory that is gone returns short.

import * as assert from 'uvu/assert';
import { munmap } from '../../shim/memory.js';
import { UffdError, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  at,
  map,
  needKernel,
  never,
  openWith,
  P,
  pageOf,
  recorder,
  skipWithout,
  toucher,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('uffd/unknown-memory');

/** Every call that fills or protects a page, for one page. */
const CALLS = {
  copy: (uffd: Userfaultfd, page: bigint) => uffd.copy(page, pageOf(1)),
  zero: (uffd: Userfaultfd, page: bigint) => uffd.zero(page, P),
  continue: (uffd: Userfaultfd, page: bigint) => uffd.continue(page, P),
  poison: (uffd: Userfaultfd, page: bigint) => uffd.poison(page, P),
  writeProtect: (uffd: Userfaultfd, page: bigint) => uffd.writeProtect(page, P, true),
} as const;

function isStrange(transferred: number): (error: unknown) => boolean {
  return (error) =>
    error instanceof UffdError &&
    error.code === 'ENOENT' &&
    error.transferred === transferred &&
    /nothing is registered here at 0x[0-9a-f]+, and nothing was before; register/.test(error.message);
}

for (const [name, call] of Object.entries(CALLS)) {
  test(`${name}: ENOENT where nothing was ever registered; 0 where it was, and is not any more`, () => {
    needKernel();
    skipWithout('poison');
    using uffd = openWith(['pagefault-flag-wp']);
    const memory = map(4);
    uffd.register(memory, P, ['missing', 'write-protect']);
    assert.throws(() => call(uffd, at(memory, 1)), isStrange(0));
    uffd.unregister(memory, P);
    assert.is(call(uffd, memory), 0);
    assert.throws(() => call(uffd, at(memory, 1)), isStrange(0));
  });
}

test('a fill that runs into strange memory says how far it came', () => {
  needKernel();
  using uffd = openWith();
  const memory = map(4);
  uffd.register(memory, P);
  uffd.register(at(memory, 1), P, 'missing');
  munmap(at(memory, 2), P);
  // The kernel refuses a fill across two mappings as a whole; page by page, the first page succeeds.
  let transferred = -1;
  try {
    transferred = uffd.copy(memory, new Uint8Array(4 * P));
  } catch (error) {
    assert.ok(isStrange((error as UffdError).transferred)(error), String(error));
    transferred = (error as UffdError).transferred;
  }
  assert.ok(transferred >= 0 && transferred <= 2 * P);
});

test('unmapped and moved memory counts as known', async () => {
  await withUffd(['event-unmap', 'event-remap'], async (uffd, thread) => {
    const [base, other] = [map(4), map(4)];
    uffd.register(base, 2 * P);
    uffd.register(other, 2 * P);
    const { calls, handler } = recorder(never);
    uffd.start(handler);
    assert.is(await thread.munmap(base, P), 0);
    const to = map(2);
    await thread.mremap(other, 2 * P, 2 * P, 3, to);
    assert.ok(calls.length >= 2);
    assert.is(uffd.copy(base, pageOf(1)), 0);
    assert.is(uffd.copy(other, pageOf(1)), 0);
    // The memory is registered at its new address.
    assert.is(uffd.copy(to, pageOf(1)), P);
    assert.throws(() => uffd.copy(at(base, 3), pageOf(1)), isStrange(0));
  });
});

test('an object that was wrapped without its ranges knows the memory that faults', async () => {
  needKernel();
  const first = openWith(['event-unmap']);
  const base = map(2);
  first.register(base, 2 * P);
  using uffd = Userfaultfd.wrap(first.release(), { features: ['event-unmap'] });
  assert.throws(() => uffd.copy(map(1), pageOf(1)), isStrange(0));
  const thread = await toucher();
  const done: number[] = [];
  uffd.start({
    pagefault({ page }) {
      done.push(uffd.copy(map(1), pageOf(1)), uffd.copy(page, pageOf(5)));
    },
  });
  assert.equal(await thread.read(base), [5]);
  assert.equal(done, [0, P]);
  await thread.end();
});

test.run();
