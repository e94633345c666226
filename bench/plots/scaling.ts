// The plots: how figures grow with pages, ranges, threads and userfaultfds.
//
// Rule: a size that does not fit twice into the free memory is left out, so the line of the plot ends before it.

import { freemem } from 'node:os';
import { BASE, SMALL_PAGE } from '../cells.js';
import { lookupNs, transferNs } from '../core.js';
import { FaultBench, placements } from '../faults.js';
import { setUntilExit } from '../machine.js';
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

/** The parameters of a run. */
export interface Extent {
  library: string;
  rounds: number;
  /** Pages of a guest. */
  pages: number;
  /** The handlers that are measured beside C. */
  wanted: readonly string[];
  quick: boolean;
  /** Gets a line for each figure that cannot be measured, with the reason. */
  leftOut: string[];
  say: (text: string) => void;
}

const CORE_PAGES = [10, 12, 14, 16, 18, 20, 22].map((power) => 2 ** power);
const RANGES = [1, 10, 100, 1000, 10_000, 100_000];
const THREADS = [1, 2, 4, 8, 16, 32, 64];
const USERFAULTFDS = [1, 2, 4, 8, 16];
/** The handlers that are measured beside C in the plot over threads. */
const COMPARED: readonly string[] = ['uffd serve', 'Rust', 'Go'];
/** The kernel's limit of mappings of a process. A registered range takes two mappings, and the process has others. */
const MAPPINGS = '/proc/sys/vm/max_map_count';
const MAPPINGS_BESIDES = 65_530;
const MAPPINGS_USUAL = 32_768;
/** The largest number of pages for a quick run. */
const QUICK_PAGES = 2 ** 14;

/** Measures all plots, one after the other. */
export async function* scaling(extent: Extent): AsyncGenerator<Scaling> {
  const { library, pages, rounds, leftOut } = extent;
  const bench = new ServeBench(library, pages);
  yield core('core-ranges', 'A lookup in the core, among so many ranges', 'ranges', RANGES, (count) =>
    lookupNs(count, rounds),
  );
  yield core(
    'core-pages',
    'A transfer in the core, of memory with so many pages',
    'pages',
    CORE_PAGES,
    (count) => transferNs(count, rounds),
  );
  yield await byPages(extent);
  yield await byRanges(extent);
  yield await byThreads(bench, extent);
  yield* await byUserfaultfds(bench, extent);
  leftOut.push(...bench.leftOut);
}

function core(
  name: string,
  title: string,
  x: string,
  counts: readonly number[],
  measure: (count: number) => Spread,
): Scaling {
  const points = counts.map((count) => ({ x: count, value: measure(count) }));
  return { name, title, x, y: 'ns', lines: [{ name: 'the core alone', points }] };
}

/** Faults of one thread in memories of different sizes, answered in the same process on the same processor. */
async function byPages(extent: Extent): Promise<Scaling> {
  const counts = CORE_PAGES.filter(
    (pages) => pages * SMALL_PAGE <= freemem() / 2 && (!extent.quick || pages <= QUICK_PAGES),
  );
  const lines = await faultsBy(counts, extent, (pages) => new FaultBench(extent.library, pages));
  const title = 'Faults of one thread, in memory of so many pages; both on one processor';
  return { name: 'pages', title, x: 'pages', y: 'faults/s', lines };
}

/** Faults of one thread in one of many registered ranges. The process maps all these ranges while C serves, too. */
async function byRanges(extent: Extent): Promise<Scaling> {
  const { library, pages, leftOut } = extent;
  const mappings = Math.max(...RANGES) * 2;
  let most = Number.POSITIVE_INFINITY;
  try {
    setUntilExit(MAPPINGS, (before) => Math.max(before, mappings + MAPPINGS_BESIDES));
  } catch (error) {
    most = MAPPINGS_USUAL / 2;
    leftOut.push(`more than ${most} ranges: ${(error as Error).message}`);
  }
  const counts = RANGES.filter((ranges) => ranges <= most);
  const lines = await faultsBy(counts, extent, (ranges) => new FaultBench(library, pages, ranges - 1));
  const title = 'Faults of one thread, in one of so many ranges; both on one processor';
  return { name: 'ranges', title, x: 'ranges', y: 'faults/s', lines };
}

async function faultsBy(
  counts: readonly number[],
  { rounds, say }: Extent,
  benchFor: (count: number) => FaultBench,
): Promise<Line[]> {
  const lines: Line[] = [YARDSTICK, 'block'].map((name) => ({ name, points: [] }));
  for (const x of counts) {
    const bench = benchFor(x);
    const placement = placements(bench.native).possible.find(({ name }) => name === 'same');
    const contest = placement && (await bench.contest(placement, 'block', rounds));
    bench.close();
    const rows = contest ? rowsOf({ contests: [contest] }) : [];
    for (const [index, { name, points }] of lines.entries()) {
      const value = rows[index]?.perSecond;
      if (value === undefined) continue;
      points.push({ x, value });
      say(`${name}, ${x.toLocaleString('en')}: ${Math.round(value.median).toLocaleString('en')} faults/s`);
    }
  }
  return lines;
}

async function byThreads(bench: ServeBench, { wanted, rounds, say }: Extent): Promise<Scaling> {
  const lines = new Map<string, Line>();
  const cells = THREADS.map((threads) => ({ ...BASE, threads }));
  const compared = wanted.filter((name) => COMPARED.includes(name));
  for await (const { threads, entrants } of bench.run(cells, compared, rounds, say)) {
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

/**
 * Several guests at once. One process of `uffd serve` serves all of them. The handler in C serves one guest after the
 * other, so each guest has its own process in C.
 */
async function byUserfaultfds(bench: ServeBench, { rounds, say }: Extent): Promise<Scaling[]> {
  const speed: Line[] = [];
  const cost: Line[] = [];
  for (const { name: server, command } of servers(['uffd serve']).servers) {
    const inOne = server !== YARDSTICK;
    const name = inOne ? `${server}, one process` : `${server}, a process for each`;
    speed.push({ name, points: [] });
    cost.push({ name, points: [] });
    for (const x of USERFAULTFDS) {
      const { perSecond, cpuUs } = await bench.together(command, x, inOne, rounds);
      speed.at(-1)?.points.push({ x, value: perSecond });
      cost.at(-1)?.points.push({ x, value: cpuUs });
      say(`${name}, userfaultfds ${x}: ${Math.round(perSecond.median).toLocaleString('en')} pages/s`);
    }
  }
  const x = 'userfaultfds';
  const together = 'Pages a second of all guests together, one thread each, at random';
  const each = 'Processor time of the handlers for a page, of so many guests at once';
  return [
    { name: 'userfaultfds', title: together, x, y: 'pages/s', lines: speed },
    { name: 'userfaultfds-cost', title: each, x, y: 'µs', lines: cost },
  ];
}
