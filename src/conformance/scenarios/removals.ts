// Scenarios of removals: a balloon gives pages back with madvise(MADV_DONTNEED), and they are zeros from then on.

import type { Guest } from '../guest.js';
import { isZeroPage } from '../page-contents.js';
import type { Scenario } from '../scenario.js';

const ROUNDS = 60;
const STALE_PAGES = 32;
/** Microseconds between the handler's start and a removal, up to a maximum that takes many fills. */
const DELAY_STEP_US = 37;
const DELAY_MOST_US = 500;
const FLOOD_PAGES = 1024;
const FLOODS = 6;

const range = (from: number, to: number): number[] =>
  Array.from({ length: to - from }, (_, index) => from + index);

/** Pages of a range that are not zeros in the file, so that stale data shows. */
const telling = (from: number, to: number): number[] => range(from, to).filter((page) => !isZeroPage(page));

export const REMOVALS: readonly Scenario[] = [
  {
    name: 'remove-after-read',
    why: 'A removed page is zeros from then on, never the bytes of the file; its neighbours keep theirs.',
    play(guest) {
      for (const page of range(9, 14)) guest.expect(page);
      guest.remove(10, 2);
      for (const page of range(8, 14)) guest.expect(page);
    },
  },
  {
    name: 'remove-after-write',
    why: 'What was written to a page is gone after its removal.',
    play(guest) {
      for (const page of range(9, 14)) guest.write(page, 5, 99);
      guest.remove(10, 2);
      for (const page of range(9, 14)) guest.expect(page);
    },
  },
  {
    name: 'remove-before-read',
    why: 'A page that was removed before its first touch is zeros, not the bytes of the file.',
    play(guest) {
      guest.remove(0, 2);
      guest.remove(guest.pages - 2, 2);
      for (const page of [0, 1, 2, guest.pages - 3, guest.pages - 2, guest.pages - 1]) guest.expect(page);
    },
  },
  {
    name: 'remove-then-write',
    why: 'A write to a removed page faults again; it must land on zeros.',
    play(guest) {
      guest.expect(10);
      guest.remove(10);
      guest.write(10, 100, 42);
      guest.expect(10);
    },
  },
  {
    name: 'remove-present-and-absent',
    why: 'A removal spans pages that are present and pages that never were: exactly those are zeros.',
    play(guest) {
      for (const page of [2, 5, 6, 20, 40]) guest.expect(page);
      guest.remove(4, 30);
      for (const page of range(0, guest.pages)) guest.expect(page);
    },
  },
  {
    name: 'remove-again',
    why: 'A page may be removed, filled and removed again for as long as the guest runs.',
    play(guest) {
      for (const page of range(8, 12)) guest.expect(page);
      for (let round = 0; round < ROUNDS; round++) {
        guest.remove(9, 2);
        for (const page of range(8, 12)) guest.expect(page);
        if (round % 3 === 0) guest.write(9, 3, round + 1);
      }
    },
  },
  {
    name: 'remove-while-paused',
    why: 'The kernel hands out faults before removals: a handler must read both before it fills a page.',
    async play(guest) {
      guest.expect(0);
      for (let round = 0; round < 8; round++) await removeWhilePaused(guest, 1 + round * 30);
    },
    pages: 256,
  },
  {
    name: 'write-while-paused',
    why: 'Writes that wait while a page is removed must land on zeros, and none may be lost.',
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      const removed = guest.removing(16, 8);
      await guest.untilRemovalWaits();
      const pages = range(12, 28);
      const writers = guest.counting(pages);
      await guest.untilAsleep(writers);
      guest.resumeHandler();
      guest.step('waits for the removal');
      await removed;
      await guest.joinCounters(pages, writers, range(16, 24));
      for (const page of range(8, 32)) guest.expect(page);
    },
  },
  {
    name: 'remove-of-another-page',
    why: 'A fault that was read before the removal of another page must be handled in the same round.',
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      const readers = guest.reading([11]);
      await guest.untilAsleep(readers);
      const removed = guest.removing(10);
      await guest.untilRemovalWaits();
      guest.resumeHandler();
      guest.step('waits for the removal');
      await removed;
      await guest.joinReaders([11], readers);
      for (const page of [9, 10, 11, 12]) guest.expect(page);
    },
  },
  {
    name: 'stale-fill',
    why: 'A page is removed while its data is fetched: filling it with that data afterwards is data corruption.',
    pages: 1 + ROUNDS * STALE_PAGES,
    async play(guest) {
      for (let round = 0; round < ROUNDS; round++)
        await removeWhileFilling(guest, 1 + round * STALE_PAGES, round);
    },
  },
  {
    name: 'removal-flood',
    why: 'A hostile guest removes as fast as it can: all fills meanwhile fail with EAGAIN, and none may be lost.',
    pages: FLOOD_PAGES,
    async play(guest) {
      guest.expect(0);
      guest.splitAll();
      for (let flood = 0; flood < FLOODS; flood++) {
        const from = 1 + flood * 16;
        const pages = telling(from, from + 16);
        const threads = guest.reading(pages);
        await guest.removing(FLOOD_PAGES / 2, FLOOD_PAGES / 2);
        await guest.joinReaders(pages, threads);
        for (const page of [...pages, FLOOD_PAGES / 2 + flood, FLOOD_PAGES - 1]) guest.expect(page);
      }
    },
  },
  {
    name: 'long-eagain',
    why: 'EAGAIN may last longer than any fixed number of tries: a fault that is given up hangs its thread.',
    pages: FLOOD_PAGES,
    async play(guest) {
      guest.expect(0);
      guest.splitAll();
      const half = FLOOD_PAGES / 2;
      for (let flood = 0; flood < FLOODS; flood++) {
        await guest.pauseHandler();
        const removals = [guest.removing(half, half / 2), guest.removing(half + half / 2, half / 2)];
        await guest.untilRemovalWaits(2);
        const pages = telling(1 + flood * 8, 9 + flood * 8);
        const threads = guest.reading(pages);
        await guest.untilAsleep(threads);
        guest.resumeHandler();
        guest.step('waits for the removals');
        await Promise.all(removals);
        await guest.joinReaders(pages, threads);
        for (const page of pages) guest.expect(page);
      }
    },
  },
];

/** The faults of pages wait, then their removal. Afterwards the pages are zeros, whatever the threads have read. */
async function removeWhilePaused(guest: Guest, from: number): Promise<void> {
  await guest.pauseHandler();
  const kept = range(from, from + 8);
  const gone = range(from + 8, from + 28);
  const first = guest.reading(gone);
  const others = guest.reading(kept);
  await guest.untilAsleep(first, others);
  const removed = guest.removing(from + 8, 20);
  await guest.untilRemovalWaits();
  guest.resumeHandler();
  guest.step('waits for the removal');
  await removed;
  await guest.joinReaders(kept, others);
  await guest.joinReaders(gone, first, 'file or zeros');
  for (const page of [...kept, ...gone]) guest.expect(page);
}

/**
 * Pages are touched and removed at the same time. The handler has either none of their faults yet, or all of them and
 * some time, other in each round, to be in the middle of its fills.
 */
async function removeWhileFilling(guest: Guest, from: number, round: number): Promise<void> {
  const pages = range(from, from + STALE_PAGES);
  const half = STALE_PAGES / 2;
  if (round % 2 === 0) {
    const threads = guest.reading(pages);
    const removed = [guest.removing(from, half), guest.removing(from + half, half)];
    guest.step('waits for the removals');
    await Promise.all(removed);
    await guest.joinReaders(pages, threads, 'file or zeros');
  } else {
    await guest.pauseHandler();
    const threads = guest.reading(pages);
    await guest.untilAsleep(threads);
    guest.resumeHandler();
    const began = performance.now();
    while ((performance.now() - began) * 1000 < (round * DELAY_STEP_US) % DELAY_MOST_US);
    guest.remove(from, STALE_PAGES);
    await guest.joinReaders(pages, threads, 'file or zeros');
  }
  for (const page of pages) guest.expect(page);
}
