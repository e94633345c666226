// The descriptors of a simulated system: which open file each number stands for. An open file ends when its last holder
// is gone.

import { E } from './abi.js';
import type { Context } from './memory.js';
import type { SimulatedProcess } from './thread.js';

/** An open file. Its holders are the descriptors, and the children that copied them. */
export type File = { holders: number } & (
  | { is: 'userfaultfd'; context: Context; nonBlocking: boolean }
  | { is: 'eventfd'; count: number }
  | { is: 'pidfd'; process: SimulatedProcess }
  | { is: 'device' }
);

/**
 * The lowest number of a descriptor. Lower numbers are taken in every process, for standard input, output and error.
 */
const FIRST = 3;

export class Files {
  readonly #open = new Map<number, File>();
  /** Most descriptors that may be open. */
  limit: number;

  constructor(limit: number) {
    this.limit = limit;
  }

  get(fd: number): File | undefined {
    return this.#open.get(fd);
  }

  get count(): number {
    return this.#open.size;
  }

  /** All open files; a file appears once for each of its descriptors. */
  all(): File[] {
    return [...this.#open.values()];
  }

  /** The lowest free descriptor, or −EMFILE. */
  add(file: File): number {
    if (this.#open.size >= this.limit) return E.MFILE;
    let fd = FIRST;
    while (this.#open.has(fd)) fd++;
    this.#open.set(fd, file);
    return fd;
  }

  close(fd: number): number {
    const file = this.#open.get(fd);
    if (!file) return E.BADF;
    this.#open.delete(fd);
    drop(file);
    return 0;
  }
}

/** Removes a holder. */
export function drop(file: File): void {
  if (--file.holders === 0 && file.is === 'userfaultfd') file.context.release();
}
