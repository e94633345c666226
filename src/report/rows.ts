// The address space as rows of a picture: a row for each page, low addresses first. Only touched pages have rows, in
// regions; gaps between regions are left out.

import { type Events, What } from './events.js';
import { firstIndex } from './numbers.js';

export interface Region {
  /** Pages from `first` up to `end`, exclusive. */
  readonly first: number;
  readonly end: number;
  /** The row of the first page. */
  readonly row: number;
}

/** A gap between touched pages is drawn if it has at most this many pages, or this part of all pages. */
const GAP_PAGES = 64;
const GAP_PART = 1 / 4;
/** Rows between two regions, as a part of all rows. */
const SPACE_PART = 0.02;
const SPACES_PART = 0.1;

interface PageRange {
  first: number;
  end: number;
}

export class Rows {
  readonly regions: readonly Region[];
  /** The number of rows. */
  readonly count: number;

  constructor(events: Events) {
    const ranges = merged(touched(events), 0);
    const pages = ranges.reduce((sum, { first, end }) => sum + end - first, 0);
    const regions = merged(ranges, Math.max(GAP_PAGES, pages * GAP_PART));
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

  /** The first row of the drawn pages from `page` on. */
  rowOf(page: number): number {
    const region = this.regions[this.#search((region) => region.end > page)];
    if (!region) return this.count;
    return region.row + Math.max(0, page - region.first);
  }

  /** The row after the last of the drawn pages up to `end`, exclusive. */
  rowBehind(end: number): number {
    const region = this.regions[this.#search((region) => region.first >= end) - 1];
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

  /** The index of the first region for which the condition holds; it holds for all later ones. */
  #search(isTrue: (region: Region) => boolean): number {
    return firstIndex(this.regions.length, (at) => isTrue(this.regions[at] as Region));
  }
}

/** The ranges that were touched or filled, by first page. If there are none: the ranges that were removed. */
function touched({ length, page, pages, what }: Events): PageRange[] {
  const long: PageRange[] = [];
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
  const ranges = long;
  for (let at = 0; at < singles; ) {
    const first = sorted[at] as number;
    let end = first + 1;
    for (at++; at < singles && (sorted[at] as number) <= end; at++) end = (sorted[at] as number) + 1;
    ranges.push({ first, end });
  }
  return ranges.sort((a, b) => a.first - b.first);
}

/** Ranges in order, joined if at most this many pages are between them. */
function merged(ranges: readonly PageRange[], gap: number): PageRange[] {
  const joined: PageRange[] = [];
  for (const { first, end } of ranges) {
    const last = joined.at(-1);
    if (last && first - last.end <= gap) last.end = Math.max(last.end, end);
    else joined.push({ first, end });
  }
  return joined;
}
