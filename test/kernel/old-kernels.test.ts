// A kernel with fewer features: what it can do works, and for the rest the error names the version that brings it.
// The real kernel plays the older ones: see old-kernel.ts.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { FEATURES, type Feature, type Kernel, Mapping, Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import { featuresOf, oldKernel, VERSIONS, type Version } from './old-kernel.js';
import { at, endAll, map, needKernel, P, pageOf, recorder, toucher } from './support.js';

const test = suite('old kernels');

/** Something tried on anonymous memory of 4 pages that is watched for missing pages, or on nothing of it. */
interface Trial {
  name: string;
  /** The oldest kernel that can do it, and what the error says on those before it. */
  since: string;
  says: RegExp;
  act: (kernel: Kernel) => void;
}

function watched(
  kernel: Kernel,
  act: (uffd: Userfaultfd, base: bigint) => void,
  mode?: 'write-protect',
): void {
  const uffd = Userfaultfd.open({ kernel });
  try {
    const base = map(4, mode ? 1 : undefined);
    uffd.register(base, 4 * P, mode ? ['missing', mode] : 'missing');
    act(uffd, base);
  } finally {
    uffd.close();
  }
}

/** Registers shared memory in a mode, in pages of the system's size. */
function shared(kernel: Kernel, mode: 'write-protect' | 'minor'): void {
  const uffd = Userfaultfd.open({ kernel });
  const memory = Mapping.memfd(2 * P);
  try {
    uffd.register(memory.address, memory.length, mode);
  } finally {
    uffd.close();
    memory.close();
  }
}

const opening = (options: Parameters<typeof Userfaultfd.open>[0]) => (kernel: Kernel) =>
  Userfaultfd.open({ ...options, kernel }).close();

const TRIALS: Trial[] = [
  {
    name: 'user mode only',
    since: '5.11',
    says: /5\.11/,
    act: opening({ userModeOnly: true, via: 'syscall' }),
  },
  { name: 'the device', since: '6.1', says: /ENOENT.*6\.1/, act: opening({ via: 'device' }) },
  {
    name: 'register for write-protect',
    since: '5.7',
    says: /'write-protect' \(Linux 5\.7\)/,
    act: (kernel) =>
      watched(kernel, (uffd, base) => assert.is(uffd.writeProtect(base, P, true), P), 'write-protect'),
  },
  {
    name: 'register shared memory for write-protect',
    since: '5.19',
    says: /'write-protect' \(Linux 5\.7\)|'wp-hugetlbfs-shmem' \(Linux 5\.19\)/,
    act: (kernel) => shared(kernel, 'write-protect'),
  },
  {
    name: 'register shared memory for minor faults',
    since: '5.14',
    says: /'minor' \(Linux 5\.13\)|'minor-shmem' \(Linux 5\.14\)/,
    act: (kernel) => shared(kernel, 'minor'),
  },
  {
    name: 'copy with writeProtect',
    since: '5.7',
    says: /'writeProtect' \(Linux 5\.7\)|'write-protect' \(Linux 5\.7\)/,
    act: (kernel) =>
      watched(
        kernel,
        (uffd, base) => assert.is(uffd.copy(base, pageOf(1), P, { writeProtect: true }), P),
        'write-protect',
      ),
  },
  {
    name: 'continue',
    since: '5.13',
    says: /'continue' \(Linux 5\.13\)/,
    act: (kernel) => watched(kernel, (uffd, base) => refusesAnonymous(() => uffd.continue(base, P))),
  },
  {
    name: 'continue with writeProtect',
    since: '6.4',
    says: /'continue' \(Linux 5\.13\)|'continue with writeProtect' \(Linux 6\.4\)/,
    act: (kernel) =>
      watched(kernel, (uffd, base) => refusesAnonymous(() => uffd.continue(base, P, { writeProtect: true }))),
  },
  {
    name: 'poison',
    since: '6.6',
    says: /'poison' \(Linux 6\.6\)/,
    act: (kernel) => watched(kernel, (uffd, base) => assert.is(uffd.poison(base, P), P)),
  },
  {
    name: 'move',
    since: '6.8',
    says: /'move' \(Linux 6\.8\)/,
    act: (kernel) => watched(kernel, (uffd, base) => assert.is(uffd.move(base, map(1, 1), P), P)),
  },
];

/** A kernel that knows CONTINUE says that this memory has nothing to go on with. */
function refusesAnonymous(act: () => unknown): void {
  try {
    act();
  } catch (error) {
    if ((error as { code?: string }).code !== 'EINVAL') throw error;
    assert.match((error as Error).message, /shared/);
  }
}

/** Whether the version `since` is not newer than `version`. */
function has(version: string, since: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [sinceMajor = 0, sinceMinor = 0] = since.split('.').map(Number);
  return major > sinceMajor || (major === sinceMajor && minor >= sinceMinor);
}

function offered(version: Version): Feature[] {
  return FEATURES.filter((_, bit) => (featuresOf(version) >> BigInt(bit)) & 1n);
}

for (const version of VERSIONS) {
  test(`${version}: probe names its features; those open, and the others are refused with their version`, () => {
    needKernel();
    const kernel = oldKernel(version);
    assert.equal([...Userfaultfd.probe({ kernel }).features].sort(), offered(version).sort());
    const uffd = Userfaultfd.open({ kernel, optional: FEATURES });
    assert.equal([...uffd.features].sort(), offered(version).sort());
    uffd.close();
    for (const feature of FEATURES.filter((one) => !offered(version).includes(one))) {
      assert.throws(
        () => Userfaultfd.open({ kernel, features: [feature] }),
        (error: Error & { code: string }) =>
          error.code === 'ERR_UFFD_UNSUPPORTED' && /lacks '[a-z-]+' \(Linux \d+\.\d+\)/.test(error.message),
        feature,
      );
    }
  });

  for (const { name, since, says, act } of TRIALS) {
    const works = has(version, since);
    test(`${version}: ${name} ${works ? 'works' : `is refused, and ${since} is named`}`, () => {
      needKernel();
      const kernel = oldKernel(version);
      if (works) act(kernel);
      else assert.throws(() => act(kernel), says);
    });
  }

  test(`${version}: faults are served and removals told, with a process to watch`, async () => {
    needKernel();
    const uffd = Userfaultfd.open({
      kernel: oldKernel(version),
      features: ['event-remove'],
      pid: process.pid,
    });
    try {
      const thread = await toucher();
      const base = map(4);
      uffd.register(base, 4 * P);
      const { calls, handler } = recorder((fault) => uffd.copy(fault.page, pageOf(7)) === P);
      uffd.start(handler);
      assert.equal(await thread.read(base, at(base, 2)), [7, 7]);
      assert.is(await thread.madvise(base, P, MADV_DONTNEED), 0);
      while (!calls.some(([name]) => name === 'removed')) await sleep(1);
      assert.equal(await thread.read(base), [7]);
      assert.ok(uffd.waiting);
    } finally {
      uffd.close();
      await endAll();
    }
  });

  test(`${version}: a fill that a change cuts short is not taken for one that went through`, async () => {
    needKernel();
    const uffd = Userfaultfd.open({ kernel: oldKernel(version), features: ['event-remove'] });
    try {
      const thread = await toucher();
      const base = map(2, 1);
      uffd.register(base, 2 * P);
      const removal = thread.madvise(base, 2 * P, MADV_DONTNEED);
      await thread.asleep();
      assert.is(uffd.copy(base, pageOf(5)), 0);
      assert.is(await removal, 0);
      uffd.poll(recorder(() => false).handler);
      assert.is(uffd.zero(base, 2 * P), 2 * P);
    } finally {
      uffd.close();
      await endAll();
    }
  });
}

test.run();
