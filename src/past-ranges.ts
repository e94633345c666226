// Memory that was registered once and is not any more: fills there are late, not mistaken.
//
// Rule: the list has a bound. Beyond it neighbours become one, with what lies between them: of that it is no longer known
// that it was never registered.

/** Pieces that are told apart at most. */
const MOST = 1024;

export class PastRanges {
  /** In ascending order; none touches another. */
  #pieces: { start: bigint; end: bigint }[] = [];

  add(start: bigint, end: bigint): void {
    const first = this.#seek(start);
    let behind = first;
    let [from, to] = [start, end];
    for (let piece = this.#pieces[behind]; piece && piece.start <= end; piece = this.#pieces[++behind]) {
      if (piece.start < from) from = piece.start;
      if (piece.end > to) to = piece.end;
    }
    this.#pieces.splice(first, behind - first, { start: from, end: to });
    if (this.#pieces.length > MOST) this.#coarsen();
  }

  has(address: bigint): boolean {
    const piece = this.#pieces[this.#seek(address + 1n)];
    return piece !== undefined && piece.start <= address;
  }

  /** The first piece that ends at `address` or behind it. */
  #seek(address: bigint): number {
    let low = 0;
    let high = this.#pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#pieces[middle]?.end as bigint) < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Makes one of every two. */
  #coarsen(): void {
    const pieces = this.#pieces;
    this.#pieces = pieces.flatMap(({ start, end }, index) => {
      return index % 2 === 0 ? [{ start, end: pieces[index + 1]?.end ?? end }] : [];
    });
  }
}
