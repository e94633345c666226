// A file or block device as the source of a pager. Reads are system calls of the pager's own thread.

import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { endOf, readAt } from '../../shim/descriptors.js';
import { UffdError } from '../errors/errors.js';
import type { FileSource } from './file-description.js';
import { type OpenSource, SourceError } from './source.js';

const EINTR = -4;

/** Opens it. `written`: the pager writes to the file itself, so its times change. @throws Node's errors; SourceError */
export function openFileSource({ path }: FileSource, written: boolean): OpenSource {
  // Without O_NONBLOCK, opening a FIFO would wait for its writer.
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    return new OpenFile(fd, path, written);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

class OpenFile implements OpenSource {
  readonly size: number;
  readonly parallel = 1;
  readonly immediate = true;
  readonly identity: string;
  readonly #fd: number;
  readonly #path: string;
  /** Size and times at the start; undefined: they may change. */
  readonly #pinned: string | undefined;

  constructor(fd: number, path: string, written: boolean) {
    this.#fd = fd;
    this.#path = path;
    const stat = fstatSync(fd, { bigint: true });
    if (!stat.isFile() && !stat.isBlockDevice())
      throw new SourceError(`${path} is neither a file nor a block device`, true);
    this.size = stat.isFile() ? Number(stat.size) : endOf(fd);
    if (this.size < 0) throw new UffdError(this.size, 'lseek');
    if (this.size === 0) throw new SourceError(`${path} is empty: there is nothing to read`, true);
    const { ino, rdev, mtimeNs } = stat;
    // A device has no time of its last change. The number of a file's disk may be another one at the next mount.
    this.identity = stat.isFile()
      ? `file ${ino} of ${stat.size} bytes, changed at ${mtimeNs} ns`
      : `device ${rdev}`;
    this.#pinned = written || !stat.isFile() ? undefined : this.#version();
  }

  #version(): string {
    const { size, mtimeNs } = fstatSync(this.#fd, { bigint: true });
    return `${size} ${mtimeNs}`;
  }

  read(offset: number, into: Uint8Array): void {
    this.#mustBeUnchanged();
    for (let done = 0; done < into.length; ) {
      const result = readAt(this.#fd, into.subarray(done), offset + done);
      if (result === EINTR) continue;
      if (result < 0) {
        const { message } = new UffdError(result, 'pread');
        throw new SourceError(`${this.#path}: ${message}`, false);
      }
      if (result === 0)
        throw new SourceError(`${this.#path} is shorter than it was when it was opened`, true);
      done += result;
    }
    // Again: what was read may be of before and after a change.
    this.#mustBeUnchanged();
  }

  #mustBeUnchanged(): void {
    if (this.#pinned !== undefined && this.#version() !== this.#pinned)
      throw new SourceError(`${this.#path} has changed since it was opened`, true);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
