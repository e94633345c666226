// The aims, and how a run compares with them. A missed aim is reported, but does not make the run fail.

import { type Cell, SMALL_PAGE, whereOf } from './cells.js';
import type { CoreFigure } from './core.js';
import { YARDSTICK } from './peers.js';
import type { Scaling } from './plots/scaling.js';
import { type Results, rowsOf } from './results.js';
import { ratio, type ServeCell, type ServedRound } from './serve.js';
import { type Spread, spread } from './statistics.js';

/** An aim, its figure, and whether the figure's median reaches it. */
export interface Verdict {
  aim: string;
  where: string;
  value: Spread;
  met: boolean;
}

type Add = (aim: string, where: string, value: Spread | undefined, limit: number, atMost?: true) => void;

/** Aims for figures of the core, of traces and of the loop. The limit is a minimum, or a maximum if `atMost` is set. */
const FIGURES: readonly [name: RegExp, aim: string, limit: number, atMost?: true][] = [
  [/^decode$/, '50 million messages/s decoded', 50],
  [/^range lookup$/, 'a range found among 100,000 in at most 50 ns', 50, true],
  [/^transfer step$/, 'a step of a transfer in at most 20 ns', 20, true],
  [/^recorded/, 'recording leaves 97 % of the faults/s', 97],
  [/^replay$/, '5 million calls/s replayed', 5],
  [/^trace,/, 'at most 12 bytes of trace a fault', 12, true],
  [/^collections of garbage$/, 'no collection of garbage in a million faults', 0, true],
  [/^growth of the heap$/, 'the heap grows by less than 64 KiB in a million faults', 64, true],
  [
    /^installed ahead, by a plain copy$/,
    'a working set is resident in at most 1.3 times a plain copy',
    1.3,
    true,
  ],
];

const OURS = 'uffd serve';
/** The handler that may keep processors awake, which pays only while few threads fault. */
const AUTO = 'uffd serve, auto placement';

/** Plots that show how the cost of a fault grows. `isRate`: the plot shows a rate, which falls as the cost grows. */
const GROWTH: readonly { name: string; isRate: boolean }[] = [
  { name: 'pages', isRate: true },
  { name: 'ranges', isRate: true },
  { name: 'userfaultfds-cost', isRate: false },
];

/** Aims for served guests: a figure of `uffd serve` in a cell, divided by that of another handler in the same turn. */
const SERVED: readonly {
  in: (cell: Cell) => boolean;
  to: string;
  who?: string;
  figure?: keyof ServedRound;
  aim: string;
  limit: number;
  atMost?: true;
}[] = [
  {
    in: isBase(1),
    who: AUTO,
    to: YARDSTICK,
    aim: 'one thread, --placement auto: at least 4 times C',
    limit: 4,
  },
  {
    in: isBase(2),
    who: AUTO,
    to: YARDSTICK,
    aim: 'two threads, --placement auto: at least 2 times C',
    limit: 2,
  },
  {
    in: isBase(1, 2),
    to: YARDSTICK,
    aim: 'one and two threads, as it comes: at least 1.5 times C',
    limit: 1.5,
  },
  { in: isBase(8, 64), to: YARDSTICK, aim: '8 and 64 threads, as it comes: at least C', limit: 1 },
  {
    in: (cell) => isDefault(cell) && cell.order === 'neighbours' && cell.threads >= 8,
    to: YARDSTICK,
    aim: '8 and 64 threads side by side, neighbours merged: at least 1.3 times C',
    limit: 1.3,
  },
  {
    in: (cell) => isDefault(cell) && cell.busy,
    to: YARDSTICK,
    aim: 'a busy machine, as it comes: at least C',
    limit: 1,
  },
  { in: isDefault, to: 'Rust', aim: 'as it comes: at least 1.1 times Rust', limit: 1.1 },
  { in: isDefault, to: 'Go', aim: 'as it comes: at least 1.1 times Go', limit: 1.1 },
  {
    in: (cell) => cell.window === 1 && cell.order === 'ascending',
    who: 'uffd serve, adaptive window',
    to: OURS,
    aim: 'an adaptive window, ascending: at least 3 times window 1',
    limit: 3,
  },
  {
    in: (cell) => cell.window === 1 && cell.order === 'random' && cell.pageSize === SMALL_PAGE,
    who: 'uffd serve, adaptive window',
    to: OURS,
    aim: 'an adaptive window, random: at least 0.97 of window 1',
    limit: 0.97,
  },
  {
    in: (cell) => cell.placement === 'same',
    to: YARDSTICK,
    aim: 'everything on one processor: at least 0.9 of C',
    limit: 0.9,
  },
  {
    in: () => true,
    to: YARDSTICK,
    figure: 'cpuUs',
    aim: 'at most 1.3 times the processor time of C',
    limit: 1.3,
    atMost: true,
  },
];

/** Whether the scheduler places the threads of guests and handlers. */
function isDefault({ placement }: Cell): boolean {
  return placement === 'free';
}

/** Returns a predicate for the cells that differ from the base only in their number of threads. */
function isBase(...counts: readonly number[]): (cell: Cell) => boolean {
  return (cell) =>
    isDefault(cell) &&
    counts.includes(cell.threads) &&
    cell.order === 'random' &&
    cell.window === 1 &&
    cell.pageSize === SMALL_PAGE &&
    !cell.balloon &&
    !cell.busy;
}

/** The aims for which this run has figures. */
export function verdicts({
  placements,
  core,
  traces,
  steady,
  growth,
  serve,
  pager,
  store,
}: Results): Verdict[] {
  const all: Verdict[] = [];
  const add: Add = (aim, where, value, limit, atMost) => {
    if (value === undefined) return;
    all.push({ aim, where, value, met: atMost ? value.median <= limit : value.median >= limit });
  };
  addLoops(add, placements);
  for (const figure of [...core, ...traces, ...steady]) addFigure(add, figure);
  for (const cell of serve?.cells ?? []) addServed(add, cell);
  for (const one of growth) addGrowth(add, one);
  const { workingSet } = serve ?? {};
  const prefetched = 'time until the working set is touched: with prefetch at most a fifth of without';
  add(prefetched, 'one thread, random', workingSet?.ratio, 0.2, true);
  for (const { figure, where, value, aim, atMost } of [...(pager?.rows ?? []), ...(store?.rows ?? [])]) {
    if (aim === undefined) continue;
    const limit = `${figure}: at ${atMost ? 'most' : 'least'} ${aim}`;
    all.push({ aim: limit, where, value, met: atMost ? value.median <= aim : value.median >= aim });
  }
  return all.sort((a, b) => a.aim.localeCompare(b.aim));
}

function addLoops(add: Add, placements: Results['placements']): void {
  for (const placement of placements) {
    for (const { handler, speed, p99 } of rowsOf(placement)) {
      if (!speed || !p99 || handler.startsWith('C')) continue;
      const where = `${handler}, ${placement.title}`;
      if (handler === 'block') add('faults/s of block at least 0.9 of C', where, speed, 0.9);
      if (handler === 'spin' && placement.name === 'free')
        add('faults/s of spin at least twice those of C', where, speed, 2);
      add('p99 at most 1.2 times C', where, p99, 1.2, true);
    }
  }
}

function addFigure(add: Add, { name, value }: CoreFigure): void {
  for (const [pattern, aim, limit, atMost] of FIGURES) {
    if (pattern.test(name)) add(aim, name, value, limit, atMost);
  }
}

/** Adds how much slower this library's slowest point is than its first point, by medians. */
function addGrowth(add: Add, { name, x, lines }: Scaling): void {
  const growth = GROWTH.find((one) => one.name === name);
  if (!growth) return;
  for (const line of lines.filter(({ name }) => !name.startsWith(YARDSTICK))) {
    const costs = line.points.map(({ value: { median } }) => (growth.isRate ? 1 / median : median));
    const [first, ...others] = costs;
    if (first === undefined || others.length === 0) continue;
    const from = line.points[0]?.x.toLocaleString('en');
    const to = line.points.at(-1)?.x.toLocaleString('en');
    const dearer = spread(others.map((cost) => cost / first));
    add(
      'a fault costs the same within a tenth, however much there is',
      `${line.name}: from ${from} to ${to} ${x}`,
      { ...dearer, median: dearer.max },
      1.1,
      true,
    );
  }
}

function addServed(add: Add, cell: ServeCell): void {
  for (const { in: applies, who = OURS, to, figure = 'perSecond', aim, limit, atMost } of SERVED) {
    if (!applies(cell)) continue;
    const entrant = cell.entrants.find(({ name }) => name === who);
    // Both handlers must have been measured in this cell.
    if (!entrant || !cell.entrants.some(({ name }) => name === to)) continue;
    add(aim, whereOf(cell), ratio(cell, entrant, figure, to), limit, atMost);
  }
}
