// Errors in three kinds, told apart by class and code: the caller's mistakes (RangeError, TypeError with
// Node's codes), the kernel's refusals (UffdError with the errno), and what this machine lacks
// (UnsupportedError, ERR_UFFD_UNSUPPORTED). A message says what was tried, on what range, and what to do; its
// words come from the table in src/reasons.ts.

import { errnoName, hex } from './names.js';
import { type Facts, reasonFor, worded } from './reasons.js';

export { UnsupportedError } from './kernel.js';
export { Errno, errnoName } from './names.js';

/** Bytes, and what is known besides: see src/reasons.ts. `address` and `length` are those of what is left. */
export interface UffdErrorOptions extends Facts {
  /** Bytes that were resolved before the failure. */
  transferred?: number;
  /** The cause, where it is more than the table knows. */
  reason?: string;
}

/**
 * The kernel refused. `code` and `errno` are as in Node's system errors ('EBUSY', −16), `syscall` the call
 * ('UFFDIO_COPY', 'read'), `transferred` the bytes resolved before, `address` where it failed. The message names
 * the range, the cause and the way out (docs/errors.md).
 */
export class UffdError extends Error {
  override readonly name: string = 'UffdError';
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly transferred: number;
  readonly address?: bigint;

  /** @internal */
  constructor(errno: number, syscall: string, options: UffdErrorOptions = {}) {
    const code = errnoName(Math.abs(errno));
    super(`${code}: ${syscall}${rangeOf(options)}${because(code, syscall, options)}`);
    this.code = code;
    this.errno = -Math.abs(errno);
    this.syscall = syscall;
    this.transferred = options.transferred ?? 0;
    if (options.address !== undefined) this.address = options.address;
  }
}

/** The range that the call was made for, and what is left of it where it may be less. */
function rangeOf({ address, length, transferred }: UffdErrorOptions): string {
  if (address === undefined) return ' failed';
  const start = hex(address - BigInt(transferred ?? 0));
  if (length === undefined) return ` at ${start} failed`;
  const left = transferred === undefined ? '' : ` with ${length} left`;
  return ` at ${start}, ${(transferred ?? 0) + length} bytes failed${left}`;
}

/** The cause and the way out. */
function because(code: string, syscall: string, options: UffdErrorOptions): string {
  const row = reasonFor(syscall, code, options);
  const parts = [options.reason ?? row?.cause, row?.remedy].filter((text) => text !== undefined);
  return parts.length > 0 ? `: ${worded(parts.join('; '), options)}` : '';
}
