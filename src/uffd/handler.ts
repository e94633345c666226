// What a program implements to answer faults, and the faults that it gets.

import type { UffdError } from '../errors/errors.js';
import type { Mode } from '../kernel/features.js';

/** A page fault: a thread waits for a page. */
export interface Pagefault {
  /** The address that was touched: the page's address, unless the feature 'exact-address' is on. */
  readonly address: bigint;
  /** The address of the page; in a range of huge pages, that of the huge page. */
  readonly page: bigint;
  readonly access: 'read' | 'write';
  /** What the thread waits for: the page (missing), permission to write (write-protect), or a page table entry (minor). */
  readonly kind: Mode;
  /** The faulting thread, if the feature 'thread-id' is on; else 0. It may belong to another process. */
  readonly tid: number;
  /**
   * How often in a row a fill of this page returned EEXIST and the page then faulted again. Always 0, unless the kernel
   * has no page to install (the pool of huge pages is empty), or other programs fill the page and remove it. If it is
   * above 0, the fault is offered after a delay that grows from 1 to 64 ms.
   */
  readonly repeats: number;
}

/**
 * The callbacks of a handler. `Owner` is the type of the object that callbacks get. It is a parameter so that this file
 * does not depend on that class. Programs use `FaultHandler`, whose owner is a `Userfaultfd`.
 */
export interface HandlerOf<Owner> {
  /**
   * Resolve the fault with one of `uffd`'s operations. Return `false` to defer the fault: the loop offers it again
   * after the next mapping change, or after a delay that grows from 1 to 64 ms. Other faults do not wait for it. The
   * fault is also deferred if a mapping change cuts its fill short. Any other value means that the fault is answered,
   * now or later.
   *
   * A promise means that the handler answers the fault later. If the later fill does not resolve the page, `wake` the
   * page. Code after an `await` does not run while the waits 'block', 'spin' or 'adaptive' hold the handler's thread.
   * Under these waits the loop ends with an error if `pagefault` returns a promise and has not resolved the fault
   * (docs/serving.md, "An asynchronous handler").
   */
  pagefault(fault: Pagefault, uffd: Owner): boolean | void | Promise<void>;
  /**
   * Called after faults were answered from sources (`answerFrom`) without `pagefault`. One call reports all faults that
   * were read together.
   *
   * @param faults how many faults were resolved
   * @param writes how many of them were writes
   * @param deferred how many faults a mapping change deferred: they are offered again
   * @param bytes bytes installed, windows included
   * @param ns nanoseconds from reading the faults until all their threads were woken: a whole number, at most 2^31 − 1
   * @param holeBytes how many of these bytes are zeros from a source of 'zeros'
   * @param removedBytes how many of these bytes are zeros for pages that were removed
   */
  answered?(
    faults: number,
    writes: number,
    deferred: number,
    bytes: number,
    ns: number,
    holeBytes: number,
    removedBytes: number,
  ): void;
  /**
   * MADV_DONTNEED or a similar call removed the pages of [start, end). Their contents are zeros from now on.
   * ('event-remove')
   */
  removed?(start: bigint, end: bigint): void;
  /** [start, end) was unmapped, unregistered parts included. ('event-unmap') */
  unmapped?(start: bigint, end: bigint): void;
  /**
   * mremap moved `length` bytes, the old length of the mapping. If the mapping grew, its new part begins where these
   * bytes end.
   * ('event-remap')
   */
  remapped?(from: bigint, to: bigint, length: number): void;
  /**
   * The process forked. `child` is the userfaultfd of the new process: start it to serve that process, and close it
   * when you are done. It begins with the ranges that are registered with its parent now, and then follows the mapping
   * changes of the new process only. When that process exits or calls exec, the watch ends by itself: `closed` gets
   * ESRCH within a fifth of a second. ('event-fork')
   */
  forked?(child: Owner): void;
  /**
   * Called last, and exactly once, on the handler in use at that time. `error` is undefined after `close`, `release` or
   * end of file.
   */
  closed?(error?: UffdError): void;
}

/**
 * Decides what follows an error of a handler: a callback threw, a promise that it returned rejected, or it returned a
 * promise under a wait that blocks (code ERR_INVALID_RETURN_VALUE).
 *
 * @param error what was thrown
 * @param fault the fault that `pagefault` was called with; undefined for an error of another callback
 * @returns 'continue': the loop continues. The fault is offered again after a delay, unless a call on the userfaultfd
 *   (such as `poison`) has resolved it by now. Any other value: the loop ends with the error. If this function throws,
 *   the loop ends with that error.
 */
export type OnError = (error: unknown, fault: Pagefault | undefined) => 'continue' | void;
