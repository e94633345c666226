// What a program implements to answer faults, and what it is told.

import type { UffdError } from './errors.js';
import type { Mode, Operation } from './features.js';
import type { Userfaultfd } from './userfaultfd.js';

/** A thread waits for a page. */
export interface Pagefault {
  /** Where it touched: the page's address, unless the feature 'exact-address' is on. */
  readonly address: bigint;
  /** The page's address; in huge-page ranges the huge page's. */
  readonly page: bigint;
  readonly access: 'read' | 'write';
  /** What is asked for: the page (missing), leave to write (write-protect), or a page table entry (minor). */
  readonly kind: Mode;
  /** The thread that touched, where the feature 'thread-id' is on; else 0. It may belong to another process. */
  readonly tid: number;
  /**
   * How often in a row a fill of this page was answered with EEXIST, and the page faulted again all the same: 0, but where
   * the kernel has no page to install (the pool of huge pages is empty), or others fill the page and take it away. Such a
   * fault is offered after a delay that grows from 1 to 64 ms.
   */
  readonly repeats: number;
}

/**
 * Called by the loop, one call at a time, on the thread that runs it. Every mapping change is told before any
 * fault that was read with it or before it. If a callback throws, or a promise that it returned rejects, the loop
 * ends with the error, unless `onError` of `start` decides otherwise; the fault is offered again by the next loop.
 *
 * A handler of this type may answer after it has returned: by a promise, under the wait 'poll' only. One that answers
 * before it returns can say so: `SyncFaultHandler`.
 */
export interface FaultHandler {
  /**
   * Resolve the fault with one of `uffd`'s operations. `false`: not now; it is offered again by itself, after
   * the next mapping change and on a delay that grows from 1 to 64 ms, and never holds up other faults. A fill
   * that a mapping change cut short has the same effect. Anything else: answered, now or later from elsewhere.
   *
   * A promise means later, and nothing else: the fault is not offered again if that fill comes short. Nothing
   * behind an `await` runs while 'block', 'spin' or 'adaptive' wait in the handler's thread. If a handler returns a promise
   * under one of these, and has not resolved the fault by then, the loop ends with an error (docs/serving.md, "An
   * asynchronous handler").
   */
  pagefault(fault: Pagefault, uffd: Userfaultfd): boolean | void | Promise<void>;
  /**
   * Faults were answered from sources (`answerFrom`), and `pagefault` was not asked: all those that were read together.
   *
   * @param faults whose pages are there
   * @param writes how many of them were writes
   * @param putOff how many a mapping change came first to: they come again
   * @param bytes installed, windows included
   * @param ns from when they were read until all were awake, a whole number; two seconds at most
   */
  answered?(faults: number, writes: number, putOff: number, bytes: number, ns: number): void;
  /** MADV_DONTNEED and the like took the pages of [start, end) away: they are zero from now on. ('event-remove') */
  removed?(start: bigint, end: bigint): void;
  /** [start, end) was unmapped, unregistered parts included. ('event-unmap') */
  unmapped?(start: bigint, end: bigint): void;
  /** mremap moved `length` bytes, the old length; a grown part follows behind them. ('event-remap') */
  remapped?(from: bigint, to: bigint, length: number): void;
  /**
   * The process forked; `child` serves the child's memory, once it is started, and is yours to close. It watches what
   * its parent watches now, and follows the child alone from here. When the child exits or calls exec it ends by
   * itself: its `closed` is told ESRCH, within a fifth of a second. ('event-fork')
   */
  forked?(child: Userfaultfd): void;
  /**
   * Always last, exactly once: the one handler that is in charge then is told. No error: `close`, `release`, end
   * of file.
   */
  closed?(error?: UffdError): void;
}

/** A handler that answers each fault before it returns: it serves under every wait. */
export interface SyncFaultHandler extends FaultHandler {
  /** As in `FaultHandler`, without a promise. */
  pagefault(fault: Pagefault, uffd: Userfaultfd): boolean | void;
}

/**
 * Decides what follows an error of a handler's: what a callback threw, what a promise that it returned rejected with, or
 * that it returned a promise under a wait that blocks (code ERR_INVALID_RETURN_VALUE).
 *
 * @param error what was thrown
 * @param fault that the error was about; undefined where it was no fault
 * @returns 'continue': the loop goes on. The fault is offered again after a delay, unless a call on the userfaultfd has
 *   resolved it by now (`poison`, for one). Anything else: the loop ends with the error. If this throws, it ends
 *   with that error.
 */
export type OnError = (error: unknown, fault: Pagefault | undefined) => 'continue' | void;

/** A part of memory that a userfaultfd watches. Can be posted to another thread, for `wrap`. */
export interface RegisteredRange {
  readonly start: bigint;
  /** Bytes. */
  readonly length: number;
  readonly modes: ReadonlySet<Mode>;
  readonly operations: ReadonlySet<Operation>;
  /** Bytes of a page there: the system's, or the huge page's. */
  readonly pageSize: number;
  /**
   * What the object knows of its pages when it gives the descriptor away (`release`): filled in then, for `wrap` to go on
   * with. Of a range without it, or whose object was not released, `wrap` takes all pages to be missing.
   */
  readonly pages?: SharedArrayBuffer;
}
