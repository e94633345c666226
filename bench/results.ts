// The results of one run: what --json writes, what the tables show, and how it compares with the aims.

import type { CoreFigure } from './core.js';
import type { Contest, Round } from './faults.js';
import type { Scaling } from './plots/scaling.js';
import type { ServeResults } from './serve.js';
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
  /** What a loop leaves behind, and installs ahead. */
  steady: CoreFigure[];
  /** Guests that are served. */
  serve?: ServeResults;
  /** How figures grow with pages, ranges, threads and userfaultfds. */
  growth: Scaling[];
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
