// The results of one run, which --json writes, the tables show, and aims.ts compares with the aims.

import type { CoreFigure } from './core.js';
import type { Contest, Round } from './faults.js';
import type { OperatorResults } from './operator.js';
import type { PagerResults } from './pager.js';
import type { Scaling } from './plots/scaling.js';
import type { ServeResults } from './serve.js';
import { type Spread, spread } from './statistics.js';
import type { StoreResults } from './store.js';

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
  /** Figures of traces and of the simulated kernel. */
  traces: CoreFigure[];
  /** Garbage of a loop, and the cost of installing ahead. */
  steady: CoreFigure[];
  /** Served guests. */
  serve?: ServeResults;
  /** How figures grow with pages, ranges, threads and userfaultfds. */
  growth: Scaling[];
  /** The operator's figures. */
  operator?: OperatorResults;
  /** The figures of pagers. */
  pager?: PagerResults;
  /** The figures of chunk stores. */
  store?: StoreResults;
}

/** A row of a placement's table. */
export interface Row {
  handler: string;
  perSecond: Spread;
  p50Us: Spread;
  p99Us: Spread;
  p999Us: Spread;
  /** Ratios to C's round of the same pair; C itself has none. */
  speed?: Spread;
  p99?: Spread;
}

/** C on poll(2), over all of its rounds, then the handlers that were compared with it. */
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
