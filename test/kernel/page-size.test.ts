// The size of the pages that are registered: seen in /proc/PID/smaps, given by the caller, or an error; never a guess.

import * as assert from 'uvu/assert';
import * as memory from '../../shim/memory.js';
import { UffdError, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../harness.js';
import { kernelWith, map, needKernel, openWith, P } from './support.js';

const test = suite('page-size');
const HUGE = 2 ** 21;
const EACCES = 13;

/** Address space in huge pages, of which none is promised. */
function huge(): bigint {
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE | memory.hugeFlags(HUGE);
  const address = memory.mmap(0n, 2 * HUGE, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (address < 0n) skip(`this machine has no huge pages of ${HUGE} bytes`);
  return address;
}

test('huge pages whose size cannot be seen are refused, and the error asks for it', () => {
  needKernel();
  const kernel = kernelWith(() => ({ pageSizeAt: () => -EACCES }));
  using uffd = Userfaultfd.open({ kernel });
  const base = huge();
  assert.throws(
    () => uffd.register(base, 2 * HUGE),
    (error: unknown) =>
      error instanceof UffdError &&
      error.code === 'EACCES' &&
      error.syscall === '/proc/PID/smaps' &&
      /option pageSize/.test(error.message),
  );
  // Nothing is registered, here or in the kernel: another one may have it.
  assert.equal(uffd.ranges, []);
  using other = openWith();
  other.register(base, 2 * HUGE);
  assert.is(other.ranges[0]?.pageSize, HUGE);
  other.unregister(base, 2 * HUGE);
  uffd.register(base, 2 * HUGE, 'missing', { pageSize: HUGE });
  assert.is(uffd.ranges[0]?.pageSize, HUGE);
  // What is known from before is no guess.
  uffd.register(base, 2 * HUGE, 'missing');
  assert.is(uffd.ranges.length, 1);
  // Other pages need no look.
  const small = map(2);
  uffd.register(small, 2 * P);
  assert.is(uffd.ranges.find(({ start }) => start === small)?.pageSize, P);
  memory.munmap(base, 2 * HUGE);
});

test('a mapping of this process at the address of another one is not taken for it', () => {
  needKernel();
  const base = huge();
  // It is there, and it is not what was registered.
  assert.is(memory.pageSizeAt(0, base), HUGE);
  assert.ok(memory.watchedPageSizeAt(0, base) < 0);
  using uffd = openWith();
  uffd.register(base, HUGE);
  assert.is(memory.watchedPageSizeAt(0, base), HUGE);
  assert.ok(memory.watchedPageSizeAt(0, base + BigInt(HUGE)) < 0);
  memory.munmap(base, 2 * HUGE);
});

test.run();
