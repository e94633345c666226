// If a construction fails, the library closes everything that it opened: the userfaultfd, a child's userfaultfd, the
// pidfd. A descriptor that the caller passed to `wrap` still belongs to the caller.

import { readdirSync, readlinkSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { closeDescriptor } from '../../shim/descriptors.js';
import { linuxKernel } from '../../shim/linux.js';
import { type Kernel, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  compileLibrary,
  kernelWith,
  map,
  needKernel,
  openWith,
  P,
  skipWithout,
  toucher,
  until,
} from '../support/real-kernel.js';

const test = suite('uffd/failed-construction');
const PID = { pid: process.pid };

/** The number of open descriptors of each kind. */
function counted(): Record<string, number> {
  const kinds = { '[userfaultfd]': 0, '[pidfd]': 0, '[eventfd]': 0 };
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const link = readlinkSync(`/proc/self/fd/${fd}`);
      for (const kind of Object.keys(kinds) as (keyof typeof kinds)[]) if (link.includes(kind)) kinds[kind]++;
    } catch {
      // The descriptor of this very listing, closed by now.
    }
  }
  return kinds;
}

/** A kernel without eventfds. With 'event-fork' the constructor makes one, last, after it has opened everything else. */
function broken(): Kernel {
  return kernelWith(() => ({
    eventfd() {
      throw new Error('sabotaged');
    },
  }));
}

test('open', () => {
  needKernel();
  skipWithout('event-fork');
  const before = counted();
  assert.throws(() => Userfaultfd.open({ ...PID, features: ['event-fork'], kernel: broken() }), /sabotaged/);
  assert.equal(counted(), before);
  // No process has this pid.
  assert.throws(() => Userfaultfd.open({ pid: 0x7fffffff }), /ESRCH/);
  assert.equal(counted(), before);
});

test('wrap', () => {
  needKernel();
  skipWithout('event-fork');
  const fd = openWith(['event-fork']).release();
  const before = counted();
  const options = { ...PID, features: ['event-fork'] as const };
  assert.throws(() => Userfaultfd.wrap(fd, { ...options, kernel: broken() }), /sabotaged/);
  assert.equal(counted(), before);
  // Ranges too large for the core's tables.
  const start = map(1);
  const range = {
    start,
    length: 2 ** 46,
    modes: new Set(['missing'] as const),
    operations: new Set([]),
    pageSize: P,
  };
  assert.throws(() => Userfaultfd.wrap(fd, { ...options, ranges: [range as never] }), /ENOMEM/);
  assert.equal(counted(), before);
  const uffd = Userfaultfd.wrap(fd, options);
  assert.is(counted()['[pidfd]'], (before['[pidfd]'] as number) + 1);
  uffd.close();
  assert.is(counted()['[pidfd]'], before['[pidfd]']);
});

test('the object of a forked child', async () => {
  needKernel();
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const real = linuxKernel();
  let attached = 0;
  const kernel: Kernel = {
    pageSize: real.pageSize,
    attach(memory) {
      if (attached++ > 0) throw new Error('sabotaged');
      return real.attach(memory);
    },
  };
  const uffd = Userfaultfd.open({ features: ['event-fork'], kernel });
  uffd.register(map(1), P);
  const thread = await toucher();
  const before = counted();
  const forking = thread.fork(library);
  let failure: unknown;
  await until(() => {
    try {
      uffd.poll({ pagefault: () => false, forked() {} });
    } catch (error) {
      failure = error;
    }
    return failure !== undefined;
  });
  assert.match(String(failure), /sabotaged/);
  assert.is(await forking, 0);
  assert.equal(counted(), before);
  uffd.close();
  await thread.end();
});

test('a descriptor that is no userfaultfd is refused, and left alone', () => {
  needKernel();
  const port = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  const eventfd = port.eventfd();
  const before = counted();
  assert.throws(() => Userfaultfd.wrap(eventfd, PID), /ENOTTY/);
  assert.equal(counted(), before);
  assert.is(closeDescriptor(eventfd), 0);
});

test.run();
