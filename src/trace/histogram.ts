// A histogram of durations, whose size does not depend on how many there are.

/** Buckets for each power of two: a percentile is at most 1/32 too low. */
const STEPS = 32;
const STEP_BITS = 5;

/** A histogram of whole numbers from 0 on. */
export class Histogram {
  count = 0;
  most = 0;
  readonly #buckets: number[] = [];

  add(value: number): void {
    const bucket = bucketOf(value);
    this.#buckets[bucket] = (this.#buckets[bucket] ?? 0) + 1;
    this.count++;
    this.most = Math.max(this.most, value);
  }

  /** The percentile of the values; 0 if there are none. */
  percentile(percent: number): number {
    let left = Math.max(1, Math.ceil((this.count * percent) / 100));
    for (let bucket = 0; bucket < this.#buckets.length; bucket++) {
      left -= this.#buckets[bucket] ?? 0;
      if (left <= 0) return leastOf(bucket);
    }
    return this.most;
  }
}

/** The bucket of a value. Each small value has a bucket of its own. */
export function bucketOf(value: number): number {
  if (value < 2 * STEPS) return Math.max(0, Math.floor(value));
  const power = Math.floor(Math.log2(value)) - STEP_BITS;
  return power * STEPS + Math.floor(value / 2 ** power);
}

/** The least value of a bucket. */
export function leastOf(bucket: number): number {
  if (bucket < 2 * STEPS) return bucket;
  const power = Math.floor(bucket / STEPS) - 1;
  return (bucket - power * STEPS) * 2 ** power;
}
