// Memory that does not fit: blocks in a file without a name, each compressed and encrypted if wanted. The file is gone
// when the process ends, however it ends.
//
// Rules:
//  - The table of blocks is in memory only: where each block is, and what proves that the disk returns what was written.
//    Without encryption that is a CRC-32, with encryption the tag of AES-256-GCM. Other bytes are never returned.
//  - A block that is not in the table is zeros: it was never written, or zeros were written.
//  - A block that is written again keeps its old extent until the new one is written. So a full disk loses nothing.
//  - No nonce is used twice with a key, because each write counts up. The table has it, so that an old extent cannot
//    be passed off as a newer one.

import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { closeSync, constants, openSync, statSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { punchHole } from '../../shim/memory.js';
import {
  checkBoolean,
  checkInteger,
  checkOneOf,
  checkOptions,
  invalidState,
  outOfRange,
} from '../errors/arguments.js';
import { UnsupportedError } from '../kernel/port.js';
import { type Compressor, openCompressor } from '../store/compression.js';
import { codeOf, readFully, writeFully } from './journal-io.js';
import { type OpenSource, type Part, SourceError, type Target } from './source.js';
import { Extents } from './swap-extents.js';

export interface SwapOptions {
  /** Bytes of the memory. */
  size: number;
  /** Bytes, a multiple of 4096. */
  blockSize: number;
  /**
   * `auto` stores a block uncompressed if that takes at most an eighth more, and all blocks if this process has no zstd.
   */
  compress: 'zstd' | 'none' | 'auto';
  encrypt: boolean;
}

export interface SwapStats {
  /** Bytes of the file that hold blocks. */
  readonly usedBytes: number;
  readonly storedBlocks: number;
  /** Bytes of these blocks in memory. */
  readonly rawBytes: number;
}

/** Extents are whole units. */
const UNIT = 4096;
const BLOCK_MOST = 2 ** 30;
/** So that units are numbered with 32 bits, whatever is lost to fragmentation. */
const SIZE_MOST = 2 ** 43;
/** Set in the length of a block that is compressed. */
const COMPRESSED = 0x80000000;
const CIPHER = 'aes-256-gcm';
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW, O_DIRECTORY } = constants;
/** Makes a file without a name. Node has no constant for it. */
const O_TMPFILE = 0o20000000 | O_DIRECTORY;
const PRIVATE = 0o600;
/** File systems that cannot make a file without a name, and kernels that do not know how. */
const NEEDS_NAME: ReadonlySet<string | undefined> = new Set([
  ...['EOPNOTSUPP', 'ENOTSUP', 'EISDIR', 'EINVAL', 'ENOENT', 'ENOSYS'],
]);

export class SwapStore implements OpenSource, Target {
  readonly size: number;
  readonly parallel = 1;
  readonly immediate = true;
  readonly target = this;
  /** What compresses the blocks: 'none' if nothing is to be compressed, or this process has no zstd. */
  readonly compression: Compressor['kind'] | 'none';
  readonly #where: string;
  readonly #fd: number;
  readonly #blockSize: number;
  readonly #compressor: Compressor | undefined;
  /** A block is stored compressed if that saves more than this part of it. */
  readonly #leastSaving: number;
  readonly #key: Buffer | undefined;
  readonly #extents: Extents;
  /** By block: the first unit of its extent; its bytes there with COMPRESSED, 0: none; its CRC-32 or nonce. */
  readonly #units: Uint32Array;
  readonly #lengths: Uint32Array;
  readonly #checksums: Uint32Array;
  readonly #nonces: Float64Array;
  /** Writes so far. */
  #nonce = 0;
  #storedBlocks = 0;
  #rawBytes = 0;
  /** An extent that is read or written. */
  readonly #scratch: Buffer;
  /** A block of which only a part is wanted. */
  #whole: Buffer | undefined;
  readonly #zeros: Buffer;
  #canPunch = true;
  #closed = false;

  /**
   * Makes a swap file: without a name in a folder, or at a path where no file may be, and whose name is removed at once.
   *
   * @throws Node's errors; RangeError if the table does not fit into memory; UnsupportedError without zstd, if it is wanted
   */
  static create(folderOrPath: string, options: SwapOptions): SwapStore {
    checkOptions(options, 'options');
    const { size, blockSize, compress, encrypt } = options;
    checkInteger(size, 'size', 1, SIZE_MOST);
    checkInteger(blockSize, 'blockSize', UNIT, BLOCK_MOST);
    if (blockSize % UNIT !== 0) throw outOfRange('blockSize', `a multiple of ${UNIT}`, blockSize);
    checkOneOf(compress, 'compress', ['zstd', 'none', 'auto']);
    checkBoolean(encrypt, 'encrypt');
    const fd = openUnnamed(folderOrPath);
    try {
      return new SwapStore(fd, folderOrPath, options);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  private constructor(fd: number, where: string, { size, blockSize, compress, encrypt }: SwapOptions) {
    this.#fd = fd;
    this.#where = where;
    this.size = size;
    this.#blockSize = blockSize;
    const blocks = Math.ceil(size / blockSize);
    try {
      this.#units = new Uint32Array(blocks);
      this.#lengths = new Uint32Array(blocks);
      this.#checksums = new Uint32Array(encrypt ? 0 : blocks);
      this.#nonces = new Float64Array(encrypt ? blocks : 0);
    } catch {
      throw outOfRange('size', `less, or the blocks larger: ${blocks} blocks are too many`, size);
    }
    const longest = Math.ceil((blockSize + TAG_BYTES) / UNIT);
    this.#extents = new Extents(longest);
    this.#scratch = Buffer.allocUnsafeSlow(longest * UNIT);
    this.#zeros = Buffer.alloc(blockSize);
    this.#key = encrypt ? randomBytes(KEY_BYTES) : undefined;
    this.#leastSaving = compress === 'auto' ? 1 / 8 : 0;
    this.#compressor = compress === 'none' ? undefined : openCompressor();
    if (compress === 'zstd' && !this.#compressor) {
      throw new UnsupportedError(
        "compress: 'zstd' needs Node 22.15 or newer, or libzstd.so.1 on this machine; install libzstd, or use 'auto', " +
          'which does not compress where there is no zstd',
      );
    }
    this.compression = this.#compressor?.kind ?? 'none';
  }

  get stats(): SwapStats {
    return {
      usedBytes: this.#extents.used * UNIT,
      storedBlocks: this.#storedBlocks,
      rawBytes: this.#rawBytes,
    };
  }

  // ---- reading -------------------------------------------------------------------------------------------

  read(offset: number, into: Uint8Array): void {
    this.#checkOpen();
    if (offset < 0 || offset + into.length > this.size)
      throw outOfRange('offset', `inside the ${this.size} bytes`, offset);
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const block = Math.floor(at / this.#blockSize);
      const skip = at - block * this.#blockSize;
      const length = this.#lengthOf(block);
      const part = into.subarray(done, done + length - skip);
      if (part.length === length) this.#readBlock(block, part);
      else {
        this.#whole ??= Buffer.allocUnsafeSlow(this.#blockSize);
        this.#readBlock(block, this.#whole.subarray(0, length));
        part.set(this.#whole.subarray(skip, skip + part.length));
      }
      done += part.length;
    }
  }

  /** Bytes of a block: the last one may be shorter. */
  #lengthOf(block: number): number {
    return Math.min(this.#blockSize, this.size - block * this.#blockSize);
  }

  #readBlock(block: number, into: Uint8Array): void {
    const entry = this.#lengths[block] as number;
    if (entry === 0) {
      into.fill(0);
      return;
    }
    const compressed = entry >= COMPRESSED;
    const length = entry % COMPRESSED;
    // The bytes of a block that is neither compressed nor encrypted are stored as they are.
    const plain = !compressed && !this.#key;
    const stored = plain ? into : this.#scratch.subarray(0, length);
    this.#readStored((this.#units[block] as number) * UNIT, stored);
    let bytes = stored;
    if (this.#key) bytes = this.#decrypt(this.#key, block, stored);
    else if (crc32(stored) !== this.#checksums[block])
      throw this.#wrong(block, 'does not have the checksum that it had when it was written');
    if (compressed) {
      if (!this.#compressor?.decompress(bytes, into)) throw this.#wrong(block, 'cannot be decompressed');
    } else if (bytes !== into) into.set(bytes);
  }

  #readStored(position: number, into: Uint8Array): void {
    let read: number;
    try {
      read = readFully(this.#fd, into, position);
    } catch (error) {
      throw new SourceError(`the swap file in ${this.#where}: ${(error as Error).message}`, false, {
        cause: error,
      });
    }
    if (read < into.length)
      throw new SourceError(`the swap file in ${this.#where} is shorter than what was written to it`, true);
  }

  #decrypt(key: Buffer, block: number, stored: Uint8Array): Uint8Array {
    try {
      const decipher = createDecipheriv(CIPHER, key, nonceOf(this.#nonces[block] as number));
      decipher.setAuthTag(stored.subarray(0, TAG_BYTES));
      const bytes = decipher.update(stored.subarray(TAG_BYTES));
      // Checks the tag.
      decipher.final();
      return bytes;
    } catch (error) {
      throw this.#wrong(block, 'does not match its authentication tag', error);
    }
  }

  #wrong(block: number, what: string, cause?: unknown): SourceError {
    const message =
      `the block at byte ${block * this.#blockSize} of the swap file in ${this.#where} ${what}: the disk returns other ` +
      'data than was written; choose another disk';
    return new SourceError(message, true, cause === undefined ? {} : { cause });
  }

  // ---- writing -------------------------------------------------------------------------------------------

  write(parts: readonly Part[]): void {
    this.#checkOpen();
    for (const { offset, bytes } of parts) {
      const end = offset + bytes.length;
      const whole = bytes.length % this.#blockSize === 0 || end === this.size;
      if (offset < 0 || end > this.size || offset % this.#blockSize !== 0 || !whole)
        throw outOfRange('parts', `whole blocks of ${this.#blockSize} bytes in the memory`, offset);
    }
    for (const { offset, bytes } of parts) {
      for (let done = 0; done < bytes.length; done += this.#blockSize) {
        const block = (offset + done) / this.#blockSize;
        this.#writeBlock(block, bytes.subarray(done, done + this.#blockSize));
      }
    }
  }

  #writeBlock(block: number, bytes: Uint8Array): void {
    if (this.#zeros.compare(bytes, 0, bytes.length, 0, bytes.length) === 0) {
      this.#forget(block);
      return;
    }
    const overhead = this.#key ? TAG_BYTES : 0;
    const frame = this.#compress(bytes, overhead);
    const content = frame ?? bytes;
    const length = content.length + overhead;
    const nonce = ++this.#nonce;
    const units = unitsOf(length);
    const stored = this.#key ? this.#encrypt(this.#key, nonce, content, units) : this.#padded(content, units);
    const checksum = this.#key ? 0 : crc32(stored.subarray(0, length));
    const unit = this.#extents.allocate(units);
    try {
      writeFully(this.#fd, [stored], unit * UNIT);
    } catch (error) {
      this.#release(unit, units);
      throw this.#unwritten(error);
    }
    this.#forget(block);
    this.#units[block] = unit;
    this.#lengths[block] = length + (frame ? COMPRESSED : 0);
    if (this.#key) this.#nonces[block] = nonce;
    else this.#checksums[block] = checksum;
    this.#storedBlocks++;
    this.#rawBytes += bytes.length;
  }

  /** The block compressed, if that saves as much as it must, and at least a unit. */
  #compress(bytes: Uint8Array, overhead: number): Uint8Array | undefined {
    if (!this.#compressor) return undefined;
    const raw = unitsOf(bytes.length + overhead);
    const most = Math.min(bytes.length * (1 - this.#leastSaving), (raw - 1) * UNIT - overhead + 1);
    return most <= 0 ? undefined : this.#compressor.compress(bytes, most);
  }

  /** Tag and ciphertext, padded to whole units. */
  #encrypt(key: Buffer, nonce: number, content: Uint8Array, units: number): Buffer {
    const cipher = createCipheriv(CIPHER, key, nonceOf(nonce));
    const stored = this.#scratch.subarray(0, units * UNIT);
    // GCM is a stream cipher: `final` only computes the tag.
    stored.set(cipher.update(content), TAG_BYTES);
    cipher.final();
    stored.set(cipher.getAuthTag(), 0);
    stored.fill(0, TAG_BYTES + content.length);
    return stored;
  }

  /** Whole units, because the kernel would read a page before it writes a part of it. */
  #padded(content: Uint8Array, units: number): Uint8Array {
    if (content.length === units * UNIT) return content;
    const stored = this.#scratch.subarray(0, units * UNIT);
    stored.set(content);
    stored.fill(0, content.length);
    return stored;
  }

  /** The block is zeros from now on. */
  #forget(block: number): void {
    const entry = this.#lengths[block] as number;
    if (entry === 0) return;
    this.#lengths[block] = 0;
    this.#storedBlocks--;
    this.#rawBytes -= this.#lengthOf(block);
    this.#release(this.#units[block] as number, unitsOf(entry % COMPRESSED));
  }

  #release(unit: number, units: number): void {
    this.#extents.free(unit, units);
    // Without it, the disk's space stays with the file, and is used for later blocks.
    if (this.#canPunch) this.#canPunch = punchHole(this.#fd, unit * UNIT, units * UNIT) === 0;
  }

  #unwritten(error: unknown): Error {
    const code = codeOf(error);
    if (code === undefined) return error as Error;
    const advice =
      code === 'ENOSPC' || code === 'EDQUOT'
        ? 'its disk is full; free some space, or choose another folder'
        : (error as Error).message;
    return Object.assign(
      new Error(`${code}: the swap file in ${this.#where} cannot be written: ${advice}`, { cause: error }),
      { code },
    );
  }

  /** Nothing: the file does not outlive the process. */
  sync(): void {}

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#key?.fill(0);
    this.#compressor?.close();
    closeSync(this.#fd);
  }

  #checkOpen(): void {
    if (this.#closed) throw invalidState(`the swap file in ${this.#where} is closed`);
  }
}

function unitsOf(bytes: number): number {
  return Math.ceil(bytes / UNIT);
}

function nonceOf(count: number): Buffer {
  const nonce = Buffer.alloc(NONCE_BYTES);
  nonce.writeBigUInt64LE(BigInt(count), 0);
  return nonce;
}

function openNew(path: string): number {
  try {
    return openSync(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, PRIVATE);
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error;
    throw Object.assign(
      new Error(`EEXIST: ${path} exists and is no folder; name a folder, or a file that does not exist`),
      {
        code: 'EEXIST',
      },
    );
  }
}

function openUnnamed(folderOrPath: string): number {
  const isFolder = statSync(folderOrPath, { throwIfNoEntry: false })?.isDirectory() === true;
  if (isFolder) {
    try {
      // With O_EXCL, it cannot be given a name later.
      return openSync(folderOrPath, O_RDWR | O_EXCL | O_TMPFILE, PRIVATE);
    } catch (error) {
      if (!NEEDS_NAME.has(codeOf(error))) throw error;
    }
  }
  const path = isFolder ? join(folderOrPath, `.uffd-swap-${randomBytes(8).toString('hex')}`) : folderOrPath;
  const fd = openNew(path);
  try {
    unlinkSync(path);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return fd;
}
