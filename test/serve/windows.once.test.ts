// What is installed at once, for a fault and in the background, as the trace of a session has it: a run, one with a gap,
// one that is longer than may be installed at once, one page, the first pages, nothing, and runs up to the end of a region.

import { strict as assert } from 'node:assert';
import { join } from 'node:path';
import { Op } from '../../src/core.js';
import { Kind, TraceReader } from '../../src/trace/index.js';
import { inDirectory } from '../cli/command.js';
import { suite } from '../harness.js';
import { withHugePages } from '../kernel/huge-pages.js';
import { P, type Scene, serving, until } from './support.js';

const test = suite('serve/windows');
/** What is prefetched at once, at most; one page, if that is larger. */
const STEP_BYTES = 65_536;

/** First page, and how many. */
type Run = readonly [page: number, pages: number];

interface Installed {
  readonly runs: readonly Run[];
  /** Number of the aligned window of so many pages that a page lies in, in the guest's memory. */
  windowOf(page: number, size: number): number;
}

/** What a session has installed, in order, by pages of the file. */
function installed(trace: string, pageSize: number): Installed {
  const reader = TraceReader.fromFile(trace);
  const { regions } = reader.meta.about as {
    regions: { start: string; length: number; offset: number }[];
  };
  const runs: Run[] = [];
  while (reader.next()) {
    const { codec } = reader;
    if (codec.kind !== Kind.NOTE + Op.copy && codec.kind !== Kind.NOTE + Op.zero) continue;
    const [at, length] = [codec.words[0] as bigint, codec.integer(1)];
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

/** A guest that touches pages one after the other, for each of some runs. */
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

/** In place of touching them, pages are taken away: a run of less than none. */
const taken = ([page, pages]: Run): Run => [page, -pages];

/** What is installed for faults: as much around each page as is like it, inside of its window and its region. */
function expectedFor(
  touched: readonly Run[],
  { pages, huge }: { pages: number; huge: boolean },
  window: number,
  { windowOf }: Installed,
): Run[] {
  const states = Array<'missing' | 'removed' | 'present'>(pages).fill('missing');
  const together = (page: number, other: number): boolean =>
    states[page] === states[other] &&
    page < pages / 2 === other < pages / 2 &&
    windowOf(page, window) === windowOf(other, window);
  const runs: Run[] = [];
  for (const [from, count] of touched) {
    if (count < 0) states.fill('removed', from, from - count);
    for (let page = from; page < from + count; page++) {
      if (states[page] === 'present') continue;
      let [first, end] = [page, page + 1];
      while (first > 0 && together(page, first - 1)) first--;
      while (end < pages && together(page, end)) end++;
      // Zeros of huge pages are copied, each by itself.
      const one = states[page] === 'removed' && huge ? 1 : end - first;
      states.fill('present', first, end);
      for (; first < end; first += one) runs.push([first, one]);
    }
  }
  return runs;
}

/** Runs that are installed in steps: each ends with its window and its region at the latest. */
function steps(runs: readonly Run[], all: number, most: number, { windowOf }: Installed): Run[] {
  return runs.flatMap(([from, pages]) => {
    const cut: [number, number][] = [];
    for (let page = from; page < from + pages; page++) {
      const last = cut.at(-1);
      const goesOn = page !== all / 2 && windowOf(page, most) === windowOf(page - 1, most);
      if (last && goesOn) last[1]++;
      else cut.push([page, 1]);
    }
    return cut;
  });
}

/** One of each kind, for a guest whose second region begins with page `half`. */
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
    each(`12. what is installed for faults, window ${window}`, async () => {
      for (const [name, touched] of Object.entries({ ...runsOf(pages / 2), ...gapsOf(pages / 2) })) {
        await inDirectory(async (directory) => {
          const record = join(directory, 'trace');
          await serving({ pages, pageSize, window, record }, (scene) => touchEach(scene, touched));
          const found = installed(record, pageSize);
          assert.deepEqual(
            found.runs,
            expectedFor(touched, { pages, huge: pageSize > P }, window, found),
            name,
          );
        });
      }
    });
  }

  each('12. what is prefetched', async () => {
    for (const [name, touched] of Object.entries(runsOf(pages / 2))) {
      await inDirectory(async (directory) => {
        const [first, second] = [join(directory, 'first'), join(directory, 'second')];
        const served = { pages, pageSize };
        await serving({ ...served, record: first }, (scene) => touchEach(scene, touched));
        await serving({ ...served, record: second, prefetch: [first] }, (scene) => touchEach(scene, []));
        const found = installed(second, pageSize);
        const most = Math.max(1, STEP_BYTES / pageSize);
        assert.deepEqual(found.runs, steps(touched, pages, most, found), name);
      });
    }
  });
}

test.run();
