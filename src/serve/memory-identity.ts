// The identity of a memory file, independent of its path: its size, and a sample of its pages.

import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { endOf } from '../../shim/descriptors.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';

/** The identity of a memory file: enough to recognise it at another path, or as a copy. */
export interface MemoryIdentity {
  readonly bytes: number;
  /** SHA-256 of its size and of pages spread over it, in hexadecimal. */
  readonly sample: string;
}

const SAMPLES = 256;

/** The identity of memory that is served from an index of so many bytes, whose SHA-256 is `hash`, in hexadecimal. */
export function identityOfIndex(bytes: number, hash: string): MemoryIdentity {
  return { bytes, sample: `index ${hash}` };
}

/** Reads a sample of a memory file to recognise it. @throws the errors of open(2) and read(2) */
export function identify(path: string): MemoryIdentity {
  const fd = openSync(path, 'r');
  try {
    return identifyOpen(fd, sizeOf(fd, fstatSync(fd)));
  } finally {
    closeSync(fd);
  }
}

/** As `identify`, for an open file of known size. */
export function identifyOpen(fd: number, bytes: number): MemoryIdentity {
  return identifyBy(bytes, (page, at) => readSync(fd, page, 0, page.length, at));
}

/** As `identify`, for data that `read` reads: into a page, at an offset. It returns the bytes read. */
export function identifyBy(bytes: number, read: (page: Buffer, at: number) => number): MemoryIdentity {
  const hash = createHash('sha256').update(`${bytes}`);
  const pages = Math.ceil(bytes / SYSTEM_PAGE);
  const page = Buffer.alloc(SYSTEM_PAGE);
  for (let sample = 0; sample < Math.min(SAMPLES, pages); sample++) {
    const at = Math.floor((sample * pages) / Math.min(SAMPLES, pages)) * SYSTEM_PAGE;
    hash.update(page.subarray(0, read(page, at)));
  }
  return { bytes, sample: hash.digest('hex') };
}

/** Bytes of a file or a block device; −errno if they are unknown. */
export function sizeOf(fd: number, stat: { size: number; isBlockDevice(): boolean }): number {
  return stat.isBlockDevice() ? endOf(fd) : stat.size;
}
