// Counts events into what can be drawn: cells of the heat map, and steps of the charts. Only typed arrays are touched,
// so that a million events take some milliseconds.

import { bucketOf, leastOf } from '../trace/histogram.js';
import type { Model } from './collect.js';
import { isFault, WHATS } from './events.js';
import type { Part, View } from './view.js';

/** Latencies are drawn as lengths of time while at most so many events are in view. */
const LENGTHS_MOST = 20_000;

export interface Cells {
  readonly columns: number;
  readonly rows: number;
  /** How many events of each sort are in each cell, the sorts of a cell beside each other; low rows first. */
  readonly counts: Uint32Array;
}

/** `shown`: which sorts are counted, by `What`. */
export function cellsOf(
  model: Model,
  { time, rows }: View,
  columns: number,
  lines: number,
  shown: readonly boolean[],
): Cells {
  const sorts = WHATS.length;
  const counts = new Uint32Array(columns * lines * sorts);
  const { events, row, height } = model;
  const [scaleX, scaleY] = [columns / (time.to - time.from), lines / (rows.to - rows.from)];
  const end = events.firstAfter(time.to);
  let at = events.firstAt(time.from);
  const lengths = end - at <= LENGTHS_MOST;
  // What began a while before may last into the view.
  if (lengths) at = events.firstAt(time.from - (time.to - time.from));
  const { time: times, what, latency } = events;
  for (; at < end; at++) {
    const sort = what[at] as number;
    if (!shown[sort]) continue;
    const low = ((row[at] as number) - rows.from) * scaleY;
    const high = low + (height[at] as number) * scaleY;
    if (high <= 0 || low >= lines) continue;
    const x = Math.floor(((times[at] as number) - time.from) * scaleX);
    const right = lengths ? Math.floor(x + Math.max(0, latency[at] as number) * scaleX) : x;
    const bottom = Math.max(0, Math.floor(low));
    const top = Math.min(lines, Math.max(Math.floor(low) + 1, Math.floor(high)));
    // Most are one cell.
    if (right === x && top - bottom === 1) {
      if (x >= 0) increment(counts, (bottom * columns + Math.min(x, columns - 1)) * sorts + sort);
    } else fill(counts, { left: x, right, bottom, top, columns, sort });
  }
  return { columns, rows: lines, counts };
}

interface Box {
  readonly left: number;
  readonly right: number;
  readonly bottom: number;
  readonly top: number;
  readonly columns: number;
  readonly sort: number;
}

function fill(counts: Uint32Array, { left, right, bottom, top, columns, sort }: Box): void {
  const last = Math.min(columns - 1, right);
  for (let line = bottom; line < top; line++) {
    for (let column = Math.max(0, left); column <= last; column++)
      increment(counts, (line * columns + column) * WHATS.length + sort);
  }
}

function increment(counts: Uint32Array, at: number): void {
  counts[at] = (counts[at] as number) + 1;
}

/** What the charts show, a value for each step of time; null: nothing is known there. */
export interface Steps {
  /** When each step begins. */
  readonly time: number[];
  /** Faults a second; writes alone. */
  readonly faults: number[];
  readonly writes: number[];
  /** Percentiles of the latency, microseconds. */
  readonly percentiles: (number | null)[][];
  /** Bytes that had been faulted on, and that were present, at the end of each step. */
  readonly faulted: (number | null)[];
  readonly present: (number | null)[];
}

export const PERCENTILES = [50, 90, 99] as const;

export function stepsOf(model: Model, time: Part, steps: number): Steps {
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

interface Counts {
  readonly faults: Uint32Array;
  readonly writes: Uint32Array;
  /** Latencies that were measured, and how many of them are in each bucket. */
  readonly measured: Uint32Array;
  readonly buckets: Uint32Array;
  readonly bucketCount: number;
}

function countSteps({ events, bucket, summary }: Model, time: Part, steps: number): Counts {
  const first = events.firstAt(time.from);
  const end = events.firstAfter(time.to);
  const { time: times, what, latency } = events;
  const scale = steps / (time.to - time.from);
  const bucketCount = bucketOf(Math.max(0, summary.latencyUs.most)) + 1;
  const [faults, writes, measured] = [new Uint32Array(steps), new Uint32Array(steps), new Uint32Array(steps)];
  const buckets = new Uint32Array(steps * bucketCount);
  for (let at = first; at < end; at++) {
    if (!isFault(events, at)) continue;
    const step = Math.min(steps - 1, Math.floor(((times[at] as number) - time.from) * scale));
    increment(faults, step);
    writes[step] = (writes[step] as number) + (what[at] as number);
    if ((latency[at] as number) < 0) continue;
    increment(measured, step);
    increment(buckets, step * bucketCount + (bucket[at] as number));
  }
  return { faults, writes, measured, buckets, bucketCount };
}

function percentilesOf({ measured, buckets, bucketCount }: Counts, steps: number): (number | null)[][] {
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

/** What is in view: faults, and percentiles of their latency. */
export function inView(model: Model, time: Part): { faults: number; percentiles: (number | null)[] } {
  const counts = countSteps(model, time, 1);
  const percentiles = percentilesOf(counts, 1).map(([value = null]) => value);
  return { faults: counts.faults[0] as number, percentiles };
}
