// The results of one run: what --json writes, what the tables show, and how it compares with the aims.

import { whereOf } from './cells.js';
import type { CoreFigure } from './core.js';
import type { Contest, Round } from './faults.js';
import type { Scaling } from './plots/scaling.js';
import { ratio, type ServeResults } from './serve.js';
import { type Spread, spread } from './statistics.js';

export interface PlacementResult {
  name: string;
  title: string;
  contests: Contest[];
}

export interface Results {
  machine: string;
  rounds: number;
  pages: number;
  warnings: string[];
  leftOut: string[];
  placements: PlacementResult[];
  core: CoreFigure[];
  /** Traces and the simulated kernel. */
  traces: CoreFigure[];
  /** Guests that are served. */
  serve?: ServeResults;
  /** What the plots show. */
  scaling?: Scaling[];
}

/** A row of a placement's table. */
export interface Row {
  handler: string;
  perSecond: Spread;
  p50Us: Spread;
  p99Us: Spread;
  p999Us: Spread;
  /** To the C round before it; C itself has none. */
  speed?: Spread;
  p99?: Spread;
}

/** C on poll(2), over all of its rounds, and then whoever was compared with it. */
export function rowsOf({ contests }: Pick<PlacementResult, 'contests'>): Row[] {
  const reference = figures(
    'C',
    contests.flatMap(({ pairs }) => pairs.map(({ c }) => c)),
  );
  const others = contests.map(({ handler, pairs }) => ({
    ...figures(
      handler,
      pairs.map((pair) => pair.handler),
    ),
    speed: spread(pairs.map((pair) => pair.handler.perSecond / pair.c.perSecond)),
    p99: spread(pairs.map((pair) => pair.handler.p99Us / pair.c.p99Us)),
  }));
  return [reference, ...others];
}

function figures(handler: string, rounds: Round[]): Row {
  return {
    handler,
    perSecond: spread(rounds.map((round) => round.perSecond)),
    p50Us: spread(rounds.map((round) => round.p50Us)),
    p99Us: spread(rounds.map((round) => round.p99Us)),
    p999Us: spread(rounds.map((round) => round.p999Us)),
  };
}

/** An aim, a figure that belongs to it, and whether the figure's median is there. */
export interface Verdict {
  aim: string;
  where: string;
  value: Spread;
  met: boolean;
}

const BLOCK_SPEED = 0.9;
const SPIN_SPEED = 2;
const P99 = 1.2;
const DECODE = 50;
const RECORDED = 95;
const BYTES_A_FAULT = 12;
const REPLAYED = 1;
const SERVED = 0.9;
const PREFETCHED = 0.2;

/** The aims that this run has figures for. They are there to be seen, and fail nothing. */
export function verdicts({ placements, core, traces, serve }: Results): Verdict[] {
  const all: Verdict[] = [];
  const atLeast = (aim: string, where: string, value: Spread, least: number): void => {
    all.push({ aim, where, value, met: value.median >= least });
  };
  for (const placement of placements) {
    for (const { handler, speed, p99 } of rowsOf(placement)) {
      if (!speed || !p99 || handler.startsWith('C')) continue;
      const where = `${handler}, ${placement.title}`;
      if (handler === 'block')
        atLeast(`faults/s of block at least ${BLOCK_SPEED} of C`, where, speed, BLOCK_SPEED);
      if (handler === 'spin' && placement.name === 'free') {
        atLeast(`faults/s of spin at least ${SPIN_SPEED} times C`, where, speed, SPIN_SPEED);
      }
      all.push({ aim: `p99 at most ${P99} times C`, where, value: p99, met: p99.median <= P99 });
    }
  }
  for (const { name, value } of core) {
    if (name === 'decode') atLeast(`${DECODE} million messages/s decoded`, 'the core alone', value, DECODE);
  }
  for (const { name, value } of traces) {
    if (name.startsWith('recorded'))
      atLeast(`recording leaves ${RECORDED} % of the faults/s`, name, value, RECORDED);
    if (name === 'replay') atLeast(`${REPLAYED} million calls/s replayed`, 'traces', value, REPLAYED);
    if (name.startsWith('trace,')) {
      all.push({
        aim: `at most ${BYTES_A_FAULT} bytes a fault`,
        where: name,
        value,
        met: value.median <= BYTES_A_FAULT,
      });
    }
  }
  for (const cell of serve?.cells ?? []) {
    const ours = cell.entrants.find(({ name }) => name === 'uffd serve');
    if (ours)
      atLeast(
        `a guest's pages/s at least ${SERVED} of C`,
        whereOf(cell),
        ratio(cell, ours, 'perSecond'),
        SERVED,
      );
  }
  if (serve?.workingSet) {
    const { ratio } = serve.workingSet;
    const aim = 'time until the working set is touched: with prefetch at most a fifth of without';
    all.push({ aim, where: 'one thread, random', value: ratio, met: ratio.median <= PREFETCHED });
  }
  return all.sort((a, b) => a.aim.localeCompare(b.aim));
}
