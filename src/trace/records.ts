// Records as people read them: one line a call.

import { Kind } from './codec.js';

/** A record without its payload. `words`: its fields. */
export interface Call {
  readonly kind: number;
  /** Microseconds since the recording began. */
  readonly time: number;
  readonly words: readonly bigint[];
}

const NAMES: Readonly<Record<number, string>> = {
  [Kind.META]: 'description',
  [Kind.USERFAULTFD]: 'userfaultfd',
  [Kind.OPEN_DEVICE]: 'open /dev/userfaultfd',
  [Kind.IOCTL_VALUE]: 'ioctl',
  [Kind.READ]: 'read',
  [Kind.READ_EMPTY]: 'read',
  [Kind.POLL]: 'poll',
  [Kind.FCNTL]: 'fcntl',
  [Kind.CLOSE]: 'close',
  [Kind.EVENTFD]: 'eventfd',
  [Kind.PIDFD]: 'pidfd_open',
  [Kind.OPEN_PAGEMAP]: 'open /proc/PID/pagemap',
  [Kind.PAGE_SIZE_AT]: 'page size',
  [Kind.NOW]: 'now',
  [Kind.ADDRESS_OF]: 'address of bytes',
  [Kind.WATCH]: 'watch',
  [Kind.AFTER]: 'after',
  [Kind.UNWATCH]: 'unwatch',
  [Kind.READY]: 'readable',
  [Kind.DUE]: 'timer',
  [Kind.CONTENT]: 'contents',
};

/** By the lowest bits of the request. */
const IOCTLS = [
  ['REGISTER', 'start', 'length', 'mode'],
  ['UNREGISTER', 'start', 'length'],
  ['WAKE', 'start', 'length'],
  ['COPY', 'dst', 'src', 'length', 'mode'],
  ['ZEROPAGE', 'start', 'length', 'mode'],
  ['MOVE', 'dst', 'src', 'length', 'mode'],
  ['WRITEPROTECT', 'start', 'length', 'mode'],
  ['CONTINUE', 'start', 'length', 'mode'],
  ['POISON', 'start', 'length', 'mode'],
  ...Array<string[]>(6).fill(['ioctl']),
  ['API', 'api', 'features'],
] as const;

const NOTES = [
  ['copy', 'dst', 'length', 'options', 'src'],
  ['zero', 'start', 'length', 'options'],
  ['continue', 'start', 'length', 'options'],
  ['poison', 'start', 'length', 'options'],
  ['move', 'dst', 'length', 'options', 'src'],
  ['writeProtect', 'start', 'length', 'options'],
  ['wake', 'start', 'length'],
  ['claim', 'start', 'length'],
  ['register', 'start', 'length', 'modes', 'pageSize'],
  ['unregister', 'start', 'length'],
  ['start', '', 'wait'],
  ['stop'],
  ['poll'],
  ['release'],
  ['close'],
  ['answer'],
] as const;

const ANSWERS = ['not now', 'answered', 'returned', 'threw'];

export function nameOf(kind: number): string {
  if (kind >= Kind.NOTE) return NOTES[kind - Kind.NOTE]?.[0] ?? 'note';
  if (kind >= Kind.IOCTL) return IOCTLS[kind - Kind.IOCTL]?.[0] ?? 'ioctl';
  return NAMES[kind] ?? `record of kind ${kind}`;
}

/** A record as it lies in the codec: kind, payload, time in two halves, then the fields in two halves each. */
export function callOf(halves: Uint32Array): Call {
  const [kind = 0, , low = 0, high = 0] = halves;
  const words: bigint[] = [];
  for (let at = 4; at + 1 < halves.length; at += 2) {
    words.push(BigInt(halves[at] as number) | (BigInt(halves[at + 1] as number) << 32n));
  }
  return { kind, time: low + high * 2 ** 32, words };
}

/** One line: what was asked, with its arguments as the kernel's struct or the call has them, and what came. */
export function describe({ kind, words }: Call): string {
  if (kind === Kind.NOTE + 15) return `the handler: ${ANSWERS[Number(words[0])] ?? words[0]}`;
  if (kind >= Kind.NOTE) return `${nameOf(kind)}(${labelled(NOTES[kind - Kind.NOTE] ?? [], words)})`;
  if (kind >= Kind.IOCTL) {
    const result = BigInt.asIntN(64, words[2] ?? 0n);
    return `${nameOf(kind)}(${labelled(IOCTLS[kind - Kind.IOCTL] ?? [], words.slice(3))}) = ${result}`;
  }
  if (kind === Kind.READ_EMPTY) return `read(${words[0]}, ${words[1]}) = EAGAIN`;
  const shown = words.slice(0, SHOWN[kind] ?? 2).map((word) => BigInt.asIntN(64, word));
  return `${nameOf(kind)}(${shown.join(', ')})`;
}

/** Fields that are shown of a kind, where it is not two. */
const SHOWN: Readonly<Record<number, number>> = {
  [Kind.NOW]: 0,
  [Kind.META]: 0,
  [Kind.CONTENT]: 0,
  [Kind.READ]: 3,
  [Kind.IOCTL_VALUE]: 4,
  [Kind.FCNTL]: 4,
};

const HEX = ['start', 'dst', 'src', 'features', 'api'];

function labelled(names: readonly string[], words: readonly bigint[]): string {
  return names
    .slice(1)
    .map((name, index) => ({ name, word: words[index] ?? 0n }))
    .filter(({ name }) => name !== '')
    .map(({ name, word }) => `${name} ${HEX.includes(name) ? `0x${word.toString(16)}` : word}`)
    .join(', ');
}
