// The pages of one range, in sets (planes) that a core keeps: pages that were written since the last report, pages that
// were written since the last checkpoint, and pages that are being saved. The core decides; this file turns its runs
// into objects.

import type { Plane } from '../bindings/core.js';
import { Errno, UffdError } from '../errors/errors.js';
import { type Core, instantiate } from '../uffd/core.js';

/** Consecutive written pages. */
export interface DirtyRun {
  readonly start: bigint;
  /** Bytes, whole pages. */
  readonly length: number;
}

export class PageSet {
  readonly core: Core = instantiate();
  readonly start: bigint;
  /** Bytes, whole pages. */
  readonly length: number;

  /**
   * @param pageSize bytes of a page of the range
   * @param systemPageSize bytes of memory for each entry of /proc/PID/pagemap
   * @throws UffdError ENOMEM for more pages than the core's memory can hold
   */
  constructor(start: bigint, length: number, pageSize: number, systemPageSize: number, planes: number) {
    this.start = start;
    this.length = length;
    const exports = this.core.arguments(start, length);
    if (!exports.dirtyOpen(Math.log2(pageSize), Math.log2(systemPageSize), planes)) {
      throw new UffdError(Errno.ENOMEM as number, 'userfaultfd core', { address: start, length });
    }
  }

  /** Marks pages as written: the next report and the next checkpoint contain them. */
  mark(start: bigint, length: number): void {
    this.core.arguments(start, length).dirtyMark();
  }

  /** Puts pages into a plane. */
  set(plane: Plane, start: bigint, length: number): void {
    this.core.arguments(start, length).planeSet(plane);
  }

  clear(plane: Plane): void {
    this.core.exports.planeClear(plane);
  }

  move(source: Plane, target: Plane): void {
    this.core.exports.planeMove(source, target);
  }

  /**
   * The runs of pages between two addresses that are in a plane, in order. If `inside` is false: the runs that are not
   * in it.
   */
  *runs(
    plane: Plane,
    inside = true,
    from = this.start,
    to = this.start + BigInt(this.length),
  ): Generator<DirtyRun> {
    let at = from;
    while (at < to) {
      if (!this.core.arguments(at, Number(to)).planeNext(plane, inside)) return;
      const run = this.found();
      yield run;
      at = run.start + BigInt(run.length);
    }
  }

  /** The run that the core found last. */
  found(): DirtyRun {
    const { start, end } = this.core;
    return { start, length: Number(end - start) };
  }
}
