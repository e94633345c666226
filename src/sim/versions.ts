// Which kernel has what.

import { FEATURES, type Feature, featureSince } from '../features.js';
import { REQUEST } from './abi.js';

/** The kernel that brought each operation that resolves faults, by request. */
export const OPERATIONS_SINCE: Readonly<Record<number, string>> = {
  [REQUEST.COPY]: '4.3',
  [REQUEST.ZEROPAGE]: '4.3',
  [REQUEST.WRITEPROTECT]: '5.7',
  [REQUEST.CONTINUE]: '5.13',
  [REQUEST.POISON]: '6.6',
  [REQUEST.MOVE]: '6.8',
};

/** The features that a version of the kernel has. */
export function featuresOf(version: string): Feature[] {
  return FEATURES.filter((name) => compareVersions(featureSince(name) as string, version) <= 0);
}

/** Below 0: `a` is the older one. */
export function compareVersions(a: string, b: string): number {
  const [major = 0, minor = 0] = a.split('.').map(Number);
  const [otherMajor = 0, otherMinor = 0] = b.split('.').map(Number);
  return major - otherMajor || minor - otherMinor;
}
