// A store in a folder. Calls of the file system are synchronous, because the pager's thread must not use libuv's pool.

import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { startWriteback, syncFileSystem } from '../../shim/descriptors.js';
import { errnoName } from '../errors/format.js';
import {
  checkKey,
  type ListedObject,
  type ObjectRange,
  PARTIAL_SUFFIX,
  type Store,
  StoreError,
} from './store.js';

let written = 0;

export class FolderStore implements Store {
  readonly name: string;
  readonly can = { range: true, put: true, list: true, delete: true };
  readonly parallel = 4;
  readonly #folder: string;
  /** Folders that are known to exist. */
  readonly #made = new Set<string>();

  /** The folder is made when something is written. */
  constructor(folder: string) {
    this.#folder = resolve(folder);
    this.name = this.#folder;
  }

  async get(key: string, most: number, signal?: AbortSignal): Promise<Uint8Array> {
    signal?.throwIfAborted();
    return this.#opened(key, (fd, size) => {
      if (size > most)
        throw new StoreError('failed', `${this.#place(key)} has ${size} bytes, more than ${most}`);
      return this.#read(fd, key, 0, size);
    });
  }

  async range(
    key: string,
    offset: number,
    length: number,
    version?: unknown,
    signal?: AbortSignal,
  ): Promise<ObjectRange> {
    signal?.throwIfAborted();
    return this.#opened(key, (fd, size) => {
      const { ino, mtimeNs } = fstatSync(fd, { bigint: true });
      const now = `${ino} ${mtimeNs} ${size}`;
      if (version !== undefined && version !== now)
        throw new StoreError('failed', `${this.#place(key)} has changed`);
      if (offset + length > size)
        throw new StoreError('failed', `${this.#place(key)} has only ${size} bytes`);
      return { bytes: this.#read(fd, key, offset, length), version: now, size, identity: now };
    });
  }

  async has(key: string, signal?: AbortSignal): Promise<boolean> {
    return (await this.writtenMs(key, signal)) !== undefined;
  }

  async writtenMs(key: string, signal?: AbortSignal): Promise<number | undefined> {
    signal?.throwIfAborted();
    checkKey(key);
    const stat = this.#tried(key, () => statSync(this.#path(key), { throwIfNoEntry: false }));
    // An empty file is what a loss of power can leave of one that was just written.
    return stat?.isFile() === true && stat.size > 0 ? stat.mtimeMs : undefined;
  }

  async refresh(key: string, signal?: AbortSignal): Promise<boolean> {
    signal?.throwIfAborted();
    checkKey(key);
    return this.#tried(key, () => {
      const now = new Date();
      try {
        utimesSync(this.#path(key), now, now);
        return true;
      } catch (error) {
        // A file of another user, of which this one may only read: it is written again.
        if (['ENOENT', 'EPERM', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return false;
        throw error;
      }
    });
  }

  async put(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    checkKey(key);
    const path = this.#path(key);
    const partial = `${path}.${process.pid}-${written++}${PARTIAL_SUFFIX}`;
    this.#tried(key, () => {
      this.#makeFolder(dirname(path));
      try {
        const fd = openSync(partial, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o666);
        try {
          for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
          // The disk works while further chunks are compressed, and not only in `sync`, which tells what has failed.
          startWriteback(fd);
        } finally {
          closeSync(fd);
        }
        renameSync(partial, path);
      } catch (error) {
        rmSync(partial, { force: true });
        throw error;
      }
    });
  }

  #makeFolder(folder: string): void {
    if (this.#made.has(folder)) return;
    mkdirSync(folder, { recursive: true });
    this.#made.add(folder);
  }

  async *list(signal?: AbortSignal): AsyncGenerator<ListedObject> {
    const pending = [''];
    for (let folder = pending.pop(); folder !== undefined; folder = pending.pop()) {
      signal?.throwIfAborted();
      const entries = this.#tried(folder, () =>
        readdirSync(join(this.#folder, folder), { withFileTypes: true }),
      );
      for (const entry of entries) {
        const key = folder === '' ? entry.name : `${folder}/${entry.name}`;
        if (entry.isDirectory()) pending.push(key);
        if (!entry.isFile()) continue;
        const stat = this.#tried(key, () => statSync(this.#path(key), { throwIfNoEntry: false }));
        if (!stat) continue;
        yield { key, bytes: stat.size, modifiedMs: stat.mtimeMs };
      }
    }
  }

  async delete(key: string, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    checkKey(key);
    try {
      unlinkSync(this.#path(key));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw this.#failed(key, error);
    }
  }

  async sync(): Promise<void> {
    this.#tried('', () => {
      const fd = openSync(this.#folder, constants.O_RDONLY | constants.O_DIRECTORY);
      try {
        const result = syncFileSystem(fd);
        if (result < 0) throw new StoreError('failed', `${this.name}: ${errnoName(-result)}: syncfs failed`);
      } finally {
        closeSync(fd);
      }
    });
  }

  close(): void {}

  #path(key: string): string {
    return join(this.#folder, key);
  }

  #place(key: string): string {
    return `${this.name}/${key}`;
  }

  #opened<T>(key: string, use: (fd: number, size: number) => T): T {
    checkKey(key);
    return this.#tried(key, () => {
      // Without O_NONBLOCK, opening a FIFO would wait for its writer.
      const fd = openSync(this.#path(key), constants.O_RDONLY | constants.O_NONBLOCK);
      try {
        const stat = fstatSync(fd);
        if (!stat.isFile()) throw new StoreError('failed', `${this.#place(key)} is no file`);
        return use(fd, stat.size);
      } finally {
        closeSync(fd);
      }
    });
  }

  #read(fd: number, key: string, offset: number, length: number): Uint8Array {
    const bytes = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const read = readSync(fd, bytes, done, length - done, offset + done);
      if (read === 0) throw new StoreError('failed', `${this.#place(key)} became shorter while it was read`);
      done += read;
    }
    return bytes;
  }

  #tried<T>(key: string, work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw error instanceof StoreError ? error : this.#failed(key, error);
    }
  }

  #failed(key: string, cause: unknown): StoreError {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR')
      return new StoreError('missing', `there is no ${this.#place(key)}`, { cause });
    return new StoreError(code === 'EACCES' || code === 'EPERM' ? 'refused' : 'failed', message, { cause });
  }
}
