// How many parts of files this process may still map over memory. The kernel limits the mappings of a process
// (vm.max_map_count), and parts of different files never merge.

import { readFileSync } from 'node:fs';

/** The part of the mappings that the kernel allows which memory of guests may take. */
const SHARE = 0.75;
/** The kernel's default. */
const MAPPINGS_MOST = 65_530;

let mapped = 0;
let limit: number | undefined;

function allowed(): number {
  try {
    limit ??= Math.floor(Number(readFileSync('/proc/sys/vm/max_map_count', 'utf8')) * SHARE);
  } catch {
    limit = Math.floor(MAPPINGS_MOST * SHARE);
  }
  return limit;
}

/** How many more there may be. `most`: in all; default: by the kernel's limit. */
export function mappingsLeft(most = allowed()): number {
  return Math.max(0, most - mapped);
}

/** Counts mappings that were made, or, with a negative number, removed. */
export function countMappings(made: number): void {
  mapped += made;
}
