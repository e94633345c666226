// The format of a journal: a header, then records. Numbers are little-endian.
//
//   header, 64 bytes                            record, 48 bytes, then the bytes
//    0  'UFFDJRNL'                               0  u32 'PART'
//    8  u32 version, 1                           4  u32 CRC-32 of the bytes
//   12  u32 block size                           8  u64 offset in the target
//   16  u64 size of the target                  16  u64 number of bytes
//   24  8 random bytes, other ones in each file 24  u64 number of the batch
//   32  if the target is a block device:        32  the random bytes of the header
//       16 bytes boot_id, u64 diskseq           40  zeros
//   56  zeros                                   44  u32 CRC-32 of the 44 bytes before
//   60  u32 CRC-32 of the 60 bytes before
//
// Only the records of one batch count: those that directly follow the header and have the batch number of the first
// one. A record with another number, or with the random bytes of another file, is a remnant of an older batch.

import { crc32 } from 'node:zlib';

/** A journal that cannot be used, or a target that is in use. The message says what to do. */
export class JournalError extends Error {
  override readonly name = 'JournalError';
  readonly code = 'ERR_UFFD_JOURNAL';
}

/** What tells the disk in a block device from the ones that were or will be there (diskseq, from Linux 5.15 on). */
export interface DiskIdentity {
  /** 16 bytes: since which start of the system disks are counted. */
  readonly boot: Uint8Array;
  readonly sequence: bigint;
}

/** What a journal belongs to. */
export interface JournalHeader {
  readonly blockSize: number;
  /** Bytes of the target. */
  readonly size: number;
  readonly salt: Uint8Array;
  /** Undefined: the target is no block device, or the kernel does not tell. */
  readonly disk: DiskIdentity | undefined;
}

/** One part of a batch. Its bytes follow the record. */
export interface JournalRecord {
  readonly offset: number;
  readonly length: number;
  readonly checksum: number;
  readonly batch: bigint;
}

const MAGIC = 'UFFDJRNL';
const VERSION = 1;
/** 'PART'. */
const RECORD_MAGIC = 0x54524150;
export const HEADER_BYTES = 64;
export const RECORD_BYTES = 48;
export const SALT_BYTES = 8;
export const BOOT_BYTES = 16;
const DISK = 32;
/** Smallest block: a sector. */
export const BLOCK_LEAST = 512;
export const BLOCK_MOST = 2 ** 30;

export function encodeHeader({ blockSize, size, salt, disk }: JournalHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(blockSize, 12);
  bytes.writeBigUInt64LE(BigInt(size), 16);
  bytes.set(salt, 24);
  if (disk) {
    bytes.set(disk.boot, DISK);
    bytes.writeBigUInt64LE(disk.sequence, DISK + BOOT_BYTES);
  }
  return sealed(bytes);
}

export function encodeRecord({ offset, length, checksum, batch }: JournalRecord, salt: Uint8Array): Buffer {
  const bytes = Buffer.alloc(RECORD_BYTES);
  bytes.writeUInt32LE(RECORD_MAGIC, 0);
  bytes.writeUInt32LE(checksum, 4);
  bytes.writeBigUInt64LE(BigInt(offset), 8);
  bytes.writeBigUInt64LE(BigInt(length), 16);
  bytes.writeBigUInt64LE(batch, 24);
  bytes.set(salt, 32);
  return sealed(bytes);
}

/** Puts the checksum of the other bytes into the last four. */
function sealed(bytes: Buffer): Buffer {
  const end = bytes.length - 4;
  bytes.writeUInt32LE(crc32(bytes.subarray(0, end)), end);
  return bytes;
}

function isSealed(bytes: Buffer): boolean {
  const end = bytes.length - 4;
  return bytes.readUInt32LE(end) === crc32(bytes.subarray(0, end));
}

/** Whether a file holds no more than the beginning of a header, or zeros: a pager was killed while it made the file. */
export function isUnfinishedHeader(bytes: Buffer): boolean {
  const start = bytes.toString('latin1', 0, MAGIC.length);
  if (bytes.every((byte) => byte === 0)) return true;
  return bytes.length < HEADER_BYTES && start === MAGIC.slice(0, bytes.length);
}

/** @throws JournalError if the bytes are not a header of this version */
export function decodeHeader(bytes: Buffer, path: string): JournalHeader {
  if (bytes.toString('latin1', 0, 8) !== MAGIC)
    throw new JournalError(`${path} is not a journal; move it away if another program has made it`);
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION) {
    throw new JournalError(
      `${path} has version ${version} of the format, and this library reads version ${VERSION}; recover it with the ` +
        'version of the library that has written it',
    );
  }
  const blockSize = bytes.readUInt32LE(12);
  const size = Number(bytes.readBigUInt64LE(16));
  if (!isSealed(bytes) || !Number.isSafeInteger(size) || blockSize < BLOCK_LEAST || blockSize > BLOCK_MOST) {
    throw new JournalError(
      `the header of ${path} is damaged, so nothing of it can be recovered; restore the target from a backup, or check ` +
        'it and remove the journal',
    );
  }
  const sequence = bytes.readBigUInt64LE(DISK + BOOT_BYTES);
  return {
    ...{ blockSize, size, salt: Uint8Array.from(bytes.subarray(24, 24 + SALT_BYTES)) },
    // Disks are counted from 1 on.
    disk: sequence === 0n ? undefined : { boot: bytes.subarray(DISK, DISK + BOOT_BYTES), sequence },
  };
}

/** Undefined: the bytes are not a complete record of the file with this header. */
export function decodeRecord(bytes: Buffer, { salt }: JournalHeader): JournalRecord | undefined {
  if (bytes.length < RECORD_BYTES || bytes.readUInt32LE(0) !== RECORD_MAGIC || !isSealed(bytes))
    return undefined;
  if (bytes.compare(salt, 0, SALT_BYTES, 32, 32 + SALT_BYTES) !== 0) return undefined;
  return {
    checksum: bytes.readUInt32LE(4),
    offset: Number(bytes.readBigUInt64LE(8)),
    length: Number(bytes.readBigUInt64LE(16)),
    batch: bytes.readBigUInt64LE(24),
  };
}

/** Whether a range consists of whole blocks inside the target; the last block of the target may be shorter. */
export function isWholeBlocks(
  offset: number,
  length: number,
  { size, blockSize }: Pick<JournalHeader, 'size' | 'blockSize'>,
): boolean {
  const end = offset + length;
  return (
    Number.isSafeInteger(offset) &&
    Number.isSafeInteger(end) &&
    offset >= 0 &&
    length > 0 &&
    end <= size &&
    offset % blockSize === 0 &&
    (length % blockSize === 0 || end === size)
  );
}
