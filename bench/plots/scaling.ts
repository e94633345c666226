// How figures grow with pages, ranges, threads and userfaultfds: what the plots show.
//
// Rule: memory that would not fit twice into what is free is not asked for; a line ends there.

import { freemem } from 'node:os';
import { BASE, SMALL_PAGE } from '../cells.js';
import { lookupNs, transferNs } from '../core.js';
import { FaultBench, placements } from '../faults.js';
import { servers, YARDSTICK } from '../peers.js';
import { rowsOf } from '../results.js';
import { figure, ServeBench } from '../serve.js';
import type { Spread } from '../statistics.js';

export interface Line {
  name: string;
  points: { x: number; value: Spread }[];
}

/** One plot: how a figure (y) depends on a number (x). */
export interface Scaling {
  /** Its file's name. */
  name: string;
  title: string;
  x: string;
  y: string;
  lines: Line[];
}

/** What a run measures with. */
export interface Extent {
  library: string;
  rounds: number;
  /** Of a guest. */
  pages: number;
  /** Beside C. */
  wanted: readonly string[];
  quick: boolean;
  /** What cannot be measured is added to it. */
  leftOut: string[];
  say: (text: string) => void;
}

const CORE_PAGES = [10, 12, 14, 16, 18, 20, 22].map((power) => 2 ** power);
const RANGES = [1, 10, 100, 1000, 10_000, 100_000];
const THREADS = [1, 2, 4, 8, 16, 32, 64];
const USERFAULTFDS = [1, 2, 4, 8, 16];
/** Of pages that are faulted in, where it has to be quick. */
const QUICK_PAGES = 2 ** 14;

/** All plots, one after the other. */
export async function* scaling(extent: Extent): AsyncGenerator<Scaling> {
  const { library, pages, rounds, leftOut } = extent;
  const bench = new ServeBench(library, pages);
  yield core('ranges', 'A lookup in the core, among so many ranges', RANGES, (count) =>
    lookupNs(count, rounds),
  );
  yield core('core-pages', 'A transfer in the core, of memory with so many pages', CORE_PAGES, (count) =>
    transferNs(count, rounds),
  );
  yield await byPages(extent);
  yield await byThreads(bench, extent);
  yield await byUserfaultfds(bench, extent);
  leftOut.push(...bench.leftOut);
}

function core(
  name: string,
  title: string,
  counts: readonly number[],
  measure: (count: number) => Spread,
): Scaling {
  const points = counts.map((x) => ({ x, value: measure(x) }));
  return {
    name,
    title,
    x: name === 'ranges' ? 'ranges' : 'pages',
    y: 'ns',
    lines: [{ name: 'the core alone', points }],
  };
}

/** Faults of one thread, answered in the same process on the same processor. */
async function byPages({ library, rounds, quick }: Extent): Promise<Scaling> {
  const lines: Line[] = [YARDSTICK, 'block'].map((name) => ({ name, points: [] }));
  for (const pages of CORE_PAGES) {
    if (pages * SMALL_PAGE > freemem() / 2 || (quick && pages > QUICK_PAGES)) break;
    const bench = new FaultBench(library, pages);
    const placement = placements(bench.native).possible.find(({ name }) => name === 'same');
    if (!placement) break;
    const contest = await bench.contest(placement, 'block', rounds);
    bench.close();
    const rows = rowsOf({ contests: [contest] });
    for (const [index, { points }] of lines.entries()) {
      const value = rows[index]?.perSecond;
      if (value) points.push({ x: pages, value });
    }
  }
  const title = 'Faults of one thread, in memory of so many pages; both on one processor';
  return { name: 'pages', title, x: 'pages', y: 'faults/s', lines };
}

async function byThreads(bench: ServeBench, { wanted, rounds, say }: Extent): Promise<Scaling> {
  const lines = new Map<string, Line>();
  const cells = THREADS.map((threads) => ({ ...BASE, threads }));
  for await (const { threads, entrants } of bench.run(cells, wanted, rounds, say)) {
    say(`threads: ${threads}`);
    for (const entrant of entrants) {
      const { name } = entrant;
      const line = lines.get(name) ?? { name, points: [] };
      line.points.push({ x: threads, value: figure(entrant, 'perSecond') });
      lines.set(name, line);
    }
  }
  const title = 'Pages a second of a guest with so many threads, at random; left to the scheduler';
  return { name: 'threads', title, x: 'threads', y: 'pages/s', lines: [...lines.values()] };
}

/** Guests at once: one process of ours for all, and one of C's for each, since it serves one after the other. */
async function byUserfaultfds(bench: ServeBench, { rounds, say }: Extent): Promise<Scaling> {
  const lines: Line[] = [];
  for (const { name, command } of servers(['uffd serve']).servers) {
    const inOne = name !== YARDSTICK;
    const line: Line = { name: inOne ? `${name}, one process` : `${name}, a process for each`, points: [] };
    for (const x of USERFAULTFDS) {
      const value = await bench.together(command, x, inOne, rounds);
      line.points.push({ x, value });
      say(`${line.name}, userfaultfds ${x}: ${Math.round(value.median).toLocaleString('en')} pages/s`);
    }
    lines.push(line);
  }
  const title = 'Pages a second of all guests together, one thread each, at random';
  return { name: 'userfaultfds', title, x: 'userfaultfds', y: 'pages/s', lines };
}
