// The clock of event loops. clock_gettime(2) writes its result to memory. The number that performance.now returns would
// be an object on V8's heap, and the only garbage that a fault makes.

import { libc } from './libc.js';

const CLOCK_MONOTONIC = 1;

/** A timespec: seconds and nanoseconds, of 64 bits each; the lower halves are enough for a century. */
const timespec = new Uint32Array(4);
let address = 0;

/** Monotonic milliseconds with fractions, from an arbitrary start. */
export function now(): number {
  libc().clock_gettime(CLOCK_MONOTONIC, address || place());
  return (timespec[0] as number) * 1e3 + (timespec[2] as number) / 1e6;
}

function place(): number {
  address = Number(libc().koffi.address(timespec));
  return address;
}
