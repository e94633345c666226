// The facts that are known about a failed call, and the conditions of the error catalog's rows, which are questions
// about these facts.

import type { Condition } from '../bindings/errors.js';
import type { Mode, Operation } from '../kernel/features.js';
import type { RegisteredRange } from '../uffd/registered-range.js';

/** The facts that are known about a failed call. */
export interface ErrorContext {
  /** The address at which the call stopped. */
  address?: bigint;
  /** The length of the rest of the call, in bytes. */
  length?: number;
  /** The address of the source data for `address`. */
  source?: bigint;
  /** The registered range at that address, as far as the object knows; null: there is none. */
  range?: RegisteredRange | null;
  /** The modes that were requested. */
  modes?: ReadonlySet<Mode>;
  /** Whether the pages were to be write-protected. */
  writeProtect?: boolean;
  /** Bytes of a huge page, if memory in huge pages was requested. */
  pageSize?: number;
  /** The process that the call was about. */
  pid?: number;
  /** A description of the memory at that address, if it can be watched but not filled. */
  unfillable?: string | undefined;
  /** Whether a DirtyTracker has registered the memory. */
  tracked?: boolean;
}

/** An address above those of every process on every machine. */
const HIGHEST = 1n << 52n;

/** Holds if the range is known, and the kernel did not offer the operation for it. */
function lacks(operation: Operation): (facts: ErrorContext) => boolean {
  return ({ range }) => range != null && !range.operations.has(operation);
}

/** The conditions of docs/errors.md. A condition does not hold if the facts that it is about are unknown. */
export const CONDITIONS: Readonly<Record<Condition, (facts: ErrorContext) => boolean>> = {
  "'minor' was asked for": ({ modes }) => modes?.has('minor') ?? false,
  "'write-protect' was asked for": ({ modes }) => modes?.has('write-protect') ?? false,
  'huge pages were asked for': ({ pageSize }) => pageSize !== undefined,
  'nothing is registered there': ({ range }) => range === null,
  // Only huge pages have no zero page.
  'the range is in huge pages': lacks('zero'),
  'the range cannot be poisoned': lacks('poison'),
  'the range cannot be moved to': lacks('move'),
  'the range lacks the mode that writeProtect needs': ({ range, writeProtect }) =>
    range != null && writeProtect === true && !range.modes.has('write-protect'),
  'the call covers a part of a huge page': ({ range, address, length }) => {
    if (!range || address === undefined || length === undefined) return false;
    return [address, BigInt(length)].some((value) => value % BigInt(range.pageSize) !== 0n);
  },
  'the memory cannot be filled': ({ unfillable }) => unfillable !== undefined,
  'the range lies above all user memory': ({ address, length = 0 }) =>
    address !== undefined && address + BigInt(length) > HIGHEST,
  'a DirtyTracker watches the range': ({ tracked }) => tracked === true,
};
