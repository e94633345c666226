// Scenarios of the guest's memory: its regions, its pages' size, and the memory file.

import { readFileSync } from 'node:fs';
import {
  hugeFlags,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
} from '../../../shim/memory.js';
import { type Guest, NotApplicable } from '../guest.js';
import type { RegionPlan } from '../guest-protocol.js';
import { isZeroPage } from '../page-contents.js';
import type { Scenario } from '../scenario.js';

const HUGE = 2 ** 21;
const HUGE_PAGES = 4;
const POOL = '/sys/kernel/mm/hugepages/hugepages-2048kB/';

const all = ({ pages }: Guest): number[] => Array.from({ length: pages }, (_, index) => index);

/** Regions of equal length. `order`: the place in the file of each. */
function regionsOf(count: number, pages: number, order = (index: number) => index): RegionPlan[] {
  return Array.from({ length: count }, (_, index) => ({ pages, offset: order(index) * pages }));
}

/** Huge pages of the pool that no process uses or has reserved. */
function freeHugePages(): number {
  try {
    const [free, reserved] = ['free', 'resv'].map((name) =>
      Number(readFileSync(`${POOL}${name}_hugepages`, 'latin1')),
    ) as [number, number];
    return free - reserved;
  } catch {
    return 0;
  }
}

/** Why a scenario of huge pages does not apply. The handler may need as many pages for a moment. */
function withoutHugePages(): string | undefined {
  const free = freeHugePages();
  if (free >= 2 * HUGE_PAGES) return undefined;
  return `${free} of ${2 * HUGE_PAGES} huge pages of 2 MiB are free: sysctl vm.nr_hugepages=${2 * HUGE_PAGES}`;
}

export const LAYOUTS: readonly Scenario[] = [
  {
    name: 'regions',
    why: 'A guest above 3 GiB has two regions, and each hot-plugged slot is one more; between them lies other memory.',
    regions: [
      { pages: 40, offset: 0 },
      { pages: 1, offset: 40 },
      { pages: 23, offset: 41 },
    ],
    play(guest) {
      for (const page of all(guest)) guest.expect(page);
      guest.remove(39);
      guest.remove(40);
      for (const page of [38, 39, 40, 41]) guest.expect(page);
    },
  },
  {
    name: 'offsets-out-of-order',
    why: "A region's place in the file is its offset, whatever the order of the addresses.",
    regions: regionsOf(4, 16, (index) => [2, 0, 3, 1][index] as number),
    play(guest) {
      for (const page of all(guest)) guest.expect(page);
    },
  },
  {
    name: 'many-regions',
    why: 'Memory hot-plug makes hundreds of regions: the text of the hand-off is longer than a small buffer.',
    pages: 600,
    regions: regionsOf(300, 2),
    play(guest) {
      for (const page of all(guest)) guest.expect(page);
    },
  },
  {
    name: 'sparse-file',
    why: 'A hole of the memory file is a page of zeros, and not an error.',
    sparse: true,
    play(guest) {
      for (const page of all(guest)) guest.expect(page);
    },
  },
  {
    name: 'split-mappings',
    why: "The monitor's mprotect splits mappings; a fill across the border fails with ENOENT, but the page must be filled.",
    play(guest) {
      for (const page of [5, 9, 10, 33]) guest.splitMapping(page);
      for (const page of [10, 4, 33, 5, 32, 9, 34, 6]) guest.expect(page);
      guest.remove(3, 8);
      for (const page of all(guest)) guest.expect(page);
    },
  },
  {
    name: 'huge-pages',
    why: 'A guest in pages of 2 MiB is filled by 2 MiB; a fill of 4 KiB fails.',
    pageSize: HUGE,
    pages: HUGE_PAGES,
    inapplicable: withoutHugePages,
    play(guest) {
      for (const page of [2, 0, 3, 1]) guest.expect(page);
    },
  },
  {
    name: 'huge-pages-removed',
    why: 'There is no zero page for huge pages: a removed one is filled with zeros by a copy.',
    pageSize: HUGE,
    pages: HUGE_PAGES,
    inapplicable: withoutHugePages,
    play(guest) {
      guest.expect(1);
      guest.remove(1, 2);
      for (const page of [0, 1, 2, 3]) guest.expect(page);
      guest.write(1, 12_345, 6);
      guest.expect(1);
    },
  },
  {
    name: 'empty-pool',
    why: 'The pool of huge pages may be empty for a while: the handler tries again, or ends the guest.',
    pageSize: HUGE,
    pages: HUGE_PAGES,
    inapplicable: withoutHugePages,
    handlerMay: 'give up',
    async play(guest) {
      guest.expect(0);
      const bytes = freeHugePages() * HUGE;
      guest.step('takes all free huge pages');
      const taken = mmap(0n, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | hugeFlags(HUGE));
      if (taken < 0n) throw new NotApplicable('another program uses the pool of huge pages');
      const page = [1, 2, 3].find((one) => !isZeroPage(one)) as number;
      const threads = guest.reading([page]);
      await guest.untilAsleep(threads);
      // The handler gets time to meet the error; if it is slower, the scenario asks for less.
      await new Promise((resolve) => setTimeout(resolve, 200));
      guest.step('gives the huge pages back');
      munmap(taken, bytes);
      await guest.joinReaders([page], threads);
      for (const one of all(guest)) guest.expect(one);
    },
  },
];
