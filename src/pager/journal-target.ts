// Opens and locks the target of a journal, and opens journals that were left behind.
//
// A journal may have been made by an attacker who can write to the folder: a journal that is a symbolic link, not a
// regular file, or another user's is refused.

import { closeSync, constants, fstatSync, openSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { closeDescriptor, endOf, openLocked } from '../../shim/descriptors.js';
import { Errno, errnoName } from '../errors/format.js';
import { BOOT_BYTES, type DiskIdentity, JournalError } from './journal-format.js';
import { codeOf } from './journal-io.js';

const { O_RDWR, O_NOFOLLOW, O_NONBLOCK, O_EXCL } = constants;

/** A target that is open and locked. */
export interface OpenTarget {
  /** Without symbolic links. */
  readonly path: string;
  readonly journalPath: string;
  readonly fd: number;
  /** Bytes. */
  readonly size: number;
  readonly isBlockDevice: boolean;
  /** Of a block device, if the kernel tells. */
  readonly disk: DiskIdentity | undefined;
  close(): void;
}

/** The path of a file without symbolic links: a journal must be found by each name of its target. */
function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return resolve(path);
    throw error;
  }
}

/** Where the journal of a target is. */
export function journalPathOf(path: string): string {
  return `${realPath(path)}.uffd-journal`;
}

/**
 * Opens a file or block device for writing, and locks it until it is closed.
 *
 * @throws JournalError if it is in use, is read-only, or is neither of both; Node's errors
 */
export function openTarget(path: string, givenJournal?: string): OpenTarget {
  const real = realPath(path);
  const journal = givenJournal ?? journalPathOf(path);
  const known = statSync(real);
  const other = statSync(journal, { throwIfNoEntry: false });
  if (other && other.dev === known.dev && other.ino === known.ino)
    throw new JournalError(`${journal} is the file itself; choose another path for its journal`);
  if (known.isFile() && known.nlink > 1 && givenJournal === undefined)
    throw new JournalError(
      `${path} has ${known.nlink} names (hard links), and its journal would be found by one of them only; pass the path ` +
        'of the journal, always the same one (writable.journal)',
    );
  const isBlockDevice = known.isBlockDevice();
  if (!known.isFile() && !isBlockDevice)
    throw new JournalError(
      `${path} is neither a file nor a block device; only these can be written in place`,
    );
  // Opening it for writing succeeds, and each write fails.
  if (isBlockDevice && isReadOnly(known.rdev))
    throw new JournalError(
      `${path} is read-only; make it writable (blockdev --setrw), or open it without writable`,
    );
  const fd = openData(real, isBlockDevice);
  try {
    const lock = openLocked(real);
    if (lock < 0) throw notLocked(path, -lock);
    try {
      // Both descriptors must be of the file that has the name.
      const [opened, named] = [fstatSync(fd), statSync(real)];
      if (opened.dev !== named.dev || opened.ino !== named.ino)
        throw new JournalError(`${path} was replaced while it was opened; try again`);
      const size = isBlockDevice ? endOf(lock) : opened.size;
      if (size < 0) throw new JournalError(`the size of ${path} is unknown (${errnoName(-size)})`);
      const close = (): void => {
        closeSync(fd);
        closeDescriptor(lock);
      };
      const disk = isBlockDevice ? diskOf(known.rdev) : undefined;
      return { path: real, journalPath: journal, fd, size, isBlockDevice, disk, close };
    } catch (error) {
      closeDescriptor(lock);
      throw error;
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** What the system says of a block device; undefined: nothing. */
function attributeOf(rdev: number, name: string): string | undefined {
  // As glibc packs them.
  const [major, minor] = [(rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00)];
  try {
    return readFileSync(`/sys/dev/block/${major}:${minor}/${name}`, 'latin1').trim();
  } catch {
    return undefined;
  }
}

/** Whether the system says so of a block device. Without /sys, the first write tells. */
function isReadOnly(rdev: number): boolean {
  return attributeOf(rdev, 'ro') === '1';
}

function diskOf(rdev: number): DiskIdentity | undefined {
  // A partition is a folder in that of its disk.
  const sequence = attributeOf(rdev, 'diskseq') ?? attributeOf(rdev, '../diskseq');
  let boot: Uint8Array;
  try {
    boot = Buffer.from(
      readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').replace(/[^0-9a-f]/g, ''),
      'hex',
    );
  } catch {
    return undefined;
  }
  if (boot.length !== BOOT_BYTES || sequence === undefined || !/^[1-9]\d*$/.test(sequence)) return undefined;
  return { boot, sequence: BigInt(sequence) };
}

/** With O_EXCL, the kernel refuses a block device that is mounted. */
function openData(path: string, isBlockDevice: boolean): number {
  try {
    return openSync(path, O_RDWR | O_NONBLOCK | (isBlockDevice ? O_EXCL : 0));
  } catch (error) {
    if (!isBlockDevice || codeOf(error) !== 'EBUSY') throw error;
    throw new JournalError(
      `${path} is mounted, or another program uses it; unmount it, or end that program`,
      {
        cause: error,
      },
    );
  }
}

function notLocked(path: string, errno: number): JournalError {
  if (errno === Errno.EAGAIN) {
    return new JournalError(
      `${path} is being written by another pager, of this process or of another; close that pager first, or write to ` +
        'a copy of the file',
    );
  }
  return new JournalError(
    `${path} cannot be locked (${errnoName(errno)}), and two pagers that write to it would damage it; put it on a file ` +
      'system with locks (flock)',
  );
}

/** Opens a journal that was left behind. Undefined: there is none. @throws JournalError if it cannot be trusted */
export function openLeftJournal(path: string): { fd: number; size: number } | undefined {
  let fd: number;
  try {
    fd = openSync(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
  } catch (error) {
    const code = codeOf(error);
    if (code === 'ENOENT') return undefined;
    if (code === 'ELOOP')
      throw new JournalError(`${path} is a symbolic link, and a journal never is; remove it`);
    if (code === 'EISDIR' || code === 'ENXIO') throw notRegular(path);
    throw error;
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw notRegular(path);
    const user = process.geteuid?.();
    if (user !== undefined && stat.uid !== user) {
      throw new JournalError(
        `${path} belongs to user ${stat.uid}, and this process runs as user ${user}; recover as user ${stat.uid}, or ` +
          'remove it if you do not trust it',
      );
    }
    return { fd, size: stat.size };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function notRegular(path: string): JournalError {
  return new JournalError(`${path} is not a regular file, and a journal always is; remove it`);
}
