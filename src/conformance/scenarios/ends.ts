// Scenarios of an end: of the monitor, of the handler, of the memory file.

import { truncateSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Guest, NotApplicable } from '../guest.js';
import type { Scenario } from '../scenario.js';

const MANY_PAGES = 256;
const ROUNDS = 10;
/** How often the guest looks whether its faults are read and not answered. */
const LOOKS = 200;
/** Time for the handler to try a fill again, after the guest's end and before that of its connection. */
const LENT_SECONDS = 1;

export const ENDS: readonly Scenario[] = [
  {
    name: 'monitor-exits',
    why: 'The end of a guest is no error of its handler.',
    handlerMay: 'outlive',
    async play(guest) {
      guest.expect(0);
      guest.remove(0);
      guest.expect(5);
    },
  },
  {
    name: 'monitor-killed',
    why: 'A monitor may be killed while faults wait: the fills fail with ESRCH, which ends no handler.',
    handlerMay: 'outlive',
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      await guest.untilAsleep(guest.reading([40, 41, 42]));
      void guest.removing(8, 2);
      await guest.untilRemovalWaits();
      await guest.ask('kill me');
    },
  },
  {
    name: 'fill-after-the-end',
    why: 'A guest may end between the read of a fault and its fill, which fails with ESRCH: no error of the handler.',
    pages: MANY_PAGES * 8,
    handlerMay: 'outlive',
    async play(guest) {
      guest.expect(0);
      guest.splitAll();
      // A handler that sees the connection close may not come to its fills.
      guest.lendConnection(LENT_SECONDS);
      const half = guest.pages / 2;
      for (let round = 0; round < ROUNDS; round++) {
        await guest.pauseHandler();
        const removals = [guest.removing(half, half / 2), guest.removing(half + half / 2, half / 2)];
        await guest.untilRemovalWaits(2);
        await guest.untilAsleep(guest.reading([1, 2, 3, 4].map((page) => 64 + round * 32 + page)));
        guest.resumeHandler();
        if (await isCaught(guest)) await guest.ask('kill me');
        await Promise.all(removals);
      }
      throw new NotApplicable('the handler fills at once whatever it has read');
    },
  },
  {
    name: 'monitor-stops',
    why: 'A monitor may stand still (a debugger, a freezer): the handler waits, and goes on with it.',
    async play(guest) {
      guest.expect(0);
      await guest.ask('stop me');
      for (const page of [1, 2, guest.pages - 2]) guest.expect(page);
    },
  },
  {
    name: 'handler-stops',
    why: 'A handler that stood still goes on with the faults that came meanwhile.',
    async play(guest) {
      guest.expect(0);
      await guest.pauseHandler();
      const threads = guest.reading([40, 41, 42]);
      await guest.untilAsleep(threads);
      await sleep(50);
      guest.resumeHandler();
      await guest.joinReaders([40, 41, 42], threads);
      for (const page of [1, 39, 40, 41, 42, 43]) guest.expect(page);
    },
  },
  {
    name: 'handler-killed',
    why: 'A handler that is started again gets the same memory, in which pages are present and faults wait.',
    async play(guest) {
      for (const page of [0, 2, 4]) guest.expect(page);
      await guest.pauseHandler();
      const threads = guest.reading([40, 41, 40]);
      await guest.untilAsleep(threads);
      await guest.ask('restart the handler');
      await guest.handOver();
      // The new handler cannot know of faults that the old one has read, so the monitor wakes their threads.
      guest.wakeAll();
      await guest.joinReaders([40, 41, 40], threads);
      for (const page of [0, 1, 2, 3, 4, 39, 40, 41, 42]) guest.expect(page);
    },
  },
  {
    name: 'truncated-file',
    why: 'The memory file may lose its end: the handler must say so; zeros or a silent hang are data loss.',
    pages: MANY_PAGES,
    handlerMay: 'give up',
    play(guest) {
      guest.expect(0);
      guest.step('truncates the memory file');
      truncateSync(guest.file, (MANY_PAGES / 2) * guest.pageSize);
      guest.expect(MANY_PAGES - 2);
    },
  },
];

/** Whether the handler stands still while it holds faults that it has read and not answered. */
async function isCaught(guest: Guest): Promise<boolean> {
  const caught = (): boolean => guest.faults.unread === 0 && guest.faults.all > 0;
  for (let looks = 0; looks < LOOKS; looks++) {
    if (!caught()) continue;
    await guest.pauseHandler();
    if (caught()) return true;
    guest.resumeHandler();
    return false;
  }
  return false;
}
