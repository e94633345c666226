// Scenarios of an end: of the monitor, of the handler, of the memory file.

import { truncateSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Scenario } from '../scenario.js';

const MANY_PAGES = 256;

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
      guest.reading([1, 2, 3]);
      await guest.untilFaults(3);
      void guest.removing(8, 2);
      await guest.untilRemovalWaits();
      await guest.ask('kill me');
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
      const threads = guest.reading([1, 2, 3]);
      await guest.untilFaults(3);
      await sleep(50);
      guest.resumeHandler();
      await guest.joinReaders([1, 2, 3], threads);
      for (const page of [1, 2, 3, 4]) guest.expect(page);
    },
  },
  {
    name: 'handler-killed',
    why: 'A handler that is started again gets the same memory, in which pages are present and faults wait.',
    async play(guest) {
      for (const page of [0, 2, 4]) guest.expect(page);
      await guest.pauseHandler();
      const threads = guest.reading([5, 6, 5]);
      await guest.untilFaults(3);
      await guest.ask('restart the handler');
      await guest.handOver();
      // The new handler cannot know of faults that the old one has read, so the monitor wakes their threads.
      guest.wakeAll();
      await guest.joinReaders([5, 6, 5], threads);
      for (const page of [0, 1, 2, 3, 4, 5, 6]) guest.expect(page);
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
