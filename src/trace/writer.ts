// Writes a trace: records go into blocks, whole blocks go where they are to be kept. A sink that fails ends the
// recording with a warning, and never what is recorded.

import { checkMethod, checkOptions } from '../arguments.js';
import { warn } from '../warning.js';
import { Codec, DESCRIPTION_MOST, Kind, PAYLOAD_MOST } from './codec.js';
import { nodeFiles } from './files.js';

/** Where blocks go: a file, a list in memory, a connection. */
export interface TraceSink {
  /** Takes bytes that are used again afterwards. What it throws ends the recording. */
  write(bytes: Uint8Array): void;
  close(): void;
}

export interface TraceOptions {
  /** What to keep of pages' contents: nothing (default), a hash of each source, or all of it. */
  contents?: 'none' | 'hash' | 'full';
  /** Something to find in the trace's description, for whoever reads it. JSON. */
  about?: Record<string, unknown>;
  /** Told when the recording ends before its time. Default: a warning of Node's, or on the console. */
  warn?: (message: string) => void;
}

/** The first bytes of a trace, and the version of its format. */
export const SIGNATURE = 'UFFDTRC\u0001';

/** A block is written out at the latest when it is this old, so that a crash loses no more. */
const BLOCK_AGE_US = 1_000_000;

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
  /** Records so far. */
  records = 0;
  /** Bytes that went to the sink. */
  bytesWritten = 0;
  /** Why it ended before its time. */
  failure: Error | undefined;
  readonly #codec = new Codec();
  readonly #sink: TraceSink;
  readonly #warn: (message: string) => void;
  #state: 'new' | 'open' | 'closed' = 'new';
  #blockBegunUs = 0;

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
   * @throws UnsupportedError where this is not Node
   */
  static toFile(path: string, options: TraceOptions = {}): TraceWriter {
    return TraceWriter.toDescriptor(nodeFiles().openSync(path, 'w'), options);
  }

  /** @internal Writes to a file that is open and empty. Takes the descriptor. */
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

  /** Begins the trace with its description. `meta`: JSON, with what a replay must know of the machine. */
  start(meta: Record<string, unknown>): void {
    if (this.#state !== 'new') throw new Error('a TraceWriter records one userfaultfd, once');
    this.#state = 'open';
    this.#codec.exports.traceBegin(0n);
    this.#guarded(() => this.#write(new TextEncoder().encode(SIGNATURE)));
    const text = new TextEncoder().encode(
      JSON.stringify({ ...meta, contents: this.contents, about: this.about }),
    );
    if (text.length > DESCRIPTION_MOST)
      throw new RangeError(`about must be less than ${DESCRIPTION_MOST} bytes of JSON`);
    for (let at = 0; at < text.length; at += PAYLOAD_MOST) {
      const some = text.subarray(at, at + PAYLOAD_MOST);
      this.begin(Kind.META, 0);
      this.payload(some.length).set(some);
      this.end(0);
    }
  }

  /** Begins a record; `end` follows. */
  begin(kind: number, timeUs: number): void {
    this.#codec.begin(kind, timeUs);
  }

  /** The kind of an ioctl's record. */
  ioctlKind(request: number): number {
    return this.#codec.exports.traceIoctlKind(request);
  }

  set(index: number, value: number): void {
    this.#codec.set(index, value);
  }

  setWord(index: number, value: bigint): void {
    this.#codec.words[index] = value;
  }

  /** Fields in halves, to copy structs into without making numbers of them: field n is at 4 + 2n. */
  get halves(): Uint32Array {
    return this.#codec.halves;
  }

  /** The record's payload is so many bytes of the core's memory, from a multiple of 4 on. */
  payloadFrom(memory: Uint32Array, at: number, length: number): void {
    const { halves, payloadHalves } = this.#codec;
    halves[1] = length;
    for (let half = 0; half * 4 < length; half++) payloadHalves[half] = memory[(at >>> 2) + half] as number;
  }

  payload(length: number): Uint8Array {
    return this.#codec.payload(length);
  }

  /** Takes in the record that was begun. */
  end(timeUs: number): void {
    if (this.#state !== 'open') return;
    this.records++;
    const full = this.#codec.exports.traceAppend();
    if (full || timeUs - this.#blockBegunUs > BLOCK_AGE_US) this.#guarded(() => this.#seal(timeUs));
  }

  /** Writes out what there is, and lets the sink go. Idempotent. */
  close(): void {
    if (this.#state === 'open') {
      this.begin(Kind.LAST, 0);
      this.end(this.#blockBegunUs);
      // The last record may have found the sink broken.
      if (this.recording) this.#guarded(() => this.#seal(this.#blockBegunUs));
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

  /** What the sink throws ends the recording, and nothing else. */
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

function writeAll(fs: typeof import('node:fs'), fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    const some = fs.writeSync(fd, bytes, done);
    if (some === 0) throw new Error('nothing can be written any more');
    done += some;
  }
}
