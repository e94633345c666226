// The system's pool of huge pages: so many there are, and whoever takes the last one leaves the others without.
//
// Rule: what was lent to somebody outside of the simulation comes back; what processes hold comes back when nobody maps
// it any more.

export class HugePool {
  /** Huge pages of the system. */
  readonly total: number;
  #used = 0;
  /** Taken by others for now: everything that was free. */
  #lent = 0;

  constructor(total: number) {
    this.total = total;
  }

  get free(): number {
    return this.total - this.#used - this.#lent;
  }

  /** False: none is free. */
  take(): boolean {
    if (this.free <= 0) return false;
    this.#used++;
    return true;
  }

  give(): void {
    this.#used--;
    // Where it is dry for now, others have that one as well.
    if (this.#lent > 0) this.#lent++;
  }

  /** Somebody else takes all that are free. */
  drain(): void {
    this.#lent += this.free;
  }

  /** And gives them back. */
  refill(): void {
    this.#lent = 0;
  }
}
