// Formats latencies.

import type { RecordableHistogram } from 'node:perf_hooks';

/** Microseconds of a percentile of nanoseconds; 0 if nothing was counted. */
export function percentileUs(ns: Pick<RecordableHistogram, 'count' | 'percentile'>, of: number): number {
  return ns.count > 0 ? ns.percentile(of) / 1000 : 0;
}
