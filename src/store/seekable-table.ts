// The seek table of a file in zstd's seekable format (contrib/seekable_format of zstd): independent frames, and at the
// end a skippable frame that describes them. Numbers are little-endian.
//
//    0  0x184D2A5E                               for each frame, 8 or 12 bytes:
//    4  u32 bytes that follow                      u32 bytes in the file
//    8  the frames                                 u32 bytes of its data
//       then the footer, 9 bytes:                  with checksums: u32, the low half of XXH64 of its data
//       u32 number of frames
//       u8 bit 7: with checksums; bits 2 to 6: 0
//       u32 0x8F92EAB1
//
// Rules:
//  - Memory is served in chunks of one fixed size. They are the frames if all frames have the same size, a multiple of
//    4096; otherwise a chunk is cut from the frames that it touches.
//  - A table is refused before anything is allocated for what it claims.

import { createHash } from 'node:crypto';
import {
  CHUNK_DEFAULT,
  CHUNK_LEAST,
  CHUNK_MOST,
  type Chunks,
  COUNT_MOST,
  frameMost,
  ID_BYTES,
  IndexError,
} from './chunk-index.js';

/** Where a frame is in the bytes that are read for a chunk, and where its data belongs. Plain data. */
export interface FramePart {
  /** Its first byte, and its bytes, in what is read. */
  readonly at: number;
  readonly length: number;
  /** Its data: where it begins, counted from the chunk's first byte (it may be before it), and its bytes. */
  readonly dataAt: number;
  readonly dataLength: number;
  /** The low half of the data's XXH64; undefined: the frame must have a checksum of its own. */
  readonly checksum: number | undefined;
}

/** What is to be read for a chunk. */
export interface ChunkParts {
  readonly offset: number;
  readonly length: number;
  readonly parts: readonly FramePart[];
}

const SKIPPABLE = 0x184d2a5e;
const SEEKABLE = 0x8f92eab1;
const HEADER_BYTES = 8;
export const FOOTER_BYTES = 9;
const CHECKSUMS = 0x80;
const RESERVED = 0x7c;
/** Smaller frames are joined to chunks of about the default size. */
const WHOLE_LEAST = 64 << 10;
/** A chunk and the parts of its first and its last frame beside it may take so many times its size in the file. */
const READ_MOST = 4;
const HOW =
  'make it with uffd pack --seekable, or with another tool that writes frames of about 512 KiB and a seek table';

/** The bytes of the seek table with its header, by the footer. @throws IndexError */
export function seekTableBytes(footer: Uint8Array, fileBytes: number, name: string): number {
  const view = viewOf(footer);
  if (footer.length !== FOOTER_BYTES || view.getUint32(5, true) !== SEEKABLE) {
    throw new IndexError(
      `${name}: it has no seek table, so a part of it cannot be read without the rest; it is no zstd file in the seekable format, or it is truncated: ${HOW}`,
    );
  }
  const frames = view.getUint32(0, true);
  if (frames > COUNT_MOST)
    throw new IndexError(`${name}: its table claims ${frames} frames; only ${COUNT_MOST} are supported`);
  const bytes = HEADER_BYTES + frames * entryBytes(footer[4] as number) + FOOTER_BYTES;
  if (bytes > fileBytes)
    throw damaged(name, `the table claims ${frames} frames, and the file has only ${fileBytes} bytes`);
  return bytes;
}

/** The table of frames with checksums. */
export function encodeSeekTable(
  frames: readonly { length: number; dataLength: number; checksum: number }[],
): Buffer {
  const table = Buffer.alloc(HEADER_BYTES + frames.length * entryBytes(CHECKSUMS) + FOOTER_BYTES);
  let at = table.writeUInt32LE(SKIPPABLE);
  at = table.writeUInt32LE(table.length - HEADER_BYTES, at);
  for (const { length, dataLength, checksum } of frames) {
    at = table.writeUInt32LE(length, at);
    at = table.writeUInt32LE(dataLength, at);
    at = table.writeUInt32LE(checksum, at);
  }
  at = table.writeUInt32LE(frames.length, at);
  at = table.writeUInt8(CHECKSUMS, at);
  table.writeUInt32LE(SEEKABLE, at);
  return table;
}

export class SeekTable {
  readonly size: number;
  readonly chunkSize: number;
  readonly frames: number;
  readonly checksums: boolean;
  /** Offsets of the frames in the file, and of their data; one more than there are frames. */
  readonly #at: Float64Array;
  readonly #dataAt: Float64Array;
  readonly #checksums: Uint32Array | undefined;

  /**
   * @param table all of it, as long as `seekTableBytes` says
   * @param fileBytes of the file
   * @throws IndexError
   */
  constructor(table: Uint8Array, fileBytes: number, name: string) {
    const view = viewOf(table);
    const footer = table.length - FOOTER_BYTES;
    const descriptor = view.getUint8(footer + 4);
    const header = [view.getUint32(0, true), view.getUint32(4, true)];
    if (header[0] !== SKIPPABLE || header[1] !== table.length - HEADER_BYTES)
      throw damaged(name, 'the header of the table is not that of its footer');
    if ((descriptor & RESERVED) !== 0) throw damaged(name, 'the table has reserved bits set');
    this.checksums = (descriptor & CHECKSUMS) !== 0;
    this.frames = view.getUint32(footer, true);
    this.#at = new Float64Array(this.frames + 1);
    this.#dataAt = new Float64Array(this.frames + 1);
    this.#checksums = this.checksums ? new Uint32Array(this.frames) : undefined;
    const each = entryBytes(descriptor);
    let largest = 0;
    for (let frame = 0; frame < this.frames; frame++) {
      const entry = HEADER_BYTES + frame * each;
      const length = view.getUint32(entry, true);
      const data = view.getUint32(entry + 4, true);
      if (data > CHUNK_MOST)
        throw new IndexError(
          `${name}: frame ${frame} has ${data} bytes of data; frames of more than ${CHUNK_MOST} are not supported: ${HOW}`,
        );
      if (length > frameMost(data) || (data > 0 && length === 0))
        throw damaged(name, `frame ${frame} has ${length} bytes for ${data} bytes of data`);
      this.#at[frame + 1] = this.atOf(frame) + length;
      this.#dataAt[frame + 1] = this.dataAtOf(frame) + data;
      if (this.#checksums) this.#checksums[frame] = view.getUint32(entry + 8, true);
      largest = Math.max(largest, data);
    }
    const before = fileBytes - table.length;
    if (this.atOf(this.frames) !== before)
      throw damaged(
        name,
        `its frames have ${this.atOf(this.frames)} bytes, and there are ${before} before the table`,
      );
    this.size = this.dataAtOf(this.frames);
    if (this.size === 0) throw damaged(name, 'it has no data');
    this.chunkSize = this.#chunkSize(largest);
    this.#checkReads(name);
  }

  atOf(frame: number): number {
    return this.#at[frame] as number;
  }

  dataAtOf(frame: number): number {
    return this.#dataAt[frame] as number;
  }

  #chunkSize(largest: number): number {
    const first = this.dataAtOf(1);
    let uniform = first === largest && first % CHUNK_LEAST === 0;
    for (let frame = 1; frame < this.frames - 1 && uniform; frame++)
      uniform = this.dataAtOf(frame + 1) - this.dataAtOf(frame) === first;
    if (uniform && first >= WHOLE_LEAST) return first;
    if (uniform) return first * Math.ceil(CHUNK_DEFAULT / first);
    let size = CHUNK_DEFAULT;
    while (size < largest) size *= 2;
    return size;
  }

  /** Frames may be so small, or so many may be empty, that a chunk is far less than what is read for it. */
  #checkReads(name: string): void {
    const count = Math.ceil(this.size / this.chunkSize);
    for (let chunk = 0; chunk < count; chunk++) {
      const [first, end] = this.#framesOf(chunk);
      const length = this.atOf(end) - this.atOf(first);
      if (length <= READ_MOST * this.chunkSize) continue;
      throw new IndexError(
        `${name}: ${length} bytes must be read for ${this.chunkSize} bytes of data, because its frames are too small: ${HOW}`,
      );
    }
  }

  /** The first frame of a chunk, and the one after its last. */
  #framesOf(chunk: number): [first: number, end: number] {
    const from = chunk * this.chunkSize;
    const to = Math.min(from + this.chunkSize, this.size);
    // The last frame that begins at or before the chunk, and the first that begins at or after its end.
    const first = this.#firstAtOrAfter(from + 1) - 1;
    return [first, this.#firstAtOrAfter(to)];
  }

  /** The first frame whose data begins at an offset or after it. */
  #firstAtOrAfter(offset: number): number {
    let [low, high] = [0, this.frames];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.dataAtOf(middle) < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  partsOf(chunk: number): ChunkParts {
    const [first, end] = this.#framesOf(chunk);
    const offset = this.atOf(first);
    const parts: FramePart[] = [];
    for (let frame = first; frame < end; frame++) {
      const dataLength = this.dataAtOf(frame + 1) - this.dataAtOf(frame);
      if (dataLength === 0) continue;
      parts.push({
        at: this.atOf(frame) - offset,
        length: this.atOf(frame + 1) - this.atOf(frame),
        dataAt: this.dataAtOf(frame) - chunk * this.chunkSize,
        dataLength,
        checksum: this.#checksums?.[frame],
      });
    }
    return { offset, length: this.atOf(end) - offset, parts };
  }

  /**
   * The chunks. Their ids are no hashes of their bytes, which are not known: they stand for a version of the file and
   * the place in it.
   *
   * @param version what tells this version of the file from others
   */
  chunks(version: string): Chunks {
    const { size, chunkSize } = this;
    const count = Math.ceil(size / chunkSize);
    const ids = new Uint8Array(count * ID_BYTES);
    for (let chunk = 0; chunk < count; chunk++) {
      const id = createHash('sha256').update(`uffd seekable ${version} ${chunkSize} ${chunk}`).digest();
      ids.set(id, chunk * ID_BYTES);
    }
    return { size, chunkSize, digest: 'seal', count, ids };
  }
}

function entryBytes(descriptor: number): number {
  return (descriptor & CHECKSUMS) === 0 ? 8 : 12;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function damaged(name: string, why: string): IndexError {
  return new IndexError(`${name}: its seek table is damaged, or the file is truncated: ${why}`);
}
