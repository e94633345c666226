// The codec of traces (assembly/trace.ts), one instance for each trace that is written or read.

import wasm from '#trace';
import { type Exports, PAYLOAD_MOST } from '../bindings/trace.js';
import { WasmModule } from '../uffd/core.js';

/** Kinds of records (docs/trace-format.md). The kinds of ioctls begin at `IOCTL`; `noteKind` returns those of notes. */
export const Kind = {
  META: 0,
  USERFAULTFD: 1,
  OPEN_DEVICE: 2,
  IOCTL_VALUE: 3,
  READ: 4,
  READ_EMPTY: 5,
  POLL: 6,
  FCNTL: 7,
  CLOSE: 8,
  EVENTFD: 9,
  PIDFD: 10,
  OPEN_PAGEMAP: 11,
  PAGE_SIZE_AT: 12,
  NOW: 13,
  ADDRESS_OF: 14,
  WATCH: 15,
  AFTER: 16,
  UNWATCH: 17,
  READY: 18,
  DUE: 19,
  CONTENT: 20,
  LAST: 21,
  /** Notes with codes from 16 on have kinds from here on, because the kinds after `NOTE` end at 63. */
  LATER_NOTE: 22,
  /** A loop that was spinning goes to sleep: without this record a replay would need the time of each empty read. */
  SLEEP: 25,
  IOCTL: 32,
  NOTE: 48,
} as const;

/** How many fields a note has, by its code. */
export const NOTE_FIELDS = [4, 4, 4, 4, 4, 4, 2, 2, 4, 2, 2, 1, 2, 1, 1, 1, 4, 3, 3] as const;
const EARLIER_NOTES = 16;

/** The kind of a note's record. */
export function noteKind(code: number): number {
  return code < EARLIER_NOTES ? Kind.NOTE + code : Kind.LATER_NOTE + code - EARLIER_NOTES;
}

/** The code of a note, by the kind of its record; −1: the record is no note. */
export function noteOf(kind: number): number {
  if (kind >= Kind.NOTE) return kind - Kind.NOTE;
  const later = kind - Kind.LATER_NOTE + EARLIER_NOTES;
  return later >= EARLIER_NOTES && later < NOTE_FIELDS.length ? later : -1;
}

/** Most bytes of a description: several times what the regions of the largest hand-off take. */
export const DESCRIPTION_MOST = 2 ** 24;

const module = new WasmModule<Exports>(wasm);

const FIELDS_AT = 16;
const FIELDS = 28;

export class Codec {
  readonly exports = module.instantiate();
  /** The record: kind, bytes of the payload, time in two halves, then the fields in two halves each. */
  readonly halves: Uint32Array;
  readonly words: BigUint64Array;
  /** The room for the payload, in words. */
  readonly payloadWords: BigUint64Array;
  readonly #bytes: Uint8Array;
  readonly #payload: number;
  readonly #block: number;

  constructor() {
    const { memory, record, payload, block } = this.exports;
    // The codec's memory never grows.
    this.halves = new Uint32Array(memory.buffer, record.value, (FIELDS_AT + FIELDS * 8) / 4);
    this.words = new BigUint64Array(memory.buffer, record.value + FIELDS_AT, FIELDS);
    this.payloadWords = new BigUint64Array(memory.buffer, payload.value, PAYLOAD_MOST / 8);
    this.#bytes = new Uint8Array(memory.buffer);
    this.#payload = payload.value;
    this.#block = block.value;
  }

  get kind(): number {
    return this.halves[0] as number;
  }

  /** Microseconds since the recording began. */
  get time(): number {
    return (this.halves[2] as number) + (this.halves[3] as number) * 2 ** 32;
  }

  /** A field that is a signed integer of 32 bits: a result, a descriptor, a count. */
  number(index: number): number {
    return (this.halves[4 + index * 2] as number) | 0;
  }

  /** A field that is an integer below 2^53: a size, a length. */
  integer(index: number): number {
    const at = 4 + index * 2;
    return (this.halves[at] as number) + ((this.halves[at + 1] as number) | 0) * 2 ** 32;
  }

  /** The lower half of a field, unsigned. */
  half(index: number): number {
    return this.halves[4 + index * 2] as number;
  }

  /** The record that was read this many before the last one (1 to 16), in the layout of `halves`. */
  before(back: number): Uint32Array {
    return new Uint32Array(this.#bytes.buffer, this.exports.traceBefore(back), this.halves.length);
  }

  /** Sets a field to an integer below 2^53. */
  set(index: number, value: number): void {
    const at = 4 + index * 2;
    this.halves[at] = value;
    this.halves[at + 1] = Math.floor(value / 2 ** 32);
  }

  /** The room for the payload, of which `length` bytes belong to the record. */
  payload(length: number): Uint8Array {
    this.halves[1] = length;
    return this.#bytes.subarray(this.#payload, this.#payload + length);
  }

  /** The payload of the record that was read. */
  get payloadRead(): Uint8Array {
    return this.#bytes.subarray(this.#payload, this.#payload + (this.halves[1] as number));
  }

  /** The block from `from` on, header included. */
  block(length: number, from = 0): Uint8Array {
    return this.#bytes.subarray(this.#block + from, this.#block + from + length);
  }
}
