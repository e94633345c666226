// The memory that is tracked: whole pages from an address on, read and written through views that are made when
// they are needed.
//
// A mapping may end in the middle of its last page; the rest of that page is zero, and stays so.

import { pageSize as systemPageSize, view } from '../../shim/memory.js';
import { checkRange, invalidState, wrongType } from '../arguments.js';
import { Mapping } from '../mapping.js';
import { hex } from '../names.js';

/** Memory that is no `Mapping`: whole pages of one kind, mapped for as long as they are tracked. */
export interface MemoryRange {
  /** Page-aligned. */
  readonly address: bigint;
  /** Bytes, whole pages. */
  readonly length: number;
}

export class Target {
  readonly address: bigint;
  /** Bytes, whole pages. */
  readonly length: number;
  readonly #mapping: Mapping | undefined;

  /** @throws TypeError, RangeError for what is no memory */
  constructor(memory: Mapping | MemoryRange) {
    if (typeof memory !== 'object' || memory === null) {
      throw wrongType('memory', 'a Mapping or { address, length }', memory);
    }
    const { address, length } = memory;
    this.#mapping = memory instanceof Mapping ? memory : undefined;
    const page = this.#mapping?.pageSize ?? systemPageSize();
    this.address = address;
    this.length = this.#mapping ? Math.ceil(length / page) * page : length;
    checkRange(address, this.length, systemPageSize(), 'memory.address');
  }

  /** @throws ERR_INVALID_STATE where the mapping was closed */
  mustBeMapped(): void {
    if (this.#mapping?.closed) throw invalidState(`the mapping at ${hex(this.address)} is closed`);
  }

  /** Copies the bytes from `from` on, counted from the memory's start. Behind the end of a mapping they are zero. */
  read(from: number, into: Uint8Array): void {
    const bytes = this.#slice(from, from + into.length);
    into.set(bytes);
    into.fill(0, bytes.length);
  }

  /** Writes bytes, as far as the memory goes. Pages that hold them already are left as they are. */
  write(from: number, bytes: Uint8Array): void {
    const target = this.#slice(from, from + bytes.length);
    const source = bytes.subarray(0, target.length);
    if (Buffer.compare(target, source) !== 0) target.set(source);
  }

  /** Touches a page. */
  touch(at: number): void {
    this.#slice(at, at + 1).at(0);
  }

  #slice(start: number, end: number): Uint8Array {
    const { length } = this.#mapping ?? this;
    const [from, to] = [Math.min(start, length), Math.min(end, length)];
    if (this.#mapping) return this.#mapping.slice(from, to);
    return new Uint8Array(view(this.address + BigInt(from), to - from));
  }
}
