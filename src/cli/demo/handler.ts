// How the demo answers a fault: the window around the page is copied from the file. The same on every kernel.

import type { FaultHandler, Pagefault, Userfaultfd } from '../../index.js';
import type { Board } from './board.js';

export interface Filling {
  board: Board;
  /** Where the watched memory begins. */
  memory: bigint;
  /** Pages to fill for a fault. */
  window: number;
  /** The bytes that belong at an offset of the memory: where they lie, or themselves. */
  source(offset: bigint, length: number): bigint | Uint8Array;
}

export function demoHandler(uffd: Userfaultfd, { board, memory, window, source }: Filling): FaultHandler {
  const { pageSize } = uffd;
  const fill = (start: bigint, length: number): number =>
    uffd.copy(start, source(start - memory, length), length);
  return {
    pagefault({ page }: Pagefault): boolean {
      const { start, length } = uffd.window(page, window);
      if (uffd.pageState(page) === 'present') {
        // A neighbour's fill brought this page while its message was under way; filling it again wakes.
        fill(page, pageSize);
        board.countFault(0);
        return true;
      }
      board.mark(Number(page - memory) / pageSize);
      if (fill(start, length) < length) return false;
      board.countFault(length / pageSize);
      return true;
    },
  };
}
