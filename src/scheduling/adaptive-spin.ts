// How long to spin for the next message before sleeping: as long as spinning keeps paying. Pure: the caller reports
// results.
//
// Rules:
//  - The time doubles if a message arrived while spinning, and halves if none did.
//  - If a spinning thread was interrupted, another thread needs its processor, perhaps the faulting thread. So spinning
//    ends.
//  - After spinning did not pay, it is retried more and more rarely.

const FIRST_MS = 0.05;
const MOST_MS = 0.2;
/** Least milliseconds to spin: a shorter spin is not worth it. */
const LEAST_MS = FIRST_MS / 8;
/** If two polls are more than this many milliseconds apart, another thread has run on this processor. */
const INTERRUPTED_MS = 0.004;
/** Spinning is tried again after this many sleeps at most. */
const SKIPS_MOST = 64;

export class AdaptiveSpin {
  /** Milliseconds to spin; 0: sleep at once. */
  ms = FIRST_MS;
  /** When the wait for a message began, and when the caller polled last; −1: not yet. */
  #since = -1;
  #last = -1;
  #interrupted = false;
  #skips = 0;
  #skipsNext = 1;

  /** To call with the time at which the caller polls for a message. */
  polledAt(now: number): void {
    if (this.#since < 0) this.#since = now;
    else if (now - this.#last > INTERRUPTED_MS) this.#interrupted = true;
    this.#last = now;
  }

  /** A message arrived. */
  messageArrived(): void {
    if (this.#interrupted) this.#giveUp();
    else if (this.#last > this.#since) {
      this.ms = Math.min(this.ms * 2, MOST_MS);
      this.#skipsNext = Math.max(this.#skipsNext / 2, 1);
    }
    this.#restart();
  }

  /** Whether to poll again, instead of sleeping, after a poll without a message. */
  get shouldContinue(): boolean {
    return !this.#interrupted && this.#last - this.#since < this.ms;
  }

  /** Whether the loop is still probing if spinning pays. */
  get isProbing(): boolean {
    return this.ms <= FIRST_MS;
  }

  /** To call when the caller has slept. */
  slept(): void {
    if (this.ms > 0) {
      if (this.#interrupted || this.ms <= LEAST_MS) this.#giveUp();
      else this.ms /= 2;
    } else if (--this.#skips <= 0) {
      this.ms = FIRST_MS;
    }
    this.#restart();
  }

  #giveUp(): void {
    this.ms = 0;
    this.#skips = this.#skipsNext;
    this.#skipsNext = Math.min(this.#skipsNext * 2, SKIPS_MOST);
  }

  #restart(): void {
    this.#since = -1;
    this.#interrupted = false;
  }
}
