// Descriptors: closing and reading them, how many more may be opened, and where a file has data.
//
// Rule: only the API that opened a descriptor reads and closes it, because Deno's `node:fs` only knows its own
// descriptors.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { kcmpNumber, libc, orErrno } from './libc.js';

const O_RDWR_CLOEXEC = 0x80002;
const LOCK_EX_NB = 2 | 4;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = -6;
/** PATH_MAX. */
const PATH_MOST = 4096;
const KCMP_FILE = 0;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0x800;
const SYNC_FILE_RANGE_WRITE = 2;

export function closeDescriptor(fd: number): number {
  return orErrno(libc().close(fd));
}

/**
 * What a descriptor is, according to /proc: 'anon_inode:[userfaultfd]', 'socket:[123]', or a path. Undefined: it is not
 * open, or there is no /proc. The file itself is not accessed, because that could block. Only the names of kernel
 * objects do not begin with a slash.
 */
export function kindOf(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`, 'latin1');
  } catch {
    return undefined;
  }
}

/** Whether two descriptors of this process share one open file; undefined: the kernel cannot say (kcmp(2)). */
export function sameFile(first: number, second: number): boolean | undefined {
  const order = libc().kcmp(kcmpNumber, process.pid, process.pid, KCMP_FILE, first, second);
  return order < 0 ? undefined : order === 0;
}

/** How many more descriptors this process may open; infinite if /proc does not show its limit. */
export function descriptorsLeft(): number {
  try {
    const most = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
    // The descriptor that lists the folder is in the list, too.
    return most
      ? Math.max(0, Number(most) - readdirSync('/proc/self/fd').length + 1)
      : Number.POSITIVE_INFINITY;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EMFILE' ? 0 : Number.POSITIVE_INFINITY;
  }
}

/** Reads from a descriptor at an offset into `buffer`: bytes read, or −errno. */
export function readAt(fd: number, buffer: Uint8Array, offset: number): number {
  return orErrno(libc().pread(fd, buffer, buffer.length, offset));
}

/** Writes `bytes` to a descriptor at an offset: bytes written, or −errno. */
export function writeAt(fd: number, bytes: Uint8Array, offset: number): number {
  return orErrno(libc().pwrite(fd, bytes, bytes.length, offset));
}

/**
 * The target of the symbolic link that was opened with O_PATH as this descriptor. @throws RangeError if it does not fit
 */
export function readLink(fd: number): string {
  const c = libc();
  const target = Buffer.alloc(PATH_MOST);
  const length = c.readlinkat(fd, '', target, PATH_MOST);
  if (length < 0 || length >= PATH_MOST) throw new RangeError('the target of a symbolic link is no path');
  return target.toString('utf8', 0, length);
}

/**
 * Opens a file and locks it (flock) for as long as the descriptor is open. Returns the descriptor, or −errno. EAGAIN:
 * another open file has the lock.
 */
export function openLocked(path: string): number {
  const c = libc();
  const fd = c.open(path, O_RDWR_CLOEXEC);
  if (fd < 0) return -c.errno();
  if (c.flock(fd, LOCK_EX_NB) === 0) return fd;
  const errno = c.errno();
  c.close(fd);
  return -errno;
}

/** Writes everything that is not on the disk yet of the file system that a descriptor's file lies on. −errno. */
export function syncFileSystem(fd: number): number {
  return orErrno(libc().syncfs(fd));
}

/**
 * Begins to write a file to the disk, and does not wait for it: a later sync then waits for less. −errno; a file system
 * need not be able to do it.
 */
export function startWriteback(fd: number): number {
  return orErrno(libc().sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
}

/** The first offset at or after `offset` that has data; `end` if there is none. −errno. */
export function nextData(fd: number, offset: number, end: number): number {
  const at = seek(fd, offset, SEEK_DATA);
  return at === ENXIO ? end : at;
}

/** The first offset at or after `offset` that is a hole; the end of the file counts as a hole. −errno. */
export function nextHole(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_HOLE);
}

/** Size in bytes of a seekable file, including block devices. −errno. */
export function endOf(fd: number): number {
  return seek(fd, 0, SEEK_END);
}

function seek(fd: number, offset: number, whence: number): number {
  return orErrno(Number(libc().lseek(fd, offset, whence)));
}

/** Whether reads of a descriptor never wait (O_NONBLOCK); the flag belongs to the open file, which may be shared. */
export function isNonBlocking(fd: number): boolean {
  return (orErrno(libc().fcntl(fd, F_GETFL, 0)) & O_NONBLOCK) !== 0;
}

/** Makes reads of a descriptor never wait (O_NONBLOCK), in each process that shares the open file. */
export function setNonBlocking(fd: number): number {
  const c = libc();
  const flags = orErrno(c.fcntl(fd, F_GETFL, 0));
  return flags < 0 ? flags : orErrno(c.fcntl(fd, F_SETFL, flags | O_NONBLOCK));
}
