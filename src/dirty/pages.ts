// The pages of one range, as a core keeps them: which were written since they were told, since they were saved,
// and which are being saved. Nothing is decided here; the core's runs become objects.

import { type Core, instantiate, type Plane } from '../core.js';
import { Errno, UffdError } from '../errors.js';

/** Pages in a row that were written. */
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
   * @param pageSize bytes of a page here
   * @param systemPageSize bytes that one entry of /proc/PID/pagemap stands for
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

  /** These pages were written: they are to be told and to be saved. */
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

  /** The runs between two addresses of the pages that are in a plane (or, `inside` false, are not), in order. */
  *runs(
    plane: Plane,
    inside = true,
    from = this.start,
    to = this.start + BigInt(this.length),
  ): Generator<DirtyRun> {
    let at = from;
    while (at < to) {
      if (!this.core.arguments(at, Number(to)).planeNext(plane, inside ? 1 : 0)) return;
      const run = this.found();
      yield run;
      at = run.start + BigInt(run.length);
    }
  }

  /** The run that the core found last. */
  found(): DirtyRun {
    const { exports } = this.core;
    const start = BigInt.asUintN(64, exports.runStart());
    return { start, length: Number(BigInt.asUintN(64, exports.runEnd()) - start) };
  }
}
