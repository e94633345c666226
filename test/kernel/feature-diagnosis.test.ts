// A kernel with fewer features: on each of four imitated versions, every feature of that version works, and the error
// of every other request names the version that it needs. One table lists the requests and their versions.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, munmap } from '../../shim/memory.js';
import { FEATURES, type Feature, type Kernel, type Mode, Userfaultfd } from '../../src/index.js';
import { featureNames, featureSince } from '../../src/kernel/features.js';
import { skip, suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { featuresOf, oldKernel, VERSIONS, type Version } from '../support/old-kernel.js';
import {
  at,
  compileLibrary,
  endAll,
  map,
  mapShared,
  needKernel,
  never,
  numberedSource,
  P,
  pageOf,
  recorder,
  skipWithout,
  toucher,
} from '../support/real-kernel.js';

const test = suite('kernel/feature-diagnosis');

/** A request to a kernel; `ask` throws if the kernel cannot fulfil it. */
interface Wish {
  what: string;
  /** The first version that has it. */
  since: string;
  ask(kernel: Kernel): void | Promise<void>;
  /** The version and the code in an older kernel's refusal, unless they are `since` and UNSUPPORTED. */
  refusal?(version: Version): [named: string, code: string];
}

/** Runs a body with a userfaultfd of this kernel. */
function using<T>(kernel: Kernel, body: (uffd: Userfaultfd) => T): T {
  const uffd = Userfaultfd.open({ kernel });
  try {
    return body(uffd);
  } finally {
    uffd.close();
  }
}

/** Registers fresh anonymous memory, and passes its address. */
function onAnonymous(mode: Mode | Mode[], use: (uffd: Userfaultfd, base: bigint) => void) {
  return (kernel: Kernel): void =>
    using(kernel, (uffd) => {
      const base = map(2);
      uffd.register(base, 2 * P, mode);
      use(uffd, base);
    });
}

/** Registers fresh shared memory, and passes its address. */
function onShared(
  mode: Mode | Mode[],
  use: (uffd: Userfaultfd, base: bigint) => void = () => {},
  huge = false,
) {
  return async (kernel: Kernel): Promise<void> => {
    const ask = (pageSize: number): void =>
      using(kernel, (uffd) => {
        const { base, alias, unmapAlias } = mapShared(1, pageSize);
        alias[0] = 7;
        try {
          uffd.register(base, pageSize, mode);
          use(uffd, base);
        } finally {
          uffd.close();
          munmap(base, pageSize);
          unmapAlias();
        }
      });
    if (huge) await withHugePages(1, ask);
    else ask(P);
  };
}

const UNSUPPORTED = 'ERR_UFFD_UNSUPPORTED';

/**
 * A kernel without any part of the feature names the first version. A kernel with a part of it names the version that
 * has the rest; with EINVAL, if the caller's arguments may be wrong instead.
 */
const inParts =
  (first: string, rest: string, code: string) =>
  (version: Version): [string, string] =>
    older(version, first) ? [first, UNSUPPORTED] : [rest, code];

const WISHES: Wish[] = [
  ...FEATURES.map((feature) => ({
    what: `the feature '${feature}'`,
    since: featureSince(feature) as string,
    ask: (kernel: Kernel) => Userfaultfd.open({ kernel, features: [feature] }).close(),
  })),
  {
    what: 'faults of user mode only',
    since: '5.11',
    ask: (kernel) => Userfaultfd.open({ kernel, userModeOnly: true, via: 'syscall' }).close(),
  },
  {
    what: 'the device',
    since: '6.1',
    ask: (kernel) => Userfaultfd.open({ kernel, via: 'device' }).close(),
    refusal: () => ['6.1', 'ENOENT'],
  },
  {
    what: 'missing pages of shared memory',
    since: '4.11',
    ask: onShared('missing', (uffd, base) => {
      uffd.unregister(base, P);
      uffd.register(base, P);
    }),
  },
  { what: 'missing huge pages', since: '4.11', ask: onShared('missing', () => {}, true) },
  {
    what: 'write-protection',
    since: '5.7',
    ask: onAnonymous(['missing', 'write-protect'], (uffd, base) => {
      assert.is(uffd.copy(base, pageOf(1), P, { writeProtect: true }), P);
      assert.is(uffd.writeProtect(base, P, false), P);
    }),
  },
  {
    what: 'writeProtect, where nothing could be registered for it',
    since: '5.7',
    ask: onAnonymous('missing', (uffd, base) => void uffd.writeProtect(base, P, true)),
  },
  {
    what: 'write-protection of shared memory',
    since: '5.19',
    ask: onShared('write-protect'),
    refusal: inParts('5.7', '5.19', 'EINVAL'),
  },
  { what: 'minor faults of huge pages', since: '5.13', ask: onShared('minor', () => {}, true) },
  {
    what: 'minor faults of shared memory',
    since: '5.14',
    ask: onShared('minor', (uffd, base) => assert.is(uffd.continue(base, P), P)),
    refusal: inParts('5.13', '5.14', 'EINVAL'),
  },
  {
    what: 'continue, where nothing could be registered for it',
    since: '5.13',
    ask: onShared('missing', (uffd, base) => assert.is(uffd.continue(base, P), P)),
  },
  {
    what: 'continue with writeProtect',
    since: '6.4',
    ask: onShared('missing', (uffd, base) => void uffd.continue(base, P, { writeProtect: true })),
    refusal: inParts('5.13', '6.4', UNSUPPORTED),
  },
  {
    what: 'poison',
    since: '6.6',
    ask: onAnonymous('missing', (uffd, base) => assert.is(uffd.poison(base, P), P)),
  },
  {
    what: 'move',
    since: '6.8',
    ask: onAnonymous('missing', (uffd, base) => assert.is(uffd.move(base, map(1, 5), P), P)),
  },
];

/** Whether a version comes before another. */
function older(version: string, than: string): boolean {
  const [a, b] = [version, than].map((text) => text.split('.').map(Number) as [number, number]);
  const [[major, minor], [thanMajor, thanMinor]] = [a, b] as [[number, number], [number, number]];
  return major < thanMajor || (major === thanMajor && minor < thanMinor);
}

/** A kernel that imitates this version. Skips if the real kernel is older. */
function playing(version: Version): Kernel {
  needKernel();
  const { features } = Userfaultfd.probe();
  const lacks = [...featureNames(featuresOf(version))].filter((feature) => !features.has(feature));
  if (lacks.length > 0) skip(`this kernel cannot play Linux ${version}: it lacks ${lacks.join(', ')}`);
  const kernel = oldKernel(version);
  try {
    Userfaultfd.open({ kernel }).close();
  } catch (error) {
    skip(`this user may not open it on Linux ${version}: ${(error as Error).message}`);
  }
  return kernel;
}

for (const version of VERSIONS) {
  for (const { what, since, ask, refusal } of WISHES) {
    const has = !older(version, since);
    test(`${version}: ${what} ${has ? 'can be had' : `needs ${since}`}`, async () => {
      const kernel = playing(version);
      if (has) {
        if (what === "the feature 'event-fork'") skipWithout('event-fork');
        if (what === 'the device') needDevice();
        await ask(kernel);
        return;
      }
      let refused: (Error & { code?: string }) | undefined;
      await (async () => ask(kernel))().catch((error: Error) => {
        refused = error;
      });
      const [named, code] = refusal?.(version) ?? [since, UNSUPPORTED];
      assert.is(refused?.code, code, `${refused?.message}`);
      assert.match(refused?.message as string, new RegExp(`Linux ${named.replace('.', '\\.')}\\b`));
    });
  }

  test(`${version}: faults and mapping changes are served`, async () => {
    const kernel = playing(version);
    const features: Feature[] = ['event-remove', 'event-unmap', 'event-remap', 'thread-id'];
    const uffd = Userfaultfd.open({ kernel, features });
    const [base, target] = [map(8), map(8)];
    uffd.register(base, 8 * P);
    const source = numberedSource(8);
    const tids = new Set<number>();
    let from = base;
    const { calls, handler } = recorder((fault, it) => {
      tids.add(fault.tid);
      return it.copy(fault.page, source + (fault.page - from), P) === P;
    });
    uffd.start({
      ...handler,
      remapped(...args) {
        from = args[1];
        handler.remapped?.(...args);
      },
    });
    const thread = await toucher();
    assert.is(await thread.verify(base, 8, P, 3), 0);
    assert.is(await thread.madvise(at(base, 2), P, MADV_DONTNEED), 0);
    assert.is(await thread.verify(base, 8, P, 3), 0);
    assert.is(await thread.mremap(base, 8 * P, 8 * P, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
    assert.is(await thread.munmap(at(target, 6), 2 * P), 0);
    assert.is(await thread.verify(target, 6, P, 1), 0);
    assert.equal([...tids], [thread.kernelTid]);
    const changes = new Set(calls.map(([name]) => name));
    assert.equal([...changes].sort(), ['pagefault', 'remapped', 'removed', 'unmapped']);
    assert.equal(
      uffd.ranges.map(({ start, length }) => [start, length]),
      [[target, 6 * P]],
    );
    uffd.close();
    await endAll();
  });

  test(`${version}: a change in progress that leaves the result field alone does not confuse a fill`, async () => {
    const uffd = Userfaultfd.open({ kernel: playing(version), features: ['event-remove'] });
    const base = map(4, 1);
    uffd.register(base, 4 * P);
    const other = map(1);
    uffd.register(other, P);
    const { calls, handler } = recorder(never);
    const thread = await toucher();
    const removal = thread.madvise(base, 2 * P, MADV_DONTNEED);
    await thread.asleep();
    let done = 0;
    while (done === 0) done = uffd.copy(other, pageOf(5));
    assert.is(done, P);
    assert.is(await removal, 0);
    uffd.poll(handler);
    assert.equal(calls, [['removed', base, at(base, 2)]]);
    // Partial progress and present pages are counted as usual.
    assert.is(uffd.zero(base, 4 * P), 4 * P);
    uffd.close();
    await endAll();
  });

  test(`${version}: forks`, async () => {
    skipWithout('event-fork');
    const library = compileLibrary('support/fork.c');
    const uffd = Userfaultfd.open({ kernel: playing(version), features: ['event-fork'] });
    const base = map(4);
    uffd.register(base, 4 * P);
    const source = numberedSource(4);
    uffd.start({
      pagefault: never,
      forked: (child) =>
        void child.start({
          pagefault: (fault, it) => it.copy(fault.page, source + (fault.page - base), P) === P,
        }),
    });
    const thread = await toucher();
    assert.is(await thread.forkTouch(library, base, 0, 4), 0);
    uffd.close();
    await endAll();
  });

  test(`${version}: what is only wished for is left out, and an adopted descriptor knows as much`, () => {
    const kernel = playing(version);
    const wished = FEATURES.filter((feature) => !['sigbus', 'event-fork'].includes(feature));
    const uffd = Userfaultfd.open({ kernel, optional: wished });
    const offered = featureNames(featuresOf(version));
    assert.equal([...uffd.features].sort(), wished.filter((feature) => offered.has(feature)).sort());
    assert.equal(Userfaultfd.probe({ kernel }).features, offered);
    const base = map(1);
    const operations = uffd.register(base, P);
    assert.not.ok(operations.has('poison') || operations.has('move'));
    const { ranges } = uffd;
    const adopted = Userfaultfd.wrap(uffd.release(), { kernel, ranges });
    assert.throws(() => adopted.poison(base, P), /'poison' \(Linux 6\.6\)/);
    assert.throws(() => adopted.move(base, map(1, 1), P), /'move' \(Linux 6\.8\)/);
    assert.is(adopted.zero(base, P), P);
    adopted.close();
  });
}

/** Skips if this user cannot open the device. */
function needDevice(): void {
  try {
    Userfaultfd.open({ via: 'device' }).close();
  } catch (error) {
    skip((error as Error).message);
  }
}

test('what is wrong on a kernel that has it all is not blamed on the kernel', () => {
  needKernel();
  skipWithout('move');
  const uffd = Userfaultfd.open();
  const base = map(2);
  uffd.register(base, P);
  for (const act of [
    () => uffd.register(base, P, 'minor'),
    () => uffd.continue(base, P),
    () => uffd.copy(base, pageOf(1), P, { writeProtect: true }),
    () => uffd.move(base, map(1, 1), 2 * P),
  ]) {
    assert.throws(act, (error: Error & { code: string }) => {
      assert.not.match(error.message, /this kernel (lacks|allows)/);
      return error.code === 'EINVAL' || error.code === 'ENOENT';
    });
  }
  uffd.close();
});

test('a kernel that refuses, and cannot be asked what it offers, is quoted', () => {
  needKernel();
  const shut = oldKernel('5.7');
  let open = true;
  const kernel: Kernel = {
    pageSize: shut.pageSize,
    attach(memory) {
      const port = shut.attach(memory);
      const userfaultfd = port.userfaultfd.bind(port);
      return Object.assign(port, { userfaultfd: (flags: number) => (open ? userfaultfd(flags) : -1) });
    },
  };
  using(kernel, (uffd) => {
    open = false;
    const base = map(1);
    uffd.register(base, P);
    assert.throws(() => uffd.poison(base, P), /^EINVAL: UFFDIO_POISON/);
  });
});

test.run();
