// Stands in for the real kernel (test/support/real-kernel.ts, test/semantics/real.ts) in runtimes without it: has the
// simulated kernel's page size, and leaves out tests of the real kernel with a reason.

import { leaveOut } from '../support/harness.js';

export const P = 4096;

export function at(base: bigint, index: number, offset = 0): bigint {
  return base + BigInt(index * P + offset);
}

export function needKernel(): never {
  return leaveOut('it asks the real kernel');
}

export class RealWorld {}
