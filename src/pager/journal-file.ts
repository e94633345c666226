// A file that is written in place, block by block, and whose blocks are whole after a crash: each is as before a write
// or as after it, and at least as at the last completed flush.
//
// Each batch of parts takes five steps, in this order:
//
//  1. All parts are appended to the journal. If the process is killed meanwhile, the target is unchanged, and recovery
//     ignores the incomplete record.
//  2. With 'power': fdatasync of the journal. Without it, the disk could write the target first, and a power loss could
//     leave a torn block whose only whole copy never reached the disk. With 'process' it is not needed: after the death
//     of a process, the kernel still has everything that was written.
//  3. The parts are written in place. If the process is killed meanwhile, a block can be torn, and the journal has it.
//  4. With 'power': fdatasync of the target. Without it, the journal could lose the copies before the disk has the
//     blocks.
//  5. The journal is emptied. It must not happen before step 3 and 4 are done for all parts. It must happen before the
//     next batch, because recovery would undo that batch with old copies. If it fails, the next batch overwrites the old
//     records from the first one on, and its number tells them apart.
//
// If step 1 or 2 fails, the journal is emptied, and the target is as before. If step 3 or 4 fails, a block may be torn:
// the batch stays in the journal, and the next call writes it in place again before anything else. Until that works,
// every call fails: the journal has the only whole copy, and must not be emptied. (After a failed fdatasync, the kernel
// may have dropped the data, so the blocks are written again, and not only flushed again.)

import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  openSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { checkInteger, checkOneOf, checkOptions, invalidState, outOfRange } from '../errors/arguments.js';
import { type Recovery, recoverOpen, replay } from './journal.js';
import {
  BLOCK_LEAST,
  BLOCK_MOST,
  encodeHeader,
  encodeRecord,
  HEADER_BYTES,
  isWholeBlocks,
  JournalError,
  type JournalHeader,
  RECORD_BYTES,
  SALT_BYTES,
} from './journal-format.js';
import { codeOf, readFully, syncData, syncFolderOf, writeFully } from './journal-io.js';
import { type OpenTarget, openTarget } from './journal-target.js';
import type { Part, Target } from './source.js';

export interface JournaledFileOptions {
  /** Bytes that stay together. */
  blockSize: number;
  /** What the blocks must survive: the death of the process, or a power loss. */
  durability: 'process' | 'power';
  /** The journal's path. Default: the target's, without symbolic links, with `.uffd-journal` appended. */
  journal?: string;
}

const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
const PRIVATE = 0o600;
/** Magic numbers of file systems in memory: tmpfs (also devtmpfs) and ramfs. */
const IN_MEMORY: ReadonlySet<number> = new Set([0x01021994, 0x858458f6]);

export class JournaledFile implements Target {
  /** What was recovered when the file was opened. */
  readonly recovery: Recovery;
  readonly #target: OpenTarget;
  readonly #journal: number;
  readonly #header: JournalHeader;
  readonly #power: boolean;
  #batch = 0n;
  /** Bytes of the journal, as far as they count. */
  #journalSize = HEADER_BYTES;
  /** Whether the batch in the journal may be torn in the target. */
  #unsettled = false;
  #closed = false;

  /**
   * Opens and locks a file or block device, and recovers it if a journal was left behind.
   *
   * @throws JournalError if the file is in use, or the journal cannot be used; Node's errors
   */
  static open(path: string, options: JournaledFileOptions): JournaledFile {
    checkOptions(options, 'options');
    checkInteger(options.blockSize, 'blockSize', BLOCK_LEAST, BLOCK_MOST);
    checkOneOf(options.durability, 'durability', ['process', 'power']);
    const target = openTarget(path, options.journal);
    try {
      return new JournaledFile(target, options);
    } catch (error) {
      target.close();
      throw error;
    }
  }

  private constructor(target: OpenTarget, { blockSize, durability }: JournaledFileOptions) {
    this.#target = target;
    this.#power = durability === 'power';
    this.recovery = recoverOpen(target);
    if (this.#power) checkFolder(target);
    this.#header = { blockSize, size: target.size, salt: randomBytes(SALT_BYTES), disk: target.disk };
    this.#journal = makeJournal(target.journalPath);
    try {
      writeFully(this.#journal, [encodeHeader(this.#header)], 0);
      if (this.#power) {
        syncData(this.#journal);
        // Without its name, a journal cannot be found after a power loss.
        syncFolderOf(target.journalPath);
      }
    } catch (error) {
      closeSync(this.#journal);
      unlinkSync(target.journalPath);
      throw failed('the journal', target.journalPath, error);
    }
  }

  /** Bytes. */
  get size(): number {
    return this.#target.size;
  }

  /** Reads from the file, and not from the journal: how many bytes there were. @throws Node's errors */
  read(into: Uint8Array, offset: number): number {
    this.#checkOpen();
    return readFully(this.#target.fd, into, offset);
  }

  write(parts: readonly Part[]): void {
    this.#check(parts);
    this.#settle();
    if (parts.length === 0) return;
    this.#append(parts);
    try {
      this.#writeDurably(parts);
    } catch (error) {
      this.#unsettled = true;
      throw error;
    }
    this.#empty();
  }

  /**
   * Writes parts that nothing reads yet, and that no batch has contained: without the journal, so a crash can tear them.
   * They are as durable as the next batch before it is begun.
   */
  writeUnread(parts: readonly Part[]): void {
    this.#check(parts);
    if (parts.length > 0) this.#writeDurably(parts);
  }

  /** With 'process' the blocks are safe as soon as `write` returns. */
  sync(): void {
    this.#checkOpen();
    this.#settle();
    checkInPlace(this.#target);
    if (!this.#power) return;
    try {
      syncData(this.#target.fd);
    } catch (error) {
      throw failed('the file', this.#target.path, error);
    }
    try {
      syncData(this.#journal);
    } catch (error) {
      throw failed('the journal', this.#target.journalPath, error);
    }
  }

  /** Removes the journal, unless the last batch could not be written in place: the next recovery writes it. */
  close(): void {
    if (this.#closed) return;
    try {
      this.#settle();
    } catch {
      // The journal stays.
    }
    this.#closed = true;
    if (!this.#unsettled) this.#remove();
    closeSync(this.#journal);
    // Last, because it ends the lock.
    this.#target.close();
  }

  #checkOpen(): void {
    if (this.#closed) throw invalidState(`${this.#target.path} is closed`);
  }

  #check(parts: readonly Part[]): void {
    this.#checkOpen();
    for (const { offset, bytes } of parts) {
      if (!isWholeBlocks(offset, bytes.length, this.#header))
        throw outOfRange('parts', `whole blocks of ${this.#header.blockSize} bytes in the file`, offset);
    }
  }

  /** Appends a batch to the journal, which is empty. */
  #append(parts: readonly Part[]): void {
    this.#batch++;
    let size = HEADER_BYTES;
    const buffers = parts.flatMap(({ offset, bytes }) => {
      const { length } = bytes;
      size += RECORD_BYTES + length;
      const record = { offset, length, checksum: crc32(bytes), batch: this.#batch };
      return [encodeRecord(record, this.#header.salt), bytes];
    });
    try {
      writeFully(this.#journal, buffers, HEADER_BYTES);
      if (this.#power) syncData(this.#journal);
    } catch (error) {
      this.#empty();
      throw failed('the journal', this.#target.journalPath, error);
    }
    this.#journalSize = size;
  }

  /** Writes parts in place, and makes them as durable as the options say. */
  #writeDurably(parts: readonly Part[]): void {
    try {
      this.#writeInPlace(parts);
      if (this.#power) syncData(this.#target.fd);
    } catch (error) {
      throw failed('the file', this.#target.path, error);
    }
  }

  /** Writes neighbouring parts with one call. */
  #writeInPlace(parts: readonly Part[]): void {
    for (let first = 0; first < parts.length; ) {
      const start = (parts[first] as Part).offset;
      const run: Uint8Array[] = [];
      let end = start;
      for (; first < parts.length && (parts[first] as Part).offset === end; first++) {
        const { bytes } = parts[first] as Part;
        run.push(bytes);
        end += bytes.length;
      }
      writeFully(this.#target.fd, run, start);
    }
  }

  /** Writes the batch in the journal in place again, if that failed before. */
  #settle(): void {
    if (!this.#unsettled) return;
    try {
      // A record that the disk has damaged meanwhile is ignored: its block is still dirty in the pager, which writes it again.
      replay(this.#journal, this.#journalSize, this.#header, this.#target);
      if (this.#power) syncData(this.#target.fd);
    } catch (error) {
      throw failed('the file', this.#target.path, error);
    }
    this.#unsettled = false;
    this.#empty();
  }

  #empty(): void {
    this.#journalSize = HEADER_BYTES;
    try {
      ftruncateSync(this.#journal, HEADER_BYTES);
    } catch {
      // The old records do no harm: see step 5.
    }
  }

  #remove(): void {
    const path = this.#target.journalPath;
    try {
      unlinkSync(path);
      // Otherwise a power loss could bring the journal back with its last batch, and undo what is written after this.
      if (this.#power) syncFolderOf(path);
    } catch {
      // An empty journal does no harm, and the next recovery removes it.
    }
  }
}

/** What was written must be found again by the file's name. @throws JournalError */
function checkInPlace({ fd, path, size, isBlockDevice }: OpenTarget): void {
  const opened = fstatSync(fd);
  const named = statSync(path, { throwIfNoEntry: false });
  if (!named || named.dev !== opened.dev || named.ino !== opened.ino)
    throw new JournalError(
      `${path} was removed, renamed or replaced while it was open: the changes are in a file that no longer has this ` +
        'name; put that file back and flush again, or close with discard',
    );
  if (!isBlockDevice && opened.size < size)
    throw new JournalError(
      `${path} became shorter while it was open, so data is lost; restore the file from a backup, and let nothing else ` +
        'write to it',
    );
}

/** Makes the journal. It must not be there, not even as a symbolic link to nowhere. */
function makeJournal(path: string): number {
  let fd: number;
  try {
    fd = openSync(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, PRIVATE);
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw failed('the journal', path, error);
    throw new JournalError(
      `${path} appeared while the file was opened; remove it if no other program needs it`,
    );
  }
  // The umask may have taken permissions away, and recovery must be able to open the file.
  fchmodSync(fd, PRIVATE);
  return fd;
}

/** A block device's journal is in /dev by default, which is memory. @throws JournalError */
function checkFolder({ isBlockDevice, journalPath, path }: OpenTarget): void {
  if (!isBlockDevice || !IN_MEMORY.has(statfsSync(dirname(journalPath)).type)) return;
  throw new JournalError(
    `${journalPath} is in memory, so the journal of ${path} would not survive a power loss; choose another path with ` +
      "the option writable.journal, or durability: 'process'",
  );
}

/** An error of the system, with its code, that names the file. */
function failed(what: string, path: string, error: unknown): Error {
  const code = codeOf(error);
  if (error instanceof JournalError || code === undefined) return error as Error;
  const { errno, syscall } = error as NodeJS.ErrnoException;
  const advice = ADVICE[code] ?? '';
  return Object.assign(new Error(`${code}: ${what}, ${path}, cannot be written${advice}`, { cause: error }), {
    code,
    path,
    ...(errno !== undefined && { errno }),
    ...(syscall !== undefined && { syscall }),
  });
}

const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: ': its disk is full; free some space',
  EDQUOT: ": its owner's quota is used up; free some space",
  EFBIG: ': it would exceed the largest size that a file may have (ulimit -f, or the file system)',
  EIO: ': its disk reports an error; look at the kernel log',
};
