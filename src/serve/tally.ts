// What a session has done, in memory that its thread and the server share.
//
// Rule: one thread adds, everybody may read. A number is whole at any time, being one word.

/** Pages by how they were installed: copied from the file, zeros of a hole, zeros after a removal. */
export const CLASSES = ['copied', 'hole', 'removed'] as const;
export type PageClass = (typeof CLASSES)[number];

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
  /** Bytes that the monitor took away. */
  'taken',
  /** Reads of the memory file that failed and were tried again. */
  'retried',
] as const;
export type Count = (typeof COUNTS)[number];

const INDEX: ReadonlyMap<Count, number> = new Map(COUNTS.map((name, index) => [name, index]));

export class Tally {
  /** To be posted to the other thread. */
  readonly shared: SharedArrayBuffer;
  readonly #words: Float64Array;

  constructor(shared = new SharedArrayBuffer(COUNTS.length * 8)) {
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
