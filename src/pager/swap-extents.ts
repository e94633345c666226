// Which units of the swap file are in use: one bit each. An extent is a run of units; free runs next to each other are
// one run by nature.
//
// First fit. For each length there is a hint: no run of that length begins in a free unit before it. Freeing lowers the
// hints of the lengths that now fit, and a search that passes a place raises the hint, so a search rarely starts at 0.

const FIRST_WORDS = 64;
const WORD = 32;
const FULL = 0xffffffff;

export class Extents {
  /** A set bit is a unit in use. */
  #bits = new Uint32Array(FIRST_WORDS);
  /** By length. */
  readonly #hints: Float64Array;
  readonly #longest: number;
  /** Units from here on were never in use. */
  #end = 0;
  #used = 0;

  /** @param longest units of the largest extent */
  constructor(longest: number) {
    this.#longest = longest;
    this.#hints = new Float64Array(longest + 1);
  }

  /** Units in use. */
  get used(): number {
    return this.#used;
  }

  /** Units of the file, in use or free. */
  get end(): number {
    return this.#end;
  }

  /** Takes `length` units that are next to each other: the first one. */
  allocate(length: number): number {
    const start = this.#find(length);
    const end = start + length;
    if (end > this.#end) {
      this.#end = end;
      this.#makeRoom(end);
    }
    this.#hints[length] = end;
    this.#mark(start, end, true);
    this.#used += length;
    return start;
  }

  free(start: number, length: number): void {
    this.#mark(start, start + length, false);
    this.#used -= length;
    // The free run around it, as far as an extent that holds one of these units can reach.
    let first = start;
    let end = start + length;
    while (start - first < this.#longest && first > 0 && !this.#isUsed(first - 1)) first--;
    while (end - first < this.#longest && end < this.#end && !this.#isUsed(end)) end++;
    // Behind the end, all is free.
    const fits = end >= this.#end ? this.#longest : Math.min(this.#longest, end - first);
    for (let size = 1; size <= fits; size++)
      if ((this.#hints[size] as number) > first) this.#hints[size] = first;
  }

  /** The first free run of that length; behind the end there always is one. */
  #find(length: number): number {
    let start = this.#hints[length] as number;
    let unit = start;
    while (unit < this.#end && unit - start < length) {
      if (unit % WORD === 0 && this.#bits[unit / WORD] === FULL) unit = start = unit + WORD;
      else if (this.#isUsed(unit)) start = ++unit;
      else unit++;
    }
    // The last word may reach behind the end.
    return Math.min(start, this.#end);
  }

  #isUsed(unit: number): boolean {
    return (((this.#bits[Math.floor(unit / WORD)] as number) >>> (unit % WORD)) & 1) === 1;
  }

  #mark(start: number, end: number, used: boolean): void {
    for (let unit = start; unit < end; unit++) {
      const index = Math.floor(unit / WORD);
      const bit = 1 << (unit % WORD);
      const word = this.#bits[index] as number;
      this.#bits[index] = used ? word | bit : word & ~bit;
    }
  }

  #makeRoom(units: number): void {
    const words = Math.ceil(units / WORD);
    if (words <= this.#bits.length) return;
    const bits = new Uint32Array(Math.max(words, Math.ceil(this.#bits.length * 1.5)));
    bits.set(this.#bits);
    this.#bits = bits;
  }
}
