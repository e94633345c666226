// Which addresses the heat map's axis names: where regions begin, and round ones in between.

import type { Rows } from './rows.js';
import type { Part } from './view.js';

/** Rows to put a label at, so many at most. */
export function addressTicks({ regions }: Rows, { from, to }: Part, most: number): number[] {
  const distance = (to - from) / Math.max(1, most);
  const step = 2 ** Math.max(0, Math.ceil(Math.log2(distance)));
  const ticks: number[] = [];
  const add = (row: number): void => {
    if (row >= from && row <= to && row - (ticks.at(-1) ?? Number.NEGATIVE_INFINITY) >= distance * 0.7)
      ticks.push(row);
  };
  for (const { first, end, row } of regions) {
    const last = row + end - first;
    if (last < from || row > to) continue;
    if (row >= from) add(row);
    const begin = Math.ceil((first + Math.max(0, from - row)) / step) * step;
    for (let page = begin; page < end && row + page - first <= to; page += step) add(row + page - first);
  }
  return ticks;
}

/** How many leading digits all addresses have in common, so that labels can leave them out. */
export function commonDigits(rows: Rows, addressOf: (page: number) => string): number {
  const first = rows.regions[0];
  const last = rows.regions.at(-1);
  if (!first || !last) return 0;
  const [low, high] = [addressOf(first.first), addressOf(last.end)];
  if (low.length !== high.length) return 0;
  let common = 0;
  while (common < low.length && low[common] === high[common]) common++;
  // Of a few digits nothing is gained.
  return common > 4 ? common : 0;
}
