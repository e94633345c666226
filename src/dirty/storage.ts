// Where checkpoints are kept: the file that one writer at a time has, and the folder that names it.
//
// Rules:
//  - A writer holds a lock (flock) while it writes; it ends with the process that has it. A file system without locks
//    goes without.
//  - The folder is on the disk before the commit record is, so a checkpoint that is there can be found.

import { type FileHandle, open, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { closeDescriptor, openLocked } from '../../shim/descriptors.js';
import { Errno } from '../names.js';
import { CheckpointError } from './file.js';

/** Runs a body with a file to write, which is made if need be, while nobody else writes to it. */
export async function withFileToWrite<T>(path: string, body: (file: FileHandle) => Promise<T>): Promise<T> {
  // Appending would ignore positions, so it is opened again.
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

/** Puts the name of a file on the disk. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(await realpath(path)), 'r');
  try {
    await folder.sync();
  } catch (error) {
    // Some file systems cannot, and say so.
    if (!CANNOT.has((error as NodeJS.ErrnoException).code)) throw error;
  } finally {
    await folder.close();
  }
}

const CANNOT: ReadonlySet<string | undefined> = new Set(['EINVAL', 'ENOTSUP', 'ENOSYS']);
