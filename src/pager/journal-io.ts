// Synchronous reads and writes of the pager's thread: whole ranges, whatever a single call transfers. They run in the
// calling thread, and do not use libuv's thread pool.

import { closeSync, constants, fdatasyncSync, fsyncSync, openSync, readSync, writevSync } from 'node:fs';
import { dirname } from 'node:path';

/** Most buffers of one call (IOV_MAX is 1024), and most bytes (Linux transfers at most 2 GiB − 4 KiB). */
const BUFFERS_MOST = 1024;
const BYTES_MOST = 2 ** 30;
/** Errors of file systems that cannot flush a folder. */
const CANNOT_SYNC: ReadonlySet<string | undefined> = new Set(['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS']);

export function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException | null)?.code;
}

/** Repeats a call that a signal has interrupted. */
function uninterrupted<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (codeOf(error) !== 'EINTR') throw error;
    }
  }
}

/** Reads until `into` is full or the file ends: bytes read. */
export function readFully(fd: number, into: Uint8Array, position: number): number {
  let done = 0;
  while (done < into.length) {
    const length = Math.min(into.length - done, BYTES_MOST);
    const read = uninterrupted(() => readSync(fd, into, done, length, position + done));
    if (read === 0) break;
    done += read;
  }
  return done;
}

/** Writes the buffers one after the other, from `position` on. */
export function writeFully(fd: number, buffers: readonly Uint8Array[], position: number): void {
  let at = position;
  /** The buffer that is next, and its bytes that are written already. */
  let next = 0;
  let skip = 0;
  while (next < buffers.length) {
    const group: Uint8Array[] = [];
    let bytes = 0;
    for (let index = next; index < buffers.length && group.length < BUFFERS_MOST; index++) {
      const rest = (buffers[index] as Uint8Array).subarray(index === next ? skip : 0);
      const fits = rest.subarray(0, BYTES_MOST - bytes);
      group.push(fits);
      bytes += fits.length;
      if (fits.length < rest.length) break;
    }
    let written = bytes === 0 ? 0 : uninterrupted(() => writevSync(fd, group, at));
    if (written === 0 && bytes > 0) {
      throw Object.assign(new Error('EIO: a write has written nothing'), { code: 'EIO' });
    }
    at += written;
    for (; next < buffers.length; next++) {
      const rest = (buffers[next] as Uint8Array).length - skip;
      if (written < rest) break;
      written -= rest;
      skip = 0;
    }
    skip += written;
  }
}

/** Makes the data of a file durable, and as much of its metadata as reading it takes. */
export function syncData(fd: number): void {
  uninterrupted(() => fdatasyncSync(fd));
}

/** Makes the names in a file's folder durable, if the file system can. */
export function syncFolderOf(path: string): void {
  const fd = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    uninterrupted(() => fsyncSync(fd));
  } catch (error) {
    if (!CANNOT_SYNC.has(codeOf(error))) throw error;
  } finally {
    closeSync(fd);
  }
}
