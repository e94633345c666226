// Writes a trace: records go into blocks, and whole blocks go to the sink. If the sink fails, the recording ends with
// a warning, and the recorded run continues.

import { PAYLOAD_MOST } from '../bindings/trace.js';
import { checkMethod, checkOptions } from '../errors/arguments.js';
import { warn } from '../errors/warning.js';
import { Codec, DESCRIPTION_MOST, Kind } from './codec.js';
import { nodeFiles } from './files.js';

/** The destination of blocks: a file, a list in memory, a connection. */
export interface TraceSink {
  /** Takes bytes, whose memory is used again afterwards. If it throws, the recording ends. */
  write(bytes: Uint8Array): void;
  close(): void;
}

export interface TraceOptions {
  /** What to keep of pages' contents: nothing (default), a hash of each source, or all bytes of it. */
  contents?: 'none' | 'hash' | 'full';
  /** Notes for the trace's description, as JSON. */
  about?: Record<string, unknown>;
  /** Called if the recording ends early. Default: a warning of Node's, or on the console. */
  warn?: (message: string) => void;
}

/** The first bytes of a trace; one byte with the version of the format follows. */
export const SIGNATURE = 'UFFDTRC';
export const VERSION = 2;

/** Microseconds after which a block is written at the latest, so that a crash loses no more. */
const BLOCK_AGE_US = 1_000_000;

/** The field of an ioctl's record in which its struct begins. */
const IOCTL_STRUCT = 3;

/**
 * Records one userfaultfd, from `open` or `wrap` to its end.
 *
 * @example
 * ```ts
 * import { Mapping, Userfaultfd } from 'userfaultfd';
 * import { TraceWriter } from 'userfaultfd/trace';
 *
 * const memory = Mapping.anonymous(4096);
 * const record = TraceWriter.toFile('run.trace', { about: { build: 17 } });
 * const uffd = Userfaultfd.open({ record });
 * uffd.register(memory.address, memory.length);
 * uffd.zero(memory.address, memory.length);
 * uffd.close();
 * console.log(record.failure, record.records > 3);
 * ```
 */
export class TraceWriter {
  readonly contents: 'none' | 'hash' | 'full';
  readonly about: Record<string, unknown>;
  /** Number of records so far. */
  records = 0;
  /** Bytes that went to the sink. */
  bytesWritten = 0;
  /** Why the recording ended early. */
  failure: Error | undefined;
  readonly #codec = new Codec();
  readonly #sink: TraceSink;
  readonly #warn: (message: string) => void;
  #state: 'new' | 'open' | 'closed' = 'new';
  #blockBegunUs = 0;
  #lastUs = 0;

  constructor(sink: TraceSink, options: TraceOptions = {}) {
    checkMethod(sink, 'sink', 'write', 'a TraceSink');
    checkOptions(options, 'options');
    this.#sink = sink;
    this.contents = options.contents ?? 'none';
    this.about = options.about ?? {};
    this.#warn = options.warn ?? warn;
  }

  /**
   * Writes to a file, which is made or emptied.
   *
   * @throws UnsupportedError if this is not Node
   */
  static toFile(path: string, options: TraceOptions = {}): TraceWriter {
    return TraceWriter.toDescriptor(nodeFiles().openSync(path, 'w'), options);
  }

  /** @internal Writes to a file that is open and empty. The writer then owns the descriptor. */
  static toDescriptor(fd: number, options: TraceOptions = {}): TraceWriter {
    const fs = nodeFiles();
    return new TraceWriter(
      { write: (bytes) => writeAll(fs, fd, bytes), close: () => fs.closeSync(fd) },
      options,
    );
  }

  /** Whether records are still taken. */
  get recording(): boolean {
    return this.#state === 'open';
  }

  /** Begins the trace with its description. `meta`: the facts about the machine that a replay needs, as JSON. */
  start(meta: Record<string, unknown>): void {
    if (this.#state !== 'new') throw new Error('a TraceWriter records one userfaultfd, once');
    this.#state = 'open';
    this.#codec.exports.traceBegin(0n);
    this.#guarded(() => this.#write(new TextEncoder().encode(SIGNATURE + String.fromCharCode(VERSION))));
    const text = new TextEncoder().encode(
      JSON.stringify({ ...meta, contents: this.contents, about: this.about }),
    );
    if (text.length > DESCRIPTION_MOST)
      throw new RangeError(`about must be less than ${DESCRIPTION_MOST} bytes of JSON`);
    for (let at = 0; at < text.length; at += PAYLOAD_MOST) {
      const some = text.subarray(at, at + PAYLOAD_MOST);
      this.payload(some.length).set(some);
      this.append(Kind.META, 0);
    }
  }

  // Set the fields and the payload of a record before it is written. `timeUs`: microseconds since the recording began.

  set(index: number, value: number): void {
    this.#codec.set(index, value);
  }

  setWord(index: number, value: bigint): void {
    this.#codec.words[index] = value;
  }

  /** Sets the struct of an ioctl, of `count` words: as it was before the call, and as it is in memory, from word `at` on. */
  struct(before: BigUint64Array, memory: BigUint64Array, at: number, count: number): void {
    const { words } = this.#codec;
    for (let word = 0; word < count; word++) {
      words[IOCTL_STRUCT + word] = before[word] as bigint;
      words[IOCTL_STRUCT + count + word] = memory[at + word] as bigint;
    }
  }

  /** Sets the payload to `length` bytes of the core's memory, at a multiple of 8. */
  payloadFrom(memory: BigUint64Array, at: number, length: number): void {
    const { halves, payloadWords } = this.#codec;
    halves[1] = length;
    copyWords(payloadWords, memory, at >>> 3, (length + 7) >>> 3);
  }

  payload(length: number): Uint8Array {
    return this.#codec.payload(length);
  }

  /** Writes a record with the fields that were set. */
  append(kind: number, timeUs: number): void {
    if (this.#state === 'open') this.#appended(this.#codec.exports.traceAppend(kind, timeUs), timeUs);
  }

  /**
   * Writes a record whose first three fields are these integers of 32 bits. A kind with fewer fields ignores the rest.
   */
  numbers(kind: number, timeUs: number, first = 0, second = 0, third = 0): void {
    if (this.#state !== 'open') return;
    this.#appended(this.#codec.exports.traceNumbers(kind, timeUs, first, second, third), timeUs);
  }

  /** Writes a record of an ioctl. Set its struct before. */
  ioctl(timeUs: number, fd: number, request: number, result: number): void {
    if (this.#state !== 'open') return;
    this.#appended(this.#codec.exports.traceIoctl(timeUs, fd, request, result), timeUs);
  }

  #appended(full: number, timeUs: number): void {
    this.records++;
    this.#lastUs = timeUs;
    if (full || timeUs - this.#blockBegunUs > BLOCK_AGE_US) this.#sealGuarded(timeUs);
  }

  /** @internal Writes the records that wait for their block to be full. */
  flush(): void {
    if (this.recording) this.#sealGuarded(this.#lastUs);
  }

  /** Writes the last block, and closes the sink. Idempotent. */
  close(): void {
    if (this.#state === 'open') {
      this.append(Kind.LAST, 0);
      // The last record may have found the sink broken.
      if (this.recording) this.#sealGuarded(this.#blockBegunUs);
      this.#stop();
    }
    this.#state = 'closed';
  }

  #stop(): void {
    if (this.#state !== 'open') return;
    this.#state = 'closed';
    try {
      this.#sink.close();
    } catch (error) {
      this.failure ??= error as Error;
    }
  }

  /** A method of its own: with a closure in `#appended`, V8 would make an object for each record. */
  #sealGuarded(timeUs: number): void {
    this.#guarded(() => this.#seal(timeUs));
  }

  #seal(timeUs: number): void {
    const { exports } = this.#codec;
    const length = exports.traceSeal();
    if (length > 0) this.#write(this.#codec.block(length));
    exports.traceBegin(BigInt(timeUs));
    this.#blockBegunUs = timeUs;
  }

  #write(bytes: Uint8Array): void {
    this.#sink.write(bytes);
    this.bytesWritten += bytes.length;
  }

  /** Runs an action on the sink. If it throws, only the recording ends. */
  #guarded(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.failure = error as Error;
      this.#stop();
      this.#warn(`the recording of a trace has ended: ${this.failure.message}`);
    }
  }
}

/** Copies words one by one. For a few words, that is faster than `set` with a view, and V8 makes no bigints of them. */
export function copyWords(to: BigUint64Array, from: BigUint64Array, first: number, count: number): void {
  for (let word = 0; word < count; word++) to[word] = from[first + word] as bigint;
}

function writeAll(fs: typeof import('node:fs'), fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    const some = fs.writeSync(fd, bytes, done);
    if (some === 0) throw new Error('nothing can be written any more');
    done += some;
  }
}
