// Detects that a guest lacks memory for its pages. The kernel reports that with ENOMEM or ENOSPC, and with EEXIST if
// the pool of huge pages is empty.
//
// Rules:
//  - A fault is short of memory only after many tries: a brief shortage is not reported.
//  - A shortage is reported with its cause, again every second while it lasts, and once when it is over.
//  - The operator chooses whether the guest waits for memory or is ended. It never gets wrong pages.

import type { PageState } from '../uffd/options.js';
import type { Userfaultfd } from '../uffd/userfaultfd.js';
import type { Region } from './handoff-protocol.js';

/** The machine's huge pages of one size. */
export interface Pool {
  readonly free: number;
  readonly total: number;
}

export interface ShortageOptions {
  readonly regions: readonly Region[];
  /** What happens to a guest that is short of memory: it waits, or is ended. */
  readonly onStarved: 'wait' | 'kill';
  /** The pool of huge pages of this size; undefined if it is unknown. */
  readonly pool: (pageSize: number) => Pool | undefined;
  /** Called with the reason while a shortage lasts, at most once a second, and with undefined when it is over. */
  readonly report: (reason: string | undefined) => void;
  /** A clock, in milliseconds. */
  readonly now: () => number;
}

/** A guest was ended because there was no memory for its pages. */
export class ShortageError extends Error {
  override readonly name = 'ShortageError';
  readonly code = 'ENOMEM';
}

/** Tries after which a page is short of memory: they take 0.1 to 0.2 s, with the core's delays. */
const TRIES = 8;
/** Most pages whose tries are counted. */
const PAGES_MOST = 1024;
const REPORT_MS = 1000;

export class Shortage {
  readonly #options: ShortageOptions;
  /** Pages that could not be installed, with their tries. */
  readonly #tries = new Map<bigint, number>();
  /** Pages that are short of memory. */
  readonly #short = new Set<bigint>();
  #reportedMs = Number.NEGATIVE_INFINITY;

  constructor(options: ShortageOptions) {
    this.#options = options;
  }

  /** Whether some page could not be installed, and still is not. */
  get any(): boolean {
    return this.#tries.size > 0;
  }

  /**
   * Notes that a page could not be installed.
   *
   * @param repeats how often the kernel returned EEXIST before
   * @throws ShortageError if the guest must not wait
   */
  failed(uffd: Userfaultfd, region: Region, page: bigint, code: string, repeats = 0): void {
    const tries = Math.max(repeats, (this.#tries.get(page) ?? 0) + 1);
    if (this.#tries.has(page) || this.#tries.size < PAGES_MOST) this.#tries.set(page, tries);
    if (tries < TRIES) return;
    this.#short.add(page);
    const now = this.#options.now();
    if (now - this.#reportedMs < REPORT_MS) return;
    const reason = this.#reason(uffd, region, page, code, tries);
    if (this.#options.onStarved === 'kill') throw new ShortageError(reason);
    this.#reportedMs = now;
    this.#options.report(reason);
  }

  /** Notes that a page was installed, or that no thread waits for it any more. */
  over(page: bigint): void {
    if (this.#tries.size > 0) this.#tries.delete(page);
    if (this.#short.size === 0 || !this.#short.delete(page) || this.#short.size > 0) return;
    this.#reportedMs = Number.NEGATIVE_INFINITY;
    this.#options.report(undefined);
  }

  /** Checks which pages were installed by other code, and so are no longer short of memory. */
  look(uffd: Userfaultfd): void {
    for (const page of [...this.#tries.keys()]) if (uffd.pageState(page) === 'present') this.over(page);
  }

  /** Notes that the pages of [start, end) are no longer mapped. */
  unmapped(start: bigint, end: bigint): void {
    for (const page of [...this.#tries.keys()]) if (page >= start && page < end) this.over(page);
  }

  /** Whether the pool of these pages is empty. */
  isDry(pageSize: number): boolean {
    return this.#options.pool(pageSize)?.free === 0;
  }

  #reason(uffd: Userfaultfd, region: Region, page: bigint, code: string, tries: number): string {
    const { pageSize } = region;
    const pool = this.#options.pool(pageSize);
    const size = pageSize >= 2 ** 20 ? `${pageSize / 2 ** 20} MiB` : `${pageSize / 1024} KiB`;
    if (pool && pool.free === 0) {
      return `no ${size} page is free: ${this.#wanted(uffd, pageSize)} wanted, 0 of ${pool.total} left`;
    }
    const at = `the page at 0x${page.toString(16)}`;
    if (code === 'EEXIST') {
      const left = pool ? `, though ${pool.free} of ${pool.total} pages of ${size} are left` : '';
      return `the kernel says EEXIST for ${at}, and it faults again, ${tries} times${left}`;
    }
    return `there is no memory for ${at}: the kernel has said ${code} ${tries} times`;
  }

  /** Pages of the guest that are not installed yet. */
  #wanted(uffd: Userfaultfd, pageSize: number): number {
    const absent: readonly PageState[] = ['missing', 'removed'];
    let wanted = 0;
    for (const region of this.#options.regions) {
      if (region.pageSize !== pageSize) continue;
      for (let offset = 0; offset < region.length; offset += pageSize) {
        if (absent.includes(uffd.pageState(region.start + BigInt(offset)))) wanted++;
      }
    }
    return wanted;
  }
}
