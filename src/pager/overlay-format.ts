// The format of an overlay: the changed blocks of a source that stays as it is. Numbers are little-endian.
//
//   data      from byte 0 on: each block that the overlay holds, at its offset in the source; the rest has no meaning
//   bitmap    from the next multiple of 4096 on: a bit for each block, the lowest bit of a byte first; 1: it is held
//   header    the last 4096 bytes
//      0  'UFFDOVER'
//      8  u32 version, 1
//     12  u32 block size
//     16  u64 size of the source
//     24  u32 bytes of the source's identity
//     28  the identity, UTF-8; then zeros
//   4092  u32 CRC-32 of the bytes before
//
// Data and bitmap are whole units of 4096 bytes. What the overlay holds is never inferred from holes in the file.

import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';

/** An overlay that cannot be used with this source. The message says what to do. */
export class OverlayError extends Error {
  override readonly name = 'OverlayError';
  readonly code = 'ERR_UFFD_OVERLAY';
}

/** What an overlay belongs to. */
export interface OverlayHeader {
  readonly blockSize: number;
  /** Bytes of the source. */
  readonly size: number;
  /** What tells this version of the source from any other. */
  readonly identity: string;
}

const MAGIC = 'UFFDOVER';
const VERSION = 1;
/** Bytes of a unit. */
export const UNIT = 4096;
const IDENTITY_AT = 28;
const CHECKSUM_AT = UNIT - 4;

/** Where the parts of an overlay begin. The file ends a unit after `header`. */
export interface OverlayLayout {
  readonly bitmap: number;
  readonly header: number;
}

export function layoutOf({ size, blockSize }: Pick<OverlayHeader, 'size' | 'blockSize'>): OverlayLayout {
  const bitmap = wholeUnits(size);
  return { bitmap, header: bitmap + wholeUnits(Math.ceil(size / blockSize / 8)) };
}

/** Rounds bytes up to whole units. */
export function wholeUnits(bytes: number): number {
  return Math.ceil(bytes / UNIT) * UNIT;
}

/** The identity as a header stores it: a digest if it does not fit. */
export function storedIdentity(identity: string): string {
  if (Buffer.byteLength(identity) <= CHECKSUM_AT - IDENTITY_AT) return identity;
  return `sha256 ${createHash('sha256').update(identity).digest('hex')}`;
}

export function encodeOverlayHeader({ blockSize, size, identity }: OverlayHeader): Buffer {
  const bytes = Buffer.alloc(UNIT);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(blockSize, 12);
  bytes.writeBigUInt64LE(BigInt(size), 16);
  bytes.writeUInt32LE(bytes.write(storedIdentity(identity), IDENTITY_AT), 24);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, CHECKSUM_AT)), CHECKSUM_AT);
  return bytes;
}

/** Decodes the last unit of a file. @throws OverlayError if it is no header of this version */
export function decodeOverlayHeader(bytes: Buffer, path: string): OverlayHeader {
  if (bytes.toString('latin1', 0, 8) !== MAGIC)
    throw new OverlayError(
      `${path} is not an overlay; choose a path where there is no file, or an empty one: nothing in it was changed`,
    );
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION)
    throw new OverlayError(
      `${path} has version ${version} of the format, and this library reads version ${VERSION}; open it with the ` +
        'version of the library that has made it',
    );
  const length = bytes.readUInt32LE(24);
  if (
    bytes.readUInt32LE(CHECKSUM_AT) !== crc32(bytes.subarray(0, CHECKSUM_AT)) ||
    length > CHECKSUM_AT - IDENTITY_AT
  )
    throw new OverlayError(`the header of ${path} is damaged; restore the file from a backup`);
  return {
    blockSize: bytes.readUInt32LE(12),
    size: Number(bytes.readBigUInt64LE(16)),
    identity: bytes.toString('utf8', IDENTITY_AT, IDENTITY_AT + length),
  };
}
