// The CPU affinity of a loop's thread on the real kernel: the loop sets and restores it, and moves no other thread.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { linuxProcessors } from '../../shim/processors.js';
import { type Placement, Userfaultfd, type Wait } from '../../src/index.js';
import { leaveOut, suite } from '../support/harness.js';
import {
  endAll,
  kernelWith,
  looper,
  map,
  needKernel,
  never,
  numberedSource,
  openWith,
  P,
  type Toucher,
  toucher,
  until,
} from '../support/real-kernel.js';

const test = suite('scheduling/affinity-on-linux');
const PAGES = 4000;
const ROUNDS = 50;
/** A list of one processor. */
const ONE = /^\d+$/;

function needTwo(): void {
  if (availableParallelism() < 2) leaveOut('there is one processor');
}

/** The CPUs on which a thread of this process may run, from /proc: '0-3'. */
function mayRunOn(tid: number): string {
  const status = readFileSync(`/proc/self/task/${tid}/status`, 'utf8');
  return /^Cpus_allowed_list:\s*(\S+)/m.exec(status)?.[1] as string;
}

/** Touches and checks all pages, and again after removing them, until `seen` says so; at most `ROUNDS` times. */
async function touchUntil(thread: Toucher, base: bigint, seen: () => boolean): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    if (round > 0) assert.is(await thread.madvise(base, PAGES * P, MADV_DONTNEED), 0);
    assert.is(await thread.verify(base, PAGES, P, 7), 0);
    if (seen()) return;
  }
}

/**
 * Serves a thread that touches and checks all pages; returns what was observed of the loop's placement. Without thread
 * ids the loop follows no thread while another one faults too, so it may be `expected` only after some rounds.
 */
async function serve(
  placement: Placement,
  wait: Wait,
  features: ('thread-id' | 'event-remove')[],
  expected = /./,
): Promise<{ before: string; meanwhile: string; after: number[]; toucherOn: string }> {
  const uffd = openWith(features);
  const base = map(PAGES);
  uffd.register(base, PAGES * P);
  const source = numberedSource(PAGES);
  const loop = await looper(uffd, { wait, placement, source, base, after: 'release' });
  const { tid } = await loop.waitFor('ready');
  const before = mayRunOn(process.pid);
  const thread = await toucher();
  let meanwhile = '';
  await touchUntil(thread, base, () => {
    meanwhile = mayRunOn(tid);
    return expected.test(meanwhile);
  });
  const toucherOn = mayRunOn(await thread.tid());
  const { cpus } = await loop.stop();
  const { fd, ranges } = await loop.waitFor('released');
  Userfaultfd.wrap(fd, { ranges }).close();
  return { before, meanwhile, after: cpus, toucherOn };
}

for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
  test(`${wait}: follows the thread that faults, and is put back; that thread is never moved`, async () => {
    needTwo();
    for (const features of [['thread-id'], ['event-remove']] as const) {
      const { before, meanwhile, after, toucherOn } = await serve('follow', wait, [...features], ONE);
      assert.match(meanwhile, ONE, `${features}: one processor`);
      assert.equal(after, linuxProcessors.allowed());
      assert.is(toucherOn, before);
    }
    await endAll();
  });
}

test('auto serves every page, and leaves everything as it was', async () => {
  const { before, after, toucherOn } = await serve('auto', 'block', ['thread-id']);
  assert.equal([after, toucherOn], [linuxProcessors.allowed(), before]);
  await endAll();
});

/** Whether this process keeps processors out of deep idle states, by an open /dev/cpu_dma_latency. */
function keepsAwake(): boolean {
  return readdirSync('/proc/self/fd').some((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === '/dev/cpu_dma_latency';
    } catch {
      return false;
    }
  });
}

for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
  test(`${wait}: processors are kept awake while faults come, and neither in a pause nor behind the end`, async () => {
    const probe = linuxProcessors.keepAwake();
    if (!probe) leaveOut('/dev/cpu_dma_latency may not be written here');
    assert.ok(keepsAwake());
    probe.close();
    assert.not(keepsAwake());
    const uffd = openWith(['thread-id']);
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    const loop = await looper(uffd, { wait, placement: 'awake', source: numberedSource(PAGES), base });
    await loop.waitFor('ready');
    const thread = await toucher();
    let seen = false;
    const begun = performance.now();
    let rounds = 0;
    // This thread may not get to look while the pages are touched once.
    const look = setInterval(() => {
      seen ||= keepsAwake();
    }, 1);
    await touchUntil(thread, base, () => {
      rounds++;
      return seen;
    });
    clearInterval(look);
    // On a very slow machine the loop rightly does not keep processors awake.
    assert.ok(seen || performance.now() - begun > (rounds * PAGES) / 2, 'kept awake');
    await until(() => !keepsAwake());
    await loop.stop();
    assert.not(keepsAwake());
    await endAll();
  });
}

test('processors by their numbers', async () => {
  needTwo();
  const [first = 0, ...others] = linuxProcessors.allowed();
  const { meanwhile, after } = await serve([first], 'block', []);
  assert.equal([meanwhile, after], [`${first}`, [first, ...others]]);
  const uffd = openWith();
  const none = Math.max(first, ...others) + 1;
  assert.throws(
    () => uffd.start({ pagefault() {} }, { placement: [none] }),
    /placement must be some of the processors/,
  );
  assert.is(uffd.start({ pagefault() {} }, { placement: 'follow' }), true, 'it can be started yet');
  uffd.close();
  await endAll();
});

test('statistics say on which CPU each thread runs, and how often threads faulted', async () => {
  const { thread, threads } = linuxProcessors;
  const other = await toucher();
  const tid = await other.tid();
  const seen = (): { processor: number; faults: number } => thread(0, tid) as never;
  const before = seen().faults;
  const base = map(200);
  await other.verify(base, 200, P, 1);
  await until(() => seen().faults >= before + 200);
  assert.ok(linuxProcessors.allowed().includes(seen().processor));
  assert.ok(threads(0).some((one) => one.tid === tid));
  assert.ok(threads(process.pid).some(({ tid }) => tid === process.pid));
  assert.is(thread(0, 2 ** 30), undefined);
  assert.equal(threads(2 ** 30), []);
  await endAll();
});

for (const wait of ['spin', 'adaptive'] as const) {
  test(`${wait} lets others run while nothing comes`, () => {
    needKernel();
    let yields = 0;
    const kernel = kernelWith(() => ({
      processors: {
        ...linuxProcessors,
        yield() {
          linuxProcessors.yield();
          // If the loop never yielded, this test would not end.
          if (++yields === 3) uffd.stop();
        },
      },
    }));
    const uffd = Userfaultfd.open({ kernel });
    uffd.start({ pagefault: never }, { wait });
    uffd.close();
    assert.is(yields, 3);
  });
}

test.run();
