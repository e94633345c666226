// Traces that are written by hand, record by record, so that tests know their contents.

import { Kind } from '../../../src/trace/codec.js';
import {
  summarize,
  type TraceObserver,
  TraceReader,
  type TraceSummary,
  type TraceWriter,
} from '../../../src/trace/index.js';
import { inMemory, P } from './traces.js';

export const BASE = 0x7f00_0000_0000n;
export const COPY = 0xc028aa03;
export const ZEROPAGE = 0xc020aa04;
export const WRITEPROTECT = 0xc018aa06;
export const WAKE = 0x8010aa02;
export const REGISTER = 0xc020aa00;
export const WRITE = 1n;
export const PROTECTED = 2n;
export const MINOR = 4n;
export const EAGAIN = -11n;

export class Script {
  readonly #kept = inMemory({ about: { what: 'a test' } });
  readonly #writer: TraceWriter = this.#kept.writer;

  /** `pageSize`: of the eight pages that are registered from the start. */
  constructor(pageSize = P) {
    const ranges = [{ start: `${BASE}`, length: 8 * pageSize, modes: ['missing'], operations: [], pageSize }];
    const origin = { how: 'wrap', fd: 3, options: {}, features: ['thread-id'], ranges };
    this.#writer.start({ pageSize: P, origin });
  }

  /** A read of page faults: page, flags, thread. */
  faults(timeUs: number, ...faults: [page: number, flags: bigint, tid: number][]): this {
    const bytes = new Uint8Array(faults.length * 32);
    const view = new DataView(bytes.buffer);
    for (const [index, [page, flags, tid]] of faults.entries()) {
      view.setUint8(index * 32, 0x12);
      view.setBigUint64(index * 32 + 8, flags, true);
      view.setBigUint64(index * 32 + 16, BASE + BigInt(page * P), true);
      view.setUint32(index * 32 + 24, tid, true);
    }
    return this.read(timeUs, bytes);
  }

  read(timeUs: number, bytes: Uint8Array): this {
    for (const [index, word] of [3n, 4096n, BigInt(bytes.length)].entries())
      this.#writer.setWord(index, word);
    this.#writer.payload(bytes.length).set(bytes);
    this.#writer.append(Kind.READ, timeUs);
    return this;
  }

  ioctl(timeUs: number, request: number, result: bigint, given: readonly bigint[], back = given): this {
    for (const [index, word] of [...given, ...back].entries()) this.#writer.setWord(3 + index, word);
    this.#writer.ioctl(timeUs, 3, request, Number(result));
    return this;
  }

  answer(timeUs: number, answer: bigint): this {
    this.#writer.setWord(0, answer);
    this.#writer.append(Kind.NOTE + 15, timeUs);
    return this;
  }

  /** A message that pages were removed (event 0x15) or unmapped (0x16). */
  removed(timeUs: number, event: number, start: bigint, end: bigint): this {
    const view = new DataView(new ArrayBuffer(32));
    view.setUint8(0, event);
    view.setBigUint64(8, start, true);
    view.setBigUint64(16, end, true);
    return this.read(timeUs, new Uint8Array(view.buffer));
  }

  bytes(): Uint8Array {
    this.#writer.close();
    return this.#kept.bytes();
  }

  summary(observer?: Partial<TraceObserver>): TraceSummary {
    return summarize(TraceReader.of(this.bytes()), observer);
  }
}

export const page = (index: number): bigint => BASE + BigInt(index * P);
export const size = (pages: number): bigint => BigInt(pages * P);
export const copied = (at: bigint, length: bigint, done: bigint): [bigint[], bigint[]] => [
  [at, 0n, length, 0n, 0n],
  [at, 0n, length, 0n, done],
];
