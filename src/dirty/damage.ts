// Reports what is wrong with a file of checkpoints, and what to do. An incomplete checkpoint is no damage; a checkpoint
// that was complete and has changed is.
//
// Rules:
//  - A checkpoint was complete if its commit record is there, or if a later checkpoint is: writers append in order.
//  - Damage is an error for readers and writers. It says which checkpoint is damaged, where in the file, which
//    checkpoints are intact, and what to do.

import type { FileHandle } from 'node:fs/promises';
import {
  BEGIN,
  BEGIN_BYTES,
  CHUNK_BYTES,
  CheckpointError,
  type Contents,
  fitsDigest,
  isBegin,
  readAt,
  type StoredCheckpoint,
} from './checkpoint-file.js';

/** Whether the bytes after the valid checkpoints were a complete checkpoint once. */
export async function isDamaged(
  file: FileHandle,
  { invalid: flaw, end, size, checkpoints }: Contents,
): Promise<boolean> {
  if (!flaw) return false;
  return flaw.finished || (await hasBegin(file, end + 1, size, checkpoints.length));
}

/** Whether a checkpoint with a number above `index` begins in a part of the file. */
async function hasBegin(file: FileHandle, from: number, size: number, index: number): Promise<boolean> {
  const word = Buffer.alloc(4);
  word.writeUInt32LE(BEGIN);
  for (let at = from; at + BEGIN_BYTES <= size; at += CHUNK_BYTES) {
    // A record that begins in this chunk may end in the next.
    const bytes = await readAt(file, at, Math.min(CHUNK_BYTES + BEGIN_BYTES - 1, size - at));
    for (let found = bytes.indexOf(word); found >= 0; found = bytes.indexOf(word, found + 1)) {
      const record = bytes.subarray(found, found + BEGIN_BYTES);
      if (isBegin(record) && record.readUInt32LE(4) > index) return true;
    }
  }
  return false;
}

/** The error of a file whose record after the valid checkpoints is damaged. `remedy`: what to do. */
export function damageError(
  path: string,
  { checkpoints, invalid: flaw }: Contents,
  remedy: string,
): CheckpointError {
  const index = checkpoints.length;
  return new CheckpointError(
    `${path}: checkpoint ${index} is damaged: the ${flaw?.record} at byte ${flaw?.at} is not what was written. ` +
      `${wholeCheckpoints(index)} ${remedy}`,
    checkpoints,
  );
}

/** Checks every byte of a checkpoint and of those that it builds on. Throws for the first damaged one. */
export async function checkChain(
  file: FileHandle,
  path: string,
  contents: Contents,
  stored: StoredCheckpoint,
): Promise<StoredCheckpoint[]> {
  const chain = chainOf(contents, stored);
  for (const link of chain) {
    if (await fitsDigest(file, link)) continue;
    const needed = link === stored ? '' : `, which checkpoint ${stored.index} builds on,`;
    throw new CheckpointError(
      `${path}: checkpoint ${link.index}${needed} is damaged: the bytes from ${link.offset} to ` +
        `${link.offset + link.bytes} do not fit their digest. ${await restorable(file, path, contents)}`,
      contents.checkpoints.slice(0, link.index),
    );
  }
  return chain;
}

/** A checkpoint and those that it builds on, back to one that holds all pages. */
function chainOf({ checkpoints }: Contents, stored: StoredCheckpoint): StoredCheckpoint[] {
  const chain: StoredCheckpoint[] = [];
  for (let link: StoredCheckpoint | undefined = stored; link; ) {
    chain.push(link);
    link = link.parent === undefined ? undefined : checkpoints[link.parent];
  }
  return chain;
}

/** Says what can still be restored, and that no memory was changed. */
export async function restorable(file: FileHandle, path: string, contents: Contents): Promise<string> {
  const nothing = 'Nothing was restored: the memory is as it was.';
  const newest = await newestValid(file, contents);
  if (newest === undefined) return `${nothing} No checkpoint of the file can be restored`;
  return (
    `${nothing} The newest that can be restored is checkpoint ${newest}: ` +
    `restore('${path}', { checkpoint: ${newest} })`
  );
}

/** The last checkpoint all of whose bytes match their digests. */
async function newestValid(file: FileHandle, contents: Contents): Promise<number | undefined> {
  const valid = new Map<StoredCheckpoint, boolean>();
  for (const stored of contents.checkpoints.toReversed()) {
    let all = true;
    for (const link of chainOf(contents, stored)) {
      const fits = valid.get(link) ?? (await fitsDigest(file, link));
      valid.set(link, fits);
      all &&= fits;
    }
    if (all) return stored.index;
  }
  return undefined;
}

function wholeCheckpoints(count: number): string {
  if (count === 0) return 'No checkpoint lies before it.';
  return count === 1 ? 'Checkpoint 0 lies before it.' : `Checkpoints 0 to ${count - 1} lie before it.`;
}
