// Names for the kernel's bits. The position of a name in its list is the bit number. test/abi.test.ts compares the
// lists with the C header.

import { KIND_MINOR, KIND_MISSING, KIND_WRITE_PROTECT } from '../bindings/core.js';
import { checkIterable, checkNames, invalidValue } from '../errors/arguments.js';
import { UnsupportedError } from './port.js';

/**
 * Kinds of faults, by the core's number for them. That number is also the bit number of the mode that reports the kind.
 */
export const MODES = Object.values({
  [KIND_MISSING]: 'missing',
  [KIND_WRITE_PROTECT]: 'write-protect',
  [KIND_MINOR]: 'minor',
} as const);

/** Features by bit number, each with the Linux version that brought it. */
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
 * A feature that `open` can ask for. `bit-17` and so on are features of newer kernels, which have no name here yet.
 *
 * @useDeclaredType
 */
export type Feature = KnownFeature | `bit-${number}`;

/** All features with a name, by bit number. */
export const FEATURES: readonly KnownFeature[] = FEATURE_TABLE.map(([name]) => name);

/** The Linux version that brought a feature, such as '6.8'. Undefined for a feature without a name here. */
export function featureSince(feature: Feature): string | undefined {
  return FEATURE_TABLE.find(([name]) => name === feature)?.[1];
}

/**
 * The features that came with modes, operations and options, by their names in the API. A kernel without the first
 * feature of a list lacks the mode, operation or option. A kernel without another feature of the list has it for some
 * kinds of memory only.
 */
const CAME_WITH = {
  'write-protect': ['pagefault-flag-wp', 'wp-hugetlbfs-shmem'],
  minor: ['minor-hugetlbfs', 'minor-shmem'],
  writeProtect: ['pagefault-flag-wp'],
  continue: ['minor-hugetlbfs'],
  poison: ['poison'],
  move: ['move'],
  // CONTINUE's option to write-protect has no feature of its own; this feature came with the same kernel.
  'continue with writeProtect': ['wp-unpopulated'],
} as const satisfies Record<string, readonly KnownFeature[]>;

/** An operation, a mode or an option that older kernels lack. */
export type Requirement = keyof typeof CAME_WITH;

/** The requirements that a kernel with the offered features lacks, each with the Linux version that brings it. */
export function missingRequirements(
  required: readonly Requirement[],
  offered: ReadonlySet<Feature>,
): MissingRequirement[] {
  return required.flatMap((requirement) =>
    CAME_WITH[requirement]
      .map((feature, index) => ({ requirement, feature, whole: index === 0, since: featureSince(feature) }))
      .filter(({ feature }) => !offered.has(feature)),
  );
}

/** See `missingRequirements`. */
export interface MissingRequirement {
  requirement: Requirement;
  feature: Feature;
  /** Whether the requirement is missing for all kinds of memory. */
  whole: boolean;
  since: string | undefined;
}

/** Bit number of the handshake, which only `open` performs. */
const API_BIT = 63;

/** Operations by bit number in REGISTER's answer, each with the Linux version that brought it. */
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
 * An operation that a range allows. `bit-9` and so on are operations of newer kernels, which have no name here yet.
 *
 * @useDeclaredType
 */
export type Operation = KnownOperation | 'api' | `bit-${number}`;

/** All operations on ranges with a name, by bit number. */
export const OPERATIONS: readonly KnownOperation[] = OPERATION_TABLE.map(([name]) => name);

/** The Linux version that brought an operation, such as '5.7'. Undefined for an operation without a name here. */
export function operationSince(operation: Operation): string | undefined {
  return OPERATION_TABLE.find(([name]) => name === operation)?.[1];
}

/**
 * A kind of fault that the kernel reports. `register` turns it on for a range.
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

/** The names of the bits that are set. Bits of newer kernels that have no name here are called `bit-N`. */
function namesOf<T extends string>(bits: bigint, names: ReadonlyMap<number, T>): Set<T | `bit-${number}`> {
  const found = new Set<T | `bit-${number}`>();
  for (let bit = 0; bit < 64; bit++) {
    if ((bits >> BigInt(bit)) & 1n) found.add(names.get(bit) ?? `bit-${bit}`);
  }
  return found;
}

/** The bit of a name; undefined if the name is unknown. */
function bitOf(name: string, names: ReadonlyMap<number, string>): bigint | undefined {
  for (const [bit, known] of names) if (known === name) return 1n << BigInt(bit);
  const bit = /^bit-(\d\d?)$/.exec(name)?.[1];
  return bit !== undefined && Number(bit) < 64 ? 1n << BigInt(bit) : undefined;
}

/** The kernel's bits for some features. Throws if a name is unknown. */
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

/**
 * An error that names the requested features that this kernel lacks, and the Linux version that brings each of them.
 */
export function missingFeatures(required: bigint, offered: bigint): UnsupportedError {
  const list = [...featureNames(required & ~offered)].map((name) => {
    const since = featureSince(name);
    return since ? `'${name}' (Linux ${since})` : `'${name}'`;
  });
  return new UnsupportedError(
    `this kernel lacks ${list.join(', ')}; if you can do without, pass it as 'optional'`,
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
