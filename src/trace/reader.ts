// Reads a trace block by block, so that only one block is in memory, however long the trace is. Damage or a cut ends
// the trace at the last whole block, and is reported.

import { BAD, END, HEADER_BYTES, PAYLOAD_MOST } from '../bindings/trace.js';
import { checkMethod, wrongType } from '../errors/arguments.js';
import { Codec, DESCRIPTION_MOST, Kind } from './codec.js';
import { nodeFiles } from './files.js';
import { areOpenParameters } from './open-parameters.js';
import { type Call, callOf } from './record-format.js';
import { SIGNATURE, VERSION } from './writer.js';

/** Most bytes of a page: no machine has larger ones. */
const PAGE_SIZE_MOST = 2 ** 30;
const CLOSING_BRACE = '}'.charCodeAt(0);

/** The source of a trace. */
export interface TraceSource {
  /** Reads up to `into.length` bytes, and returns how many; 0 at the end. */
  read(into: Uint8Array): number;
  close(): void;
}

/** The bytes are no trace, or the version of their format is unknown. */
export class TraceError extends Error {
  override readonly name = 'TraceError';
  readonly code = 'ERR_UFFD_TRACE';
}

/** The description of a trace, as JSON: what the recorder has noted about the run. */
export interface TraceMeta {
  readonly pageSize: number;
  readonly [key: string]: unknown;
}

export class TraceReader {
  readonly meta: TraceMeta;
  /** @internal The version of its format, from 1 on. */
  readonly version: number;
  /** Why the trace ended early; undefined if no damage was found so far. */
  damage: string | undefined;
  /** Records, blocks and bytes that were read. */
  records = 0;
  blocks = 0;
  bytesRead = 0;
  /** Called when a block begins. `records`, `blocks` and `bytesRead` show the progress then. */
  onBlock: (() => void) | undefined;
  /** @internal */
  readonly codec = new Codec();
  readonly #source: TraceSource;
  /** Whether the trace's end record was read. */
  #ended = false;
  #closed = false;

  /** @throws TraceError if this is no trace */
  constructor(source: TraceSource) {
    checkMethod(source, 'source', 'read', 'a TraceSource');
    this.#source = source;
    try {
      this.version = this.#readVersion();
      this.codec.exports.traceVersion(this.version);
      this.meta = this.#readMeta();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Reads a trace in memory. */
  static of(bytes: Uint8Array): TraceReader {
    if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', 'a Uint8Array', bytes);
    let at = 0;
    return new TraceReader({
      read(into) {
        const some = bytes.subarray(at, at + into.length);
        into.set(some);
        at += some.length;
        return some.length;
      },
      close() {},
    });
  }

  /**
   * Reads a trace in a file.
   *
   * @throws UnsupportedError if this is not Node
   */
  static fromFile(path: string): TraceReader {
    const fs = nodeFiles();
    const fd = fs.openSync(path, 'r');
    return new TraceReader({ read: (into) => fs.readSync(fd, into), close: () => fs.closeSync(fd) });
  }

  /** The record that was read, without its payload. */
  get call(): Call {
    return callOf(this.codec.halves, this.codec.exports.traceFields());
  }

  /**
   * The payload of the record that was read: what the kernel wrote to a read's buffer. The next `next` overwrites it.
   */
  get payload(): Uint8Array {
    return this.codec.payloadRead;
  }

  /** Reads the next record into `codec`. Returns false if no further record can be read. */
  next(): boolean {
    if (this.#ended || this.damage !== undefined) return false;
    const { codec } = this;
    let answer = codec.exports.traceNext();
    while (answer === END) {
      if (!this.#nextBlock()) return false;
      answer = codec.exports.traceNext();
    }
    if (answer === BAD) {
      this.damage = `block ${this.blocks} has a sound checksum, and cannot be read all the same`;
      return false;
    }
    this.records++;
    if (codec.halves[0] !== Kind.LAST) return true;
    this.#ended = true;
    if (this.#fill(new Uint8Array(1)) > 0) this.damage = 'there are bytes behind its end';
    return false;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#source.close();
  }

  #readVersion(): number {
    const bytes = new Uint8Array(SIGNATURE.length + 1);
    const length = this.#fill(bytes);
    const found = new TextDecoder('latin1').decode(bytes.subarray(0, length - 1));
    const version = bytes[length - 1] as number;
    if (length === bytes.length && found === SIGNATURE) {
      if (version >= 1 && version <= VERSION) return version;
      throw new TraceError(
        `this trace has version ${version} of the format; versions 1 to ${VERSION} can be read here`,
      );
    }
    throw new TraceError('this is no trace: it does not begin like one');
  }

  #readMeta(): TraceMeta {
    if (!this.next() || this.codec.kind !== Kind.META) {
      throw new TraceError(`this trace has no description: ${this.damage ?? 'it is empty'}`);
    }
    let meta: Partial<TraceMeta> | null = null;
    try {
      meta = JSON.parse(new TextDecoder().decode(this.#description()));
    } catch {
      // Reported below.
    }
    const { pageSize, about = {}, contents = '', origin } = meta ?? {};
    const understood =
      isPageSize(pageSize) &&
      typeof about === 'object' &&
      typeof contents === 'string' &&
      (origin === undefined || areOpenParameters(origin));
    if (!understood) throw new TraceError('the description of this trace cannot be understood');
    return meta as TraceMeta;
  }

  /** The bytes of the description. A full record continues in the next one, unless the JSON ends there. */
  #description(): Uint8Array {
    const parts: Uint8Array[] = [];
    let bytes = 0;
    for (;;) {
      const part = this.codec.payloadRead.slice();
      parts.push(part);
      bytes += part.length;
      if (part.length < PAYLOAD_MOST || (part.at(-1) === CLOSING_BRACE && isWhole(parts))) break;
      if (bytes >= DESCRIPTION_MOST || !this.next() || this.codec.kind !== Kind.META) break;
    }
    return joined(parts);
  }

  /** Reads the next block, if there is a whole one. */
  #nextBlock(): boolean {
    const { codec } = this;
    const header = this.#fill(codec.block(HEADER_BYTES));
    if (header === 0) {
      this.damage = 'it has no end: whatever recorded it came to its own end first';
      return false;
    }
    // The codec never returns more bytes than it has room for.
    const length = header === HEADER_BYTES ? codec.exports.traceMeasure() : BAD;
    const whole =
      length !== BAD &&
      this.#fill(codec.block(length - HEADER_BYTES, HEADER_BYTES)) === length - HEADER_BYTES;
    if (!whole || codec.exports.traceOpen() === BAD) {
      this.damage = `it is cut or damaged behind block ${this.blocks}`;
      return false;
    }
    this.blocks++;
    this.onBlock?.();
    return true;
  }

  /** Reads until the bytes are full or the source ends; returns how many. */
  #fill(into: Uint8Array): number {
    let done = 0;
    while (done < into.length) {
      const some = this.#source.read(into.subarray(done));
      if (some <= 0) break;
      done += some;
    }
    this.bytesRead += done;
    return done;
  }
}

function isWhole(parts: readonly Uint8Array[]): boolean {
  try {
    JSON.parse(new TextDecoder().decode(joined(parts)));
    return true;
  } catch {
    return false;
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function isPageSize(value: unknown): boolean {
  return (
    typeof value === 'number' &&
    value >= 1024 &&
    value <= PAGE_SIZE_MOST &&
    Number.isInteger(Math.log2(value))
  );
}
