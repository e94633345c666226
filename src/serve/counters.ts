// Counters of a session, in memory shared between its thread and the server.
//
// Rule: one thread adds, all threads may read. A counter is one word, so a read is always consistent.

const COUNTS = [
  'faults',
  'writes',
  /** Faults whose pages were already there. */
  'present',
  /** Faults that were deferred, and offered again. */
  'deferred',
  /** Bytes installed for a fault, for the page itself or its window, by class. */
  'copied',
  'hole',
  'removed',
  /** Bytes, of those that were installed for any reason, that were mapped from the memory that guests share. */
  'shared',
  /** Bytes installed in the background. */
  'prefetched',
  'eager',
  /** Bytes that could not be installed in the background: not mapped, not readable, or already there (EEXIST). */
  'leftOut',
  /** Pauses of the background work because there was no memory. */
  'paused',
  /** Bytes that the monitor removed. */
  'taken',
  /** Failed reads of the memory file that were retried. */
  'retried',
  /** Faults that waited for a chunk of the memory to come from the cache or the store. */
  'waited',
] as const;
/**
 * The counters of a session.
 *
 * @useDeclaredType
 */
export type Count = (typeof COUNTS)[number];

/** Upper bounds of the latency buckets, in seconds; one more bucket holds longer latencies. */
export const LATENCY_BOUNDS = [
  ...[5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5],
] as const;
/**
 * Index of the latencies, which follow the counters: one bucket for each bound, one for longer latencies, and the sum
 * of all latencies.
 */
const LATENCY_AT = COUNTS.length;
const SUM_AT = LATENCY_AT + LATENCY_BOUNDS.length + 1;

const INDEX: ReadonlyMap<Count, number> = new Map(COUNTS.map((name, index) => [name, index]));
/** The counters that every fault changes. */
const [FAULTS, WRITES, DEFERRED, COPIED] = (['faults', 'writes', 'deferred', 'copied'] as const).map(
  (count) => INDEX.get(count),
) as [number, number, number, number];

export class Tally {
  /** The shared memory, to post to another thread. */
  readonly shared: SharedArrayBuffer;
  readonly #words: Float64Array;

  constructor(shared = new SharedArrayBuffer((SUM_AT + 1) * 8)) {
    this.shared = shared;
    this.#words = new Float64Array(shared);
  }

  add(count: Count, much = 1): void {
    const index = INDEX.get(count) as number;
    this.#words[index] = (this.#words[index] as number) + much;
  }

  get(count: Count): number {
    return this.#words[INDEX.get(count) as number] as number;
  }

  /** Counts faults that the core has answered, and bytes of data that were copied for them. */
  answered(faults: number, writes: number, deferred: number, copied: number): void {
    const words = this.#words;
    words[FAULTS] = (words[FAULTS] as number) + faults;
    words[WRITES] = (words[WRITES] as number) + writes;
    words[DEFERRED] = (words[DEFERRED] as number) + deferred;
    words[COPIED] = (words[COPIED] as number) + copied;
  }

  /** Counts faults that were answered after this latency. */
  took(seconds: number, faults: number): void {
    let bound = 0;
    while (bound < LATENCY_BOUNDS.length && seconds > (LATENCY_BOUNDS[bound] as number)) bound++;
    const at = LATENCY_AT + bound;
    this.#words[at] = (this.#words[at] as number) + faults;
    this.#words[SUM_AT] = (this.#words[SUM_AT] as number) + seconds * faults;
  }

  /**
   * `counts`: the faults by latency, one number for each bound and one for longer latencies. `sum`: of all latencies,
   * in seconds.
   */
  get latencies(): { counts: readonly number[]; sum: number } {
    return { counts: [...this.#words.subarray(LATENCY_AT, SUM_AT)], sum: this.#words[SUM_AT] as number };
  }

  /** Bytes that were installed, for any reason. */
  get installed(): number {
    return (
      this.get('copied') + this.get('hole') + this.get('removed') + this.get('prefetched') + this.get('eager')
    );
  }

  toJSON(): Record<Count, number> {
    return Object.fromEntries(COUNTS.map((name) => [name, this.get(name)])) as Record<Count, number>;
  }
}
