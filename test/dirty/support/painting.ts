// Memory that a seed and a step number determine: each step changes some pages of the step before.

import { generator } from '../../support/harness.js';
import { P } from '../../support/real-kernel.js';

export const PAGES = 48;

/** Changes the memory of step `index` − 1 into that of step `index`. */
export function paint(bytes: Uint8Array, seed: number, index: number): void {
  const random = generator(seed * 1000 + index);
  for (let n = 0; n < 10; n++) {
    const at = random(PAGES) * P;
    bytes.fill(random(4) === 0 ? 0 : 1 + random(255), at, at + 1 + random(P));
  }
}

/** The memory at step `index`. */
export function painted(seed: number, index: number): Uint8Array {
  const bytes = new Uint8Array(PAGES * P);
  for (let step = 0; step <= index; step++) paint(bytes, seed, step);
  return bytes;
}
