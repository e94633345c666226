// Three kinds of errors, distinguished by class and code: the caller's mistakes (RangeError, TypeError with Node's
// codes), the kernel's refusals (UffdError with the errno), and what this machine lacks (UnsupportedError,
// ERR_UFFD_UNSUPPORTED). A message says what was tried, on what range, and what to do. Its text comes from the table in
// src/errors/catalog.ts.

import { formatted, reasonFor } from './catalog.js';
import type { ErrorContext } from './conditions.js';
import { errnoName, hex } from './format.js';

export { UnsupportedError } from '../kernel/port.js';
export { Errno, errnoName } from './format.js';

/** The known facts about the failure. `address` and `length` are those of the rest of the call that was not done. */
export interface UffdErrorOptions extends ErrorContext {
  /** Bytes that were resolved before the failure. */
  transferred?: number;
  /** The cause, if it is more specific than the table. */
  reason?: string;
}

/**
 * The kernel refused. `code` and `errno` are as in Node's system errors ('EBUSY', −16), `syscall` is the call
 * ('UFFDIO_COPY', 'read'), `transferred` the bytes resolved before the failure, `address` where the call failed. The
 * message names the range, the cause and the remedy (docs/errors.md).
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

/** Describes the range of the call, and how many of its bytes are left if that is known. */
function rangeOf({ address, length, transferred }: UffdErrorOptions): string {
  if (address === undefined) return ' failed';
  const start = hex(address - BigInt(transferred ?? 0));
  if (length === undefined) return ` at ${start} failed`;
  const left = transferred === undefined ? '' : ` with ${length} left`;
  return ` at ${start}, ${(transferred ?? 0) + length} bytes failed${left}`;
}

/** The cause and the remedy. */
function because(code: string, syscall: string, options: UffdErrorOptions): string {
  const row = reasonFor(syscall, code, options);
  const parts = [options.reason ?? row?.cause, row?.remedy].filter((text) => text !== undefined);
  return parts.length > 0 ? `: ${formatted(parts.join('; '), options)}` : '';
}
