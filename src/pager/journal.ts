// Recovers a target from the journal that a killed process has left behind (the format: journal-format.ts).
//
// Rules:
//  - Nothing is written to the target before all records are checked: their places against the target, and their bytes
//    against their checksums. Everything in a journal is untrusted.
//  - A record that is incomplete or damaged is ignored. A process is killed in the middle of a record only before it
//    writes any part of that batch in place, so the target is whole without it.
//  - The journal is removed after the target is on disk. Until then, recovery may be killed and run again: it writes
//    the same bytes to the same places.

import { closeSync, lstatSync, unlinkSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import {
  type DiskIdentity,
  decodeHeader,
  decodeRecord,
  HEADER_BYTES,
  isUnfinishedHeader,
  isWholeBlocks,
  JournalError,
  type JournalHeader,
  type JournalRecord,
  RECORD_BYTES,
} from './journal-format.js';
import { readFully, syncData, syncFolderOf, writeFully } from './journal-io.js';
import { journalPathOf, type OpenTarget, openLeftJournal, openTarget } from './journal-target.js';

/** What a recovery has done. */
export interface Recovery {
  /** Parts that were written to the target. */
  readonly recovered: number;
  /** Bytes of these parts. */
  readonly bytes: number;
  /** Bytes of the journal that were ignored, because they are incomplete or damaged. */
  readonly ignoredBytes: number;
}

const NOTHING: Recovery = { recovered: 0, bytes: 0, ignoredBytes: 0 };
/** Most bytes that are read at once. */
const CHUNK_BYTES = 1 << 20;

/**
 * Makes a target whole after a crash of the process that wrote to it, and removes the journal. Call it before anything
 * else writes to the target.
 *
 * @throws JournalError if the target is in use, or if the journal is not of this target or cannot be read; nothing is
 * changed then
 */
export function recover(path: string, options: { journal?: string } = {}): Recovery {
  const journal = options.journal ?? journalPathOf(path);
  if (lstatSync(journal, { throwIfNoEntry: false }) === undefined) return NOTHING;
  const target = openTarget(path, journal);
  try {
    return recoverOpen(target);
  } finally {
    target.close();
  }
}

/** As `recover`, for a target that is open and locked. */
export function recoverOpen(target: OpenTarget): Recovery {
  const journal = openLeftJournal(target.journalPath);
  if (!journal) return NOTHING;
  try {
    const header = headerOf(journal.fd, journal.size, target);
    const result = header
      ? replay(journal.fd, journal.size, header, target)
      : { ...NOTHING, ignoredBytes: journal.size };
    if (result.recovered > 0) syncData(target.fd);
    unlinkSync(target.journalPath);
    // Otherwise a power loss could bring the journal back, and a later recovery would undo what was written meanwhile.
    syncFolderOf(target.journalPath);
    return result;
  } finally {
    closeSync(journal.fd);
  }
}

/** The header of a journal; undefined if the process was killed while it made the file. */
function headerOf(fd: number, size: number, target: OpenTarget): JournalHeader | undefined {
  const bytes = Buffer.alloc(HEADER_BYTES);
  const path = target.journalPath;
  const read = readFully(fd, bytes, 0);
  // After a power loss, a new file can have its size and not yet its bytes.
  if (size <= HEADER_BYTES && isUnfinishedHeader(bytes.subarray(0, read))) return undefined;
  const header = decodeHeader(bytes, path);
  // Nothing is in it: the pager was not closed, and the file may be another one by now.
  if (size === HEADER_BYTES) return header;
  if (header.size !== target.size) {
    throw new JournalError(
      `${path} is the journal of a file of ${header.size} bytes, and ${target.path} has ${target.size}; restore the ` +
        'size or the file that it belongs to and recover again, or remove the journal if the file was replaced on purpose',
    );
  }
  if (isAnotherDisk(header.disk, target.disk)) {
    throw new JournalError(
      `${path} is the journal of another disk, which was ${target.path} before; recover when that disk is there, or ` +
        'remove the journal if its last changes are not needed',
    );
  }
  return header;
}

/** Whether two disks are certainly not the same: after the system has started again, their numbers say nothing. */
function isAnotherDisk(one: DiskIdentity | undefined, other: DiskIdentity | undefined): boolean {
  return (
    one !== undefined &&
    other !== undefined &&
    Buffer.compare(one.boot, other.boot) === 0 &&
    one.sequence !== other.sequence
  );
}

interface Found {
  readonly record: JournalRecord;
  /** Where the record's bytes are in the journal. */
  readonly at: number;
}

/**
 * Writes all complete records of a journal to the target, in their order. `size`: bytes of the journal.
 *
 * @throws JournalError if a record does not fit the target; nothing is written then
 */
export function replay(fd: number, size: number, header: JournalHeader, target: OpenTarget): Recovery {
  const { found, ignoredBytes } = scan(fd, size, header, target);
  let bytes = 0;
  for (const { record, at } of found) {
    eachChunk(fd, at, record.length, (chunk, done) => writeFully(target.fd, [chunk], record.offset + done));
    bytes += record.length;
  }
  return { recovered: found.length, bytes, ignoredBytes };
}

/** The records whose bytes are complete, and how many bytes of the journal are anything else. */
function scan(
  fd: number,
  size: number,
  header: JournalHeader,
  target: OpenTarget,
): { found: Found[]; ignoredBytes: number } {
  const found: Found[] = [];
  const head = Buffer.alloc(RECORD_BYTES);
  let batch: bigint | undefined;
  let damaged = 0;
  let at = HEADER_BYTES;
  for (;;) {
    const record = decodeRecord(head.subarray(0, readFully(fd, head, at)), header);
    if (!record || (batch !== undefined && record.batch !== batch)) break;
    batch = record.batch;
    if (!isWholeBlocks(record.offset, record.length, header)) {
      throw new JournalError(
        `the record at byte ${at} of ${target.journalPath} does not fit ${target.path}: no process of this library has ` +
          'written it; remove the journal if you do not trust it',
      );
    }
    const start = at + RECORD_BYTES;
    if (start + record.length > size) break;
    let checksum = 0;
    eachChunk(fd, start, record.length, (chunk) => {
      checksum = crc32(chunk, checksum);
    });
    if (checksum === record.checksum) found.push({ record, at: start });
    else damaged += RECORD_BYTES + record.length;
    at = start + record.length;
  }
  return { found, ignoredBytes: damaged + Math.max(0, size - at) };
}

/** Reads a part of a file piece by piece. */
function eachChunk(
  fd: number,
  from: number,
  length: number,
  use: (chunk: Buffer, done: number) => void,
): void {
  const buffer = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, length));
  for (let done = 0; done < length; ) {
    const chunk = buffer.subarray(0, Math.min(buffer.length, length - done));
    if (readFully(fd, chunk, from + done) < chunk.length)
      throw new JournalError('the journal became shorter while it was read; let nothing else write to it');
    use(chunk, done);
    done += chunk.length;
  }
}
