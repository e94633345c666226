// A registered range: the one type that the session, the errors and the callers share.

import type { Mode, Operation } from '../kernel/features.js';

/** A part of memory that a userfaultfd watches. Can be posted to another thread, for `wrap`. */
export interface RegisteredRange {
  readonly start: bigint;
  /** Bytes. */
  readonly length: number;
  readonly modes: ReadonlySet<Mode>;
  readonly operations: ReadonlySet<Operation>;
  /** Bytes of a page of this range: the system's page size, or the huge page size. */
  readonly pageSize: number;
  /**
   * The states of the pages, for `wrap`. `release` fills them in when the object gives the descriptor away. If they are
   * absent, or the object was not released, `wrap` assumes that all pages are missing.
   */
  readonly pages?: SharedArrayBuffer;
}
