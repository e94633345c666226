// The index of a snapshot: casync's `.caibx` format, with chunks of one fixed size. Numbers are 64 bits, little-endian.
//
//    0  48, the bytes of this header             then for each chunk, 40 bytes:
//    8  0x96824d9c7b129ff9                         u64 offset of its end in the data
//   16  flags: bit 61 set: SHA-512/256             its id: the hash of its plain bytes
//   24  least, average and greatest size         then the tail, 40 bytes:
//       of a chunk, here three times the same      0, 0, 48
//   48  the greatest number                        bytes of the table: 16 + chunks × 40 + 40
//   56  0xe75b9e112f17417d                         0x4b4f050e5549ecd1
//
// Rules:
//  - All chunks have the size of the header, a multiple of 4096; only the last one may be shorter.
//  - The reader accepts exactly what the writer writes, and any flags besides the digest's: casync sets some that are
//    about archives of folders.

import { createHash } from 'node:crypto';
import { checkInteger, checkOneOf, outOfRange } from '../errors/arguments.js';

/** An index that cannot be used. The message says what to do. */
export class IndexError extends Error {
  override readonly name = 'IndexError';
  readonly code = 'ERR_UFFD_INDEX';
}

export type Digest = 'sha512-256' | 'sha256';
export const DIGESTS: readonly Digest[] = ['sha512-256', 'sha256'];

/** Memory as chunks. */
export interface Chunks {
  /** Bytes of the data. */
  readonly size: number;
  /** Bytes of each chunk but the last, which has at least 1. */
  readonly chunkSize: number;
  /** What an id is: the hash of the chunk's bytes, or, with `seal`, only a name: the cache seals such chunks. */
  readonly digest: Digest | 'seal';
  /** The number of chunks. */
  readonly count: number;
  /** The ids, 32 bytes each. */
  readonly ids: Uint8Array;
}

/** A snapshot as chunks whose ids are hashes. */
export interface ChunkIndex extends Chunks {
  readonly digest: Digest;
}

const HEADER_BYTES = 48;
const TABLE_HEADER_BYTES = 16;
const ITEM_BYTES = 40;
const TAIL_BYTES = 40;
const ITEMS_AT = HEADER_BYTES + TABLE_HEADER_BYTES;
export const ID_BYTES = 32;
const INDEX_TYPE = 0x96824d9c7b129ff9n;
const TABLE_TYPE = 0xe75b9e112f17417dn;
const TAIL_MARKER = 0x4b4f050e5549ecd1n;
const UNBOUNDED = 0xffffffffffffffffn;
const SHA512_256_FLAG = 0x2000000000000000n;
/** What casync sets by default for a file: 0x8000… and 0x1000… say that it honours nodump and .caexclude. */
const WRITTEN_FLAGS = 0x9000000000000000n;

const PAGE = 4096;
export const CHUNK_LEAST = PAGE;
/** A chunk is decompressed into memory as a whole, and several are at a time. */
export const CHUNK_MOST = 64 * 2 ** 20;
export const CHUNK_DEFAULT = 512 * 1024;
/** Most chunks of an index: 2 TiB of chunks of 512 KiB. An index of so many takes 160 MiB. */
export const COUNT_MOST = 2 ** 22;
/** Most bytes of an index. */
export const INDEX_BYTES_MOST = ITEMS_AT + COUNT_MOST * ITEM_BYTES + TAIL_BYTES;

/** @throws TypeError, RangeError */
export function checkChunking(size: number, chunkSize: number, digest: Digest): void {
  checkInteger(size, 'size', 1, Number.MAX_SAFE_INTEGER);
  checkInteger(chunkSize, 'chunkSize', CHUNK_LEAST, CHUNK_MOST);
  if (chunkSize % PAGE !== 0) throw outOfRange('chunkSize', `a multiple of ${PAGE}`, chunkSize);
  checkOneOf(digest, 'digest', DIGESTS);
  if (Math.ceil(size / chunkSize) > COUNT_MOST)
    throw outOfRange(
      'chunkSize',
      `larger, for ${size} bytes: an index has at most ${COUNT_MOST} chunks`,
      chunkSize,
    );
}

/** The bytes of the index as a file. @throws TypeError, RangeError */
export function encodeIndex({ size, chunkSize, digest, count, ids }: ChunkIndex): Buffer {
  checkChunking(size, chunkSize, digest);
  if (count !== Math.ceil(size / chunkSize) || ids.length !== count * ID_BYTES)
    throw outOfRange('ids', `${Math.ceil(size / chunkSize)} of ${ID_BYTES} bytes`, ids.length);
  const bytes = Buffer.alloc(ITEMS_AT + count * ITEM_BYTES + TAIL_BYTES);
  let at = 0;
  const put = (value: bigint): void => {
    at = bytes.writeBigUInt64LE(value, at);
  };
  put(BigInt(HEADER_BYTES));
  put(INDEX_TYPE);
  put(WRITTEN_FLAGS | (digest === 'sha512-256' ? SHA512_256_FLAG : 0n));
  for (let which = 0; which < 3; which++) put(BigInt(chunkSize));
  put(UNBOUNDED);
  put(TABLE_TYPE);
  for (let chunk = 0; chunk < count; chunk++) {
    put(BigInt(Math.min((chunk + 1) * chunkSize, size)));
    bytes.set(ids.subarray(chunk * ID_BYTES, (chunk + 1) * ID_BYTES), at);
    at += ID_BYTES;
  }
  put(0n);
  put(0n);
  put(BigInt(HEADER_BYTES));
  put(BigInt(TABLE_HEADER_BYTES + count * ITEM_BYTES + TAIL_BYTES));
  put(TAIL_MARKER);
  return bytes;
}

/**
 * Reads an index.
 *
 * @param name of the index, for messages
 * @throws IndexError
 */
export function parseIndex(bytes: Uint8Array, name: string): ChunkIndex {
  const wrong = (why: string): IndexError => new IndexError(`${name}: ${why}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at: number): bigint => view.getBigUint64(at, true);
  if (bytes.length < HEADER_BYTES || word(8) !== INDEX_TYPE) throw wrong('this is no index (.caibx)');
  const items = bytes.length - ITEMS_AT - TAIL_BYTES;
  if (items < ITEM_BYTES || items % ITEM_BYTES !== 0)
    throw wrong(`the index is truncated or damaged: ${bytes.length} bytes are no whole number of chunks`);
  const count = items / ITEM_BYTES;
  const tail = ITEMS_AT + items;
  const fixed: [at: number, value: bigint][] = [
    [0, BigInt(HEADER_BYTES)],
    [48, UNBOUNDED],
    [56, TABLE_TYPE],
    [tail, 0n],
    [tail + 8, 0n],
    [tail + 16, BigInt(HEADER_BYTES)],
    [tail + 24, BigInt(TABLE_HEADER_BYTES + items + TAIL_BYTES)],
    [tail + 32, TAIL_MARKER],
  ];
  for (const [at, value] of fixed) {
    if (word(at) !== value)
      throw wrong(`the index is damaged: ${word(at)} at byte ${at}, where ${value} must be`);
  }
  const [least, average, greatest] = [word(24), word(32), word(40)];
  if (least !== average || average !== greatest) {
    throw wrong(
      `its chunks have no fixed size (${least}:${average}:${greatest}); make it with --chunk-size=${CHUNK_DEFAULT}:${CHUNK_DEFAULT}:${CHUNK_DEFAULT}`,
    );
  }
  if (average < CHUNK_LEAST || average > CHUNK_MOST || average % BigInt(PAGE) !== 0n)
    throw wrong(
      `its chunks have ${average} bytes; only multiples of ${PAGE} up to ${CHUNK_MOST} are supported`,
    );
  if (count > COUNT_MOST) throw wrong(`it has ${count} chunks; only ${COUNT_MOST} are supported`);
  const chunkSize = Number(average);
  const ids = new Uint8Array(count * ID_BYTES);
  for (let chunk = 0; chunk < count; chunk++) {
    const at = ITEMS_AT + chunk * ITEM_BYTES;
    const end = word(at);
    const full = BigInt(chunk + 1) * average;
    const short = chunk === count - 1 && end < full && end > full - average;
    if (end !== full && !short)
      throw wrong(`the index is damaged: chunk ${chunk} ends at byte ${end} of the data instead of ${full}`);
    ids.set(bytes.subarray(at + 8, at + ITEM_BYTES), chunk * ID_BYTES);
  }
  const size = word(ITEMS_AT + (count - 1) * ITEM_BYTES);
  if (size > Number.MAX_SAFE_INTEGER) throw wrong(`its data has ${size} bytes, which is too much`);
  const digest = (word(16) & SHA512_256_FLAG) === 0n ? 'sha256' : 'sha512-256';
  return { size: Number(size), chunkSize, digest, count, ids };
}

/** The bytes of a chunk. */
export function chunkBytes({ size, chunkSize }: Pick<Chunks, 'size' | 'chunkSize'>, chunk: number): number {
  return Math.min(chunkSize, size - chunk * chunkSize);
}

/** Most bytes of a zstd frame of so many bytes: zstd's own bound, and room for the headers of many blocks. */
export function frameMost(bytes: number): number {
  return bytes + (bytes >>> 7) + 1024;
}

/** The id of a chunk, in hexadecimal. */
export function chunkId({ ids }: Chunks, chunk: number): string {
  return Buffer.from(ids.buffer, ids.byteOffset + chunk * ID_BYTES, ID_BYTES).toString('hex');
}

/** The id of bytes: their hash, in hexadecimal. */
export function idOf(bytes: Uint8Array, digest: Digest): string {
  return createHash(digest).update(bytes).digest('hex');
}

/** What binds other files to an index: SHA-256 of its bytes, in hexadecimal. */
export function indexHash(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

const SUFFIX = '.cacnk';

/** The name of a chunk in a store. */
export function chunkKey(id: string): string {
  return `${id.slice(0, 4)}/${id}${SUFFIX}`;
}

/** The id of the chunk that has this name in a store; undefined: it is no chunk's name. */
export function idOfKey(key: string): string | undefined {
  const [, folder, id] = /^([0-9a-f]{4})\/([0-9a-f]{64})\.cacnk$/.exec(key) ?? [];
  return id?.startsWith(folder as string) ? id : undefined;
}

/** The ids of chunks of zeros: of a whole chunk, and of the last one. */
export function zeroIds({ size, chunkSize, digest }: Pick<ChunkIndex, 'size' | 'chunkSize' | 'digest'>): {
  whole: string;
  last: string;
} {
  const zeros = Buffer.alloc(chunkSize);
  const last = size % chunkSize || chunkSize;
  return { whole: idOf(zeros, digest), last: idOf(zeros.subarray(0, last), digest) };
}
