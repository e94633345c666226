// Writes the memory of an index to a file. The file has holes where the memory is zeros.

import {
  closeSync,
  existsSync,
  fdatasyncSync,
  ftruncateSync,
  lstatSync,
  openSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { type ChunkIndex, chunkBytes } from './chunk-index.js';
import { ChunkReader } from './chunk-reader.js';
import { tasksFor, withTasks } from './parallel.js';
import { PARTIAL_SUFFIX, type Store, StoreError } from './store.js';

export interface UnpackOptions {
  /** Whether to replace a file that is there. Default false. */
  readonly force?: boolean;
  readonly signal?: AbortSignal;
  readonly progress?: (counts: UnpackCounts) => void;
}

export interface UnpackCounts {
  /** Bytes of the memory, and how many of them are done. */
  readonly size: number;
  readonly doneBytes: number;
  /** Chunks that were fetched. */
  readonly fetchedChunks: number;
  /** Bytes that were written; the rest of the file is holes. */
  readonly writtenBytes: number;
}

const PAGE = 4096;
const ZEROS = Buffer.alloc(PAGE);

/**
 * Unpacks to a file. Until it is complete it has another name, with `.uffd-partial` appended; after an error it is
 * removed.
 *
 * @throws StoreError, DamagedChunkError, Node's errors; the reason of the signal
 */
export async function unpack(
  index: ChunkIndex,
  store: Store,
  output: string,
  { force = false, signal, progress }: UnpackOptions = {},
): Promise<UnpackCounts> {
  checkOutput(output, force);
  const partial = `${output}${PARTIAL_SUFFIX}`;
  const reader = await ChunkReader.open(index, store);
  const fd = openSync(partial, 'w');
  let open = true;
  try {
    const counts = { size: index.size, doneBytes: 0, fetchedChunks: 0, writtenBytes: 0 };
    ftruncateSync(fd, index.size);
    await withTasks(tasksFor(store.parallel, index.chunkSize), signal, async (pool) => {
      const free: Buffer[] = [];
      for (let chunk = 0; chunk < index.count; chunk++) {
        const length = chunkBytes(index, chunk);
        if (reader.isZero(chunk)) {
          counts.doneBytes += length;
          continue;
        }
        await pool.start(async (aborted) => {
          const memory = free.pop() ?? Buffer.allocUnsafeSlow(index.chunkSize);
          const bytes = memory.subarray(0, length);
          await reader.read(chunk, bytes, aborted);
          counts.writtenBytes += writeSparsely(fd, bytes, chunk * index.chunkSize);
          counts.fetchedChunks++;
          counts.doneBytes += length;
          free.push(memory);
          progress?.({ ...counts });
        });
        await turn();
      }
    });
    progress?.({ ...counts });
    fdatasyncSync(fd);
    closeSync(fd);
    open = false;
    checkOutput(output, force);
    renameSync(partial, output);
    return counts;
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  } finally {
    if (open) closeSync(fd);
    reader.close();
  }
}

function checkOutput(output: string, force: boolean): void {
  if (!force && existsSync(output))
    throw new StoreError('failed', `${output} is there already; --force replaces it`);
  const stat = lstatSync(output, { throwIfNoEntry: false });
  if (stat && !stat.isFile()) throw new StoreError('failed', `${output} is no file, so it is not replaced`);
}

/** Writes the pages that are not zeros. Returns their bytes. */
function writeSparsely(fd: number, bytes: Buffer, offset: number): number {
  let written = 0;
  const isZero = (at: number): boolean => {
    const end = Math.min(at + PAGE, bytes.length);
    return bytes.compare(ZEROS, 0, end - at, at, end) === 0;
  };
  for (let from = 0; from < bytes.length; ) {
    if (isZero(from)) {
      from += PAGE;
      continue;
    }
    let to = from + PAGE;
    while (to < bytes.length && !isZero(to)) to += PAGE;
    to = Math.min(to, bytes.length);
    while (from < to) {
      const done = writeSync(fd, bytes, from, to - from, offset + from);
      from += done;
      written += done;
    }
  }
  return written;
}
