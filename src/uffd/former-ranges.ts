// Memory that was registered before and is not registered any more. A fill there came too late; it is not a mistake of
// the caller.
//
// Rule: the list is bounded. Beyond the bound, neighbouring pieces are merged with the gap between them; the gap then
// also counts as registered before.

/** The largest number of pieces. */
const MOST = 1024;

export class FormerRanges {
  /** The pieces, in ascending order; none touches another. */
  #ranges: { start: bigint; end: bigint }[] = [];

  add(start: bigint, end: bigint): void {
    const first = this.#seek(start);
    let behind = first;
    let [from, to] = [start, end];
    for (let range = this.#ranges[behind]; range && range.start <= end; range = this.#ranges[++behind]) {
      if (range.start < from) from = range.start;
      if (range.end > to) to = range.end;
    }
    this.#ranges.splice(first, behind - first, { start: from, end: to });
    if (this.#ranges.length > MOST) this.#coarsen();
  }

  has(address: bigint): boolean {
    const range = this.#ranges[this.#seek(address + 1n)];
    return range !== undefined && range.start <= address;
  }

  /** The first piece that ends at or above `address`. */
  #seek(address: bigint): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle]?.end as bigint) < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Merges the pieces in pairs. */
  #coarsen(): void {
    const ranges = this.#ranges;
    this.#ranges = ranges.flatMap(({ start, end }, index) => {
      return index % 2 === 0 ? [{ start, end: ranges[index + 1]?.end ?? end }] : [];
    });
  }
}
