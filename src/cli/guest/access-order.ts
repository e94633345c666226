// The orders in which a guest touches its pages.

import { GOLDEN, mix, shuffledOrder } from './permutation.js';
import type { AccessOrder } from './protocol.js';

/** The exponent of Zipf's law for the frequency of pages, as in key-value stores. */
const ZIPF = 0.99;

/**
 * The touches of one of several threads: page numbers from 0 up to `pages`. Without a number of touches, each page
 * comes once, and the threads take turns; Zipf's order needs a number.
 */
export function* touchesOf(
  { order, seed, touches }: { order: AccessOrder; seed: number; touches: number },
  pages: number,
  thread: number,
  threads: number,
): Generator<number> {
  const mine = Math.floor((touches + threads - 1 - thread) / threads);
  if (order === 'zipf') {
    yield* zipf(seed + thread, pages, mine);
    return;
  }
  const place = order === 'random' ? shuffledOrder(pages, seed) : (index: number) => index;
  for (let done = 0; done < mine; done++) yield place((thread + done * threads) % pages);
}

/** By Gray et al., "Quickly generating billion-record synthetic databases" (1994); popular pages are spread out. */
function* zipf(seed: number, pages: number, count: number): Generator<number> {
  let zeta = 0;
  for (let rank = 1; rank <= pages; rank++) zeta += rank ** -ZIPF;
  const alpha = 1 / (1 - ZIPF);
  const eta = (1 - (2 / pages) ** (1 - ZIPF)) / (1 - (1 + 0.5 ** ZIPF) / zeta);
  for (let done = 0; done < count; done++) {
    const uniform = (mix(seed + Math.imul(done + 1, GOLDEN)) >>> 0) / 2 ** 32;
    const scaled = uniform * zeta;
    const rank =
      scaled < 1 ? 0 : scaled < 1 + 0.5 ** ZIPF ? 1 : Math.floor(pages * (eta * uniform - eta + 1) ** alpha);
    yield (Math.min(rank, pages - 1) * 7919) % pages;
  }
}
