// The address space as rows of a picture: a row for each page, low addresses first. Only what was touched is there, in
// regions; what lies between them is left out.

import type { Events } from './events.js';
import { What } from './events.js';

export interface Region {
  /** Pages from `first` up to `end`, exclusive. */
  readonly first: number;
  readonly end: number;
  /** The row of the first. */
  readonly row: number;
}

/** A gap between touched pages is drawn as it is while it has at most so many pages, or that part of all of them. */
const GAP_PAGES = 64;
const GAP_PART = 1 / 4;
/** Rows between two regions, as a part of all. */
const SPACE_PART = 0.02;
const SPACES_PART = 0.1;

interface Stretch {
  first: number;
  end: number;
}

export class Rows {
  readonly regions: readonly Region[];
  /** How many rows there are. */
  readonly count: number;

  constructor(events: Events) {
    const stretches = merged(touched(events), 0);
    const pages = stretches.reduce((sum, { first, end }) => sum + end - first, 0);
    const regions = merged(stretches, Math.max(GAP_PAGES, pages * GAP_PART));
    const all = regions.reduce((sum, { first, end }) => sum + end - first, 0);
    const space = Math.max(1, Math.round(all * Math.min(SPACE_PART, SPACES_PART / regions.length)));
    let row = 0;
    this.regions = regions.map(({ first, end }) => {
      const region = { first, end, row };
      row += end - first + space;
      return region;
    });
    this.count = Math.max(1, row - space);
  }

  /** The first row of what is drawn of the pages from `page` on. */
  rowOf(page: number): number {
    const at = this.#search((region) => region.end > page);
    const region = this.regions[at];
    if (!region) return this.count;
    return region.row + Math.max(0, page - region.first);
  }

  /** The row behind the last of what is drawn of the pages up to `end`, exclusive. */
  rowBehind(end: number): number {
    const at = this.#search((region) => region.first >= end) - 1;
    const region = this.regions[at];
    if (!region) return 0;
    return region.row + Math.min(end, region.end) - region.first;
  }

  /** The page that is drawn in a row; undefined between regions. */
  pageAt(row: number): number | undefined {
    const region = this.regions[this.#search(({ row: start }) => start > row) - 1];
    if (!region) return undefined;
    const page = region.first + Math.floor(row) - region.row;
    return page < region.end ? page : undefined;
  }

  /** The index of the first region of which it is true; it is of all behind it. */
  #search(isTrue: (region: Region) => boolean): number {
    let low = 0;
    let high = this.regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (isTrue(this.regions[middle] as Region)) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** What was touched or filled, by its first page; where nothing was, what was removed. */
function touched({ length, page, pages, what }: Events): Stretch[] {
  const long: Stretch[] = [];
  const single = new Float64Array(length);
  let singles = 0;
  for (const removed of [false, true]) {
    for (let at = 0; at < length; at++) {
      if ((what[at] === What.removed) !== removed) continue;
      const first = page[at] as number;
      if (pages[at] === 1) single[singles++] = first;
      else long.push({ first, end: first + (pages[at] as number) });
    }
    if (singles + long.length > 0) break;
  }
  const sorted = single.subarray(0, singles).sort();
  const stretches = long;
  for (let at = 0; at < singles; ) {
    const first = sorted[at] as number;
    let end = first + 1;
    for (at++; at < singles && (sorted[at] as number) <= end; at++) end = (sorted[at] as number) + 1;
    stretches.push({ first, end });
  }
  return stretches.sort((a, b) => a.first - b.first);
}

/** Stretches in their order, joined where at most so many pages are between. */
function merged(stretches: readonly Stretch[], gap: number): Stretch[] {
  const joined: Stretch[] = [];
  for (const { first, end } of stretches) {
    const last = joined.at(-1);
    if (last && first - last.end <= gap) last.end = Math.max(last.end, end);
    else joined.push({ first, end });
  }
  return joined;
}
