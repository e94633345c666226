// The simulated system's pool of huge pages: a fixed number of pages, which all processes share.
//
// Rule: a page of a simulated process returns to the pool when no process maps it any more. Pages that were lent to
// processes outside of the simulation return together.

export class HugePool {
  /** Number of huge pages of the system. */
  readonly total: number;
  #used = 0;
  /** Number of pages that processes outside of the simulation have taken for a while. */
  #lent = 0;

  constructor(total: number) {
    this.total = total;
  }

  get free(): number {
    return this.total - this.#used - this.#lent;
  }

  /** Takes a page. False: none is free. */
  take(): boolean {
    if (this.free <= 0) return false;
    this.#used++;
    return true;
  }

  give(): void {
    this.#used--;
    // While the pool is drained, those processes take this page as well.
    if (this.#lent > 0) this.#lent++;
  }

  /** Lets another process take all free pages. */
  drain(): void {
    this.#lent += this.free;
  }

  /** Lets the other process give its pages back. */
  refill(): void {
    this.#lent = 0;
  }
}
