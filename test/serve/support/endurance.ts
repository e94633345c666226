// Guests, one after the other, touch their pages, remove them, and touch them again, until the server has answered a
// given number of faults. Its memory and descriptors do not grow.

import { strict as assert } from 'node:assert';
import { descriptors, P, serving, until } from './server.js';

const PAGES = 4096;
/** Faults of one guest, about: few, so that a short run has many guests. */
const A_GUEST = 4 * PAGES;
/** Bytes by which a server may grow at most, however many faults it has answered. */
const GROWTH_MOST = 3 * PAGES * P;

/** @param onProgress called after each guest with the faults so far, and the growth of this process in bytes */
export async function endure(
  faults: number,
  onProgress: (faults: number, grown: number) => void,
): Promise<void> {
  await serving({ pages: PAGES }, async ({ guest, server, ends }) => {
    let done = 0;
    let before: { rss: number; descriptors: number } | undefined;
    while (done < faults) {
      const one = await guest({ regions: 2 });
      for (let round = 0; round * PAGES < Math.min(A_GUEST, faults - done); round++) {
        if (round > 0) await one.remove(0, PAGES);
        const { wrongCount, wrong } = await one.touch({ threads: 2, order: 'random', seed: round });
        assert.equal(wrongCount, 0, wrong.join('\n'));
      }
      await one.end();
      await until(() => server.sessions.size === 0);
      // What is closed on another thread, or when the guest's memory is gone, is closed a little later.
      const most = before?.descriptors ?? descriptors();
      await until(() => descriptors() <= most);
      done += ends.at(-1)?.session.tally.get('faults') as number;
      ends.length = 0;
      globalThis.gc?.();
      // By the end of the first guest, all needed objects exist and all code is compiled.
      before ??= { rss: process.memoryUsage.rss(), descriptors: descriptors() };
      const grown = process.memoryUsage.rss() - before.rss;
      onProgress(done, grown);
      assert.ok(grown < GROWTH_MOST, `${Math.round(grown / 2 ** 20)} MiB more after ${done} faults`);
    }
  });
}
