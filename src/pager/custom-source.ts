// A source that a program has written.

import { checkInteger, checkMethod, checkOptions, wrongType } from '../errors/arguments.js';

/** A source that a program has written. */
export interface CustomSource {
  /** Bytes: an integer from 1 on, which never changes. */
  readonly size: number;
  /** Most reads under way at once, 1 to 64. Default 4. */
  readonly parallel?: number;
  /**
   * What tells this version of the data from any other: a version number, a date, a checksum. Needed if
   * `writable.to` is a file, which is not opened for data of another identity again.
   */
  readonly identity?: string;
  /**
   * Fills all of `into` with the bytes from `offset` on.
   *
   * @param signal aborted when the bytes are not needed any more
   * @throws any error: the read is tried again, unless the error has a property `permanent` that is true
   */
  read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> | void;
  /** Called when the pager has ended, if the source runs in the pager's thread. A source of the program is the program's. */
  close?(): void;
}

export const PARALLEL = 4;

/** @throws TypeError, RangeError */
export function checkSource(source: CustomSource, name: string): void {
  checkOptions(source, name);
  checkInteger(source.size, `${name}: size`, 1, Number.MAX_SAFE_INTEGER);
  if (source.parallel !== undefined) checkInteger(source.parallel, `${name}: parallel`, 1, 64);
  if (source.identity !== undefined && typeof source.identity !== 'string')
    throw wrongType(`${name}: identity`, 'a string', source.identity);
  checkMethod(source, name, 'read', 'an object with size and read');
}
