// What facts say: the questions by which rows of the table are told apart.

import type { Operation } from '../features.js';
import type { Facts, Reason } from '../reasons.js';

/** The range is known, and the kernel did not offer the operation for it. */
export function lacks(operation: Operation): (facts: Facts) => boolean {
  return ({ range }) => range != null && !range.operations.has(operation);
}

/** Nothing is registered there, as far as the object knows. */
export function unregistered({ range }: Facts): boolean {
  return range === null;
}

/** The pages there are huge, and what was asked for are not whole ones. */
export function partOfHugePage({ range, address, length }: Facts): boolean {
  if (!range || address === undefined || length === undefined) return false;
  return [address, BigInt(length)].some((value) => value % BigInt(range.pageSize) !== 0n);
}

/** The pages were to be write-protected, in a range that is not registered for it. */
export function notForWriteProtect({ range, writeProtect }: Facts): boolean {
  return range != null && writeProtect === true && !range.modes.has('write-protect');
}

/** What is mapped there can be watched, and not filled. */
export function notToBeFilled({ unfillable }: Facts): boolean {
  return unfillable !== undefined;
}

/** No machine has addresses of processes up there. */
const HIGHEST = 1n << 52n;

/** The range lies where no memory of a process can be. */
export function beyondAll({ address, length = 0 }: Facts): boolean {
  return address !== undefined && address + BigInt(length) > HIGHEST;
}

/** A mode was asked for. */
export function asks(mode: 'minor' | 'write-protect'): (facts: Facts) => boolean {
  return ({ modes }) => modes?.has(mode) ?? false;
}

/** Memory in huge pages was asked for. */
export function inHugePages({ pageSize }: Facts): boolean {
  return pageSize !== undefined;
}

/** The range that is registered there is in huge pages, which alone have no zero page. */
export const hugeRange = lacks('zero');

/** Memory that a DirtyTracker has registered is not what it was. */
export const REPLACED: Reason = {
  cause: 'a part of the memory was moved, unmapped or mapped anew, and is no longer tracked',
  remedy: 'close the tracker, and open one on what is mapped now',
};

/** It is a DirtyTracker's memory. */
export function isTracked({ tracked }: Facts): boolean {
  return tracked === true;
}
