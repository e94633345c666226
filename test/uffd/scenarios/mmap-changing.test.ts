// Scenario mmap-changing: while the event of a mapping change is unread, the kernel refuses every fill with EAGAIN. The
// library reads the event and never spins. It returns short if the change is about the same pages, and continues once
// the change is delivered.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../../shim/memory.js';
import { type Feature, type Kernel, Mapping, type Mode, Userfaultfd } from '../../../src/index.js';
import { suite } from '../../support/harness.js';
import {
  at,
  endAll,
  kernelWith,
  map,
  never,
  P,
  pageOf,
  recorder,
  skipWithout,
  type Toucher,
  toucher,
} from '../../support/real-kernel.js';

const test = suite('mmap-changing');
const EAGAIN = 11;

interface Fill {
  name: string;
  /** The operation's number: the low byte of its request code. */
  number: number;
  /** Offset of the signed result in the operation's struct; 0: the struct has none. */
  resultAt: number;
  features: readonly Feature[];
  modes?: readonly Mode[];
  /** Makes one page of memory to fill; default: anonymous. */
  memory?: () => Mapping;
  run(uffd: Userfaultfd, start: bigint): number;
}

/** Shared memory whose page is in the page cache, but not mapped. */
function cached(): Mapping {
  const mapping = Mapping.memfd(P);
  const alias = mapping.alias();
  alias.bytes.fill(4);
  alias.close();
  return mapping;
}

const FILLS: readonly Fill[] = [
  { name: 'copy', number: 3, resultAt: 32, features: [], run: (uffd, start) => uffd.copy(start, pageOf(4)) },
  { name: 'zero', number: 4, resultAt: 24, features: [], run: (uffd, start) => uffd.zero(start, P) },
  {
    ...{ name: 'move', number: 5, resultAt: 32, features: ['move'] },
    run: (uffd, start) => uffd.move(start, map(1, 4), P),
  },
  {
    ...{ name: 'write-protect', number: 6, resultAt: 0, features: ['wp-unpopulated'] },
    modes: ['missing', 'write-protect'],
    run: (uffd, start) => uffd.writeProtect(start, P, true),
  },
  {
    ...{ name: 'continue', number: 7, resultAt: 24, features: ['minor-shmem'] },
    ...{ modes: ['minor'], memory: cached },
    run: (uffd, start) => uffd.continue(start, P),
  },
  {
    ...{ name: 'poison', number: 8, resultAt: 24, features: ['poison'] },
    run: (uffd, start) => uffd.poison(start, P),
  },
] as const;

/** A kernel that records its answer to each ioctl of one operation: the return value, and the result in the struct. */
function noting({ number, resultAt }: Fill): { kernel: Kernel; answers: [number, bigint][] } {
  const answers: [number, bigint][] = [];
  const kernel = kernelWith((port, memory) => {
    const ioctl = port.ioctl.bind(port);
    return {
      ioctl(fd, request, offset) {
        const result = ioctl(fd, request, offset);
        const struct = new DataView(memory.buffer, offset);
        if ((request & 0xff) === number)
          answers.push([result, resultAt ? struct.getBigInt64(resultAt, true) : BigInt(result)]);
        return result;
      },
    };
  });
  return { kernel, answers };
}

/** Runs a body while a thread that removes a page sleeps until the event is read; another page is for the fill. */
async function withChange(
  fill: Fill,
  body: (stage: {
    uffd: Userfaultfd;
    thread: Toucher;
    /** Two pages, of which the thread removes the first. */
    changing: bigint;
    /** The page for the fill, in another mapping. */
    target: bigint;
    removal: Promise<number>;
    answers: [number, bigint][];
  }) => Promise<void>,
): Promise<void> {
  const features: Feature[] = ['event-remove', ...fill.features];
  for (const feature of features) skipWithout(feature);
  const { kernel, answers } = noting(fill);
  const uffd = Userfaultfd.open({ features, kernel });
  const area = fill.memory?.() ?? Mapping.anonymous(P);
  try {
    const thread = await toucher();
    const changing = map(2, 1);
    uffd.register(changing, 2 * P, fill.modes?.includes('minor') ? 'missing' : fill.modes);
    uffd.register(area.address, P, fill.modes);
    const removal = thread.madvise(changing, P, MADV_DONTNEED);
    await thread.asleep();
    await body({ uffd, thread, changing, target: area.address, removal, answers });
  } finally {
    uffd.close();
    await endAll();
    area.close();
  }
}

for (const fill of FILLS) {
  test(`${fill.name} elsewhere: EAGAIN, then it reads and goes on`, async () => {
    await withChange(fill, async ({ uffd, changing, target, removal, answers }) => {
      // The kernel refuses the fill until the removing thread has run; until then, each call returns 0.
      let done = 0;
      let tries = 0;
      for (; done === 0; tries++) done = fill.run(uffd, target);
      assert.is(done, P);
      assert.is(await removal, 0);
      assert.equal(answers[0], [-EAGAIN, BigInt(-EAGAIN)], 'the first answer, and the result in its struct');
      assert.equal(answers.at(-1), [0, fill.resultAt ? BigInt(P) : 0n]);
      // Each call reads the queue at most twice before it returns short.
      assert.ok(answers.length <= 3 * tries, `${answers.length} calls in ${tries} tries`);
      const { calls, handler } = recorder(never);
      uffd.poll(handler);
      assert.equal(calls, [['removed', changing, at(changing, 1)]]);
    });
  });
}

for (const fill of FILLS.filter(({ memory }) => !memory)) {
  test(`${fill.name} on the pages that change: short until the change is delivered`, async () => {
    await withChange(fill, async ({ uffd, changing, removal, answers }) => {
      assert.is(fill.run(uffd, changing), 0);
      assert.is(fill.run(uffd, changing), 0);
      assert.is(answers.length, 1, 'once it knows of the change, it does not ask the kernel');
      assert.is(uffd.pageState(changing), 'missing', 'a change has no effect before it is delivered');
      assert.is(await removal, 0);
      const { calls, handler } = recorder(never);
      uffd.poll(handler);
      assert.equal(calls, [['removed', changing, at(changing, 1)]]);
      assert.is(uffd.pageState(changing), 'removed');
      assert.is(fill.run(uffd, changing), P);
    });
  });
}

test('register, unregister and wake work while a change waits', async () => {
  await withChange(FILLS[0] as Fill, async ({ uffd, changing, target, removal }) => {
    const other = map(1);
    uffd.register(other, P);
    uffd.wake(changing, P);
    uffd.unregister(other, P);
    uffd.unregister(target, P);
    const { calls, handler } = recorder(never);
    uffd.poll(handler);
    assert.is(await removal, 0);
    assert.is(calls.length, 1);
  });
});

test.run();
