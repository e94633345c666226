// Names for the kernel's bits. The position in a list is the bit number; test/abi.test.ts holds the lists
// against the C header.

import { checkIterable, checkNames, invalidValue } from './arguments.js';
import { MODES } from './core.js';
import { UnsupportedError } from './errors.js';

/** Features by bit number, with the kernel that brought each (kernel-semantics: Features). */
const FEATURE_TABLE = [
  ['pagefault-flag-wp', '5.7'],
  ['event-fork', '4.11'],
  ['event-remap', '4.11'],
  ['event-remove', '4.11'],
  ['missing-hugetlbfs', '4.11'],
  ['missing-shmem', '4.11'],
  ['event-unmap', '4.11'],
  ['sigbus', '4.14'],
  ['thread-id', '4.14'],
  ['minor-hugetlbfs', '5.13'],
  ['minor-shmem', '5.14'],
  ['exact-address', '5.18'],
  ['wp-hugetlbfs-shmem', '5.19'],
  ['wp-unpopulated', '6.4'],
  ['poison', '6.6'],
  ['wp-async', '6.7'],
  ['move', '6.8'],
] as const;

/**
 * A feature that has a name here.
 *
 * @useDeclaredType
 */
export type KnownFeature = (typeof FEATURE_TABLE)[number][0];

/**
 * A feature that `open` can ask for. `bit-17` and so on: one of a newer kernel, without a name here yet.
 *
 * @useDeclaredType
 */
export type Feature = KnownFeature | `bit-${number}`;

/** All features with a name, by bit number. */
export const FEATURES: readonly KnownFeature[] = FEATURE_TABLE.map(([name]) => name);

/** The kernel that brought a feature: '6.8'. Undefined for one without a name. */
export function featureSince(feature: Feature): string | undefined {
  return FEATURE_TABLE.find(([name]) => name === feature)?.[1];
}

/**
 * The features that came with modes, operations and options, by their names in the interface. A kernel without the
 * first has none of it; one that lacks another has it for some kinds of memory only.
 */
const CAME_WITH = {
  'write-protect': ['pagefault-flag-wp', 'wp-hugetlbfs-shmem'],
  minor: ['minor-hugetlbfs', 'minor-shmem'],
  writeProtect: ['pagefault-flag-wp'],
  continue: ['minor-hugetlbfs'],
  poison: ['poison'],
  move: ['move'],
  // CONTINUE's own write-protecting; there is no feature for it, and this one is of the same kernel.
  'continue with writeProtect': ['wp-unpopulated'],
} as const satisfies Record<string, readonly KnownFeature[]>;

/** Something that not every kernel can be asked for: an operation, a mode, an option. */
export type Novelty = keyof typeof CAME_WITH;

/** What of the wanted this kernel lacks, by the features it offers, with the version that brings it. */
export function lacking(wanted: readonly Novelty[], offered: ReadonlySet<Feature>): Lack[] {
  return wanted.flatMap((novelty) =>
    CAME_WITH[novelty]
      .map((feature, index) => ({ novelty, feature, whole: index === 0, since: featureSince(feature) }))
      .filter(({ feature }) => !offered.has(feature)),
  );
}

/** See `lacking`. */
export interface Lack {
  novelty: Novelty;
  feature: Feature;
  /** Not only for some kinds of memory. */
  whole: boolean;
  since: string | undefined;
}

/** The handshake; it is done by `open`, and once only. */
const API_BIT = 63;

/** Operations by bit number in REGISTER's answer, with the kernel that brought each (kernel-semantics: ioctls). */
const OPERATION_TABLE = [
  ['register', '4.3'],
  ['unregister', '4.3'],
  ['wake', '4.3'],
  ['copy', '4.3'],
  ['zero', '4.3'],
  ['move', '6.8'],
  ['write-protect', '5.7'],
  ['continue', '5.13'],
  ['poison', '6.6'],
] as const;

/**
 * An operation that has a name here.
 *
 * @useDeclaredType
 */
export type KnownOperation = (typeof OPERATION_TABLE)[number][0];

/**
 * An operation that a range allows. `bit-9` and so on: one this library has no name for yet.
 *
 * @useDeclaredType
 */
export type Operation = KnownOperation | 'api' | `bit-${number}`;

/** All operations on ranges with a name, by bit number. */
export const OPERATIONS: readonly KnownOperation[] = OPERATION_TABLE.map(([name]) => name);

/** The kernel that brought an operation: '5.7'. Undefined for one without a name. */
export function operationSince(operation: Operation): string | undefined {
  return OPERATION_TABLE.find(([name]) => name === operation)?.[1];
}

/**
 * A kind of fault to be told of; what `register` turns on.
 *
 * @useDeclaredType
 */
export type Mode = (typeof MODES)[number];

/** Features, and operations, by bit number. */
const FEATURE_AT: ReadonlyMap<number, Feature> = new Map(FEATURES.map((name, bit) => [bit, name]));
const OPERATION_AT: ReadonlyMap<number, Operation> = new Map<number, Operation>([
  ...OPERATIONS.entries(),
  [API_BIT, 'api'],
]);

/** The names of the bits that are set; those without a name, from a newer kernel, are `bit-N`. */
function namesOf<T extends string>(bits: bigint, names: ReadonlyMap<number, T>): Set<T | `bit-${number}`> {
  const found = new Set<T | `bit-${number}`>();
  for (let bit = 0; bit < 64; bit++) {
    if ((bits >> BigInt(bit)) & 1n) found.add(names.get(bit) ?? `bit-${bit}`);
  }
  return found;
}

/** The bit of a name; undefined where there is none. */
function bitOf(name: string, names: ReadonlyMap<number, string>): bigint | undefined {
  for (const [bit, known] of names) if (known === name) return 1n << BigInt(bit);
  const bit = /^bit-(\d\d?)$/.exec(name)?.[1];
  return bit !== undefined && Number(bit) < 64 ? 1n << BigInt(bit) : undefined;
}

/** The kernel's bits for some features. Unknown names are the caller's mistake. */
export function featureBits(features: Iterable<Feature>, argument: string): bigint {
  let bits = 0n;
  checkNames(features, argument);
  for (const feature of features) {
    const bit = bitOf(feature, FEATURE_AT);
    if (bit === undefined) {
      throw invalidValue(
        `${argument}: there is no feature '${feature}'; those known are ${FEATURES.join(', ')}`,
      );
    }
    bits |= bit;
  }
  return bits;
}

/** The names of the features in a mask. */
export function featureNames(bits: bigint): ReadonlySet<Feature> {
  return namesOf(bits, FEATURE_AT);
}

/** Says which of the features asked for this kernel lacks, and which version brings them. */
export function missingFeatures(wanted: bigint, offered: bigint): UnsupportedError {
  const list = [...featureNames(wanted & ~offered)].map((name) => {
    const since = featureSince(name);
    return since ? `'${name}' (Linux ${since})` : `'${name}'`;
  });
  return new UnsupportedError(
    `this kernel lacks ${list.join(', ')}; ask for it under 'optional' where you can do without`,
  );
}

/** The names of the operations in REGISTER's answer. */
export function operationNames(bits: bigint): ReadonlySet<Operation> {
  return namesOf(bits, OPERATION_AT);
}

/** The kernel's bits for some operations. */
export function operationBits(operations: Iterable<Operation>): bigint {
  let bits = 0n;
  for (const name of operations) {
    const bit = bitOf(name, OPERATION_AT);
    if (bit === undefined) throw invalidValue(`operations: there is no operation '${name}'`);
    bits |= bit;
  }
  return bits;
}

/** The kernel's bits for some modes: missing 1, write-protect 2, minor 4. */
export function modeBits(mode: Mode | readonly Mode[]): number {
  let bits = 0;
  checkIterable(mode, 'mode');
  for (const name of typeof mode === 'string' ? [mode] : mode) {
    const bit = MODES.indexOf(name);
    if (bit < 0) {
      throw invalidValue(`mode: there is no mode '${name}'; those known are ${MODES.join(', ')}`);
    }
    bits |= 1 << bit;
  }
  if (bits === 0) {
    throw invalidValue('mode: at least one of missing, write-protect and minor is needed');
  }
  return bits;
}

/** The names of the modes in a mask. */
export function modeNames(bits: number): ReadonlySet<Mode> {
  return new Set(MODES.filter((_, bit) => (bits >> bit) & 1));
}
