// What the demo's threads share: when to begin and end, what the loop has done, and which pages it filled for
// a fault of their own.
//
// Rules:
//  - The loop's thread alone counts and marks; everybody may read.
//  - A page is marked before it is filled, so whoever slept for it finds the mark.

const STATE = 0;
const RESIDENT = 1;
const FAULTS = 2;
const FILLS = 3;
const MARKS = 4;

const WAITING = 0;
const RUNNING = 1;
const STOPPED = 2;

export class Board {
  /** To be posted to the other threads, for `new Board(shared)`. */
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(shared: SharedArrayBuffer) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
  }

  static forPages(pages: number): Board {
    return new Board(new SharedArrayBuffer((MARKS + Math.ceil(pages / 32)) * 4));
  }

  // ---- beginning and ending ------------------------------------------------------------------------------

  /** Everybody may begin; means nothing after `stop`. */
  begin(): void {
    Atomics.compareExchange(this.#words, STATE, WAITING, RUNNING);
    Atomics.notify(this.#words, STATE);
  }

  /** Everybody is to end as soon as they can. */
  stop(): void {
    Atomics.store(this.#words, STATE, STOPPED);
    Atomics.notify(this.#words, STATE);
  }

  get stopped(): boolean {
    return Atomics.load(this.#words, STATE) === STOPPED;
  }

  /** Sleeps until `begin` or `stop`. */
  awaitBegin(): void {
    Atomics.wait(this.#words, STATE, WAITING);
  }

  // ---- the loop's counts ---------------------------------------------------------------------------------

  /** A fault is over, and `pages` pages were installed for it. */
  countFault(pages: number): void {
    Atomics.add(this.#words, FAULTS, 1);
    if (pages === 0) return;
    Atomics.add(this.#words, FILLS, 1);
    Atomics.add(this.#words, RESIDENT, pages);
  }

  get resident(): number {
    return Atomics.load(this.#words, RESIDENT) >>> 0;
  }

  get faults(): number {
    return Atomics.load(this.#words, FAULTS) >>> 0;
  }

  get fills(): number {
    return Atomics.load(this.#words, FILLS) >>> 0;
  }

  // ---- marks ---------------------------------------------------------------------------------------------

  /** This page is filled because somebody touched it, and not for its neighbour's sake. */
  mark(page: number): void {
    Atomics.or(this.#words, MARKS + (page >>> 5), 1 << (page & 31));
  }

  marked(page: number): boolean {
    return (Atomics.load(this.#words, MARKS + (page >>> 5)) & (1 << (page & 31))) !== 0;
  }
}
