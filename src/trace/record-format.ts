// Formats records as text: one line for each call.

import { errnoName, hex } from '../errors/format.js';
import { Note } from '../kernel/port.js';
import { Kind, noteOf } from './codec.js';

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
  [Kind.LAST]: 'the end',
  [Kind.SLEEP]: 'sleep',
};

/** Names of ioctls, by the lowest bits of the request. */
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
  ['answerFrom', 'start', 'length', 'window', 'src'],
  ['fillAhead', 'start', 'length', 'options'],
  ['window', 'page', '', 'window'],
] as const;

const ANSWERS = ['not now', 'answered', 'returned', 'threw'];

export function nameOf(kind: number): string {
  const note = noteOf(kind);
  if (note >= 0) return NOTES[note]?.[0] ?? 'note';
  if (kind >= Kind.IOCTL) return IOCTLS[kind - Kind.IOCTL]?.[0] ?? 'ioctl';
  return NAMES[kind] ?? `record of kind ${kind}`;
}

/**
 * A record in the layout of the codec: kind, payload, time in two halves, then the fields in two halves each. `fields`:
 * their number; default: as many as fit.
 */
export function callOf(halves: Uint32Array, fields = halves.length): Call {
  const [kind = 0, , low = 0, high = 0] = halves;
  const words: bigint[] = [];
  for (let at = 4; at + 1 < Math.min(halves.length, 4 + fields * 2); at += 2) {
    words.push(BigInt(halves[at] as number) | (BigInt(halves[at + 1] as number) << 32n));
  }
  return { kind, time: low + high * 2 ** 32, words };
}

/** A record as one line: the call, its arguments in the order of the call or of the ioctl's struct, and the result. */
export function describe({ kind, words }: Call): string {
  const note = noteOf(kind);
  if (note === Note.ANSWER) return `the handler: ${ANSWERS[Number(words[0])] ?? words[0]}`;
  if (note >= 0) return `${nameOf(kind)}(${labelled(NOTES[note] ?? [], words)})`;
  if (kind >= Kind.IOCTL) {
    return `${nameOf(kind)}(${labelled(IOCTLS[kind - Kind.IOCTL] ?? [], words.slice(3))})${result(words[2])}`;
  }
  const name = nameOf(kind);
  switch (kind) {
    case Kind.META:
    case Kind.CONTENT:
      return name;
    case Kind.NOW:
    case Kind.SLEEP:
      return `${name}()`;
    case Kind.READ_EMPTY:
      return `read(${words[0]}, ${words[1]}) = EAGAIN`;
    case Kind.POLL: {
      const fds = [3, 5, 7].slice(0, Number(words[0])).map((at) => signed(words[at]));
      return `poll([${fds.join(', ')}], ${signed(words[1])})${result(words[2])}`;
    }
    case Kind.PAGE_SIZE_AT:
      return `page size at ${hex(words[1] ?? 0n)} of process ${words[0]}${result(words[2])}`;
    case Kind.ADDRESS_OF:
      return `address of ${words[0]} bytes = ${hex(words[1] ?? 0n)}`;
    case Kind.AFTER:
      return `after(${numberOf(words[0] ?? 0n)} ms)${result(words[1])}`;
    default: {
      const given = ARGUMENTS[kind];
      if (given === undefined) return `${name}(${signed(words[0])})`;
      return `${name}(${words.slice(0, given).map(signed).join(', ')})${result(words[given])}`;
    }
  }
}

/** The number of arguments of kinds whose fields are arguments and a result. */
const ARGUMENTS: Readonly<Record<number, number>> = {
  [Kind.USERFAULTFD]: 1,
  [Kind.OPEN_DEVICE]: 0,
  [Kind.IOCTL_VALUE]: 3,
  [Kind.READ]: 2,
  [Kind.FCNTL]: 3,
  [Kind.CLOSE]: 1,
  [Kind.EVENTFD]: 0,
  [Kind.PIDFD]: 1,
  [Kind.OPEN_PAGEMAP]: 1,
  [Kind.WATCH]: 1,
};

function signed(word = 0n): bigint {
  return BigInt.asIntN(64, word);
}

function result(word = 0n): string {
  const value = Number(signed(word));
  return ` = ${value < 0 ? errnoName(-value) : value}`;
}

const double = new DataView(new ArrayBuffer(8));

/** The number whose double has these bits. */
export function numberOf(bits: bigint): number {
  double.setBigUint64(0, bits);
  return double.getFloat64(0);
}

const HEX = ['start', 'dst', 'src', 'features', 'api'];

function labelled(names: readonly string[], words: readonly bigint[]): string {
  return names
    .slice(1)
    .map((name, index) => ({ name, word: words[index] ?? 0n }))
    .filter(({ name }) => name !== '')
    .map(({ name, word }) => `${name} ${HEX.includes(name) ? hex(word) : word}`)
    .join(', ');
}
