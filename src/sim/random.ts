// The only source of chance in the simulation. Everything that may go one way or another asks here, so a run is
// a list of answers: drawn from a seed, or given, to repeat a run or to try a simpler one.

/** Decides what may go one way or another. */
export interface Chooser {
  /** An integer from 0 up to `end`, exclusive. 0 is the plainest choice. */
  below(end: number): number;
  /** True with this probability, from 0 to 1. */
  chance(probability: number): boolean;
}

/** Numbers that depend on the seed alone, on every machine (splitmix32). */
export class Random implements Chooser {
  #state: number;

  /** `seed`: any integer; its low 32 bits count. */
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 32 random bits. */
  bits(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  }

  below(end: number): number {
    return Math.floor((this.bits() / 2 ** 32) * end);
  }

  chance(probability: number): boolean {
    return probability > 0 && this.bits() < probability * 2 ** 32;
  }
}

/** Writes down what another chooser decides. */
export class Noted implements Chooser {
  readonly choices: number[] = [];
  readonly #inner: Chooser;

  constructor(inner: Chooser) {
    this.#inner = inner;
  }

  below(end: number): number {
    if (end <= 1) return 0;
    const choice = this.#inner.below(end);
    this.choices.push(choice);
    return choice;
  }

  chance(probability: number): boolean {
    if (probability <= 0) return false;
    const choice = this.#inner.chance(probability);
    this.choices.push(choice ? 1 : 0);
    return choice;
  }
}

/**
 * Decides as a list says: where an entry does not fit, the plainest choice. Behind its end another chooser decides;
 * without one, the plainest choice again.
 */
export class Script implements Chooser {
  readonly #choices: readonly number[];
  readonly #behind: Chooser | undefined;
  #next = 0;

  constructor(choices: readonly number[], behind?: Chooser) {
    this.#choices = choices;
    this.#behind = behind;
  }

  below(end: number): number {
    const choice = this.#choices[this.#next++] ?? this.#behind?.below(end) ?? 0;
    return choice < end ? choice : 0;
  }

  chance(probability: number): boolean {
    const choice = this.#choices[this.#next++];
    return choice === undefined ? (this.#behind?.chance(probability) ?? false) : choice === 1;
  }
}
