// What a session has done, in memory that its thread and the server share.
//
// Rule: one thread adds, everybody may read. A number is whole at any time, being one word.

const COUNTS = [
  'faults',
  'writes',
  /** Faults of pages that were there already. */
  'present',
  /** Faults that were put off, and offered again. */
  'deferred',
  /** Bytes by class that were installed for a fault, for the page itself or its window. */
  'copied',
  'hole',
  'removed',
  /** The same, in the background. */
  'prefetched',
  'eager',
  /** Bytes that could not be installed in the background: not mapped, not to be read, or said to be there (EEXIST). */
  'leftOut',
  /** Times that the background paused for want of memory. */
  'paused',
  /** Bytes that the monitor took away. */
  'taken',
  /** Reads of the memory file that failed and were tried again. */
  'retried',
] as const;
/**
 * What is counted of a session.
 *
 * @useDeclaredType
 */
export type Count = (typeof COUNTS)[number];

/** Upper bounds of the latencies that are counted, in seconds; more come behind the last. */
export const LATENCY_BOUNDS = [
  ...[5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5],
] as const;
/** Behind the counts: one for each bound, one for all that took longer, and the sum of all latencies. */
const LATENCY_AT = COUNTS.length;
const SUM_AT = LATENCY_AT + LATENCY_BOUNDS.length + 1;

const INDEX: ReadonlyMap<Count, number> = new Map(COUNTS.map((name, index) => [name, index]));
/** What every fault adds to. */
const [FAULTS, WRITES, DEFERRED, COPIED] = (['faults', 'writes', 'deferred', 'copied'] as const).map(
  (count) => INDEX.get(count),
) as [number, number, number, number];

export class Tally {
  /** To be posted to the other thread. */
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

  /** Faults that were answered from data, and bytes that were copied for them. */
  answered(faults: number, writes: number, putOff: number, bytes: number): void {
    const words = this.#words;
    words[FAULTS] = (words[FAULTS] as number) + faults;
    words[WRITES] = (words[WRITES] as number) + writes;
    words[DEFERRED] = (words[DEFERRED] as number) + putOff;
    words[COPIED] = (words[COPIED] as number) + bytes;
  }

  /** So many faults were answered after so long. */
  took(seconds: number, faults: number): void {
    let bound = 0;
    while (bound < LATENCY_BOUNDS.length && seconds > (LATENCY_BOUNDS[bound] as number)) bound++;
    const at = LATENCY_AT + bound;
    this.#words[at] = (this.#words[at] as number) + faults;
    this.#words[SUM_AT] = (this.#words[SUM_AT] as number) + seconds * faults;
  }

  /** Faults by latency: one number for each bound, and one for those that took longer; and the sum, in seconds. */
  get latencies(): { counts: readonly number[]; sum: number } {
    return { counts: [...this.#words.subarray(LATENCY_AT, SUM_AT)], sum: this.#words[SUM_AT] as number };
  }

  /** Bytes that were installed, for whatever reason. */
  get installed(): number {
    return (
      this.get('copied') + this.get('hole') + this.get('removed') + this.get('prefetched') + this.get('eager')
    );
  }

  toJSON(): Record<Count, number> {
    return Object.fromEntries(COUNTS.map((name) => [name, this.get(name)])) as Record<Count, number>;
  }
}
