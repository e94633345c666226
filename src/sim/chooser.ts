// The only source of randomness in the simulation. A chooser makes every random decision, so a list of choices
// determines a run. The choices are drawn from a seed. Or a given list is used, to repeat a run or to try a simpler
// one.

/** Makes random decisions. */
export interface Chooser {
  /** An integer from 0 up to `end`, exclusive. 0 is the plainest choice. */
  below(end: number): number;
  /** True with this probability, from 0 to 1. */
  chance(probability: number): boolean;
}

/** Draws numbers that depend on the seed alone, on every machine (splitmix32). */
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

/** Records the choices of another chooser. */
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
 * Makes the choices of a list. If an entry does not fit, it makes the plainest choice. After the end of the list
 * another chooser decides. If there is no other chooser, every further choice is the plainest.
 */
export class Script implements Chooser {
  readonly #choices: readonly number[];
  readonly #fallback: Chooser | undefined;
  #next = 0;

  constructor(choices: readonly number[], fallback?: Chooser) {
    this.#choices = choices;
    this.#fallback = fallback;
  }

  below(end: number): number {
    const choice = this.#choices[this.#next++] ?? this.#fallback?.below(end) ?? 0;
    return choice >= 0 && choice < end ? choice : 0;
  }

  chance(probability: number): boolean {
    const choice = this.#choices[this.#next++];
    return choice === undefined ? (this.#fallback?.chance(probability) ?? false) : choice === 1;
  }
}
