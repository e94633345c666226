// Memory files for tests of chunk stores: sparse, with pages that compress.

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { generator } from '../../support/harness.js';

export const CHUNK = 64 * 1024;
export const PAGE = 4096;

/** Bytes that compress to about a half, differ for each seed, and are not zeros. */
export function someMemory(length: number, start: number): Buffer {
  const next = generator(start);
  const bytes = Buffer.alloc(length, 0x55);
  for (let at = 0; at < length; at += 64)
    for (let word = 0; word < 32 && at + word + 4 <= length; word += 4)
      bytes.writeUInt32LE(next(2 ** 32), at + word);
  return bytes;
}

/**
 * Writes a memory file of `size` bytes: chunks 0 and 1 are data, 2 is a hole, 3 equals 0, 4 is zeros that are written,
 * 5 has data in its middle only, and the end has data.
 */
export function writeSparse(path: string, size: number, seed = 1): void {
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, size);
    const data = someMemory(2 * CHUNK, seed);
    const put = (bytes: Uint8Array, at: number): void => {
      writeSync(fd, bytes, 0, bytes.length, at);
    };
    put(data, 0);
    put(data.subarray(0, CHUNK), 3 * CHUNK);
    put(Buffer.alloc(CHUNK), 4 * CHUNK);
    put(data.subarray(100, 100 + PAGE), 5 * CHUNK + 3 * PAGE);
    put(data.subarray(0, 1000), size - 1000);
  } finally {
    closeSync(fd);
  }
}

/** Its bytes: seven whole chunks, and a short one. */
export const SPARSE_SIZE = 7 * CHUNK + 5000;
