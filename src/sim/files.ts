// The descriptors of a simulated system: what a number stands for, and when the last holder has gone.

import { E } from './abi.js';
import type { Context } from './context.js';
import type { SimulatedProcess } from './thread.js';

/** What a descriptor stands for. It ends when nobody holds it any more: descriptors, and children that copied them. */
export type File = { holders: number } & (
  | { is: 'userfaultfd'; context: Context; nonBlocking: boolean }
  | { is: 'eventfd'; count: number }
  | { is: 'pidfd'; process: SimulatedProcess }
  | { is: 'device' }
);

/** Descriptors that are taken already in every process: standard input, output and error. */
const FIRST = 3;

export class Files {
  readonly #open = new Map<number, File>();
  /** How many descriptors there may be. */
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

  /** All that is open, each once for every descriptor. */
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

/** One holder less. */
export function drop(file: File): void {
  if (--file.holders === 0 && file.is === 'userfaultfd') file.context.release();
}
