// How long to spin for the next message before sleeping: as long as that keeps paying. Pure: it is told how it went.
//
// Rules:
//  - The time doubles when a message came in it, and halves when not.
//  - Who is interrupted while it spins keeps others from a processor, perhaps the very thread it waits for: it is left.
//  - What was in vain is tried again ever more rarely.

const FIRST_MS = 0.05;
const MOST_MS = 0.2;
/** Less than this is not worth it. */
const LEAST_MS = FIRST_MS / 8;
/** More than this between two looks, and something else has run here. */
const INTERRUPTED_MS = 0.004;
/** Sleeps between two tries, at most. */
const SKIPS_MOST = 64;

export class Spin {
  /** Milliseconds to spin; 0: sleep at once. */
  ms = FIRST_MS;
  /** When it began to wait for a message, and when it looked last; −1: it has not. */
  #since = -1;
  #last = -1;
  #interrupted = false;
  #skips = 0;
  #skipsNext = 1;

  /** It looks whether there is a message, at this time. */
  looks(now: number): void {
    if (this.#since < 0) this.#since = now;
    else if (now - this.#last > INTERRUPTED_MS) this.#interrupted = true;
    this.#last = now;
  }

  /** There was one. */
  came(): void {
    if (this.#interrupted) this.#leave();
    else if (this.#last > this.#since) {
      this.ms = Math.min(this.ms * 2, MOST_MS);
      this.#skipsNext = Math.max(this.#skipsNext / 2, 1);
    }
    this.#anew();
  }

  /** There was none. Whether to look again, and not to sleep. */
  get goesOn(): boolean {
    return !this.#interrupted && this.#last - this.#since < this.ms;
  }

  /** That it pays is not known yet. */
  get isTry(): boolean {
    return this.ms <= FIRST_MS;
  }

  /** It has slept. */
  slept(): void {
    if (this.ms > 0) {
      if (this.#interrupted || this.ms <= LEAST_MS) this.#leave();
      else this.ms /= 2;
    } else if (--this.#skips <= 0) {
      this.ms = FIRST_MS;
    }
    this.#anew();
  }

  #leave(): void {
    this.ms = 0;
    this.#skips = this.#skipsNext;
    this.#skipsNext = Math.min(this.#skipsNext * 2, SKIPS_MOST);
  }

  #anew(): void {
    this.#since = -1;
    this.#interrupted = false;
  }
}
