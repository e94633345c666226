// The size of registered pages: the library reads it from /proc/PID/smaps, or the caller gives it; else an error.

import * as assert from 'uvu/assert';
import * as memory from '../../shim/memory.js';
import { UffdError, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import { kernelWith, map, needKernel, openWith, P } from '../support/real-kernel.js';

const test = suite('uffd/page-size');
const HUGE = 2 ** 21;
const EACCES = 13;

/** Address space in huge pages, none of which is reserved. */
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
  // Neither the library nor the kernel has registered the range: another userfaultfd can register it.
  assert.equal(uffd.ranges, []);
  using other = openWith();
  other.register(base, 2 * HUGE);
  assert.is(other.ranges[0]?.pageSize, HUGE);
  other.unregister(base, 2 * HUGE);
  uffd.register(base, 2 * HUGE, 'missing', { pageSize: HUGE });
  assert.is(uffd.ranges[0]?.pageSize, HUGE);
  // The library knows the size from the earlier registration.
  uffd.register(base, 2 * HUGE, 'missing');
  assert.is(uffd.ranges.length, 1);
  // Only small pages allow ZEROPAGE, so the library need not read smaps.
  const small = map(2);
  uffd.register(small, 2 * P);
  assert.is(uffd.ranges.find(({ start }) => start === small)?.pageSize, P);
  memory.munmap(base, 2 * HUGE);
});

test('a mapping of this process at the address of another one is not taken for it', () => {
  needKernel();
  const base = huge();
  // A mapping is there, but it is not registered.
  assert.is(memory.pageSizeAt(0, base), HUGE);
  assert.ok(memory.watchedPageSizeAt(0, base) < 0);
  using uffd = openWith();
  uffd.register(base, HUGE);
  assert.is(memory.watchedPageSizeAt(0, base), HUGE);
  assert.ok(memory.watchedPageSizeAt(0, base + BigInt(HUGE)) < 0);
  memory.munmap(base, 2 * HUGE);
});

test.run();
