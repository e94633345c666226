/** Bytes rounded up to whole pages. `size`: bytes of a page. */
export function wholePages(length: number, size: number): number {
  return Math.ceil(length / size) * size;
}
