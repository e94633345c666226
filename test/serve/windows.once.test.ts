// Pages installed by one call, for a fault and in the background, as recorded in a session's trace: a run, a run with a
// gap, a run longer than the limit, one page, the first pages, nothing, and runs up to the end of a region.

import { strict as assert } from 'node:assert';
import { join } from 'node:path';
import { Kind, TraceReader } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { memoryFile, P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/windows');
/** Most bytes that are prefetched in one step; a larger page is a step of its own. */
const STEP_BYTES = 65_536;
/** Most removed pages that are installed at once: 2 MiB. */
const ZERO_RUN_MOST = 512;

/** By ioctl: the number of words of its struct (COPY, ZEROPAGE). */
const WORDS: ReadonlyMap<number, number> = new Map([
  [Kind.IOCTL + 3, 5],
  [Kind.IOCTL + 4, 4],
]);

/** The first page, and the number of pages. */
type Run = readonly [page: number, pages: number];

interface Installed {
  readonly runs: readonly Run[];
  /** Number of the aligned window of `size` pages that contains a page, counted by the guest's addresses. */
  windowOf(page: number, size: number): number;
}

/** The ranges that a session has installed, in order, in pages of the file. */
function installed(trace: string, pageSize: number): Installed {
  const reader = TraceReader.fromFile(trace);
  const { regions } = reader.meta.about as {
    regions: { start: string; length: number; offset: number }[];
  };
  const runs: Run[] = [];
  while (reader.next()) {
    const { codec } = reader;
    const words = WORDS.get(codec.kind);
    if (!words) continue;
    // Three fields, then the struct before the call, then after it. The last word of that is the result.
    const at = codec.words[3] as bigint;
    const length = Number(BigInt.asIntN(64, codec.words[2 + 2 * words] as bigint));
    if (length <= 0) continue;
    const region = regions.find(
      ({ start, length }) => at >= BigInt(start) && at < BigInt(start) + BigInt(length),
    );
    if (region)
      runs.push([(region.offset + Number(at - BigInt(region.start))) / pageSize, length / pageSize]);
  }
  reader.close();
  const windowOf = (page: number, size: number): number => {
    const region = regions.find(({ offset, length }) => page * pageSize < offset + length);
    const { start = '', offset = 0 } = region ?? {};
    return Math.floor((Number(start) / pageSize + page - offset / pageSize) / size);
  };
  return { runs, windowOf };
}

/** The file with the trace of a session, for a server that records to `path`. */
const recordOf = (path: string, index: number): string => (index === 0 ? path : `${path}.${index + 1}`);

/** Runs a guest that touches the pages of each run, one after the other. */
async function touchEach({ guest, server }: Scene, runs: readonly Run[]): Promise<void> {
  const monitor = await guest({ regions: 2 });
  await until(() => server.sessions.size === 1 && [...server.sessions][0]?.settledMs !== undefined);
  for (const [from, pages] of runs) {
    if (pages < 0) await monitor.remove(from, from - pages);
    else {
      const order = { threads: 1, order: 'sequential', seed: 0, from, to: from + pages } as const;
      const { wrong, wrongCount } = await monitor.touch(order);
      assert.equal(wrongCount, 0, wrong.join('\n'));
    }
  }
  await monitor.end();
  await until(() => server.sessions.size === 0);
}

/** A run whose pages are removed instead of touched: its number of pages is negative. */
const taken = ([page, pages]: Run): Run => [page, -pages];

/**
 * The ranges that faults must install: around each page its neighbours in the same state, inside of its window and its
 * region. Removed pages are installed in runs, each twice as long as the run before, unless the pages are huge.
 */
function expectedFor(
  touched: readonly Run[],
  { pages, huge }: { pages: number; huge: boolean },
  window: number,
  { windowOf }: Installed,
): Run[] {
  const states = Array<'missing' | 'removed' | 'present'>(pages).fill('missing');
  let zeroRun = 1;
  const together = (page: number, other: number, size: number): boolean =>
    states[page] === states[other] &&
    page < pages / 2 === other < pages / 2 &&
    windowOf(page, size) === windowOf(other, size);
  const runs: Run[] = [];
  for (const [from, count] of touched) {
    if (count < 0) states.fill('removed', from, from - count);
    for (let page = from; page < from + count; page++) {
      if (states[page] === 'present') continue;
      const inRuns = states[page] === 'removed' && !huge;
      if (inRuns) zeroRun = Math.min(2 * zeroRun, ZERO_RUN_MOST);
      const size = inRuns ? Math.max(window, zeroRun) : window;
      let [first, end] = [page, page + 1];
      while (first > 0 && together(page, first - 1, size)) first--;
      while (end < pages && together(page, end, size)) end++;
      // Zeros of huge pages are copied, one page at a time.
      const one = states[page] === 'removed' && huge ? 1 : end - first;
      states.fill('present', first, end);
      for (; first < end; first += one) runs.push([first, one]);
    }
  }
  return runs;
}

/** Cuts runs into steps: each has at most `most` pages, and ends at the end of its region at the latest. */
function steps(runs: readonly Run[], all: number, most: number): Run[] {
  return runs.flatMap(([from, pages]) => {
    const cut: [number, number][] = [];
    for (let page = from; page < from + pages; page++) {
      const last = cut.at(-1);
      if (last && page !== all / 2 && last[1] < most) last[1]++;
      else cut.push([page, 1]);
    }
    return cut;
  });
}

/** One run of each kind, for a guest whose second region begins with page `half`. */
const runsOf = (half: number): Readonly<Record<string, readonly Run[]>> => ({
  'page 0 to 1': [[0, 2]],
  'one page': [[half - 3, 1]],
  'the last page': [[2 * half - 1, 1]],
  'a run, one after the other': [[1, half / 2]],
  'up to the end of a region': [[half - 3, 3]],
  'over the end of a region': [[half - 2, 4]],
  'all of them': [[0, 2 * half]],
  nothing: [],
});
const gapsOf = (half: number): Readonly<Record<string, readonly Run[]>> => ({
  'pages that are there in between': [
    [half + 4, 1],
    [half + 2, 5],
  ],
  'pages that were removed in between': [taken([half + 4, 2]), [half + 2, 6]],
});

for (const [what, pageSize, pages] of [
  ['4 KiB', P, 64],
  ['2 MiB', 2 ** 21, 16],
] as const) {
  const each = (name: string, body: () => Promise<void>): void => {
    const run = (): Promise<void> => (pageSize === P ? body() : withHugePages(pages + 2, body));
    test(`${name}, pages of ${what}`, run, 120_000);
  };

  for (const window of [1, 4]) {
    const cases = Object.entries({ ...runsOf(pages / 2), ...gapsOf(pages / 2) });
    each(`12. what is installed for faults, window ${window}`, () =>
      inDirectory(async (directory) => {
        const record = join(directory, 'trace');
        await serving({ pages, pageSize, window, record }, async (scene) => {
          for (const [, touched] of cases) await touchEach(scene, touched);
        });
        for (const [index, [name, touched]] of cases.entries()) {
          const found = installed(recordOf(record, index), pageSize);
          const expected = expectedFor(touched, { pages, huge: pageSize > P }, window, found);
          assert.deepEqual(found.runs, expected, name);
        }
      }),
    );
  }

  each('12. what is prefetched', () =>
    inDirectory(async (directory) => {
      const [first, second] = [join(directory, 'first'), join(directory, 'second')];
      const file = memoryFile(directory, pages, pageSize);
      const served = { pageSize, memory: () => file };
      const cases = Object.entries(runsOf(pages / 2));
      await serving({ ...served, record: first }, async (scene) => {
        for (const [, touched] of cases) await touchEach(scene, touched);
      });
      const most = Math.max(1, STEP_BYTES / pageSize);
      for (const [index, [name, touched]] of cases.entries()) {
        const prefetch = [recordOf(first, index)];
        await serving({ ...served, record: second, prefetch }, (scene) => touchEach(scene, []));
        assert.deepEqual(installed(second, pageSize).runs, steps(touched, pages, most), name);
      }
    }),
  );
}

test.run();
