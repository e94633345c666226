// How the faults of a guest are answered: the window around a page is copied from the memory file, holes and removed
// pages are zeros. Nothing here knows of sockets or threads; it runs on any kernel, a simulated one included.
//
// Rules:
//  - What was removed is zero, and is never read from the file again.
//  - A window is clipped to what is all missing or all removed, to its region, and to a stretch that is all data or
//    all hole.
//  - A read of the file that fails is tried again, later; nobody behind it waits for that.

import type { UffdError } from '../errors.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import type { Window } from '../options.js';
import type { Userfaultfd } from '../userfaultfd.js';
import { wholePages } from '../whole-pages.js';
import { type Region, regionAt } from './handoff.js';
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
  /** Told once, when the watch ends. */
  readonly closed: (error?: UffdError) => void;
}

/** Tries of a read that fails, and how long it waits between them, in milliseconds. */
const TRIES = 4;
const PAUSE_MS = 50;
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

export class Answers implements FaultHandler {
  readonly #options: AnswersOptions;
  readonly #zeros = new Map<number, Uint8Array>();
  /** Reads that failed, by page. */
  readonly #troubles = new Map<bigint, { tries: number; next: number }>();
  /** Whether faults may be answered without a word here: not once a read has failed. */
  #shortcut = true;

  constructor(options: AnswersOptions) {
    this.#options = options;
  }

  pagefault({ page, access }: Pagefault, uffd: Userfaultfd): boolean {
    const { tally, latency, now } = this.#options;
    const begun = now();
    const state = uffd.pageState(page);
    const region = regionAt(this.#options.regions, page);
    if (!region) {
      // A range that the monitor has moved or registered itself: nobody knows what belongs there.
      uffd.wake(page, uffd.pageSize);
      return true;
    }
    if (state === 'present') {
      uffd.wake(page, region.pageSize);
      tally.add('present');
    } else if (!this.#fill(uffd, region, page, state === 'removed')) {
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
    latency(ns, faults);
  }

  removed(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
  }

  unmapped(start: bigint, end: bigint): void {
    this.#options.tally.add('taken', Number(end - start));
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
   * waits for them may be left asleep. The bytes that were seen to, those that are not missing included; 0: it has to be
   * tried again.
   */
  fillAhead(uffd: Userfaultfd, region: Region, page: bigint, most: number, count: Count): number {
    const { tally } = this.#options;
    const ahead = uffd.fillAhead(page, most, ASLEEP);
    if (ahead) {
      tally.add(count, ahead.installed);
      return ahead.passed + ahead.installed;
    }
    const { pageSize } = region;
    if (uffd.pageState(page) !== 'missing') return pageSize;
    const { start, length } = uffd.window(page, Math.max(1, AHEAD_BYTES / pageSize));
    const rest = { start: page, length: Math.min(Number(start + BigInt(length) - page), most) };
    const { data, start: from, length: bytes } = this.#alike(region, page, rest);
    if (data) this.#shorten(uffd, region, page);
    const done = data ? this.#copy(uffd, region, from, bytes) : this.#zero(uffd, region, from, bytes);
    tally.add(count, done);
    return done;
  }

  /** Installs the window around a page. False: not now. */
  #fill(uffd: Userfaultfd, region: Region, page: bigint, removed: boolean): boolean {
    const { tally, now } = this.#options;
    const trouble = this.#troubles.get(page);
    if (trouble && now() < trouble.next) return false;
    // In trouble the page alone: its neighbours may be what cannot be read.
    const window = trouble
      ? { start: page, length: region.pageSize }
      : uffd.window(page, this.#options.window);
    const { start, length, data } = removed
      ? { ...clip(region, window), data: false }
      : this.#alike(region, page, window);
    if (data && !trouble) this.#shorten(uffd, region, page);
    let done: number;
    try {
      done = data ? this.#copy(uffd, region, start, length) : this.#zero(uffd, region, start, length);
    } catch (error) {
      this.#trouble(uffd, page, error as UffdError);
      return false;
    }
    this.#troubles.delete(page);
    // Where nothing was ever taken away, a page that seems to be missing again was asked for twice: it is there.
    if (removed && tally.get('taken') === 0) tally.add('present');
    else tally.add(removed ? 'removed' : data ? 'copied' : 'hole', done);
    return start + BigInt(done) > page;
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
    if (error.code !== 'EFAULT' || tries >= TRIES || many) throw error;
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
