// The addresses on the heat map's axis: where regions begin, and round addresses in between.

import { hex } from './numbers.js';
import type { Rows } from './rows.js';
import type { Interval } from './view.js';

/** Least number of equal leading characters, 0x included, that are hidden: hiding fewer is not worth it. */
const LEAST_COMMON = 4;

/** The rows that get a label: at most `most`. */
export function addressTicks({ regions }: Rows, { from, to }: Interval, most: number): number[] {
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

/** Addresses for the axis, without the leading digits that all of them share. */
export class AddressLabels {
  /** Characters of a label. */
  readonly length: number;
  readonly #pageSize: number;
  readonly #common: number;

  constructor({ regions }: Rows, pageSize: number) {
    this.#pageSize = pageSize;
    const low = hex(regions[0]?.first ?? 0, pageSize);
    const high = hex(regions.at(-1)?.end ?? 0, pageSize);
    let common = 0;
    while (low.length === high.length && common < low.length && low[common] === high[common]) common++;
    this.#common = common >= LEAST_COMMON ? common : 0;
    this.length = this.label(regions.at(-1)?.first ?? 0).length;
  }

  label(page: number): string {
    const address = hex(page, this.#pageSize);
    return this.#common > 0 ? `…${address.slice(this.#common)}` : address;
  }
}
