// The circumstances in which guests are served: a cell is one level of each factor.
//
// Rule: all factors at once would be hundreds of cells. So each is varied by itself around a base, unless levels are
// named: then all that are named are combined, and the other factors stay at the base.

import type { PlacementName } from './faults.js';

/** Neighbours: all threads side by side, each with every so-many-th page. */
export const ORDERS = ['ascending', 'random', 'zipf', 'neighbours'] as const;
export type Order = (typeof ORDERS)[number];

export const SMALL_PAGE = 4096;
export const HUGE_PAGE = 2 ** 21;

export interface Cell {
  readonly placement: PlacementName;
  readonly threads: number;
  readonly order: Order;
  /** Pages to fill for each fault. */
  readonly window: number;
  readonly pageSize: number;
  /** Another thread of the guest gives pages back meanwhile. */
  readonly balloon: boolean;
  /** Another process keeps a processor busy. */
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

/** Where wake-ups decide, and where the handler does: what is varied is varied in both. */
const VARIED_IN: readonly PlacementName[] = ['free', 'same'];

/** Each factor by itself. */
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

/** What a minute has room for. */
export function fewest(): Cell[] {
  return sorted([
    BASE,
    { ...BASE, threads: 8 },
    { ...BASE, placement: 'same' },
    { ...BASE, placement: 'same', threads: 8, window: 16 },
  ]);
}

/** All combinations of what is named; of everything, where that is wanted. */
export function combined(chosen: Chosen, everything: boolean): Cell[] {
  let cells: Cell[] = [BASE];
  for (const factor of Object.keys(LEVELS) as (keyof Cell)[]) {
    const levels = chosen[factor] ?? (everything ? LEVELS[factor] : [BASE[factor]]);
    cells = cells.flatMap((cell) => levels.map((level) => ({ ...cell, [factor]: level })));
  }
  return sorted(cells.filter(isPossible));
}

/** A window of huge pages is larger than what it is for, huge pages have no zero page, and nobody is his own neighbour. */
function isPossible({ pageSize, window, balloon, order, threads }: Cell): boolean {
  return (pageSize === SMALL_PAGE || (window === 1 && !balloon)) && (order !== 'neighbours' || threads > 1);
}

/** Cells that the same handlers can serve, one after the other, are neighbours. */
function sorted(cells: readonly Cell[]): Cell[] {
  const groups = new Map<string, Cell[]>();
  for (const cell of cells) groups.set(groupOf(cell), [...(groups.get(groupOf(cell)) ?? []), cell]);
  return [...groups.values()].flat();
}

/** What a handler is started with. */
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
