// The tracked memory: whole pages from an address on.
//
// Rules:
//  - The kernel copies to and from this memory, so a page that cannot be accessed is an error and raises no signal.
//  - A mapping may end in the middle of its last page; the rest of that page is zero, and stays zero.

import { readMemory, writeMemory } from '../../shim/access.js';
import { pageSize as systemPageSize } from '../../shim/memory.js';
import {
  checkAddress,
  checkInteger,
  checkRange,
  invalidState,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { Errno, UffdError } from '../errors/errors.js';
import { hex } from '../errors/format.js';
import { Mapping } from '../memory/mapping.js';
import { wholePages } from '../memory/whole-pages.js';
import type { DirtyRun } from './pages.js';

/** Memory that is no `Mapping`: whole pages of one size, which must stay mapped as long as they are tracked. */
export interface MemoryRange {
  /** The first address, page-aligned. */
  readonly address: bigint;
  /** Bytes, whole pages. */
  readonly length: number;
}

export class Target {
  readonly address: bigint;
  /** Bytes, whole pages. */
  readonly length: number;
  readonly #mapping: Mapping | undefined;
  readonly #byte = new Uint8Array(systemPageSize()).subarray(0, 1);

  /** @throws TypeError, RangeError if it is not valid memory */
  constructor(memory: Mapping | MemoryRange) {
    if (typeof memory !== 'object' || memory === null) {
      throw wrongType('memory', 'a Mapping or { address, length }', memory);
    }
    const { address, length } = memory;
    this.#mapping = memory instanceof Mapping ? memory : undefined;
    this.address = address;
    this.length = this.#mapping ? wholePages(length, this.#mapping.pageSize) : length;
    checkRange(address, this.length, systemPageSize(), 'memory.address');
  }

  /** @throws ERR_INVALID_STATE if the mapping was closed */
  mustBeMapped(): void {
    if (this.#mapping?.closed) throw invalidState(`the mapping at ${hex(this.address)} is closed`);
  }

  /**
   * The whole pages that cover these bytes.
   *
   * @throws TypeError, RangeError for bytes outside of the memory
   */
  covering(start: unknown, length: unknown, pageSize: number): DirtyRun {
    checkAddress(start, 'start');
    checkInteger(length, 'length', 1, this.length);
    const end = this.address + BigInt(this.length);
    if (start < this.address || start + BigInt(length) > end) {
      throw outOfRange('start', `in ${hex(this.address)}–${hex(end)} with all of its ${length} bytes`, start);
    }
    const size = BigInt(pageSize);
    const first = start - (start % size);
    return { start: first, length: wholePages(Number(start - first) + length, pageSize) };
  }

  /**
   * Copies bytes out of the memory, from the offset `from` on.
   *
   * @throws UffdError EFAULT for a page that cannot be read
   */
  read(from: number, into: Uint8Array): void {
    this.mustBeMapped();
    const address = this.address + BigInt(from);
    this.#mustBeAll('process_vm_readv', readMemory(address, into), address, into.length);
  }

  /** @throws UffdError EFAULT for a page that cannot be written; the pages before it were written */
  write(from: number, bytes: Uint8Array): void {
    this.mustBeMapped();
    const address = this.address + BigInt(from);
    this.#mustBeAll('process_vm_writev', writeMemory(address, bytes), address, bytes.length);
  }

  #mustBeAll(call: string, done: number, start: bigint, length: number): void {
    if (done === length) return;
    const errno = done < 0 ? done : (Errno.EFAULT as number);
    const transferred = Math.max(0, done);
    const address = start + BigInt(transferred);
    throw new UffdError(errno, call, { address, length: length - transferred, transferred });
  }

  /** Reads a byte of the page at an offset. False if it cannot be read. */
  touch(at: number): boolean {
    return readMemory(this.address + BigInt(at), this.#byte) === 1;
  }
}
