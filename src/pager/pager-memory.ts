// The program's side of a pager's memory: views of it, on any thread.

import { constants as bufferConstants } from 'node:buffer';
import { view as viewOf } from '../../shim/memory.js';
import { checkInteger, checkOptions, invalidState, outOfRange } from '../errors/arguments.js';
import { Space, views } from '../memory/address-space.js';

/** A pager's memory, to post to another thread of this process, for `PagerMemory.attach`. */
export interface SharedPager {
  readonly address: bigint;
  /** Bytes of the data. */
  readonly size: number;
  /** Bytes of the mapping. */
  readonly mapped: number;
  readonly users: SharedArrayBuffer;
}

/**
 * The memory of a pager. Touching bytes that are not in memory waits until the pager has read them. After the pager was
 * closed, a touch ends the process (SIGSEGV).
 */
export class PagerMemory {
  /** Where it begins; page-aligned. */
  readonly address: bigint;
  /** Bytes. */
  readonly size: number;
  /** @internal */
  protected readonly space: Space;
  #whole: WeakRef<ArrayBuffer> | undefined;

  /** @internal */
  constructor({ address, size, mapped, users }: SharedPager) {
    this.address = address;
    this.size = size;
    this.space = new Space(address, mapped, users);
  }

  /** Attaches to a pager of another thread: `shared` is the result of its `share()`. */
  static attach(shared: SharedPager): PagerMemory {
    checkOptions(shared, 'shared');
    return new PagerMemory(shared);
  }

  /** What to post to another thread of this process, for `PagerMemory.attach`. */
  share(): SharedPager {
    const { address, size, space } = this;
    return { address, size, mapped: space.mapped, users: space.share() };
  }

  /** Whether the pager was closed. */
  get closed(): boolean {
    return this.space.closed;
  }

  /**
   * All bytes.
   *
   * @throws RangeError if they are more than a Uint8Array can hold (4 GiB on Node 20): use `view`; ERR_INVALID_STATE once
   *   the pager is closed
   */
  get bytes(): Uint8Array {
    if (this.size > bufferConstants.MAX_LENGTH) {
      throw outOfRange(
        'the size of bytes',
        `at most ${bufferConstants.MAX_LENGTH}, the largest Uint8Array of this Node; use view(offset, length)`,
        this.size,
      );
    }
    const known = this.#whole?.deref();
    if (known && !this.closed) return new Uint8Array(known);
    const buffer = this.#buffer(0, this.size);
    this.#whole = new WeakRef(buffer);
    return new Uint8Array(buffer);
  }

  /**
   * The bytes of a part.
   *
   * @throws RangeError; ERR_INVALID_STATE once the pager is closed
   */
  view(offset: number, length: number): Uint8Array {
    checkInteger(offset, 'offset', 0, this.size);
    checkInteger(length, 'length', 0, Math.min(this.size - offset, bufferConstants.MAX_LENGTH));
    return new Uint8Array(length === 0 ? new ArrayBuffer(0) : this.#buffer(offset, length));
  }

  #buffer(offset: number, length: number): ArrayBuffer {
    const { space } = this;
    space.enter();
    if (space.closed) {
      space.leave();
      throw invalidState('the pager is closed');
    }
    const buffer = viewOf(this.address + BigInt(offset), length);
    views.register(buffer, space);
    return buffer;
  }
}
