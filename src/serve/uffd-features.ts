// The features of a userfaultfd that a monitor has handed over.

import { readFileSync } from 'node:fs';
import { FEATURES, featureNames, type KnownFeature } from '../kernel/features.js';

/** The enabled features, from the kernel's fdinfo; undefined if it cannot be read. */
export function featuresOf(fd: number): readonly KnownFeature[] | undefined {
  try {
    const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1');
    const bits = /^API:\s*[0-9a-f]+:([0-9a-f]+):/m.exec(info)?.[1];
    if (bits === undefined) return undefined;
    const names = featureNames(BigInt(`0x${bits}`));
    return FEATURES.filter((name) => names.has(name));
  } catch {
    return undefined;
  }
}
