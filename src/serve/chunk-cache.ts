// The cache of chunks in a folder, which all servers of a host may share. A chunk is one file that never changes:
//
//   FOLDER/<first two hex digits>/<id>           its plain bytes
//   FOLDER/<first two hex digits>/<id>.partial   while it is written; the writer has its lock (flock)
//
// Rules:
//  - A file gets its name only when all of it is written. What a loss of power left of it is noticed by its hash: a file
//    is verified when a process uses it for the first time, and a damaged one is removed.
//  - Files are written with write(2), so a full disk is an error here, and no signal in a copy.
//  - The cache is bounded: files that were not used for longest are unlinked. What is mapped stays usable.
//  - One process fetches a chunk; others see that it is locked, and look for the file again.

import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  futimesSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { openLocked } from '../../shim/descriptors.js';
import { type Digest, idOf } from '../store/chunk-index.js';

const PARTIAL = '.partial';
/** A file that is only written and read by its owner: it holds a guest's memory. */
const MODE = 0o600;
const FOLDER_MODE = 0o700;
/** A chunk file that may be evicted; also what a killed process has left of one. */
const NAME = /^[0-9a-f]{64}(\.partial)?$/;
/** The cache is emptied to this part of its size, so that it need not be looked through for each chunk. */
const EMPTIED_TO = 0.9;
/** It is looked through again when this part of its size was written, because other processes write, too. */
const LOOKED_EVERY = 1 / 16;
/** What is removed at least if the disk is full. */
const FREED_CHUNKS = 8;
/** Remains of a killed process are removed after this time. */
const PARTIAL_LASTS_MS = 3_600_000;

/** The lock of a chunk that this process may fetch. */
export interface ChunkLock {
  readonly id: string;
  readonly fd: number;
}

/** What happened in the cache, since the start. */
export interface CacheCounts {
  /** Files that were removed to make room. */
  evicted: number;
  /** Damaged files that were removed. */
  damaged: number;
  /** Bytes at the last look. */
  bytes: number;
}

interface Entry {
  readonly path: string;
  readonly bytes: number;
  readonly usedMs: number;
}

export class ChunkCache {
  readonly folder: string;
  readonly most: number;
  readonly counts: CacheCounts = { evicted: 0, damaged: 0, bytes: 0 };
  /** Bytes written since the last look. */
  #written = 0;

  /**
   * Makes the folder if it is missing, and removes what is too much.
   *
   * @param most bytes of all files
   * @throws the errors of mkdir(2) and readdir(2)
   */
  constructor(folder: string, most: number) {
    this.folder = resolve(folder);
    this.most = most;
    mkdirSync(this.folder, { recursive: true, mode: FOLDER_MODE });
    this.#bound();
  }

  pathOf(id: string): string {
    return join(this.folder, id.slice(0, 2), id);
  }

  has(id: string): boolean {
    return statSync(this.pathOf(id), { throwIfNoEntry: false }) !== undefined;
  }

  /**
   * Opens a chunk's file, if there is one, and reads it into `bytes`, which has its length. A file with other bytes than
   * the id stands for is removed. The caller closes the descriptor. Undefined: it is not in the cache.
   */
  open(id: string, digest: Digest, bytes: Uint8Array): number | undefined {
    const path = this.pathOf(id);
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      return this.#remove(path);
    }
    try {
      const stat = fstatSync(fd);
      if (stat.isFile() && stat.size === bytes.length && readWhole(fd, bytes) && idOf(bytes, digest) === id) {
        markUsed(fd);
        return fd;
      }
    } catch {
      // It cannot be read, so it is as good as damaged.
    }
    closeSync(fd);
    return this.#remove(path);
  }

  #remove(path: string): undefined {
    this.counts.damaged++;
    unlinkIfThere(path);
    return undefined;
  }

  /**
   * Locks a chunk that is not in the cache. 'locked': another process fetches it. Undefined: it has come meanwhile.
   *
   * @throws the errors of open(2)
   */
  lock(id: string): ChunkLock | 'locked' | undefined {
    const path = this.pathOf(id) + PARTIAL;
    mkdirSync(dirname(path), { recursive: true, mode: FOLDER_MODE });
    closeSync(
      openSync(
        path,
        constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK,
        MODE,
      ),
    );
    const fd = openLocked(path);
    // Another process has given the file its name, or removed it: it need not be locked any more.
    if (fd < 0) return 'locked';
    // The other process may have renamed the file between the two calls: the lock is then that of the finished chunk.
    const mine = fstatSync(fd, { bigint: true });
    const there = statSync(path, { bigint: true, throwIfNoEntry: false });
    if (there?.ino === mine.ino && there.dev === mine.dev && !this.has(id)) return { id, fd };
    if (there?.ino === mine.ino && there.dev === mine.dev) unlinkIfThere(path);
    closeSync(fd);
    return undefined;
  }

  /** Gives a lock back without a chunk. */
  unlock({ id, fd }: ChunkLock): void {
    unlinkIfThere(this.pathOf(id) + PARTIAL);
    closeSync(fd);
  }

  /**
   * Writes a chunk, whose lock the caller has, and makes room for it. The lock is given back. Returns a descriptor of
   * the file, for the caller to close.
   *
   * @throws the errors of write(2), with nothing left in the cache
   */
  put(lock: ChunkLock, bytes: Uint8Array): number {
    const path = this.pathOf(lock.id);
    try {
      if (this.#written >= this.most * LOOKED_EVERY || this.counts.bytes + bytes.length > this.most)
        this.#bound(bytes.length);
      this.#write(lock.fd, bytes);
      renameSync(path + PARTIAL, path);
      const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
      closeSync(lock.fd);
      this.#written += bytes.length;
      this.counts.bytes += bytes.length;
      return fd;
    } catch (error) {
      this.unlock(lock);
      throw error;
    }
  }

  #write(fd: number, bytes: Uint8Array): void {
    try {
      writeWhole(fd, bytes);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error;
      if (!this.#free(FREED_CHUNKS * bytes.length)) throw error;
      writeWhole(fd, bytes);
    }
    fchmodSync(fd, MODE);
  }

  /** Removes files until there is room for `more` bytes, if there are too many. */
  #bound(more = 0): void {
    const entries = chunkFiles(this.folder);
    this.#written = 0;
    this.counts.bytes = entries.reduce((sum, { bytes }) => sum + bytes, 0);
    if (this.counts.bytes + more > this.most)
      this.#evict(entries, Math.max(0, this.most * EMPTIED_TO - more));
  }

  /** Removes files of some bytes. False: there are none. */
  #free(bytes: number): boolean {
    const entries = chunkFiles(this.folder);
    this.counts.bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
    const before = this.counts.bytes;
    this.#evict(entries, Math.max(0, before - bytes));
    return this.counts.bytes < before;
  }

  #evict(entries: Entry[], to: number): void {
    entries.sort((a, b) => a.usedMs - b.usedMs);
    for (const { path, bytes } of entries) {
      if (this.counts.bytes <= to) return;
      unlinkIfThere(path);
      this.counts.bytes -= bytes;
      this.counts.evicted++;
    }
  }
}

/** What is in a cache. @throws the errors of readdir(2) */
export function cacheContents(folder: string): { chunks: number; bytes: number } {
  return summary(chunkFiles(folder));
}

/** Removes all chunks. Servers go on with what they have mapped. Returns what was removed. */
export function clearCache(folder: string): { chunks: number; bytes: number } {
  const entries = chunkFiles(folder);
  for (const { path } of entries) unlinkIfThere(path);
  return summary(entries);
}

function summary(entries: readonly Entry[]): { chunks: number; bytes: number } {
  return { chunks: entries.length, bytes: entries.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/** All chunks. Removes what killed processes have left. */
function chunkFiles(cache: string): Entry[] {
  const entries: Entry[] = [];
  for (const folder of namesIn(cache)) {
    if (!/^[0-9a-f]{2}$/.test(folder)) continue;
    for (const name of namesIn(join(cache, folder))) {
      if (!NAME.test(name)) continue;
      const path = join(cache, folder, name);
      const stat = statSync(path, { throwIfNoEntry: false });
      if (!stat) continue;
      if (!name.endsWith(PARTIAL)) entries.push({ path, bytes: stat.size, usedMs: stat.mtimeMs });
      else if (Date.now() - stat.mtimeMs > PARTIAL_LASTS_MS) unlinkIfThere(path);
    }
  }
  return entries;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return [];
    throw error;
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Another process was faster, or the folder is gone. What cannot be removed is found again at the next look.
  }
}

function markUsed(fd: number): void {
  const now = Date.now() / 1000;
  try {
    futimesSync(fd, now, now);
  } catch {
    // The cache cannot be written to, so nothing is evicted from it either.
  }
}

function readWhole(fd: number, bytes: Uint8Array): boolean {
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(fd, bytes, done, bytes.length - done, done);
    if (read === 0) return false;
    done += read;
  }
  return true;
}

function writeWhole(fd: number, bytes: Uint8Array): void {
  ftruncateSync(fd, 0);
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, done);
}
