// Helpers for the tests of dirty tracking: each kind of memory, and the page numbers of reported runs.

import type { DirtyRun } from '../../../src/dirty/index.js';
import { type AnonymousOptions, Mapping } from '../../../src/index.js';
import { hugePageSize, withHugePages } from '../../support/huge-pages.js';
import { P } from '../../support/real-kernel.js';

export const MODES = ['async', 'sync'] as const;

export interface Kind {
  readonly name: string;
  /** Makes a mapping of `pages` pages of this kind's size. */
  make(pages: number): Mapping;
  /** Unit of reports in bytes: a page, or a huge page. */
  pageSize(): number;
  /** Runs a body if this machine provides this kind of memory. */
  needs(pages: number, body: () => Promise<void>): Promise<void>;
}

const plain = { pageSize: () => P, needs: (_pages: number, body: () => Promise<void>) => body() };
const anonymous = (name: string, options: AnonymousOptions): Kind => ({
  name,
  make: (pages) => Mapping.anonymous(pages * P, options),
  ...plain,
});

export const KINDS: readonly Kind[] = [
  anonymous('anonymous', {}),
  anonymous('transparent huge pages', { transparentHuge: true }),
  { name: 'memfd', make: (pages) => Mapping.memfd(pages * P), ...plain },
  {
    name: 'hugetlb',
    make: (pages) => Mapping.anonymous(pages * hugePageSize(), { pageSize: hugePageSize() }),
    pageSize: hugePageSize,
    needs: withHugePages,
  },
];

/** The numbers of the pages in some runs. */
export function pagesOf(runs: readonly DirtyRun[], base: bigint, pageSize: number): number[] {
  return runs.flatMap(({ start, length }) => {
    const first = Number((start - base) / BigInt(pageSize));
    return Array.from({ length: length / pageSize }, (_, page) => first + page);
  });
}

/** Page numbers in ascending order, without repeats. */
export function sorted(pages: Iterable<number>): number[] {
  return [...new Set(pages)].sort((a, b) => a - b);
}
