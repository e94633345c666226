// What the process that plays a microVM's monitor is told, and what it answers. All of it can be sent between
// processes and threads.

/** The guest's memory, and what hands it over. */
export interface GuestOptions {
  /** Path of the handler's socket. */
  readonly socket: string;
  /** Path of the memory file, to compare pages with. */
  readonly memory: string;
  /** Bytes of a page; default: the system's. Larger ones come from the pool of huge pages. */
  readonly pageSize?: number;
  /** Parts that the memory lies in, with gaps between; default 1. */
  readonly regions?: number;
  /** Whether removals are told (UFFD_FEATURE_EVENT_REMOVE), as Firecracker has it; default true. */
  readonly removes?: boolean;
  /** Whether it hands its memory over at once; default true. If not, an order to touch does. */
  readonly handOver?: boolean;
}

export type Order = 'sequential' | 'random' | 'zipf';

/** Threads that touch pages, and compare each with what it should hold. */
export interface TouchOrder {
  readonly do: 'touch';
  readonly threads: number;
  readonly order: Order;
  readonly seed: number;
  /** Touches of all threads together; default: each page once. */
  readonly touches?: number;
  /** Every so many touches is a write; default 0: none. */
  readonly writes?: number;
  /** Pages are touched from this one on; default: all. */
  readonly from?: number;
  readonly to?: number;
  /** The memory is handed over first, when all threads are ready; default false. */
  readonly handOver?: boolean;
}

export type GuestOrder =
  | TouchOrder
  /** madvise(MADV_DONTNEED) on pages. */
  | { readonly do: 'remove'; readonly from: number; readonly to: number }
  /** Compares every page. */
  | { readonly do: 'verify'; readonly threads: number }
  | { readonly do: 'exit' };

export interface Touched {
  readonly touches: number;
  /** What did not hold what it should, the first few. */
  readonly wrong: readonly string[];
  readonly wrongCount: number;
  /** Milliseconds since all threads began, or the memory was handed over, until the last thread was done. */
  readonly ms: number;
  /** The same until the first touch of the first thread was over. */
  readonly firstMs: number;
  /** Microseconds of a touch, over all threads. */
  readonly p50Us: number;
  readonly p99Us: number;
}

export type GuestAnswer =
  | { readonly is: 'handed over'; readonly pages: number; readonly pageSize: number }
  | ({ readonly is: 'touched' } & Touched)
  | { readonly is: 'removed' }
  | { readonly is: 'failed'; readonly reason: string };

/** As it is sent: orders are carried out side by side, and an answer has its order's number. That of the hand-off is 0. */
export type Numbered<T> = T & { readonly id: number };

/** No touch takes longer; a histogram wants to know. */
export const LATENCY_MOST_NS = 1e11;

/** A clock that all threads share. */
export function nanoseconds(): bigint {
  return process.hrtime.bigint();
}

/** Where the pages lie. Regions follow each other in the file, and have gaps of a page between them in memory. */
export interface Layout {
  readonly address: bigint;
  readonly pageSize: number;
  readonly pages: number;
  readonly regions: number;
}

export function pagesOfRegion({ pages, regions }: Layout): number {
  return Math.ceil(pages / regions);
}

/** Bytes of all, gaps included. */
export function spanOf(layout: Omit<Layout, 'address'>): number {
  return (layout.pages + layout.regions - 1) * layout.pageSize;
}

/** Where a page begins, from the first one on. */
export function placeOf(layout: Layout, page: number): number {
  return (page + Math.floor(page / pagesOfRegion(layout))) * layout.pageSize;
}
