// Counts events into the parts of the drawings: cells of the heat map, and steps of the charts. It uses only typed
// arrays, so that a million events take some milliseconds.

import { bucketOf, leastOf } from '../trace/histogram.js';
import type { Model } from './collect.js';
import { WHATS, What } from './events.js';
import type { Interval, View } from './view.js';

/** Latencies are drawn as durations if at most this many events are visible. */
const LENGTHS_MOST = 20_000;

/**
 * The number of events of each sort in each cell: column by column, low rows first, and the sorts of a cell side by
 * side. Events are in the order of time, so successive counts lie close together. `shown`: which sorts are counted,
 * by `What`.
 */
export function cellsOf(
  model: Model,
  { time, rows }: View,
  columns: number,
  lines: number,
  shown: readonly boolean[],
): Uint32Array {
  const sorts = WHATS.length;
  const counts = new Uint32Array(columns * lines * sorts);
  const { events, row, height } = model;
  const { time: times, what, latency } = events;
  const [scaleX, scaleY] = [columns / (time.to - time.from), lines / (rows.to - rows.from)];
  const end = events.firstAfter(time.to);
  let at = events.firstAt(time.from);
  const lengths = end - at <= LENGTHS_MOST;
  const count = (column: number, until: number): void => {
    for (; at < until; at++) {
      const sort = what[at] as number;
      const low = ((row[at] as number) - rows.from) * scaleY;
      const high = low + (height[at] as number) * scaleY;
      if (!shown[sort] || high <= 0 || low >= lines) continue;
      const bottom = Math.max(0, Math.floor(low));
      const top = Math.min(lines, Math.max(Math.floor(low) + 1, Math.floor(high)));
      const lasts = lengths ? (latency[at] as number) : -1;
      const ends = lasts > 0 ? ((times[at] as number) + lasts - time.from) * scaleX : column;
      const right = Math.min(columns - 1, Math.max(column, Math.floor(ends)));
      for (let across = Math.max(0, column); across <= right; across++) {
        for (let line = bottom; line < top; line++) increment(counts, (across * lines + line) * sorts + sort);
      }
    }
  };
  if (lengths) {
    // Earlier events may last into the view.
    const first = at;
    at = events.firstAt(time.from - (time.to - time.from));
    count(-1, first);
  }
  for (let column = 0; column < columns; column++)
    count(column, column === columns - 1 ? end : events.firstAt(time.from + (column + 1) / scaleX));
  return counts;
}

function increment(counts: Uint32Array, at: number): void {
  counts[at] = (counts[at] as number) + 1;
}

/** The values of the charts for each step of time; null if unknown. */
export interface ChartSteps {
  /** The start of each step. */
  readonly time: number[];
  /** Faults per second. `writes`: only those that are writes. */
  readonly faults: number[];
  readonly writes: number[];
  /** Percentiles of the latency, microseconds. */
  readonly percentiles: (number | null)[][];
  /** Bytes that had been faulted on, and that were resident, at the end of each step. */
  readonly faulted: (number | null)[];
  readonly present: (number | null)[];
}

export const PERCENTILES = [50, 90, 99] as const;

export function stepsOf(model: Model, time: Interval, steps: number): ChartSteps {
  const { events, growth, summary } = model;
  const width = (time.to - time.from) / steps;
  const counts = countSteps(model, time, steps);
  const perSecond = (count: number): number => (count / width) * 1e6;
  const grown = (values: Float64Array | undefined): (number | null)[] =>
    Array.from({ length: steps }, (_, step) => {
      const end = events.firstAfter(step === steps - 1 ? time.to : time.from + (step + 1) * width);
      return values ? (values[end - 1] ?? 0) * summary.pageSize : null;
    });
  return {
    time: Array.from({ length: steps }, (_, step) => time.from + step * width),
    faults: Array.from(counts.faults, perSecond),
    writes: Array.from(counts.writes, perSecond),
    percentiles: percentilesOf(counts, steps),
    faulted: grown(growth?.faulted),
    present: grown(growth?.present),
  };
}

interface StepCounts {
  readonly faults: Uint32Array;
  readonly writes: Uint32Array;
  /** Measured latencies, and how many are in each bucket. */
  readonly measured: Uint32Array;
  readonly buckets: Uint32Array;
  readonly bucketCount: number;
}

function countSteps({ events, bucket, summary }: Model, time: Interval, steps: number): StepCounts {
  const { what, latency } = events;
  const width = (time.to - time.from) / steps;
  const bucketCount = bucketOf(Math.max(0, summary.latencyUs.most)) + 1;
  const [faults, writes, measured] = [new Uint32Array(steps), new Uint32Array(steps), new Uint32Array(steps)];
  const buckets = new Uint32Array(steps * bucketCount);
  let at = events.firstAt(time.from);
  for (let step = 0; step < steps; step++) {
    const last = step === steps - 1;
    const end = last ? events.firstAfter(time.to) : events.firstAt(time.from + (step + 1) * width);
    for (; at < end; at++) {
      const sort = what[at] as number;
      if (sort > What.write) continue;
      increment(faults, step);
      if (sort === What.write) increment(writes, step);
      if ((latency[at] as number) < 0) continue;
      increment(measured, step);
      increment(buckets, step * bucketCount + (bucket[at] as number));
    }
  }
  return { faults, writes, measured, buckets, bucketCount };
}

function percentilesOf({ measured, buckets, bucketCount }: StepCounts, steps: number): (number | null)[][] {
  const values = PERCENTILES.map(() => Array<number | null>(steps).fill(null));
  for (let step = 0; step < steps; step++) {
    const count = measured[step] as number;
    let seen = 0;
    let next = 0;
    for (let index = 0; index < bucketCount && next < PERCENTILES.length && count > 0; index++) {
      seen += buckets[step * bucketCount + index] as number;
      while (
        next < PERCENTILES.length &&
        seen >= Math.max(1, Math.ceil((count * (PERCENTILES[next] as number)) / 100))
      ) {
        (values[next] as (number | null)[])[step] = leastOf(index);
        next++;
      }
    }
  }
  return values;
}

/** The visible faults, and percentiles of their latency. */
export function inView(model: Model, time: Interval): { faults: number; percentiles: (number | null)[] } {
  const counts = countSteps(model, time, 1);
  const percentiles = percentilesOf(counts, 1).map(([value = null]) => value);
  return { faults: counts.faults[0] as number, percentiles };
}
