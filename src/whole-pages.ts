/** Bytes of the pages that hold so many bytes. `size`: bytes of a page. */
export function wholePages(length: number, size: number): number {
  return Math.ceil(length / size) * size;
}
