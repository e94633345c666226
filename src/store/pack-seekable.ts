// Writes memory as one zstd file in the seekable format (seekable-table.ts): a frame for each chunk, and checksums of
// all frames. Any zstd decompresses it.
//
// Rule: the file gets its name when all of it is written, and the memory did not change meanwhile.

import { writeSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import type { MemoryImage } from '../serve/memory-image.js';
import { CHUNK_DEFAULT, checkChunking, chunkBytes } from './chunk-index.js';
import { type Compressor, LEVEL_STORED, needCompressor } from './compression.js';
import { openFrameTools } from './frame-check.js';
import { writeDurably } from './open-store.js';
import { tasksFor } from './parallel.js';
import { encodeSeekTable } from './seekable-table.js';

export interface PackSeekableOptions {
  /** Bytes of memory in a frame: a multiple of 4096. Default 512 KiB. */
  readonly chunkSize?: number;
  readonly signal?: AbortSignal;
  /** Called after each frame. */
  readonly progress?: (counts: PackSeekableCounts) => void;
}

/** What was done so far. */
export interface PackSeekableCounts {
  /** Bytes of the memory, and how many of them are done. */
  readonly size: number;
  readonly doneBytes: number;
  readonly frames: number;
  /** Bytes of the file. */
  readonly fileBytes: number;
}

interface Packed {
  readonly frame: Uint8Array;
  readonly dataLength: number;
  readonly checksum: number;
}

/** Frames that are compressed at once: libuv's pool has so many threads. */
const PARALLEL = 4;

/**
 * Packs memory into a file.
 *
 * @throws TypeError, RangeError, MemoryImageError, UnsupportedError; Node's errors; the reason of the signal
 */
export async function packSeekable(
  image: MemoryImage,
  path: string,
  options: PackSeekableOptions = {},
): Promise<PackSeekableCounts> {
  const { chunkSize = CHUNK_DEFAULT, signal, progress } = options;
  checkChunking(image.size, chunkSize, 'sha256');
  const compressor = needCompressor();
  const tools = await openFrameTools();
  try {
    return await writeDurably(path, async (fd) => {
      const entries: { length: number; dataLength: number; checksum: number }[] = [];
      let counts: PackSeekableCounts = { size: image.size, doneBytes: 0, frames: 0, fileBytes: 0 };
      for await (const { frame, dataLength, checksum } of packed(
        image,
        compressor,
        tools.checksum,
        chunkSize,
      )) {
        signal?.throwIfAborted();
        writeWhole(fd, frame);
        entries.push({ length: frame.length, dataLength, checksum });
        counts = {
          ...counts,
          doneBytes: counts.doneBytes + dataLength,
          frames: entries.length,
          fileBytes: counts.fileBytes + frame.length,
        };
        progress?.(counts);
      }
      const table = encodeSeekTable(entries);
      writeWhole(fd, table);
      image.checkUnchanged();
      return { ...counts, fileBytes: counts.fileBytes + table.length };
    });
  } finally {
    tools.decompressor.close();
    compressor.close();
  }
}

/** The frames, in order. Some are compressed at once. */
async function* packed(
  image: MemoryImage,
  compressor: Compressor,
  checksum: (bytes: Uint8Array) => number,
  chunkSize: number,
): AsyncGenerator<Packed> {
  const most = tasksFor(PARALLEL, chunkSize);
  const memory = Array.from({ length: most }, () => Buffer.alloc(chunkSize));
  const pending: Promise<Packed>[] = [];
  const count = Math.ceil(image.size / chunkSize);
  try {
    for (let chunk = 0; chunk < count; chunk++) {
      if (pending.length === most) yield await (pending.shift() as Promise<Packed>);
      const length = chunkBytes({ size: image.size, chunkSize }, chunk);
      const bytes = (memory[chunk % most] as Buffer).subarray(0, length);
      if (!image.read(chunk * chunkSize, bytes)) bytes.fill(0);
      const sum = checksum(bytes);
      pending.push(
        compressor
          .compressLater(bytes, LEVEL_STORED)
          .then((frame) => ({ frame, dataLength: length, checksum: sum })),
      );
      // Reading and hashing are synchronous: signals come in between.
      await turn();
    }
    while (pending.length > 0) yield await (pending.shift() as Promise<Packed>);
  } finally {
    // After a failure elsewhere the compressor is closed when none of them uses it any more.
    await Promise.allSettled(pending);
  }
}

function writeWhole(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
}
