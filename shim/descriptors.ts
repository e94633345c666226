// Descriptors: closing and reading them, how many there may be, and where a file has data.
//
// Rule: a descriptor is read and closed by those who opened it. Deno's `node:fs` knows its own only.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { kcmpNumber, libc } from './libc.js';

const O_RDWR_CLOEXEC = 0x80002;
const LOCK_EX_NB = 2 | 4;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = -6;
/** PATH_MAX. */
const PATH_MOST = 4096;
const KCMP_FILE = 0;

export function closeDescriptor(fd: number): number {
  const c = libc();
  return c.close(fd) < 0 ? -c.errno() : 0;
}

/**
 * What a descriptor is, as /proc tells it: 'anon_inode:[userfaultfd]', 'socket:[123]', or a path. Undefined: it is not open,
 * or there is no /proc. Nothing is asked of the file itself, which could block: only kernel objects have names that do not
 * begin with a slash.
 */
export function kindOf(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`, 'latin1');
  } catch {
    return undefined;
  }
}

/** Whether two descriptors of this process share one open file; undefined: the kernel does not tell (kcmp(2)). */
export function sameFile(first: number, second: number): boolean | undefined {
  const order = libc().kcmp(kcmpNumber, process.pid, process.pid, KCMP_FILE, first, second);
  return order < 0 ? undefined : order === 0;
}

/** How many more this process may open; infinite where /proc does not tell. */
export function descriptorsLeft(): number {
  try {
    const most = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
    // The one that lists them is among them.
    return most
      ? Math.max(0, Number(most) - readdirSync('/proc/self/fd').length + 1)
      : Number.POSITIVE_INFINITY;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EMFILE' ? 0 : Number.POSITIVE_INFINITY;
  }
}

/** Reads what a descriptor holds at an offset into `buffer`: bytes read, or −errno. */
export function readAt(fd: number, buffer: Uint8Array, offset: number): number {
  const c = libc();
  const read = c.pread(fd, buffer, buffer.length, offset);
  return read < 0 ? -c.errno() : read;
}

/** Where a symbolic link leads that a descriptor of O_PATH stands for. @throws RangeError if it does not fit */
export function readLink(fd: number): string {
  const c = libc();
  const target = Buffer.alloc(PATH_MOST);
  const length = c.readlinkat(fd, '', target, PATH_MOST);
  if (length < 0 || length >= PATH_MOST) throw new RangeError('a link leads to what is no path');
  return target.toString('utf8', 0, length);
}

/**
 * Opens a file and locks it (flock) for as long as the descriptor is open: the descriptor, or −errno. EAGAIN: another
 * open file has the lock.
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

/** The first offset from `offset` on that has data; `end` where there is none. −errno. */
export function nextData(fd: number, offset: number, end: number): number {
  const at = seek(fd, offset, SEEK_DATA);
  return at === ENXIO ? end : at;
}

/** The first offset from `offset` on that is a hole; the end of the file is one. −errno. */
export function nextHole(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_HOLE);
}

/** Bytes of what can be sought in, a block device included. −errno. */
export function endOf(fd: number): number {
  return seek(fd, 0, SEEK_END);
}

function seek(fd: number, offset: number, whence: number): number {
  const c = libc();
  const at = Number(c.lseek(fd, offset, whence));
  return at < 0 ? -c.errno() : at;
}
