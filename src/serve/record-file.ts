// The file that a session is recorded to.
//
// Rule: recording does no harm. A path that cannot be written, or that is a file which is served or read (whatever link or
// second name leads to it), is refused when the server begins; what comes to be so later ends the recording and no guest.

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

/** A file that must not be written to: its identity, which all of its names share. */
export interface KeptFile {
  readonly dev: bigint;
  readonly ino: bigint;
  /** As messages name it: 'the memory file /var/lib/vm/memory'. */
  readonly name: string;
}

/** A recording cannot be made. */
export class RecordError extends Error {
  override readonly name = 'RecordError';
  readonly code = 'ERR_UFFD_RECORD';
}

/** Undefined: there is none. */
export function keptFile(path: string, what: string): KeptFile | undefined {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat && { dev: stat.dev, ino: stat.ino, name: `${what} ${path}` };
}

/** The file of a server's session: the first is recorded to the path that was given, the second to PATH.2. */
export function recordPath(path: string, session: number): string {
  return session === 1 ? path : `${path}.${session}`;
}

/**
 * Whether a file can be recorded to. It is left as it is, and is not there afterwards if it was not before. Its folder is made
 * if it is missing.
 *
 * @throws RecordError
 */
export function checkRecord(path: string, kept: readonly KeptFile[]): void {
  try {
    mkdirSync(dirname(path), { recursive: true });
    closeSync(openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL));
    unlinkSync(path);
    return;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw refused(path, (error as Error).message);
  }
  closeSync(openChecked(path, kept));
}

/**
 * Opens and empties a file to record to; its descriptor is the caller's.
 *
 * @throws RecordError, with nothing changed
 */
export function openRecord(path: string, kept: readonly KeptFile[]): number {
  const fd = openChecked(path, kept);
  try {
    if (fstatSync(fd).isFile()) ftruncateSync(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw refused(path, (error as Error).message);
  }
}

function openChecked(path: string, kept: readonly KeptFile[]): number {
  let fd: number;
  try {
    // Not waiting for whoever reads from a FIFO.
    fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (error) {
    throw refused(path, (error as Error).message);
  }
  const stat = fstatSync(fd, { bigint: true });
  const same = kept.find(({ dev, ino }) => dev === stat.dev && ino === stat.ino);
  if (!same && (stat.isFile() || stat.isCharacterDevice())) return fd;
  closeSync(fd);
  throw refused(path, same ? `it is ${same.name}` : 'it is no file');
}

function refused(path: string, why: string): RecordError {
  return new RecordError(`cannot record to ${path}: ${why}`);
}
