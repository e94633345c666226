// Selects records by kind, and by the addresses that they are about.

import { type Call, decodeMessages, Kind, type Message, nameOf } from '../../trace/index.js';
import { wrap } from '../text.js';

/** Names of groups for `--kind`, which also takes the names of the record kinds. */
const FAULT = 'fault';
const CHANGE = 'change';

const names = new Set([FAULT, CHANGE]);
for (let kind: number = Kind.USERFAULTFD; kind < Kind.LAST; kind++) names.add(keyOf(kind));
for (let kind: number = Kind.LATER_NOTE; kind <= Kind.SLEEP; kind++) names.add(keyOf(kind));
for (let kind: number = Kind.IOCTL; kind < Kind.NOTE + 16; kind++) names.add(keyOf(kind));

export const KINDS = {
  names: names as ReadonlySet<string>,
  lines: wrap(`  ${[...names].join(' ')}`, 80, '  '),
};

/** The first word of a kind's name. */
function keyOf(kind: number): string {
  return nameOf(kind).toLowerCase().split(' ')[0] as string;
}

/** The messages of a read. */
export function messagesOf(kind: number, payload: Uint8Array): Message[] {
  return kind === Kind.READ && payload.length > 0 && payload.length % 32 === 0 ? decodeMessages(payload) : [];
}

export function isOneOf(kinds: readonly string[], { kind }: Call, messages: readonly Message[]): boolean {
  return kinds.some((wanted) => {
    if (wanted === FAULT) return messages.some(({ event }) => event === 'pagefault');
    if (wanted === CHANGE) return messages.some(({ event }) => event !== 'pagefault' && event !== 'unknown');
    return wanted === keyOf(kind);
  });
}

/** Notes that begin with start and length. */
const WITH_RANGE: ReadonlySet<string> = new Set([
  ...['copy', 'zero', 'continue', 'poison', 'writeProtect', 'wake', 'claim', 'register', 'unregister'],
  ...['answerFrom', 'fillAhead'],
]);

type Range = readonly [start: bigint, end: bigint];

/** Whether a record is about any address from `start` up to `end`. */
export function concerns([start, end]: Range, call: Call, messages: readonly Message[]): boolean {
  const about = [...rangesOf(call), ...messages.flatMap(rangesIn)];
  return about.some(([from, to]) => from < end && to > start);
}

function rangesOf({ kind, words }: Call): Range[] {
  const range = (at: number, length: number): Range => {
    const from = words[at] ?? 0n;
    return [from, from + (words[length] ?? 0n)];
  };
  if (kind === Kind.PAGE_SIZE_AT) return [[words[1] ?? 0n, (words[1] ?? 0n) + 1n]];
  // The layout of ioctl structs: start and length; or target, source and length.
  const request = kind - Kind.IOCTL;
  if (request >= 0 && request <= 8) {
    if (request === 5) return [range(3, 5), range(4, 5)];
    return [range(3, request === 3 ? 5 : 4)];
  }
  const name = nameOf(kind);
  if (name === 'move') return [range(0, 1), range(3, 1)];
  return WITH_RANGE.has(name) ? [range(0, 1)] : [];
}

function rangesIn(message: Message): Range[] {
  switch (message.event) {
    case 'pagefault':
      return [[message.address, message.address + 1n]];
    case 'remove':
    case 'unmap':
      return [[message.start, message.end]];
    case 'remap': {
      const length = BigInt(message.length);
      return [
        [message.from, message.from + length],
        [message.to, message.to + length],
      ];
    }
    default:
      return [];
  }
}

/** A message in a few words. */
export function tell(message: Message): string {
  const hex = (address: bigint): string => `0x${address.toString(16)}`;
  switch (message.event) {
    case 'pagefault': {
      const kind = message.kind === 'missing' ? '' : `${message.kind} `;
      const thread = message.tid === 0 ? '' : ` by ${message.tid}`;
      return `${kind}${message.access} of ${hex(message.address)}${thread}`;
    }
    case 'remove':
    case 'unmap':
      return `${message.event} ${hex(message.start)}-${hex(message.end)}`;
    case 'remap':
      return `remap ${hex(message.from)} to ${hex(message.to)}, ${message.length}`;
    case 'fork':
      return `fork, fd ${message.fd}`;
    default:
      return `event ${message.code}`;
  }
}
