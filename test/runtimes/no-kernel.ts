// In place of the real kernel (test/kernel/support.ts, test/semantics/real.ts) where there is none: pages of the
// simulated one, and a reason to leave out what is asked of both.

import { leaveOut } from '../harness.js';

export const P = 4096;

export function at(base: bigint, index: number, offset = 0): bigint {
  return base + BigInt(index * P + offset);
}

export function needKernel(): never {
  return leaveOut('it asks the real kernel');
}

export class RealWorld {}
