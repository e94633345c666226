// The conditions under which guests are served: a cell is one level of each factor.
//
// Rule: all combinations of factors would be hundreds of cells. So each factor is varied by itself around a base,
// unless levels are named: then the named levels are combined, and the other factors stay at the base.

import type { PlacementName } from './faults.js';

/** The orders in which threads touch pages. 'neighbours': each of n threads touches every n-th page, side by side. */
export const ORDERS = ['ascending', 'random', 'zipf', 'neighbours'] as const;
export type Order = (typeof ORDERS)[number];

export const SMALL_PAGE = 4096;
export const HUGE_PAGE = 2 ** 21;

export interface Cell {
  readonly placement: PlacementName;
  readonly threads: number;
  readonly order: Order;
  /** The handler's window: how many pages it may fill for each fault. */
  readonly window: number;
  readonly pageSize: number;
  /** Whether another thread of the guest removes pages meanwhile, as a balloon does. */
  readonly balloon: boolean;
  /** Whether another process keeps a processor busy. */
  readonly busy: boolean;
}

type Levels = { readonly [Factor in keyof Cell]: readonly Cell[Factor][] };
export type Chosen = { [Factor in keyof Cell]?: readonly Cell[Factor][] | undefined };

const LEVELS: Levels = {
  placement: ['free', 'same', 'other'],
  threads: [1, 2, 8, 64],
  order: ORDERS,
  window: [1, 16, 64],
  pageSize: [SMALL_PAGE, HUGE_PAGE],
  balloon: [false, true],
  busy: [false, true],
};

export const BASE: Cell = {
  placement: 'free',
  threads: 1,
  order: 'random',
  window: 1,
  pageSize: SMALL_PAGE,
  balloon: false,
  busy: false,
};

/**
 * The placements of the two bases. Wake-ups dominate the first, and the handler dominates the second. Each factor is
 * varied in both.
 */
const VARIED_IN: readonly PlacementName[] = ['free', 'same'];

/** The cells in which one factor differs from a base. */
export function oneByOne(): Cell[] {
  const cells = VARIED_IN.flatMap((placement) => {
    const base = { ...BASE, placement };
    const others = Object.entries(LEVELS).flatMap(([factor, levels]) =>
      factor === 'placement'
        ? []
        : levels
            .filter((level) => level !== base[factor as keyof Cell])
            .map((level) => ({ ...base, [factor]: level })),
    );
    return [base, ...others];
  });
  const sideBySide = [8, 64].map((threads) => ({ ...BASE, threads, order: 'neighbours' as const }));
  return sorted([...cells.filter(isPossible), ...sideBySide, { ...BASE, placement: 'other' }]);
}

/** The cells that can be measured in a minute. */
export function fewest(): Cell[] {
  return sorted([
    BASE,
    { ...BASE, threads: 8 },
    { ...BASE, placement: 'same' },
    { ...BASE, placement: 'same', threads: 8, window: 16 },
  ]);
}

/** All combinations of the named levels. `everything`: factors without named levels take all of theirs. */
export function combined(chosen: Chosen, everything: boolean): Cell[] {
  let cells: Cell[] = [BASE];
  for (const factor of Object.keys(LEVELS) as (keyof Cell)[]) {
    const levels = chosen[factor] ?? (everything ? LEVELS[factor] : [BASE[factor]]);
    cells = cells.flatMap((cell) => levels.map((level) => ({ ...cell, [factor]: level })));
  }
  return sorted(cells.filter(isPossible));
}

/**
 * Whether a cell can be measured. Not measured are: huge pages with a window above 1 (too large) or with a balloon (no
 * zero page), and the order 'neighbours' with one thread.
 */
function isPossible({ pageSize, window, balloon, order, threads }: Cell): boolean {
  return (pageSize === SMALL_PAGE || (window === 1 && !balloon)) && (order !== 'neighbours' || threads > 1);
}

/** Sorts cells, so that cells of the same handler processes are adjacent. */
function sorted(cells: readonly Cell[]): Cell[] {
  const groups = new Map<string, Cell[]>();
  for (const cell of cells) groups.set(groupOf(cell), [...(groups.get(groupOf(cell)) ?? []), cell]);
  return [...groups.values()].flat();
}

/** The factors that decide how a handler is started. Cells with the same text use the same processes. */
export function groupOf({ placement, window, pageSize }: Cell): string {
  return [placement, window, pageSize].join(' ');
}

export const PLACEMENT_TITLES: Record<PlacementName, string> = {
  free: 'left to the scheduler',
  same: 'on the guest’s processor',
  other: 'on another processor',
};

/** A cell in words. */
export function whereOf({ placement, threads, order, window, pageSize, balloon, busy }: Cell): string {
  return [
    PLACEMENT_TITLES[placement],
    `${threads} thread${threads === 1 ? '' : 's'}`,
    order,
    pageSize === HUGE_PAGE ? '2 MiB' : `window ${window}`,
    ...(balloon ? ['balloon'] : []),
    ...(busy ? ['busy machine'] : []),
  ].join(', ');
}
