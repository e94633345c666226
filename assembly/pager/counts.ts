// What the pager counts.

/** Counts since the start; of blocks, unless a line says otherwise. */
@unmanaged
export class PagerCounts {
  /** Faults of all kinds. */
  faults: f64;
  /** Faults of blocks that had their bytes in memory. */
  hits: f64;
  /** Faults of writes to clean blocks. */
  writeFaults: f64;
  /** Blocks read from the source. */
  fetched: f64;
  /** Blocks read ahead of a touch. */
  ahead: f64;
  /** Blocks that were read ahead, and touched later. */
  aheadUsed: f64;
  /** Blocks evicted. */
  evicted: f64;
  /** Blocks whose page-table entries were dropped to find out whether they are in use. */
  probed: f64;
  /** Blocks written to the target. */
  written: f64;
  /** Requests that failed. */
  failures: f64;
  /** Blocks poisoned. */
  poisoned: f64;
  /** Blocks whose memory is reserved now. */
  reserved: f64;
  /** Dirty blocks now. */
  dirty: f64;
  /** Pinned blocks now. */
  pinned: f64;
  /** Faults that waited because there was no room. */
  roomWaits: f64;
  /** Blocks that may have memory now. */
  limit: f64;
  /** Blocks that wait for room now. */
  waiting: f64;
}
export const counts: usize = memory.data(8 * 17, 8);
