// The stress modes: several threads count in the pages of one area, under locks that lie in the pages themselves.
// Meanwhile, faults and background copies bring the pages from another area, and pages are protected again and again.
// Each bounce swaps the two areas. Invariant: no update is lost or applied twice. At every step and at the end, the
// count in a page equals its expected count, which is kept outside of the page.

import * as assert from 'uvu/assert';
import * as memory from '../../../shim/memory.js';
import { type FaultHandler, type Mapping, type Mode, Userfaultfd } from '../../../src/index.js';
import { generator, seed, suite } from '../../support/harness.js';
import { withHugePages } from '../../support/huge-pages.js';
import {
  endAll,
  looper,
  map,
  needKernel,
  P,
  skipWithout,
  type Toucher,
  touchers,
} from '../../support/real-kernel.js';
import { featuresOf, isHuge, isShared, KINDS, type Kind, memoryOf, scenarioLibrary } from './support.js';

const test = suite('stress');
const random = generator(seed());
const MADV_REMOVE = 9;
const THREADS = 4;

/** Options of a bounce; each bit of its number turns one on. */
const MODES = ['random', 'racing faults', 'verify', 'poll'] as const;
type Bounce = ReadonlySet<(typeof MODES)[number]>;

interface Areas {
  kind: Kind;
  pages: number;
  pageSize: number;
  /** The expected count of each page: one word per page, outside of the watched memory. */
  written: bigint;
  threads: Toucher[];
}

/** Lets all threads count in the pages of `area`. For each thread: a page with a wrong count, from 1; 0 for none. */
function countAll(
  { pages, pageSize, written, threads }: Areas,
  area: Mapping,
  bounce: Bounce,
): Promise<number[]> {
  const racing = bounce.has('racing faults');
  const start = 1 + random(2 ** 30);
  const declaration =
    'int count(uintptr_t area, uintptr_t written, size_t pages, size_t page_size, size_t steps, size_t first, uint64_t seed)';
  return Promise.all(
    threads.map((thread, n) => {
      const first = racing ? start : start + Math.floor((n * pages) / THREADS);
      const from = bounce.has('random') ? (racing ? start : start + n) : 0;
      const steps = 8 * pages;
      return thread.native(
        scenarioLibrary(),
        declaration,
        ...[area.address, written, pages, pageSize, steps, first, from],
      );
    }),
  );
}

/** Serves on this thread's event loop, and meanwhile copies pages and protects them again, one at a time. */
async function servedHere(
  uffd: Userfaultfd,
  { pages, pageSize }: Areas,
  source: Mapping,
  target: Mapping,
  work: () => Promise<number[]>,
): Promise<number[]> {
  const from = (page: bigint): bigint => source.address + (page - target.address);
  const copy = (page: bigint) => uffd.copy(page, from(page), pageSize, { writeProtect: true }) === pageSize;
  const handler: FaultHandler = {
    pagefault: (fault) =>
      fault.kind === 'missing'
        ? copy(fault.page)
        : uffd.writeProtect(fault.page, pageSize, false) === pageSize,
  };
  uffd.start(handler);
  let working = true;
  let next = 0;
  const background = (): void => {
    if (!working) return;
    copy(target.address + BigInt((next % pages) * pageSize));
    if (next++ > pages) uffd.writeProtect(target.address + BigInt(random(pages) * pageSize), pageSize, true);
    setImmediate(background);
  };
  background();
  try {
    return await work();
  } finally {
    working = false;
    uffd.stop();
  }
}

/** Serves in a thread of its own, which sleeps in poll(2), and then takes the descriptor back. */
async function servedThere(
  uffd: Userfaultfd,
  source: Mapping,
  target: Mapping,
  work: () => Promise<number[]>,
): Promise<{ wrong: number[]; uffd: Userfaultfd }> {
  const { features } = uffd;
  const loop = await looper(uffd, {
    ...{ wait: 'block', source: source.address, base: target.address },
    ...{ protect: true, after: 'release' },
  });
  try {
    const wrong = await work();
    await loop.stop();
    const { fd, ranges } = await loop.waitFor('released');
    return { wrong, uffd: Userfaultfd.wrap(fd, { features, ranges }) };
  } catch (error) {
    await loop.stop();
    throw error;
  }
}

/** One bounce: counts in `target`, whose pages come from `source`. */
async function run(areas: Areas, source: Mapping, target: Mapping, bounce: Bounce): Promise<void> {
  const { kind, pages, pageSize, written } = areas;
  const length = pages * pageSize;
  const modes: Mode[] = ['missing', 'write-protect'];
  let uffd = Userfaultfd.open({ features: featuresOf(kind, modes) });
  try {
    uffd.register(target.address, length, modes);
    const work = () => countAll(areas, target, bounce);
    let wrong: number[];
    if (bounce.has('poll')) wrong = await servedHere(uffd, areas, source, target, work);
    else ({ wrong, uffd } = await servedThere(uffd, source, target, work));
    const what = [...bounce].join(', ');
    assert.equal(wrong, Array(THREADS).fill(0), what);
    // Install the pages that no thread has touched; present pages are skipped.
    assert.is(uffd.copy(target.address, source.address, length), length);
    uffd.unregister(target.address, length);
    if (bounce.has('verify')) {
      const counts = new BigUint64Array(target.bytes.buffer);
      const expected = new BigUint64Array(memory.view(written, pages * 8));
      for (let page = 0; page < pages; page++) {
        const at = (page * pageSize) / 8;
        const found = [counts[at + 1], counts[at + pageSize / 8 - 1]];
        assert.equal(found, [expected[page], expected[page]], `${what}: page ${page}`);
      }
    }
    assert.is(memory.madvise(source.address, length, isShared(kind) ? MADV_REMOVE : memory.MADV_DONTNEED), 0);
  } finally {
    uffd.close();
  }
}

/** Fills pages whose counts are 1, so that a page of zeros is wrong. Copies: a write would fill the page cache too. */
function begin(area: Mapping, pages: number): void {
  const words = area.pageSize / 8;
  const counts = new BigUint64Array(pages * words);
  for (let page = 0; page < pages; page++) counts[page * words + 1] = counts[(page + 1) * words - 1] = 1n;
  using uffd = Userfaultfd.open();
  uffd.register(area.address, pages * area.pageSize);
  uffd.copy(area.address, counts);
}

async function stress(kind: Kind, pages: number): Promise<void> {
  for (const feature of featuresOf(kind, ['missing', 'write-protect'])) skipWithout(feature);
  const written = map(Math.ceil((pages * 8) / P));
  const places: [Mapping, Mapping] = [memoryOf(kind, pages), memoryOf(kind, pages)];
  const areas = { kind, pages, pageSize: places[0].pageSize, written, threads: await touchers(THREADS) };
  new BigUint64Array(memory.view(written, pages * 8)).fill(1n);
  begin(places[0], pages);
  try {
    for (let number = 2 ** MODES.length - 1; number >= 0; number--) {
      const bounce = new Set(MODES.filter((_, bit) => (number >> bit) & 1));
      const [source, target] = number % 2 ? places : places.toReversed();
      await run(areas, source as Mapping, target as Mapping, bounce);
    }
  } finally {
    await endAll();
    for (const place of places) place.close();
  }
}

for (const kind of KINDS) {
  test(`random, racing faults, verify and poll, in every combination: ${kind}`, async () => {
    needKernel();
    scenarioLibrary();
    // One spare page: a copy from a source that is not resident takes it for a moment.
    if (isHuge(kind)) await withHugePages(9, () => stress(kind, 4));
    else await stress(kind, 128);
  });
}

test.run();
