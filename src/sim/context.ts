// One userfaultfd as the kernel has it: who waits for its reader, and what the reader finds.
//
// Rules:
//  - A reader is given page faults before all other events, whatever came first; each kind in order of arrival.
//  - A fault that was read still sleeps; a wake lets it go, read or not, and one that was not read is gone with it.
//  - `changing` counts mapping changes under way. Their own threads take it down again, after their event was read.

import { EVENT, FEATURE, MODE, OPEN } from './abi.js';
import type { AddressSpace } from './memory.js';

/** A thread asleep in a page fault. */
export interface Sleeper {
  readonly address: number;
  readonly flags: number;
  readonly tid: number;
  woken: boolean;
}

/** A message that is not a page fault, and whether it was read. */
export interface Notice {
  readonly event: number;
  readonly words: readonly [number, number, number];
  /** FORK: the child's userfaultfd, which gets its descriptor when the message is read. */
  readonly child?: Context;
  read: boolean;
}

export class Context {
  readonly space: AddressSpace;
  /** The flags it was created with. */
  readonly flags: number;
  features = 0;
  initialised = false;
  /** Closed for good: nobody waits for it any more. */
  released = false;
  /** Mapping changes under way. */
  changing = 0;
  pending: Sleeper[] = [];
  reading: Sleeper[] = [];
  notices: Notice[] = [];

  constructor(space: AddressSpace, flags: number) {
    this.space = space;
    this.flags = flags;
  }

  has(feature: number): boolean {
    return (this.features & feature) !== 0;
  }

  get userModeOnly(): boolean {
    return (this.flags & OPEN.USER_MODE_ONLY) !== 0;
  }

  get readable(): boolean {
    return this.pending.length > 0 || this.notices.length > 0;
  }

  /** A thread goes to sleep at an address, which is masked to its page unless the feature says otherwise. */
  sleep(address: number, flags: number, tid: number): Sleeper {
    const sleeper = {
      address: this.has(FEATURE.EXACT_ADDRESS) ? address : this.space.startOf(address),
      flags,
      tid: this.has(FEATURE.THREAD_ID) ? tid : 0,
      woken: false,
    };
    this.pending.push(sleeper);
    return sleeper;
  }

  /** A thread goes away, or interrupts its sleep. */
  forget(sleeper: Sleeper): void {
    this.pending = this.pending.filter((one) => one !== sleeper);
    this.reading = this.reading.filter((one) => one !== sleeper);
  }

  /** Lets the sleepers of [start, end) try again. */
  wake(start: number, end: number): void {
    for (const queue of [this.pending, this.reading]) {
      for (const sleeper of queue) {
        if (sleeper.address >= start && sleeper.address < end) sleeper.woken = true;
      }
    }
    this.pending = this.pending.filter((sleeper) => !sleeper.woken);
    this.reading = this.reading.filter((sleeper) => !sleeper.woken);
  }

  post(event: number, words: Notice['words'], child?: Context): Notice {
    const notice: Notice = { event, words, read: false, ...(child ? { child } : {}) };
    this.notices.push(notice);
    return notice;
  }

  /** Takes back a message whose sender is killed, if it was not read. */
  takeBack(notice: Notice): void {
    if (notice.read || !this.notices.includes(notice)) return;
    this.notices = this.notices.filter((one) => one !== notice);
    notice.child?.release();
  }

  /** The last descriptor is closed: nothing is registered any more, and everybody goes on. */
  release(): void {
    this.released = true;
    const { space } = this;
    for (const vma of [...space.vmas]) {
      if (vma.context === this) unregister(space, vma.start, vma.end);
    }
    this.wake(0, Number.MAX_SAFE_INTEGER);
    for (const notice of this.notices) {
      notice.read = true;
      if (notice.event === EVENT.FORK) notice.child?.release();
    }
    this.notices = [];
  }
}

/**
 * Takes registered memory from its userfaultfd. Write-protection is lifted where its mode is on; where it was, and is
 * off, it stays written in the entries.
 */
export function unregister(space: AddressSpace, start: number, end: number): void {
  for (const vma of space.within(start, end)) {
    if (vma.modes & MODE.WP) clearProtection(space, Math.max(start, vma.start), Math.min(end, vma.end));
  }
  space.witness?.unwatched(space, start, end);
  space.change(start, end, (vma) => {
    vma.context = undefined;
    vma.modes = 0;
  });
}

/** Lifts write-protection, from pages and from those that are not there. */
export function clearProtection(space: AddressSpace, start: number, end: number): void {
  for (const page of space.pagesIn(start, end)) {
    const entry = space.entry(page);
    if (entry?.is === 'wp') space.set(page, undefined);
    else if (entry?.is === 'zero' || entry?.is === 'page') entry.wp = false;
  }
}
