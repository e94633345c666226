// Descriptors: closing them, seeing them become readable, and where a file has data.

import { libc } from './libc.js';
import { watchReadable } from './linux.js';

export { watchReadable };

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = -6;

export function closeDescriptor(fd: number): number {
  const c = libc();
  return c.close(fd) < 0 ? -c.errno() : 0;
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

function seek(fd: number, offset: number, whence: number): number {
  const c = libc();
  const at = Number(c.lseek(fd, offset, whence));
  return at < 0 ? -c.errno() : at;
}
