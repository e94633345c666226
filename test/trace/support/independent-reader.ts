// Another reader of traces, written from docs/trace-format.md alone. If this reader and the codec read different
// records, that page is wrong. It is slow.

export interface OtherRecord {
  kind: number;
  time: bigint;
  fields: bigint[];
  payload: Uint8Array;
  /** How many bytes of the trace the record takes. */
  bytes: number;
}

const MASK = (1n << 64n) - 1n;
const HEADER = 24;
const READ = 4;
const READ_EMPTY = 5;
const ADDRESS_OF = 14;
const PAGEFAULT = 0x12;
/** The number of fields by kind. An ioctl also has the words of its struct, twice. */
const FIELDS = [
  ...[0, 2, 1, 4, 3, 2, 9, 4, 2, 1, 2, 2, 3, 0, 2, 2, 2, 1, 1, 1, 0, 0, 4, 3, 3, ...Array<number>(7).fill(0)],
  ...Array<number>(16).fill(3),
  ...[4, 4, 4, 4, 4, 4, 2, 2, 4, 2, 2, 1, 2, 1, 1, 1],
];

/** All records of a whole trace, the description and the end included. */
export function readOtherwise(bytes: Uint8Array): OtherRecord[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isTrace = Buffer.from(bytes.subarray(0, 7)).toString('latin1') === 'UFFDTRC';
  if (!isTrace || ![1, 2].includes(bytes[7] as number)) throw new Error('no trace');
  const records: OtherRecord[] = [];
  for (let at = 8; at < bytes.length; ) {
    if (Buffer.from(bytes.subarray(at, at + 4)).toString('latin1') !== 'UFTB') throw new Error('no block');
    const end = at + HEADER + view.getUint32(at + 4, true);
    if (crc(bytes.subarray(at + 12, end)) !== view.getUint32(at + 8, true))
      throw new Error('a wrong checksum');
    const block = new Block(
      bytes.subarray(at + HEADER, end),
      view.getBigUint64(at + 16, true),
      bytes[7] === 1,
    );
    const count = view.getUint32(at + 12, true);
    for (let left = count; left > 0; left -= block.next(records));
    if (!block.atEnd) throw new Error('bytes are left in a block');
    at = end;
  }
  return records;
}

function crc(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return ~value >>> 0;
}

class Block {
  readonly #bytes: Uint8Array;
  #at = 0;
  #time: bigint;
  readonly #following = new Map<number, number>();
  #before = 0;
  #lastKind = 0;
  readonly #last = Array.from({ length: 64 }, () => Array<bigint>(28).fill(0n));
  /** The previous fault: address, flags, thread. */
  #fault: [bigint, bigint, number] = [0n, 0n, 0];
  /** Pages to be answered; the first one is being answered now. */
  #pages: bigint[] = [0n];
  #noted = 48;
  /** Whether a note of the fault that is being answered was read. Version 1 does not require one. */
  #called: boolean;
  #step = 0n;
  readonly #first: boolean;

  constructor(bytes: Uint8Array, time: bigint, firstVersion: boolean) {
    this.#bytes = bytes;
    this.#time = time;
    this.#first = firstVersion;
    this.#called = firstVersion;
  }

  get atEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** Reads the next record, or run of records; returns how many. */
  next(into: OtherRecord[]): number {
    const begun = this.#at;
    const head = this.#byte();
    if (head === 31) return this.#run(into, begun);
    const predicted = this.#following.get(this.#before * 64 + this.#lastKind) ?? 0;
    const kind = head & 0x80 ? predicted : head & 63;
    const short = BigInt(head & 127);
    this.#time += head & 0x80 && short < 127n ? short : this.#number();
    const record: OtherRecord = { kind, time: this.#time, fields: [], payload: new Uint8Array(), bytes: 0 };
    if (head & 0xc0) this.#asPredicted(record);
    else this.#fields(record);
    if (!(head & 0x80)) record.payload = this.#payload();
    record.bytes = this.#at - begun;
    into.push(record);
    this.#learn(record);
    return 1;
  }

  #run(into: OtherRecord[], begun: number): number {
    const count = this.#number();
    const end = this.#time + this.#number();
    for (let left = count; left > 0n; left--) {
      this.#time += (end - this.#time) / left;
      const fields = (this.#last[READ_EMPTY] as bigint[]).slice(0, 2);
      const bytes = left === count ? this.#at - begun : 0;
      into.push({ kind: READ_EMPTY, time: this.#time, fields, payload: new Uint8Array(), bytes });
    }
    return Number(count);
  }

  // ---- numbers -------------------------------------------------------------------------------------------

  #byte(): number {
    const byte = this.#bytes[this.#at++];
    if (byte === undefined) throw new Error('a block is too short');
    return byte;
  }

  #number(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.#byte();
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value & MASK;
    }
  }

  #difference(from: bigint): bigint {
    const folded = this.#number();
    return (from + ((folded >> 1n) ^ -(folded & 1n))) & MASK;
  }

  // ---- fields --------------------------------------------------------------------------------------------

  #countOf(kind: number, fields: readonly bigint[]): number {
    const count = FIELDS[kind] as number;
    return kind >= 32 && kind < 48 ? count + 2 * wordsOf(fields[1] as bigint) : count;
  }

  #asPredicted({ kind, fields }: OtherRecord): void {
    fields[0] = this.#predicted(kind, 0, fields);
    fields[1] = this.#predicted(kind, 1, fields);
    const count = this.#countOf(kind, fields);
    for (let index = 2; index < count; index++) fields[index] = this.#predicted(kind, index, fields);
    fields.length = count;
  }

  #fields({ kind, fields }: OtherRecord): void {
    const ioctl = kind >= 32 && kind < 48;
    if (ioctl) fields[1] = this.#difference(this.#predicted(kind, 1, fields));
    const count = this.#countOf(kind, fields);
    const different = this.#number();
    for (let index = 0; index < count; index++) {
      if (ioctl && index === 1) continue;
      const predicted = this.#predicted(kind, index, fields);
      fields[index] = (different >> BigInt(index)) & 1n ? this.#difference(predicted) : predicted;
    }
  }

  #lastOf(kind: number, index: number): bigint {
    return this.#last[kind]?.[index] as bigint;
  }

  #predicted(kind: number, index: number, fields: readonly bigint[]): bigint {
    const last = this.#lastOf(kind, index);
    if (kind >= 48 && kind <= 53) {
      if (index === 0) return this.#pages[0] as bigint;
      if (index === 3 && last === 0n) return 0n;
      if (index === 3) return (last + (fields[0] as bigint) - this.#lastOf(kind, 0)) & MASK;
    }
    if (kind === ADDRESS_OF && index === 1) return (last + this.#step) & MASK;
    return kind >= 32 && kind < 48 && index >= 3 ? this.#word(kind, index - 3, fields) : last;
  }

  #word(kind: number, index: number, fields: readonly bigint[]): bigint {
    const words = wordsOf(fields[1] as bigint);
    const sourced = kind === 35 || kind === 37;
    const length = sourced ? 2 : 1;
    if (index >= words) {
      const counts = [35, 36, 37, 39, 40].includes(kind) && index === 2 * words - 1;
      if (!counts) return fields[3 + index - words] as bigint;
      return fields[2] === 0n ? (fields[3 + length] as bigint) : (fields[2] as bigint);
    }
    if (kind >= 35 && kind <= 40 && !this.#called) {
      const last = this.#lastOf(kind, 3 + index);
      if (index === 0) return this.#pages[0] as bigint;
      return sourced && index === 1 ? (last + (fields[3] as bigint) - this.#lastOf(kind, 3)) & MASK : last;
    }
    if (kind >= 35 && kind <= 40) {
      if (index === 0) return this.#lastOf(this.#noted, 0);
      if (sourced && index === 1) return this.#lastOf(this.#noted, 3) || this.#lastOf(ADDRESS_OF, 1);
      if (index === length) return this.#lastOf(this.#noted, 1);
    }
    return this.#lastOf(kind, 3 + index);
  }

  #learn({ kind, fields, payload }: OtherRecord): void {
    if (kind === ADDRESS_OF && this.#lastOf(kind, 1) !== 0n) {
      this.#step = ((fields[1] as bigint) - this.#lastOf(kind, 1)) & MASK;
    }
    for (const [index, field] of fields.entries()) (this.#last[kind] as bigint[])[index] = field;
    this.#following.set(this.#before * 64 + this.#lastKind, kind);
    this.#before = this.#lastKind;
    this.#lastKind = kind;
    if (kind >= 48 && kind <= 53) {
      this.#noted = kind;
      this.#called = true;
    }
    let done = !this.#called && [35, 36, 37, 39, 40].includes(kind) && fields[2] === 0n;
    if (kind === 63) {
      done = this.#first || (fields[0] as bigint) < 2n;
      this.#called = this.#first;
    }
    if (done && this.#pages.length > 1) this.#pages.shift();
    if (kind === READ) this.#expect(payload);
  }

  #expect(payload: Uint8Array): void {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const found: bigint[] = [];
    for (let at = 0; at + 32 <= payload.length; at += 32) {
      if (view.getUint8(at) === PAGEFAULT) found.push(view.getBigUint64(at + 16, true));
    }
    if (found.length > 0) this.#pages = found.slice(0, 128);
  }

  // ---- payloads ------------------------------------------------------------------------------------------

  #payload(): Uint8Array {
    const header = Number(this.#number());
    if (header % 2 === 0) return this.#raw(header / 2);
    const messages = Array.from({ length: (header - 1) / 2 }, () => this.#message());
    return Uint8Array.from(Buffer.concat(messages));
  }

  #raw(length: number): Uint8Array {
    const bytes = this.#bytes.slice(this.#at, this.#at + length);
    this.#at += length;
    if (bytes.length < length) throw new Error('a block is too short');
    return bytes;
  }

  #message(): Uint8Array {
    const head = this.#byte();
    if (head === 2) return this.#raw(32);
    let [address, flags, thread] = this.#fault;
    if (head === 1 || head === 5) {
      flags = this.#number();
      thread = Number(this.#number());
    }
    const shift = head >= 4 ? 12n : 0n;
    address = (this.#difference(address >> shift) << shift) & MASK;
    this.#fault = [address, flags, thread];
    const view = new DataView(new ArrayBuffer(32));
    view.setUint8(0, PAGEFAULT);
    view.setBigUint64(8, flags, true);
    view.setBigUint64(16, address, true);
    view.setUint32(24, thread, true);
    return new Uint8Array(view.buffer);
  }
}

function wordsOf(request: bigint): number {
  return Math.min(Number((request >> 16n) & 0x3fffn) >> 3, 12);
}
