// Messages to and from the process that acts as a microVM's monitor. All of them can be sent between processes and
// threads.

/** The guest's memory, and how it is handed over. */
export interface GuestOptions {
  /** Path of the handler's socket. */
  readonly socket: string;
  /** Path of the memory file, to compare pages with. */
  readonly memory: string;
  /** Bytes of a page; default: the system's. Larger ones come from the pool of huge pages. */
  readonly pageSize?: number;
  /** The number of regions, with gaps between; default 1. */
  readonly regions?: number;
  /** Whether removals are reported (UFFD_FEATURE_EVENT_REMOVE), as in Firecracker; default true. */
  readonly removes?: boolean;
  /** Whether the guest shares its pages with others of the same server; default false. */
  readonly sharePages?: boolean;
  /** Whether the guest hands over its memory at once; default true. If not, the first command to touch does. */
  readonly handOver?: boolean;
}

export type AccessOrder = 'sequential' | 'random' | 'zipf';

/** Threads that touch pages, and compare each with its expected contents. */
export interface TouchCommand {
  readonly do: 'touch';
  readonly threads: number;
  readonly order: AccessOrder;
  readonly seed: number;
  /** Touches of all threads together; default: each page once. */
  readonly touches?: number;
  /** Each n-th touch is a write; default 0: none. */
  readonly writes?: number;
  /** The first page to touch; default: all pages are touched. */
  readonly from?: number;
  readonly to?: number;
  /** Hand the memory over first, when all threads are ready; default false. */
  readonly handOver?: boolean;
}

export type GuestCommand =
  | TouchCommand
  /** madvise(MADV_DONTNEED) on pages. */
  | { readonly do: 'remove'; readonly from: number; readonly to: number }
  | { readonly do: 'exit' };

export interface TouchResults {
  readonly touches: number;
  /** The first few pages with wrong contents. */
  readonly wrong: readonly string[];
  readonly wrongCount: number;
  /** Milliseconds from the start of all threads, or from the hand-off, until the last thread was done. */
  readonly ms: number;
  /** Milliseconds from the same start until the first touch of any thread was done. */
  readonly firstMs: number;
  /** Percentiles of the duration of a touch over all threads, in microseconds. */
  readonly p50Us: number;
  readonly p99Us: number;
}

export type GuestReply =
  | { readonly is: 'handed over'; readonly pages: number; readonly pageSize: number }
  | ({ readonly is: 'touched' } & TouchResults)
  | { readonly is: 'removed' }
  | { readonly is: 'failed'; readonly reason: string };

/**
 * A message as it is sent. Commands may run at the same time, so a reply has the number of its command. The hand-off
 * has number 0.
 */
export type WithId<T> = T & { readonly id: number };

/** The maximum of the histogram: no touch takes longer. */
export const LATENCY_MOST_NS = 1e11;

/** A clock that all threads share. */
export function nanoseconds(): bigint {
  return process.hrtime.bigint();
}

/** The addresses of the pages. Regions are adjacent in the file, and have gaps of a page between them in memory. */
export interface Layout {
  readonly address: bigint;
  readonly pageSize: number;
  readonly pages: number;
  readonly regions: number;
}

export function pagesOfRegion({ pages, regions }: Layout): number {
  return Math.ceil(pages / regions);
}

/** Bytes of all regions, gaps included. */
export function spanOf(layout: Omit<Layout, 'address'>): number {
  return (layout.pages + layout.regions - 1) * layout.pageSize;
}

/** The offset of a page from the first one. */
export function placeOf(layout: Layout, page: number): number {
  return (page + Math.floor(page / pagesOfRegion(layout))) * layout.pageSize;
}
