// Scenarios of faults on pages that are not removed.

import { type Guest, NotApplicable } from '../guest.js';
import type { Scenario } from '../scenario.js';

const THREADS = 2000;

const upTo = (count: number): number[] => Array.from({ length: count }, (_, index) => index);
const endsAndMiddle = ({ pages }: Guest): number[] => [0, pages >> 1, pages - 2, pages - 1];

export const FAULTS: readonly Scenario[] = [
  {
    name: 'reads',
    why: 'The first, a middle and the last page show errors by one, and wrong offsets.',
    play(guest) {
      for (const page of endsAndMiddle(guest)) guest.expect(page);
      for (const page of endsAndMiddle(guest)) guest.expect(page);
    },
  },
  {
    name: 'writes',
    why: 'A write to a missing page is a fault of another kind; the rest of the page must hold its bytes.',
    play(guest) {
      for (const page of endsAndMiddle(guest)) guest.write(page, 100, 200);
      for (const page of endsAndMiddle(guest)) guest.expect(page);
    },
  },
  {
    name: 'every-page',
    why: 'Each page of the file has its place; a guest touches them in any order.',
    pages: 512,
    play(guest) {
      // 181 and 512 have no common divisor, so each page comes once.
      for (const index of upTo(guest.pages)) guest.expect((index * 181) % guest.pages);
    },
  },
  {
    name: 'write-after-read',
    why: 'A page that was filled for a read is written without a fault, and must keep what is written.',
    play(guest) {
      for (const page of endsAndMiddle(guest)) {
        guest.expect(page);
        guest.write(page, 4000, 77);
        guest.expect(page);
      }
    },
  },
  {
    name: 'fault-in-a-system-call',
    why: 'A device or a vhost thread touches guest memory in the kernel; its faults arrive like others.',
    play(guest) {
      if (guest.userModeOnly)
        throw new NotApplicable('userfaultfd is for user mode only here: it needs root or CAP_SYS_PTRACE');
      for (const page of endsAndMiddle(guest)) guest.expectBySystemCall(page);
    },
  },
  {
    name: 'threads-on-one-page',
    why: `${THREADS} threads that wait for one page are ${THREADS} messages: one fill, and no error for the others.`,
    async play(guest) {
      const pages = upTo(THREADS).map(() => 3);
      await guest.joinReaders(pages, guest.reading(pages));
      guest.expect(3);
      guest.expect(4);
    },
  },
  {
    name: 'threads-write-one-page',
    why: 'A second fill of a page that was written meanwhile would lose the writes.',
    async play(guest) {
      const pages = upTo(THREADS / 2).map(() => 3);
      await guest.joinCounters(pages, guest.counting(pages));
      guest.expect(3);
    },
  },
  {
    name: 'batch',
    why: 'Many faults are read at once after a pause; a batch that is cut or skipped leaves a thread asleep.',
    pages: 512,
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      const pages = upTo(guest.pages).slice(1);
      const threads = guest.reading(pages);
      await guest.untilAsleep(threads);
      guest.resumeHandler();
      await guest.joinReaders(pages, threads);
      for (const page of pages) guest.expect(page);
    },
  },
  {
    name: 'present-page',
    why: 'A page may be present when its fault is handled (a prefetcher came first): EEXIST wakes no thread.',
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      const pages = [40, 41, 40];
      const threads = guest.reading(pages);
      await guest.untilAsleep(threads);
      guest.fillByMonitor(40);
      guest.fillByMonitor(41);
      guest.resumeHandler();
      await guest.joinReaders(pages, threads);
      for (const page of [39, 40, 41, 42]) guest.expect(page);
    },
  },
  {
    name: 'short-fill',
    why: 'A fill of several pages ends at the first that is present, and reports fewer bytes; the rest is still missing.',
    play(guest) {
      guest.expect(0);
      for (const page of [18, 21, 36, 45]) guest.fillByMonitor(page);
      for (const page of [20, 16, 22, 19, 17, 23, 18, 21, 37, 32, 44, 46, 40, 47]) guest.expect(page);
    },
  },
];
