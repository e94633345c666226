// Where checkpoints are kept: a file with one writer at a time, and its folder.
//
// Rules:
//  - A writer holds a lock (flock) while it writes. The lock ends with its process. On a file system without locks,
//    writers use none.
//  - The folder is on disk before the commit record is, so a committed checkpoint can be found.

import { type FileHandle, open, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { closeDescriptor, openLocked } from '../../shim/descriptors.js';
import { Errno } from '../errors/format.js';
import { CheckpointError } from './checkpoint-file.js';

/** Runs a body with a file to write, which is made if it is missing, under the lock. */
export async function withFileToWrite<T>(path: string, body: (file: FileHandle) => Promise<T>): Promise<T> {
  // This makes a missing file. The file is opened again below, because append mode would ignore offsets.
  await (await open(path, 'a+')).close();
  const lock = openLocked(path);
  if (lock === -(Errno.EAGAIN as number)) {
    throw new CheckpointError(
      `${path} is being written by another tracker, of this process or of another; try again when that is done, or ` +
        'write to a file of its own',
    );
  }
  try {
    const file = await open(path, 'r+');
    try {
      if (!(await file.stat()).isFile()) throw new CheckpointError(`${path} is no regular file`);
      return await body(file);
    } finally {
      await file.close();
    }
  } finally {
    if (lock >= 0) closeDescriptor(lock);
  }
}

/** Flushes the name of a file to disk. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(await realpath(path)), 'r');
  try {
    await folder.sync();
  } catch (error) {
    // Some file systems cannot flush a folder, and return an error.
    if (!CANNOT.has((error as NodeJS.ErrnoException).code)) throw error;
  } finally {
    await folder.close();
  }
}

const CANNOT: ReadonlySet<string | undefined> = new Set(['EINVAL', 'ENOTSUP', 'ENOSYS']);
