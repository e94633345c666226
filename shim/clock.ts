// The clock of loops: clock_gettime(2), whose answer lies in memory. What performance.now returns is an object to V8, and
// would be the only garbage of a fault.

import { libc } from './libc.js';

const CLOCK_MONOTONIC = 1;

/** A timespec: seconds and nanoseconds, of 64 bits each, of which the lower half says it all for a century. */
const timespec = new Uint32Array(4);
let address = 0;

/** Milliseconds, with fractions; from some time on, and never back. */
export function now(): number {
  const c = libc();
  if (address === 0) address = Number(c.koffi.address(timespec));
  c.clock_gettime(CLOCK_MONOTONIC, address);
  return (timespec[0] as number) * 1e3 + (timespec[2] as number) / 1e6;
}
