// Reads a trace block by block: never more than one of them is in memory, however long the trace is. What is
// damaged or cut ends the trace at the last whole block, and says so.

import { checkMethod, wrongType } from '../arguments.js';
import { BAD, Codec, DESCRIPTION_MOST, END, HEADER_BYTES, Kind, PAYLOAD_MOST } from './codec.js';
import { nodeFiles } from './files.js';
import { isOrigin } from './origin.js';
import { type Call, callOf } from './records.js';
import { SIGNATURE } from './writer.js';

/** No machine has larger pages. */
const PAGE_SIZE_MOST = 2 ** 30;
const CLOSING_BRACE = '}'.charCodeAt(0);

/** Where a trace comes from. */
export interface TraceSource {
  /** Reads up to `into.length` bytes: how many; 0 at the end. */
  read(into: Uint8Array): number;
  close(): void;
}

/** A trace that cannot be read at all: no trace, or of another version. */
export class TraceError extends Error {
  override readonly name = 'TraceError';
  readonly code = 'ERR_UFFD_TRACE';
}

/** What the recorder wrote down of itself: JSON. */
export interface TraceMeta {
  readonly pageSize: number;
  readonly [key: string]: unknown;
}

export class TraceReader {
  readonly meta: TraceMeta;
  /** Why the trace ended before its time; undefined while it is whole. */
  damage: string | undefined;
  /** Records, blocks and bytes that were read. */
  records = 0;
  blocks = 0;
  bytesRead = 0;
  /** Called when another block is begun: how far it has come is in the counts. */
  onBlock: (() => void) | undefined;
  /** @internal */
  readonly codec = new Codec();
  readonly #source: TraceSource;
  /** The trace's last record was read. */
  #ended = false;
  #closed = false;

  /** @throws TraceError where this is no trace */
  constructor(source: TraceSource) {
    checkMethod(source, 'source', 'read', 'a TraceSource');
    this.#source = source;
    try {
      this.#checkSignature();
      this.meta = this.#readMeta();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** A trace in memory. */
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
   * A trace in a file.
   *
   * @throws UnsupportedError where this is not Node
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

  /** The bytes of the record that was read: what the kernel wrote into a read's buffer. Used again by `next`. */
  get payload(): Uint8Array {
    return this.codec.payloadRead;
  }

  /** Goes to the next record, which lies in `codec` then. False: that was the last one that can be read. */
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

  #checkSignature(): void {
    const bytes = new Uint8Array(SIGNATURE.length);
    const length = this.#fill(bytes);
    const found = new TextDecoder('latin1').decode(bytes.subarray(0, length));
    if (found === SIGNATURE) return;
    if (length === SIGNATURE.length && found.slice(0, -1) === SIGNATURE.slice(0, -1)) {
      throw new TraceError(
        `this trace has version ${bytes[length - 1]} of the format; version 1 can be read here`,
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
      // Told below.
    }
    const { pageSize, about = {}, contents = '', origin } = meta ?? {};
    const understood =
      isPageSize(pageSize) &&
      typeof about === 'object' &&
      typeof contents === 'string' &&
      (origin === undefined || isOrigin(origin));
    if (!understood) throw new TraceError('the description of this trace cannot be understood');
    return meta as TraceMeta;
  }

  /** The description's bytes. A record that is full goes on in the next, unless the object ends there. */
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
    // At most what the codec has room for.
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

  /** Reads until the bytes are full or the source is at its end: how many. */
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
