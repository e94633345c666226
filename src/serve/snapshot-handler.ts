// Answers the faults of a guest: the window around a page is copied from the memory file; holes and removed pages are
// zeros. It uses no sockets or threads, and runs on any kernel, also on a simulated one.
//
// Rules:
//  - A removed page is zero, and is never read from the file again. An event reports the removal. Only if the monitor
//    has turned these events off, a page that was installed and faults again counts as removed.
//  - A window is clipped to pages that are all missing or all removed, to its region, and to an extent that is all
//    data or all hole.
//  - A failed read of the file is retried later, and holds up no other fault. A page for which there is no memory is
//    retried, too (shortage.ts).
//  - After a fill, a page counts as installed only if its state is `present`: a fill also succeeds if the kernel
//    returns EEXIST.
//  - If the source does not have a page yet, its fault is deferred, and no other fault waits for it. The page is
//    installed when the source has it (`arrived`). It never becomes zeros because its data is absent.

import { UffdError } from '../errors/errors.js';
import { wholePages } from '../memory/whole-pages.js';
import type { Pagefault } from '../uffd/handler.js';
import type { Window } from '../uffd/options.js';
import type { FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import type { Count, Tally } from './counters.js';
import { moveRegions, type Region, regionAt } from './handoff-protocol.js';
import { Shortage, type ShortageOptions } from './shortage.js';

/** An extent of the memory that is all data, all hole, or all absent. */
export interface SourceExtent {
  readonly from: number;
  readonly to: number;
  readonly data: boolean;
  /** Whether the source does not have it yet. Default: no. */
  readonly absent?: boolean;
  /** Whether one address holds all of it. Default: yes. If not, only the page itself may be read. */
  readonly contiguous?: boolean;
}

/** The bytes of the memory file. */
export interface Source {
  /**
   * Whether the bytes stay in memory for as long as they are served: then most faults are answered in the core,
   * without this handler, until a read has failed.
   */
  readonly mapped: boolean;
  /** The extent around an offset, for pages of this size. */
  stretchAt(offset: number, pageSize: number): SourceExtent;
  /** The bytes at an offset: their address, or the bytes themselves. */
  bytesAt(offset: number, length: number): bigint | Uint8Array;
  /** A thread waits for bytes that are absent. Called again and again while it waits. */
  want?(offset: number, length: number): void;
}

/** Memory with pages of the source that the guest has mapped privately, as others have. */
export interface SharedSource {
  /** Puts whole pages of the source into it. @throws UffdError */
  put(offset: number, length: number): void;
  /** Bytes in whole pages, at most `most`, that are there from an offset on. */
  presentFrom(offset: number, most: number): number;
}

/** A guest was ended because a page did not come from the store in time. */
export class StoreDeadlineError extends Error {
  override readonly name = 'StoreDeadlineError';
  readonly code = 'ERR_UFFD_STORE_DEADLINE';
}

export interface SnapshotHandlerOptions {
  readonly regions: readonly Region[];
  readonly source: Source;
  /** If given, pages of data are mapped from there (CONTINUE) instead of copied. */
  readonly share?: SharedSource;
  readonly tally: Tally;
  /** Pages to install for a fault, itself included. */
  readonly window: Window;
  /** Whether pages of zeros take no memory in a region: then faults on them install runs (`zeroRuns`). Default: no. */
  readonly zerosAreFree?: (region: Region) => boolean;
  /** Called with the nanoseconds from reading these faults until they were answered. */
  readonly latency: (ns: number, faults: number) => void;
  /** A clock, in milliseconds. */
  readonly now: () => number;
  /** Milliseconds for which a thread may wait for a page that the source does not have. Default: for ever. */
  readonly deadlineMs?: number;
  /** What to do if there is no memory for a page. Default: retry, without a report. */
  readonly shortage?: Pick<ShortageOptions, 'onStarved' | 'pool' | 'report'>;
  /** Called once, when the watch ends. */
  readonly closed: (error?: UffdError) => void;
}

/** Most tries of a read, and the milliseconds between two tries. */
const TRIES = 4;
const PAUSE_MS = 50;
/** Error codes: there is no memory for the page now. */
const NO_MEMORY: ReadonlySet<string> = new Set(['ENOMEM', 'ENOSPC']);
/** Error codes: the data of the page cannot be read. */
const UNREADABLE: ReadonlySet<string> = new Set(['EFAULT', 'EIO']);
/** Most pages that wait for a retry of their read; a guest could touch any number. */
const FAILED_READS_MOST = 1024;
/**
 * Most pages that are installed as soon as the source has them. Further ones are installed when their fault is offered
 * again, which takes 64 ms at most.
 */
const AWAITED_MOST = 4096;

/** Most bytes that one background call installs: a larger copy costs hardly less for each page. */
export const AHEAD_BYTES = 65_536;

const ASLEEP = { dontWake: true };

/** Bytes of an ordinary page. Larger pages have no zero page, so zeros are copied. */
const SMALL_PAGE = 4096;

const UNREPORTED = { onStarved: 'wait', pool: () => undefined, report() {} } as const;

export class SnapshotHandler implements FaultHandler {
  /** Pages for which there is no memory. */
  readonly shortage: Shortage;
  readonly #options: SnapshotHandlerOptions;
  readonly #zeros = new Map<number, Uint8Array>();
  /** Failed reads, by page. */
  readonly #failedReads = new Map<bigint, { tries: number; next: number }>();
  /** Pages that threads wait for and the source does not have yet, with the time of the first fault. */
  readonly #awaited = new Map<bigint, number>();
  /** Whether faults may be answered in the core: not after a failed read. */
  #sourcesAllowed = true;
  /** The last region in which a page could not be installed. */
  #uffd: Userfaultfd | undefined;
  /** The regions at their present addresses. */
  #regions: readonly Region[];

  constructor(options: SnapshotHandlerOptions) {
    this.#options = options;
    this.#regions = options.regions;
    const { regions, now, shortage = UNREPORTED } = options;
    this.shortage = new Shortage({ ...shortage, regions, now });
  }

  get regions(): readonly Region[] {
    return this.#regions;
  }

  /** Installs the pages that threads wait for and that the source has by now. */
  arrived(uffd: Userfaultfd): void {
    const { latency, now, window } = this.#options;
    for (const [page, since] of this.#awaited) {
      if (uffd.closed) return;
      const region = regionAt(this.#regions, page);
      if (!region || uffd.pageState(page) !== 'missing') {
        this.#awaited.delete(page);
        continue;
      }
      const part = this.#uniformPart(region, page, uffd.window(page, window));
      if (part === 'absent') continue;
      this.#awaited.delete(page);
      // Zeros for huge pages are copied one by one.
      const single = !part.data && region.pageSize > SMALL_PAGE;
      const done = this.#installArrived(
        uffd,
        region,
        single ? { start: page, length: region.pageSize, data: false } : part,
      );
      if (done === 0) continue;
      this.#countInstalled(part.data ? 'copied' : 'hole', done, part.data);
      latency((now() - since) * 1e6, 1);
    }
  }

  /** Returns the bytes that were installed. The deferred fault is offered again in any case, and meets any error again. */
  #installArrived(uffd: Userfaultfd, region: Region, { start, length, data }: Part): number {
    try {
      const done = data ? this.#copy(uffd, region, start, length) : this.#zero(uffd, region, start, length);
      return done - this.#countAbsent(uffd, region, start, done);
    } catch (error) {
      if (!(error instanceof UffdError)) throw error;
      return 0;
    }
  }

  pagefault(fault: Pagefault, uffd: Userfaultfd): boolean {
    const { page, access } = fault;
    const { tally, latency, now } = this.#options;
    const begun = now();
    const region = regionAt(this.#regions, page);
    if (!region) {
      throw new Error(
        `the guest waits for the page at 0x${page.toString(16)}, which is in none of the regions that were handed over: ` +
          'nothing says what it holds',
      );
    }
    if (!this.#fill(uffd, region, fault)) {
      tally.add('deferred');
      return false;
    }
    tally.add('faults');
    if (access === 'write') tally.add('writes');
    latency((now() - begun) * 1e6, 1);
    return true;
  }

  /** Called for each batch, so without rest parameters, which are an array. */
  answered(
    faults: number,
    writes: number,
    deferred: number,
    bytes: number,
    ns: number,
    holeBytes: number,
    removedBytes: number,
  ): void {
    const { tally, latency } = this.#options;
    tally.answered(faults, writes, deferred, bytes - holeBytes - removedBytes);
    if (holeBytes > 0) tally.add('hole', holeBytes);
    if (removedBytes > 0) tally.add('removed', removedBytes);
    if (this.shortage.any && this.#uffd) this.shortage.look(this.#uffd);
    latency(ns, faults);
  }

  removed(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
  }

  unmapped(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
    for (const page of this.#awaited.keys()) if (page >= start && page < end) this.#awaited.delete(page);
    this.shortage.unmapped(start, end);
  }

  remapped(from: bigint, to: bigint, length: number): void {
    this.#regions = moveRegions(this.#regions, from, to, length);
    this.shortage.unmapped(from, from + BigInt(length));
  }

  forked(child: Userfaultfd): void {
    // A monitor's child has no guest, so its userfaultfd is closed.
    child.close();
  }

  closed(error?: UffdError): void {
    this.#options.closed(error);
  }

  /**
   * Installs missing pages from `page` on, in the background: a run of them in the same state, in the next `most`
   * bytes. Threads that wait for them may be left asleep.
   *
   * @returns in bytes: how many were handled, pages that are not missing included; and how many of these were left out,
   *   because they are not mapped or the kernel returned EEXIST. 0 bytes handled: a mapping change came first. `absent`:
   *   nothing is handled, because the source does not have that many bytes yet
   */
  fillAhead(
    uffd: Userfaultfd,
    region: Region,
    page: bigint,
    most: number,
    count: Count,
  ): { seen: number; leftOut: number; absent?: number } {
    const { tally } = this.#options;
    let ahead = uffd.fillAhead(page, most, ASLEEP);
    if (!ahead && this.#addSource(uffd, region, page)) ahead = uffd.fillAhead(page, most, ASLEEP);
    if (ahead) {
      const { passed, installed, leftOut } = ahead;
      tally.add(count, installed);
      return { seen: passed + installed + leftOut, leftOut };
    }
    const { pageSize } = region;
    if (uffd.pageState(page) !== 'missing') return { seen: pageSize, leftOut: 0 };
    const run = this.#options.share ? missingRun(uffd, page, most, pageSize) : pageSize;
    const part = this.#uniformPart(region, page, { start: page, length: run });
    if (part === 'absent') {
      const at = region.offset + Number(page - region.start);
      return { seen: 0, leftOut: 0, absent: this.#options.source.stretchAt(at, pageSize).to - at };
    }
    const { data, start: from, length: bytes } = part;
    const done = data ? this.#copy(uffd, region, from, bytes) : this.#zero(uffd, region, from, bytes);
    const leftOut = this.#countAbsent(uffd, region, from, done);
    this.#countInstalled(count, done - leftOut, data);
    return { seen: done, leftOut };
  }

  #countInstalled(count: Count, bytes: number, data: boolean): void {
    const { share, tally } = this.#options;
    tally.add(count, bytes);
    if (share && data) tally.add('shared', bytes);
  }

  /** How many of the bytes that a fill reported as done are not installed. */
  #countAbsent(uffd: Userfaultfd, { pageSize }: Region, from: bigint, done: number): number {
    let absent = 0;
    for (let offset = 0; offset < done; offset += pageSize) {
      if (uffd.pageState(from + BigInt(offset)) !== 'present') absent += pageSize;
    }
    return absent;
  }

  /** Installs the window around a page. False: deferred. */
  #fill(uffd: Userfaultfd, region: Region, { page, repeats }: Pagefault): boolean {
    const { shortage } = this;
    const { tally, now } = this.#options;
    const failedRead = this.#failedReads.get(page);
    if (failedRead && now() < failedRead.next) return false;
    const before = uffd.pageState(page);
    // If removals are never reported, an installed page that is missing was removed: there is no other cause.
    const unreported = before === 'present' && !uffd.features.has('event-remove');
    const removed = before === 'removed' || unreported;
    // After a failure install the page alone: its neighbours may be unreadable, or lack memory.
    const window =
      failedRead || repeats > 0
        ? { start: page, length: region.pageSize }
        : uffd.window(page, this.#options.window);
    const part = removed ? { ...clip(region, window), data: false } : this.#uniformPart(region, page, window);
    if (part === 'absent') {
      this.#await(region, page);
      return false;
    }
    // Zeros for huge pages are copied one by one, and a page before this one may not be mapped.
    const single = !part.data && region.pageSize > SMALL_PAGE;
    const { start, length, data } = single ? { start: page, length: region.pageSize, data: false } : part;
    let done: number;
    try {
      done = data ? this.#copy(uffd, region, start, length) : this.#zero(uffd, region, start, length);
    } catch (error) {
      this.#fillFailed(uffd, region, page, error as UffdError);
      return false;
    }
    // The guest runs meanwhile: to add a source takes longer than to answer a fault.
    if (!failedRead) this.#addSource(uffd, region, page);
    this.#failedReads.delete(page);
    if (this.#awaited.size > 0) this.#awaited.delete(page);
    if (start + BigInt(done) <= page) return false;
    if (before === 'present' || uffd.pageState(page) !== 'present') {
      // EEXIST: the page is there; or the kernel has none to install, and the page faults again.
      tally.add('present');
      if (repeats > 0) shortage.failed(uffd, region, page, 'EEXIST', repeats);
      return true;
    }
    shortage.over(page);
    this.#countInstalled(removed ? 'removed' : data ? 'copied' : 'hole', done, data);
    return true;
  }

  /** Asks the source for a page. @throws StoreDeadlineError */
  #await(region: Region, page: bigint): void {
    const { source, now, deadlineMs = Number.POSITIVE_INFINITY, tally } = this.#options;
    const { pageSize } = region;
    const at = region.offset + Number(page - region.start);
    const since = this.#awaited.get(page);
    if (since !== undefined && now() - since >= deadlineMs) {
      throw new StoreDeadlineError(
        `the guest has waited ${Math.round((now() - since) / 1000)} s for the page at offset ${at} of its memory, which the store has not delivered`,
      );
    }
    if (since === undefined) {
      tally.add('waited');
      if (this.#awaited.size < AWAITED_MOST) this.#awaited.set(page, now());
    }
    source.want?.(at, pageSize);
  }

  /** Handles a page that could not be installed: retries, unless that is hopeless. */
  #fillFailed(uffd: Userfaultfd, region: Region, page: bigint, error: UffdError): void {
    this.#uffd = uffd;
    if (NO_MEMORY.has(error.code)) this.shortage.failed(uffd, region, page, error.code);
    else this.#readFailed(uffd, page, error);
  }

  /** Lets the core answer the faults of the extent around a page. False: the core cannot. */
  #addSource(uffd: Userfaultfd, region: Region, page: bigint): boolean {
    const { start, length, offset, pageSize } = region;
    const { source, window, zerosAreFree } = this.#options;
    const at = offset + Number(page - start);
    const { from, to, data, absent = false, contiguous = true } = source.stretchAt(at, pageSize);
    if (absent || !contiguous || (data && this.#options.share)) return false;
    if (data ? !source.mapped || !this.#sourcesAllowed : pageSize > SMALL_PAGE) return false;
    // A page that is half a hole is data.
    const first = Math.max(data ? floor(from, pageSize) : wholePages(from, pageSize), offset);
    const end = Math.min(data ? wholePages(to, pageSize) : floor(to, pageSize), offset + length);
    if (at < first || at >= end) return false;
    const bytes = end - first;
    const src = data ? source.bytesAt(first, bytes) : 'zeros';
    const zeroRuns = zerosAreFree?.(region) ?? false;
    return uffd.answerFrom(start + BigInt(first - offset), bytes, src, {
      window,
      removed: 'zeros',
      zeroRuns,
    });
  }

  /** Notes that a page cannot be read, to retry it; throws if that is hopeless. */
  #readFailed(uffd: Userfaultfd, page: bigint, error: UffdError): void {
    const tries = (this.#failedReads.get(page)?.tries ?? 0) + 1;
    const many = tries === 1 && !this.#roomForFailedRead(uffd);
    if (!UNREADABLE.has(error.code) || tries >= TRIES || many) throw error;
    // From now on this handler makes each read, so that it can delay the retries.
    this.#sourcesAllowed = false;
    uffd.forgetSources();
    this.#options.tally.add('retried');
    this.#failedReads.set(page, { tries, next: this.#options.now() + PAUSE_MS * 2 ** tries });
  }

  #roomForFailedRead(uffd: Userfaultfd): boolean {
    if (this.#failedReads.size < FAILED_READS_MOST) return true;
    // Pages that a neighbour's window has installed meanwhile no longer count as failed.
    for (const page of this.#failedReads.keys()) {
      if (uffd.pageState(page) === 'present') this.#failedReads.delete(page);
    }
    return this.#failedReads.size < FAILED_READS_MOST;
  }

  /** The part of a window, around a page, that is all data or all hole; or that the source does not have it yet. */
  #uniformPart(region: Region, page: bigint, window: { start: bigint; length: number }): Part | 'absent' {
    const { start, length } = clip(region, window);
    const { pageSize, offset } = region;
    const offsetOf = (address: bigint): number => offset + Number(address - region.start);
    const extent = this.#options.source.stretchAt(offsetOf(page), pageSize);
    if (extent.absent) return 'absent';
    if (extent.contiguous === false) return { start: page, length: pageSize, data: true };
    // Take whole pages: a page that is partly a hole is copied.
    const first = extent.data ? floor(extent.from, pageSize) : wholePages(extent.from, pageSize);
    const end = extent.data ? wholePages(extent.to, pageSize) : floor(extent.to, pageSize);
    const data = extent.data || end < offsetOf(page) + pageSize || first > offsetOf(page);
    if (data !== extent.data) return { start: page, length: pageSize, data };
    const from = Math.max(offsetOf(start), first);
    const to = Math.min(offsetOf(start) + length, end);
    return { start: region.start + BigInt(from - offset), length: to - from, data };
  }

  #copy(uffd: Userfaultfd, region: Region, from: bigint, length: number): number {
    const { source, share } = this.#options;
    const at = region.offset + Number(from - region.start);
    if (!share) return uffd.copy(from, source.bytesAt(at, length), length);
    share.put(at, length);
    // To map pages that other guests have brought takes little time, and no memory.
    const left = Math.min(AHEAD_BYTES, region.offset + region.length - at - length);
    const present = share.presentFrom(at + length, left);
    const more = missingRun(uffd, from + BigInt(length), present, region.pageSize);
    return uffd.continue(from, length + more);
  }

  #zero(uffd: Userfaultfd, { pageSize }: Region, start: bigint, length: number): number {
    if (pageSize <= SMALL_PAGE) return uffd.zero(start, length);
    let done = 0;
    while (done < length) {
      const some = uffd.copy(start + BigInt(done), this.#zerosOf(pageSize), pageSize);
      done += some;
      if (some < pageSize) break;
    }
    return done;
  }

  #zerosOf(bytes: number): Uint8Array {
    const known = this.#zeros.get(bytes) ?? new Uint8Array(bytes);
    this.#zeros.set(bytes, known);
    return known;
  }
}

/** Bytes of the missing pages from `page` on, `most` at most. */
function missingRun(uffd: Userfaultfd, page: bigint, most: number, pageSize: number): number {
  let length = 0;
  while (length < most && uffd.pageState(page + BigInt(length)) === 'missing') length += pageSize;
  return length;
}

/** Pages to install in one call. */
interface Part {
  readonly start: bigint;
  readonly length: number;
  readonly data: boolean;
}

/** A window inside its region. */
function clip(region: Region, window: { start: bigint; length: number }): { start: bigint; length: number } {
  const end = region.start + BigInt(region.length);
  const start = window.start < region.start ? region.start : window.start;
  const windowEnd = window.start + BigInt(window.length);
  return { start, length: Number((windowEnd > end ? end : windowEnd) - start) };
}

function floor(value: number, unit: number): number {
  return Math.floor(value / unit) * unit;
}
