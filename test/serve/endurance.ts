// One guest after the other, each of which touches its pages, gives them back, and touches them again: for as many faults
// as are asked for. The server's memory and descriptors stay as they are.

import { strict as assert } from 'node:assert';
import { descriptors, P, serving, until } from './support.js';

const PAGES = 4096;
/** Faults of one guest, about: few, so that a short run has many of them. */
const A_GUEST = 4 * PAGES;
/** What a server may grow by, whatever it has served. */
const GROWTH_MOST = 3 * PAGES * P;

/** @param tell is told of each guest that has ended: faults until then, and bytes that this process has more */
export async function endure(faults: number, tell: (faults: number, grown: number) => void): Promise<void> {
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
      done += ends.at(-1)?.session.tally.get('faults') as number;
      ends.length = 0;
      globalThis.gc?.();
      // The first guest has everything be made and compiled that is needed.
      before ??= { rss: process.memoryUsage.rss(), descriptors: descriptors() };
      const grown = process.memoryUsage.rss() - before.rss;
      tell(done, grown);
      assert.ok(grown < GROWTH_MOST, `${Math.round(grown / 2 ** 20)} MiB more after ${done} faults`);
      assert.ok(
        descriptors() <= before.descriptors,
        `${descriptors()} descriptors, ${before.descriptors} before`,
      );
    }
  });
}
