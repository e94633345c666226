// How the faults of a guest are answered: the window around a page is copied from the memory file, holes and removed
// pages are zeros. Nothing here knows of sockets or threads; it runs on any kernel, a simulated one included.
//
// Rules:
//  - What was removed is zero, and is never read from the file again. That it was removed an event says; only if the monitor
//    has turned these events off is a page that was installed, and faults again, taken for one.
//  - A window is clipped to what is all missing or all removed, to its region, and to a stretch that is all data or
//    all hole.
//  - A read of the file that fails is tried again, later; nobody behind it waits for that. So is a page for which there is no
//    memory (shortage.ts).
//  - A page is there because its state says so behind a fill, not because the fill did not fail: EEXIST fails nothing.

import type { UffdError } from '../errors.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import type { Window } from '../options.js';
import type { Userfaultfd } from '../userfaultfd.js';
import { wholePages } from '../whole-pages.js';
import { moveRegions, type Region, regionAt } from './handoff.js';
import { Shortage, type ShortageOptions } from './shortage.js';
import type { Count, Tally } from './tally.js';

/** Where pages come from. */
export interface Source {
  /**
   * Whether the bytes lie in memory for as long as it is served: then most faults are answered from there without a word
   * here, until a read has failed.
   */
  readonly mapped: boolean;
  stretchAt(offset: number): { readonly from: number; readonly to: number; readonly data: boolean };
  /** The bytes at an offset: where they lie, or themselves. */
  bytesAt(offset: number, length: number): bigint | Uint8Array;
}

export interface AnswersOptions {
  readonly regions: readonly Region[];
  readonly source: Source;
  readonly tally: Tally;
  /** Pages to install for a fault, itself included. */
  readonly window: Window;
  /** Nanoseconds from the news of so many faults until they were answered. */
  readonly latency: (ns: number, faults: number) => void;
  /** A clock, in milliseconds. */
  readonly now: () => number;
  /** What to do if there is no memory for a page. Default: it is tried again and again, and nobody hears of it. */
  readonly shortage?: Pick<ShortageOptions, 'onStarved' | 'pool' | 'report'>;
  /** Told once, when the watch ends. */
  readonly closed: (error?: UffdError) => void;
}

/** Tries of a read that fails, and how long it waits between them, in milliseconds. */
const TRIES = 4;
const PAUSE_MS = 50;
/** There is no memory for the page, for now. */
const NO_MEMORY: ReadonlySet<string> = new Set(['ENOMEM', 'ENOSPC']);
/** What the page is to hold cannot be read. */
const UNREADABLE: ReadonlySet<string> = new Set(['EFAULT', 'EIO']);
/** Pages that may wait for a read of theirs to be tried again; a guest could touch any number. */
const TROUBLES_MOST = 1024;

/**
 * Bytes that are installed at once, at most, while nobody asks for them: one copy of so many costs little more for each
 * page than a larger one.
 */
export const AHEAD_BYTES = 65_536;

const ASLEEP = { dontWake: true };

/** Memory in huge pages has no zero page: zeros are copied. */
const HUGE = 4096;

const UNTOLD = { onStarved: 'wait', pool: () => undefined, report() {} } as const;

export class Answers implements FaultHandler {
  /** Pages for which there is no memory. */
  readonly shortage: Shortage;
  readonly #options: AnswersOptions;
  readonly #zeros = new Map<number, Uint8Array>();
  /** Reads that failed, by page. */
  readonly #troubles = new Map<bigint, { tries: number; next: number }>();
  /** Whether faults may be answered without a word here: not once a read has failed. */
  #shortcut = true;
  /** The one that a page could not be installed in. */
  #uffd: Userfaultfd | undefined;
  /** Where they lie now. */
  #regions: readonly Region[];

  constructor(options: AnswersOptions) {
    this.#options = options;
    this.#regions = options.regions;
    const { regions, now, shortage = UNTOLD } = options;
    this.shortage = new Shortage({ ...shortage, regions, now });
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

  answered(faults: number, writes: number, putOff: number, bytes: number, ns: number): void {
    const { tally, latency } = this.#options;
    tally.answered(faults, writes, putOff, bytes);
    if (this.shortage.any && this.#uffd) this.shortage.look(this.#uffd);
    latency(ns, faults);
  }

  removed(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
  }

  unmapped(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
    this.shortage.unmapped(start, end);
  }

  remapped(from: bigint, to: bigint, length: number): void {
    this.#regions = moveRegions(this.#regions, from, to, length);
    this.shortage.unmapped(from, from + BigInt(length));
  }

  forked(child: Userfaultfd): void {
    // A monitor's child has no guest: its memory is let go.
    child.close();
  }

  closed(error?: UffdError): void {
    this.#options.closed(error);
  }

  /**
   * Installs missing pages from `page` on, in the background: a run of them that are alike, in the next `most` bytes. Who
   * waits for them may be left asleep.
   *
   * @returns in bytes: how many were seen to, those that are not missing included, and how many of them were left out, since
   *   they are not mapped, or the kernel said EEXIST. None was seen to: a change of the mapping came first
   */
  fillAhead(
    uffd: Userfaultfd,
    region: Region,
    page: bigint,
    most: number,
    count: Count,
  ): { seen: number; leftOut: number } {
    const { tally } = this.#options;
    const ahead = uffd.fillAhead(page, most, ASLEEP);
    if (ahead) {
      const { passed, installed, leftOut } = ahead;
      tally.add(count, installed);
      return { seen: passed + installed + leftOut, leftOut };
    }
    const { pageSize } = region;
    if (uffd.pageState(page) !== 'missing') return { seen: pageSize, leftOut: 0 };
    const { start, length } = uffd.window(page, Math.max(1, AHEAD_BYTES / pageSize));
    const rest = { start: page, length: Math.min(Number(start + BigInt(length) - page), most) };
    const { data, start: from, length: bytes } = this.#alike(region, page, rest);
    if (data) this.#shorten(uffd, region, page);
    const done = data ? this.#copy(uffd, region, from, bytes) : this.#zero(uffd, region, from, bytes);
    const leftOut = this.#absent(uffd, region, from, done);
    tally.add(count, done - leftOut);
    return { seen: done, leftOut };
  }

  /** Of so many bytes that a fill said were done: how many are not there all the same. */
  #absent(uffd: Userfaultfd, { pageSize }: Region, from: bigint, done: number): number {
    let absent = 0;
    for (let offset = 0; offset < done; offset += pageSize) {
      if (uffd.pageState(from + BigInt(offset)) !== 'present') absent += pageSize;
    }
    return absent;
  }

  /** Installs the window around a page. False: not now. */
  #fill(uffd: Userfaultfd, region: Region, { page, repeats }: Pagefault): boolean {
    const { shortage } = this;
    const { tally, now } = this.#options;
    const trouble = this.#troubles.get(page);
    if (trouble && now() < trouble.next) return false;
    const before = uffd.pageState(page);
    // If no removal is ever told, one that was installed and is missing was removed: no other way leads there.
    const untold = before === 'present' && !uffd.features.has('event-remove');
    const removed = before === 'removed' || untold;
    // In trouble the page alone: its neighbours may be what cannot be read, or what there is no memory for.
    const window =
      trouble || repeats > 0
        ? { start: page, length: region.pageSize }
        : uffd.window(page, this.#options.window);
    const alike = removed ? { ...clip(region, window), data: false } : this.#alike(region, page, window);
    // Zeros of huge pages are copied one by one, and one in front of this page may not be mapped.
    const alone = !alike.data && region.pageSize > HUGE;
    const { start, length, data } = alone ? { start: page, length: region.pageSize, data: false } : alike;
    if (data && !trouble) this.#shorten(uffd, region, page);
    let done: number;
    try {
      done = data ? this.#copy(uffd, region, start, length) : this.#zero(uffd, region, start, length);
    } catch (error) {
      this.#failed(uffd, region, page, error as UffdError);
      return false;
    }
    this.#troubles.delete(page);
    if (start + BigInt(done) <= page) return false;
    if (before === 'present' || uffd.pageState(page) !== 'present') {
      // EEXIST: it is there, or the kernel has none to install. In that case it faults again.
      tally.add('present');
      if (repeats > 0) shortage.failed(uffd, region, page, 'EEXIST', repeats);
      return true;
    }
    shortage.over(page);
    tally.add(removed ? 'removed' : data ? 'copied' : 'hole', done);
    return true;
  }

  /** A page could not be installed: it is tried again, unless there is no more hope. */
  #failed(uffd: Userfaultfd, region: Region, page: bigint, error: UffdError): void {
    this.#uffd = uffd;
    if (NO_MEMORY.has(error.code)) this.shortage.failed(uffd, region, page, error.code);
    else this.#trouble(uffd, page, error);
  }

  /** Has the faults of a stretch of data answered without being asked. */
  #shorten(uffd: Userfaultfd, { start, length, offset, pageSize }: Region, page: bigint): void {
    const { source, window } = this.#options;
    if (!source.mapped || !this.#shortcut) return;
    const { from, to } = source.stretchAt(offset + Number(page - start));
    const first = Math.max(floor(from, pageSize), offset);
    const bytes = Math.min(wholePages(to, pageSize), offset + length) - first;
    const data = source.bytesAt(first, bytes);
    // Where it is refused (a recording) each fault is asked for, and comes here again.
    uffd.answerFrom(start + BigInt(first - offset), bytes, data, { window });
  }

  /** Notes that a page cannot be read, to try it again; throws where there is no more hope. */
  #trouble(uffd: Userfaultfd, page: bigint, error: UffdError): void {
    const tries = (this.#troubles.get(page)?.tries ?? 0) + 1;
    const many = tries === 1 && !this.#roomForTrouble(uffd);
    if (!UNREADABLE.has(error.code) || tries >= TRIES || many) throw error;
    // From now on each read is made here, and no more often than it is meant to be.
    this.#shortcut = false;
    uffd.forgetSources();
    this.#options.tally.add('retried');
    this.#troubles.set(page, { tries, next: this.#options.now() + PAUSE_MS * 2 ** tries });
  }

  #roomForTrouble(uffd: Userfaultfd): boolean {
    if (this.#troubles.size < TROUBLES_MOST) return true;
    // Those that a neighbour's window has brought meanwhile are in trouble no more.
    for (const page of this.#troubles.keys()) {
      if (uffd.pageState(page) === 'present') this.#troubles.delete(page);
    }
    return this.#troubles.size < TROUBLES_MOST;
  }

  /** The part of a window around a page that is all data or all hole. */
  #alike(
    region: Region,
    page: bigint,
    window: { start: bigint; length: number },
  ): { start: bigint; length: number; data: boolean } {
    const { start, length } = clip(region, window);
    const { pageSize, offset } = region;
    const offsetOf = (address: bigint): number => offset + Number(address - region.start);
    const stretch = this.#options.source.stretchAt(offsetOf(page));
    // Whole pages: one that is half a hole is copied.
    const first = stretch.data ? floor(stretch.from, pageSize) : wholePages(stretch.from, pageSize);
    const end = stretch.data ? wholePages(stretch.to, pageSize) : floor(stretch.to, pageSize);
    const data = stretch.data || end < offsetOf(page) + pageSize || first > offsetOf(page);
    if (data !== stretch.data) return { start: page, length: pageSize, data };
    const from = Math.max(offsetOf(start), first);
    const to = Math.min(offsetOf(start) + length, end);
    return { start: region.start + BigInt(from - offset), length: to - from, data };
  }

  #copy(uffd: Userfaultfd, { start, offset }: Region, from: bigint, length: number): number {
    return uffd.copy(from, this.#options.source.bytesAt(offset + Number(from - start), length), length);
  }

  #zero(uffd: Userfaultfd, { pageSize }: Region, start: bigint, length: number): number {
    if (pageSize <= HUGE) return uffd.zero(start, length);
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
