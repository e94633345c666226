// The file of checkpoints: a header, then checkpoints one after the other, each with a commit record last. Writers
// only append, so an interrupted checkpoint leaves all before it intact.
//
// Rules:
//  - A checkpoint without a commit record does not count: readers stop before it, and the next writer cuts it off.
//  - A checkpoint with a commit record, or with another checkpoint after it, was complete. If its bytes have changed
//    since, it is damaged, and readers and writers report that.
//  - Everything read from a file is checked before it is used: sizes against the file, offsets against the memory,
//    the bytes of a checkpoint against its digest.
//  - Numbers are little-endian. docs/dirty-tracking.md has the layout.

import { createHash, type Hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';

/** A checkpoint in a file. */
export interface Checkpoint {
  /** Its number in the file, from 0. */
  readonly index: number;
  /** The checkpoint that it builds on; undefined if it holds all pages. */
  readonly parent: number | undefined;
  readonly time: Date;
  /** The pages that it holds, pages of zeros included. */
  readonly pages: number;
  /** Its size in the file, in bytes. */
  readonly bytes: number;
}

/**
 * A file that cannot be used: it holds no checkpoints, is of other memory, is damaged, or is being written by another
 * tracker.
 */
export class CheckpointError extends Error {
  override readonly name = 'CheckpointError';
  readonly code = 'ERR_UFFD_CHECKPOINT';
  /** The checkpoints before the first damaged record, if the file is damaged. */
  readonly checkpoints: readonly Checkpoint[];

  /** @internal */
  constructor(message: string, checkpoints: readonly Checkpoint[] = []) {
    super(message);
    this.checkpoints = checkpoints;
  }
}

/** The memory that a file belongs to. */
export interface MemoryShape {
  readonly pageSize: number;
  readonly length: number;
}

/** The position of a checkpoint. */
export interface StoredCheckpoint extends Checkpoint {
  readonly offset: number;
  readonly digest: Buffer;
}

/** Some pages of a checkpoint: their bytes at `offset`, or zeros. */
export interface StoredRun {
  readonly firstPage: number;
  readonly pages: number;
  readonly offset: number | undefined;
}

const MAGIC = 'UFFDCKPT';
const VERSION = 1;
export const HEADER_BYTES = 32;
export const BEGIN = 0x4e474542;
const DONE = 0x454e4f44;
export const BEGIN_BYTES = 40;
const RUN_BYTES = 24;
const DONE_BYTES = 48;
const DATA = 1;
const ZEROS = 2;
const NO_PARENT = 0xffffffff;
/** The unit that a disk writes as a whole or not at all. */
const SECTOR_BYTES = 512;
/** Most bytes that are read or written at once. */
export const CHUNK_BYTES = 1 << 20;

/** The first 8 bytes of a SHA-256, which distinguish a record from other data. */
function mark(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest().subarray(0, 8);
}

/** Reads as many of the bytes as there are: none before the start of the file. */
export async function readAt(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  if (offset < 0) return Buffer.alloc(0);
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0) return bytes.subarray(0, done);
    done += bytesRead;
  }
  return bytes;
}

// ---- reading -----------------------------------------------------------------------------------------------

/** Why the bytes at an offset are no complete checkpoint. */
export interface InvalidRecord {
  /** The record that is wrong, and its offset. */
  readonly record: string;
  readonly at: number;
  /** Whether the checkpoint was complete: all its pages are there, and a commit record was written after them. */
  readonly finished: boolean;
}

/** The checkpoints of a file, up to the first incomplete or damaged one. */
export interface Contents {
  readonly shape: MemoryShape;
  readonly checkpoints: readonly StoredCheckpoint[];
  /** The end of the last complete checkpoint. */
  readonly end: number;
  /** Bytes of the file. */
  readonly size: number;
  /** What is wrong with the bytes after `end`; undefined if there are none. */
  readonly invalid: InvalidRecord | undefined;
}

/** Reads the list of checkpoints. Undefined if the file is empty. */
export async function readContents(file: FileHandle, path: string): Promise<Contents | undefined> {
  const { size } = await file.stat();
  if (size === 0) return undefined;
  const shape = await readHeader(file, path);
  const checkpoints: StoredCheckpoint[] = [];
  let end = HEADER_BYTES;
  for (;;) {
    if (end >= size) return { shape, checkpoints, end, size, invalid: undefined };
    const next = await readStored(file, shape, end, size, checkpoints.length);
    if ('invalid' in next) return { shape, checkpoints, end, size, invalid: next.invalid };
    checkpoints.push(next);
    end += next.bytes;
  }
}

async function readHeader(file: FileHandle, path: string): Promise<MemoryShape> {
  const bytes = await readAt(file, 0, HEADER_BYTES);
  if (bytes.length < HEADER_BYTES || bytes.toString('latin1', 0, 8) !== MAGIC) {
    throw new CheckpointError(`${path} is no file of checkpoints`);
  }
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION) {
    throw new CheckpointError(`${path} has version ${version} of the format; ${VERSION} can be read here`);
  }
  const pageSize = bytes.readUInt32LE(12);
  const length = Number(bytes.readBigUInt64LE(16));
  const valid = bytes.subarray(24).equals(mark(bytes.subarray(0, 24)));
  if (!valid || pageSize === 0 || length % pageSize !== 0 || !Number.isSafeInteger(length)) {
    throw new CheckpointError(`the header of ${path} is damaged`);
  }
  return { pageSize, length };
}

interface BeginRecord {
  parent: number | undefined;
  time: Date;
  pages: number;
}

/** The checkpoint at `offset`, or why there is none. Its digest is not checked yet. */
async function readStored(
  file: FileHandle,
  shape: MemoryShape,
  offset: number,
  size: number,
  index: number,
): Promise<StoredCheckpoint | { invalid: InvalidRecord }> {
  const begin = await readAt(file, offset, BEGIN_BYTES);
  const begun = beginOf(begin, index);
  if (!begun) {
    // If this is a valid begin record of another checkpoint, other data has overwritten it: no writer was interrupted.
    return invalid('begin record', offset, isBegin(begin) || (await endsWith(file, offset, size, index)));
  }
  let at = offset + BEGIN_BYTES;
  let pages = 0;
  for (;;) {
    const head = await readAt(file, at, RUN_BYTES);
    const committed = head.length === RUN_BYTES && head.readUInt32LE(0) === DONE;
    if (committed || pages === begun.pages) break;
    const run = head.length === RUN_BYTES ? runOf(head, at, shape, size) : undefined;
    if (!run) return invalid('run of pages', at, await endsWith(file, offset, size, index));
    pages += run.pages;
    at += RUN_BYTES + (run.offset === undefined ? 0 : run.pages * shape.pageSize);
  }
  const done = await readAt(file, at, DONE_BYTES);
  const whole = isCommit(done, index, at - offset) && pages === begun.pages;
  if (!whole) return invalid('commit record', at, done.length === DONE_BYTES && !isTorn(done, at));
  return { ...begun, index, offset, bytes: at + DONE_BYTES - offset, digest: done.subarray(16) };
}

function invalid(record: string, at: number, finished: boolean): { invalid: InvalidRecord } {
  return { invalid: { record, at, finished } };
}

/** Whether a record is all zeros before or after a sector border, as a crash of the machine can leave it. */
function isTorn(record: Buffer, at: number): boolean {
  const border = SECTOR_BYTES - (at % SECTOR_BYTES);
  return [record.subarray(0, border), record.subarray(border)].some(
    (part) => part.length > 0 && part.every((byte) => byte === 0),
  );
}

/** Whether the file ends with the commit record of the checkpoint that begins at `offset`. */
async function endsWith(file: FileHandle, offset: number, size: number, index: number): Promise<boolean> {
  const at = size - DONE_BYTES;
  const done = await readAt(file, at, DONE_BYTES);
  return at > offset && isCommit(done, index, at - offset);
}

/** Whether these are the bytes of the commit record of a checkpoint of `bytes` bytes before it. */
function isCommit(record: Buffer, index: number, bytes: number): boolean {
  return (
    record.length === DONE_BYTES &&
    record.readUInt32LE(0) === DONE &&
    record.readUInt32LE(4) === index &&
    record.readBigUInt64LE(8) === BigInt(bytes)
  );
}

/** Whether these are the bytes of a begin record of any checkpoint. */
export function isBegin(bytes: Buffer): boolean {
  return (
    bytes.length === BEGIN_BYTES &&
    bytes.readUInt32LE(0) === BEGIN &&
    bytes.subarray(32).equals(mark(bytes.subarray(0, 32)))
  );
}

function beginOf(bytes: Buffer, index: number): BeginRecord | undefined {
  if (!isBegin(bytes) || bytes.readUInt32LE(4) !== index) return undefined;
  const parent = bytes.readUInt32LE(8);
  if (parent !== NO_PARENT && parent >= index) return undefined;
  return {
    parent: parent === NO_PARENT ? undefined : parent,
    time: new Date(bytes.readDoubleLE(16)),
    pages: Number(bytes.readBigUInt64LE(24)),
  };
}

/** The run whose head is at `at`; undefined if it does not fit the memory or the file. */
function runOf(head: Buffer, at: number, shape: MemoryShape, size: number): StoredRun | undefined {
  const kind = head.readUInt32LE(0);
  const pages = head.readUInt32LE(4);
  const firstPage = Number(head.readBigUInt64LE(8));
  if ((kind !== DATA && kind !== ZEROS) || pages === 0) return undefined;
  if (firstPage + pages > shape.length / shape.pageSize) return undefined;
  if (kind === ZEROS) return { firstPage, pages, offset: undefined };
  const offset = at + RUN_BYTES;
  return offset + pages * shape.pageSize <= size ? { firstPage, pages, offset } : undefined;
}

/** The runs of a checkpoint, in order. */
export async function* runsOf(
  file: FileHandle,
  shape: MemoryShape,
  stored: StoredCheckpoint,
): AsyncGenerator<StoredRun> {
  const end = stored.offset + stored.bytes - DONE_BYTES;
  for (let at = stored.offset + BEGIN_BYTES; at < end; ) {
    const run = runOf(await readAt(file, at, RUN_BYTES), at, shape, end);
    if (!run) throw new CheckpointError(`checkpoint ${stored.index} was changed while it was read`);
    yield run;
    at += RUN_BYTES + (run.offset === undefined ? 0 : run.pages * shape.pageSize);
  }
}

/** Whether the bytes of a checkpoint match its digest. */
export async function fitsDigest(file: FileHandle, stored: StoredCheckpoint): Promise<boolean> {
  const hash = createHash('sha256');
  const end = stored.offset + stored.bytes - DONE_BYTES + 16;
  for (let at = stored.offset; at < end; ) {
    const bytes = await readAt(file, at, Math.min(CHUNK_BYTES, end - at));
    if (bytes.length === 0) break;
    hash.update(bytes);
    at += bytes.length;
  }
  return hash.digest().equals(stored.digest);
}

// ---- writing -----------------------------------------------------------------------------------------------

export async function writeHeader(file: FileHandle, { pageSize, length }: MemoryShape): Promise<void> {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(pageSize, 12);
  bytes.writeBigUInt64LE(BigInt(length), 16);
  mark(bytes.subarray(0, 24)).copy(bytes, 24);
  await writeAt(file, 0, bytes);
}

async function writeAt(file: FileHandle, offset: number, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}

/** Writes one checkpoint. Without `commit` it does not count. */
export class CheckpointWriter {
  readonly #file: FileHandle;
  readonly #offset: number;
  readonly #index: number;
  readonly #begun: BeginRecord;
  readonly #hash: Hash = createHash('sha256');
  #at: number;

  private constructor(file: FileHandle, offset: number, index: number, begun: BeginRecord) {
    this.#file = file;
    this.#offset = offset;
    this.#at = offset;
    this.#index = index;
    this.#begun = begun;
  }

  static async begin(
    file: FileHandle,
    offset: number,
    index: number,
    begun: BeginRecord,
  ): Promise<CheckpointWriter> {
    const writer = new CheckpointWriter(file, offset, index, begun);
    const bytes = Buffer.alloc(BEGIN_BYTES);
    bytes.writeUInt32LE(BEGIN, 0);
    bytes.writeUInt32LE(index, 4);
    bytes.writeUInt32LE(begun.parent ?? NO_PARENT, 8);
    bytes.writeDoubleLE(begun.time.getTime(), 16);
    bytes.writeBigUInt64LE(BigInt(begun.pages), 24);
    mark(bytes.subarray(0, 32)).copy(bytes, 32);
    await writer.#append(bytes);
    return writer;
  }

  async #append(bytes: Uint8Array): Promise<void> {
    this.#hash.update(bytes);
    await writeAt(this.#file, this.#at, bytes);
    this.#at += bytes.length;
  }

  /** Writes pages with their bytes; pages without bytes are zero. */
  async run(firstPage: number, pages: number, bytes?: Uint8Array): Promise<void> {
    const head = Buffer.alloc(RUN_BYTES);
    head.writeUInt32LE(bytes ? DATA : ZEROS, 0);
    head.writeUInt32LE(pages, 4);
    head.writeBigUInt64LE(BigInt(firstPage), 8);
    await this.#append(head);
    if (bytes) await this.#append(bytes);
  }

  /**
   * Writes the commit record. With `sync`, the pages are on disk before the commit record is written, and the commit
   * record is on disk when this returns.
   */
  async commit(sync: boolean): Promise<StoredCheckpoint> {
    const bytes = Buffer.alloc(DONE_BYTES);
    bytes.writeUInt32LE(DONE, 0);
    bytes.writeUInt32LE(this.#index, 4);
    bytes.writeBigUInt64LE(BigInt(this.#at - this.#offset), 8);
    this.#hash.update(bytes.subarray(0, 16));
    const digest = this.#hash.digest();
    digest.copy(bytes, 16);
    if (sync) await this.#file.datasync();
    await writeAt(this.#file, this.#at, bytes);
    if (sync) await this.#file.datasync();
    const length = this.#at + DONE_BYTES - this.#offset;
    return { ...this.#begun, index: this.#index, offset: this.#offset, bytes: length, digest };
  }
}
