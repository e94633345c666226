// Which Linux version has which operations and features.

import { FEATURES, type Feature, featureSince } from '../kernel/features.js';
import { REQUEST } from './abi.js';

/** The Linux version that brought each operation that resolves faults, by request. */
export const OPERATIONS_SINCE: Readonly<Record<number, string>> = {
  [REQUEST.COPY]: '4.3',
  [REQUEST.ZEROPAGE]: '4.3',
  [REQUEST.WRITEPROTECT]: '5.7',
  [REQUEST.CONTINUE]: '5.13',
  [REQUEST.POISON]: '6.6',
  [REQUEST.MOVE]: '6.8',
};

/** The features that a Linux version has. */
export function featuresOf(version: string): Feature[] {
  return FEATURES.filter((name) => compareVersions(featureSince(name) as string, version) <= 0);
}

/** Compares two versions. Below 0: `a` is older. */
export function compareVersions(a: string, b: string): number {
  const [major = 0, minor = 0] = a.split('.').map(Number);
  const [otherMajor = 0, otherMinor = 0] = b.split('.').map(Number);
  return major - otherMajor || minor - otherMinor;
}
