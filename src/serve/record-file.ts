// The file that a session is recorded to.
//
// Rule: recording does no harm. A path that cannot be written, or that is a served or read file (by whatever link or
// second name), is refused when the server begins. If a path becomes such a path later, the recording ends, and the
// guest is still served.

import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { dirname } from 'node:path';

/** A file that must not be written to, identified by its inode, which all of its names share. */
export interface ProtectedFile {
  readonly dev: bigint;
  readonly ino: bigint;
  /** The file's name in messages: 'the memory file /var/lib/vm/memory'. */
  readonly name: string;
}

/** A recording cannot be made. */
export class RecordError extends Error {
  override readonly name = 'RecordError';
  readonly code = 'ERR_UFFD_RECORD';
}

/** The protected file at a path; undefined if no file exists there. */
export function protectedFile(path: string, what: string): ProtectedFile | undefined {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat && { dev: stat.dev, ino: stat.ino, name: `${what} ${path}` };
}

/** The file that a session is recorded to: `path` for a server's first session, PATH.2 for its second. */
export function recordPath(path: string, session: number): string {
  return session === 1 ? path : `${path}.${session}`;
}

/**
 * Checks that a file can be recorded to. The file is left as it is, and is not created. A missing folder is made.
 *
 * @throws RecordError
 */
export function checkRecord(path: string, protectedFiles: readonly ProtectedFile[]): void {
  try {
    mkdirSync(dirname(path), { recursive: true });
    closeSync(openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL));
    unlinkSync(path);
    return;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw refused(path, (error as Error).message);
  }
  closeSync(openChecked(path, protectedFiles));
}

/**
 * Opens and empties a file to record to; the caller owns the descriptor.
 *
 * @throws RecordError, with nothing changed
 */
export function openRecord(path: string, protectedFiles: readonly ProtectedFile[]): number {
  const fd = openChecked(path, protectedFiles);
  try {
    if (fstatSync(fd).isFile()) ftruncateSync(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw refused(path, (error as Error).message);
  }
}

function openChecked(path: string, protectedFiles: readonly ProtectedFile[]): number {
  let fd: number;
  try {
    // Do not wait for the reader of a FIFO.
    fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (error) {
    throw refused(path, (error as Error).message);
  }
  const stat = fstatSync(fd, { bigint: true });
  const same = protectedFiles.find(({ dev, ino }) => dev === stat.dev && ino === stat.ino);
  if (!same && (stat.isFile() || stat.isCharacterDevice())) return fd;
  closeSync(fd);
  throw refused(path, same ? `it is ${same.name}` : 'it is no file');
}

function refused(path: string, why: string): RecordError {
  return new RecordError(`cannot record to ${path}: ${why}`);
}
