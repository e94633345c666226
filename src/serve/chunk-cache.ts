// The cache of chunks in a folder, which all servers of a host may share. A chunk is one file that never changes:
//
//   FOLDER/<first two hex digits>/<id>           its plain bytes
//   FOLDER/<first two hex digits>/<id>.partial   while it is written; the writer has its lock (flock)
//
// The id of a chunk is the hash of its bytes. Where an id is only a name, the file has a seal behind the bytes: a hash of
// the id and the bytes. Neither kind is ever taken for the other: their lengths differ, and so do their ids.
//
// Rules:
//  - A file gets its name only when all of it is written. What a loss of power left of it is noticed by its hash: a file
//    is verified when a process uses it for the first time, and a damaged one is removed.
//  - Files are written with write(2), so a full disk is an error here, and no signal in a copy.
//  - The cache is bounded: files that were not used for longest are unlinked. What is mapped stays usable. Looking
//    through 40,000 files takes 0.25 s, so it is done folder by folder, with turns for other work between them; what is
//    written meanwhile may exceed the bound until then.
//  - One process fetches a chunk; others see that it is locked, and look for the file again.

import { createHash } from 'node:crypto';
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
import { setImmediate as nextTurn } from 'node:timers/promises';
import { openLocked } from '../../shim/descriptors.js';
import { type Chunks, idOf } from '../store/chunk-index.js';

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
const FREED_SHARE = 1 / 64;
/** Files that are removed at once. */
const REMOVED_A_TURN = 16;
/** Remains of a killed process are removed after this time. */
const PARTIAL_LASTS_MS = 3_600_000;

/** How the file of a chunk is verified. */
export type FileProof = Chunks['digest'];

/** A seal is SHA-256, and begins at a whole page, because the pages before it are mapped. */
const SEAL_BYTES = 32;
const PAGE = 4096;

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
  /** The look that is under way. */
  #look: Promise<void> | undefined;

  /**
   * Makes the folder if it is missing, and begins to remove what is too much.
   *
   * @param most bytes of all files
   * @throws the errors of mkdir(2) and readdir(2)
   */
  constructor(folder: string, most: number) {
    this.folder = resolve(folder);
    this.most = most;
    mkdirSync(this.folder, { recursive: true, mode: FOLDER_MODE });
    readdirSync(this.folder);
    this.#bound();
  }

  /** Waits until what is too much has been removed. */
  async bounded(): Promise<void> {
    while (this.#look) await this.#look;
  }

  pathOf(id: string): string {
    return join(this.folder, id.slice(0, 2), id);
  }

  has(id: string): boolean {
    return statSync(this.pathOf(id), { throwIfNoEntry: false }) !== undefined;
  }

  /**
   * Opens a chunk's file, if there is one with its length. Undefined: it is not in the cache. The caller closes the
   * descriptor, and compares the bytes (`isWhole`) before it uses them: then it says so with `used` or `remove`.
   */
  open(id: string, length: number, proof: FileProof): number | undefined {
    const path = this.pathOf(id);
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      this.remove(id);
      return undefined;
    }
    const stat = fstatSync(fd);
    if (stat.isFile() && stat.size === fileBytes(length, proof)) return fd;
    closeSync(fd);
    this.remove(id);
    return undefined;
  }

  /** The file of a chunk was used now, so it is evicted later than others. */
  used(fd: number): void {
    markUsed(fd);
  }

  /** Removes the file of a chunk, which is damaged. */
  remove(id: string): void {
    this.counts.damaged++;
    unlinkIfThere(this.pathOf(id));
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
   * Writes a chunk, whose lock the caller has, and begins to make room if there is too much. The lock is given back. Returns a descriptor of
   * the file, for the caller to close.
   *
   * @throws the errors of write(2), with nothing left in the cache
   */
  put(lock: ChunkLock, bytes: Uint8Array, proof: FileProof): number {
    const path = this.pathOf(lock.id);
    try {
      const sealed = proof === 'seal' ? sealOf(lock.id, bytes) : undefined;
      this.#write(lock.fd, bytes, sealed);
      renameSync(path + PARTIAL, path);
      const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
      closeSync(lock.fd);
      this.#written += bytes.length;
      this.counts.bytes += bytes.length;
      if (this.#written >= this.most * LOOKED_EVERY || this.counts.bytes > this.most) this.#bound();
      return fd;
    } catch (error) {
      this.unlock(lock);
      throw error;
    }
  }

  #write(fd: number, bytes: Uint8Array, seal: Uint8Array | undefined): void {
    try {
      writeChunk(fd, bytes, seal);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error;
      if (!this.#free(Math.max(FREED_CHUNKS * bytes.length, this.counts.bytes * FREED_SHARE))) throw error;
      writeChunk(fd, bytes, seal);
    }
    fchmodSync(fd, MODE);
  }

  /** Removes files if there are too many, in turns, unless that is under way. */
  #bound(): void {
    this.#look ??= this.#boundInTurns()
      // The folder cannot be read now: it is tried again after the next writes.
      .catch(() => {})
      .finally(() => {
        this.#look = undefined;
        if (this.#written > 0 && this.counts.bytes > this.most) this.#bound();
      });
  }

  async #boundInTurns(): Promise<void> {
    this.#written = 0;
    const entries: Entry[] = [];
    for (const some of chunkFolders(this.folder)) {
      entries.push(...some);
      await nextTurn();
    }
    // What was written since its folder was looked at is counted again at the next look.
    this.counts.bytes = bytesOf(entries) + this.#written;
    if (this.counts.bytes <= this.most) return;
    for (const _ of this.#evict(entries, this.most * EMPTIED_TO)) await nextTurn();
  }

  /** Removes files of some bytes at once. False: there are none. */
  #free(bytes: number): boolean {
    const entries = [...chunkFolders(this.folder)].flat();
    this.counts.bytes = bytesOf(entries);
    const before = this.counts.bytes;
    for (const _ of this.#evict(entries, Math.max(0, before - bytes)));
    return this.counts.bytes < before;
  }

  /** Removes files until so many bytes are left, some at a time. */
  *#evict(entries: Entry[], to: number): Generator<void> {
    entries.sort((a, b) => a.usedMs - b.usedMs);
    for (const [index, { path, bytes }] of entries.entries()) {
      if (this.counts.bytes <= to) return;
      unlinkIfThere(path);
      this.counts.bytes -= bytes;
      this.counts.evicted++;
      if (index % REMOVED_A_TURN === REMOVED_A_TURN - 1) yield;
    }
  }
}

/** What is in a cache. @throws the errors of readdir(2) */
export function cacheContents(folder: string): { chunks: number; bytes: number } {
  return summary([...chunkFolders(folder)].flat());
}

/** Removes all chunks. Servers go on with what they have mapped. Returns what was removed. */
export function clearCache(folder: string): { chunks: number; bytes: number } {
  const entries = [...chunkFolders(folder)].flat();
  for (const { path } of entries) unlinkIfThere(path);
  return summary(entries);
}

function summary(entries: readonly Entry[]): { chunks: number; bytes: number } {
  return { chunks: entries.length, bytes: bytesOf(entries) };
}

function bytesOf(entries: readonly Entry[]): number {
  return entries.reduce((sum, { bytes }) => sum + bytes, 0);
}

/** All chunks, folder by folder. Removes what killed processes have left. */
function* chunkFolders(cache: string): Generator<Entry[]> {
  for (const folder of namesIn(cache)) {
    if (!/^[0-9a-f]{2}$/.test(folder)) continue;
    const entries: Entry[] = [];
    for (const name of namesIn(join(cache, folder))) {
      if (!NAME.test(name)) continue;
      const path = join(cache, folder, name);
      const stat = statSync(path, { throwIfNoEntry: false });
      if (!stat) continue;
      if (!name.endsWith(PARTIAL)) entries.push({ path, bytes: stat.size, usedMs: stat.mtimeMs });
      else if (Date.now() - stat.mtimeMs > PARTIAL_LASTS_MS) unlinkIfThere(path);
    }
    yield entries;
  }
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

/** Bytes of the file of a chunk. */
function fileBytes(length: number, proof: FileProof): number {
  return proof === 'seal' ? sealAt(length) + SEAL_BYTES : length;
}

function sealAt(length: number): number {
  return Math.ceil(length / PAGE) * PAGE;
}

function sealOf(id: string, bytes: Uint8Array): Buffer {
  return createHash('sha256').update(`uffd sealed ${id} `).update(bytes).digest();
}

/** Reads the file of a chunk into `bytes`, which has its length: whether they are those that the id stands for. */
export function isWhole(fd: number, bytes: Uint8Array, proof: FileProof, id: string): boolean {
  try {
    if (!readWhole(fd, bytes, 0)) return false;
    if (proof !== 'seal') return idOf(bytes, proof) === id;
    // The rest of the last page is mapped, too, and is zeros.
    const rest = Buffer.alloc(fileBytes(bytes.length, proof) - bytes.length);
    const zeros = rest.length - SEAL_BYTES;
    if (!readWhole(fd, rest, bytes.length) || rest.subarray(0, zeros).some((byte) => byte !== 0))
      return false;
    return sealOf(id, bytes).equals(rest.subarray(zeros));
  } catch {
    // It cannot be read, so it is as good as damaged.
    return false;
  }
}

function readWhole(fd: number, bytes: Uint8Array, offset: number): boolean {
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(fd, bytes, done, bytes.length - done, offset + done);
    if (read === 0) return false;
    done += read;
  }
  return true;
}

function writeChunk(fd: number, bytes: Uint8Array, seal: Uint8Array | undefined): void {
  ftruncateSync(fd, 0);
  writeWhole(fd, bytes, 0);
  if (seal) writeWhole(fd, seal, sealAt(bytes.length));
}

function writeWhole(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length; )
    done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
}
