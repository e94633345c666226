// Somebody who looks on: told of all that decides what a page should hold. It changes nothing.

import type { AddressSpace } from './memory.js';

export interface Witness {
  /** A thread has read a byte. */
  read(space: AddressSpace, address: number, value: number): void;
  wrote(space: AddressSpace, address: number, value: number): void;
  /** The page at an address is write-protected from now on, or not any more: the userfaultfd's owner wants it so. */
  protecting(space: AddressSpace, address: number, on: boolean): void;
  /** madvise has said that it takes [start, end) away, and has not done so. */
  removing(space: AddressSpace, start: number, end: number): void;
  /** It has. */
  removed(space: AddressSpace, start: number, end: number): void;
  /** What was in [start, end) is gone, and with it whatever it should hold. */
  unmapped(space: AddressSpace, start: number, end: number): void;
  /** mremap. `followed`: its userfaultfd watches the new place. */
  moved(space: AddressSpace, from: number, to: number, length: number, followed: boolean): void;
  /** No userfaultfd watches [start, end) any more: pages that are missing are zeros. */
  unwatched(space: AddressSpace, start: number, end: number): void;
  /** A child has a copy: its mappings say what is watched, and its entries what was copied. */
  forked(space: AddressSpace, child: AddressSpace): void;
}
