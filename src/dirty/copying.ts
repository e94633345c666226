// Copies pages between the tracked memory and a file of checkpoints.
//
// Rules:
//  - Pages of zeros take no room in the file.
//  - A restore does not write to a page that already holds its bytes, so that page does not count as written.

import type { FileHandle } from 'node:fs/promises';
import { CHUNK_BYTES, CheckpointError, type CheckpointWriter } from './checkpoint-file.js';
import type { DirtyRun } from './pages.js';
import type { Target } from './target.js';
import type { WriteWatch } from './watch.js';

/** Writes some pages of the memory to the file, as runs. */
export async function savePages(
  target: Target,
  pageSize: number,
  runs: readonly DirtyRun[],
  writer: CheckpointWriter,
): Promise<void> {
  const chunk = Buffer.alloc(Math.max(CHUNK_BYTES, pageSize));
  for (const { start, length } of runs) {
    const from = Number(start - target.address);
    for (let done = 0; done < length; done += chunk.length) {
      const some = chunk.subarray(0, Math.min(chunk.length, length - done));
      target.read(from + done, some);
      await saveChunk((from + done) / pageSize, some, pageSize, writer);
    }
  }
}

/** Writes pages as runs of zeros and runs of data. */
async function saveChunk(
  firstPage: number,
  chunk: Buffer,
  pageSize: number,
  writer: CheckpointWriter,
): Promise<void> {
  const zero = (at: number): boolean => isZero(chunk.subarray(at, at + pageSize));
  for (const { from, to, is } of stretches(chunk.length, pageSize, zero)) {
    const bytes = is ? undefined : chunk.subarray(from, to);
    await writer.run(firstPage + from / pageSize, (to - from) / pageSize, bytes);
  }
}

/** Writes pages to the memory: from `offset` in the file, or zeros if there is no offset. */
export async function restorePages(
  target: Target,
  watch: WriteWatch,
  file: FileHandle,
  { start, length }: DirtyRun,
  offset: number | undefined,
): Promise<void> {
  const to = Number(start - target.address);
  const chunk = Buffer.alloc(Math.min(CHUNK_BYTES, length));
  const present = Buffer.alloc(chunk.length);
  for (let done = 0; done < length; done += chunk.length) {
    const some = chunk.subarray(0, Math.min(chunk.length, length - done));
    if (offset !== undefined) {
      const { bytesRead } = await file.read(some, 0, some.length, offset + done);
      if (bytesRead < some.length) throw new CheckpointError('the file became shorter while it was read');
    }
    restoreChunk(target, watch, to + done, some, present.subarray(0, some.length));
  }
}

function restoreChunk(target: Target, watch: WriteWatch, to: number, wanted: Buffer, present: Buffer): void {
  target.read(to, present);
  const differs = (at: number): boolean =>
    wanted.compare(present, at, at + PIECE_BYTES, at, at + PIECE_BYTES) !== 0;
  for (const { from, to: end, is } of stretches(wanted.length, PIECE_BYTES, differs)) {
    if (!is) continue;
    watch.allow(target.covering(target.address + BigInt(to + from), end - from, watch.pageSize));
    target.write(to + from, wanted.subarray(from, end));
  }
}

/** The unit of comparison: no page is smaller. */
const PIECE_BYTES = 4096;

/** Splits pieces into runs: those for which a condition holds, and those for which it does not. */
function* stretches(
  length: number,
  size: number,
  ask: (at: number) => boolean,
): Generator<{ from: number; to: number; is: boolean }> {
  for (let from = 0; from < length; ) {
    const is = ask(from);
    let to = from + size;
    while (to < length && ask(to) === is) to += size;
    yield { from, to, is };
    from = to;
  }
}

const ZEROS = Buffer.alloc(1 << 16);

function isZero(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const some = bytes.subarray(at, at + ZEROS.length);
    if (some.compare(ZEROS, 0, some.length) !== 0) return false;
  }
  return true;
}
