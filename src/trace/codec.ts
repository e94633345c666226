// The codec of traces (assembly/trace.ts), one instance for each trace that is written or read.

import wasm from '#trace';
import { WasmModule } from '../core.js';
import type { LinearMemory, MemoryPlace } from '../kernel.js';

/** What assembly/trace.ts exports. */
interface Exports extends Record<string, unknown> {
  memory: LinearMemory;
  record: MemoryPlace;
  payload: MemoryPlace;
  block: MemoryPlace;
  traceIoctlKind(request: number): number;
  traceBegin(time: bigint): void;
  traceAppend(): number;
  traceSeal(): number;
  traceMeasure(): number;
  traceOpen(): number;
  traceNext(): number;
  traceFields(): number;
  traceBefore(back: number): number;
}

/** Kinds of records (assembly/trace.ts). An ioctl's is `IOCTL` and more, a note's `NOTE` and its code. */
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
  IOCTL: 32,
  NOTE: 48,
} as const;

/** How many fields a note has, by its code. */
export const NOTE_FIELDS = [4, 4, 4, 4, 4, 4, 2, 2, 4, 2, 2, 1, 2, 1, 1, 1] as const;

/** Bytes of a block's header; the largest block behind it; the largest payload of a record. */
export const HEADER_BYTES = 24;
export const BLOCK_MOST = 131072;
export const PAYLOAD_MOST = 32768;
/** The longest description: several times what the most regions of one hand-off take. */
export const DESCRIPTION_MOST = 2 ** 24;

/** What reading answers. */
export const BAD = -1;
export const END = 0;

const module = new WasmModule<Exports>(wasm);

const FIELDS_AT = 16;
const FIELDS = 28;

export class Codec {
  readonly exports = module.instantiate();
  /** The record: kind, bytes of the payload, time in two halves, then the fields in two halves each. */
  readonly halves: Uint32Array;
  readonly words: BigUint64Array;
  /** The payload's room, in halves of words. */
  readonly payloadHalves: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #payload: number;
  readonly #block: number;

  constructor() {
    const { memory, record, payload, block } = this.exports;
    // Its memory never grows.
    this.halves = new Uint32Array(memory.buffer, record.value, (FIELDS_AT + FIELDS * 8) / 4);
    this.words = new BigUint64Array(memory.buffer, record.value + FIELDS_AT, FIELDS);
    this.payloadHalves = new Uint32Array(memory.buffer, payload.value, PAYLOAD_MOST / 4);
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

  /** A field that may be any integer below 2^53: a size, a length. */
  integer(index: number): number {
    const at = 4 + index * 2;
    return (this.halves[at] as number) + ((this.halves[at + 1] as number) | 0) * 2 ** 32;
  }

  /** The lower half of a field, unsigned. */
  half(index: number): number {
    return this.halves[4 + index * 2] as number;
  }

  /** The record that was read so many before the last one (1 to 16), as `halves` has the last. */
  before(back: number): Uint32Array {
    return new Uint32Array(this.#bytes.buffer, this.exports.traceBefore(back), this.halves.length);
  }

  /** Begins a record. `timeUs`: microseconds since the recording began. */
  begin(kind: number, timeUs: number): void {
    const { halves } = this;
    halves[0] = kind;
    halves[1] = 0;
    halves[2] = timeUs >>> 0;
    halves[3] = (timeUs / 2 ** 32) >>> 0;
  }

  /** Sets a field to an integer below 2^53. */
  set(index: number, value: number): void {
    const at = 4 + index * 2;
    this.halves[at] = value;
    this.halves[at + 1] = value === (value | 0) ? value >> 31 : Math.floor(value / 2 ** 32);
  }

  /** The payload's room; `length` bytes of it belong to the record. */
  payload(length: number): Uint8Array {
    this.halves[1] = length;
    return this.#bytes.subarray(this.#payload, this.#payload + length);
  }

  /** The payload of the record that was read. */
  get payloadRead(): Uint8Array {
    return this.#bytes.subarray(this.#payload, this.#payload + (this.halves[1] as number));
  }

  /** The block, header included, from `from` on. */
  block(length: number, from = 0): Uint8Array {
    return this.#bytes.subarray(this.#block + from, this.#block + from + length);
  }
}
