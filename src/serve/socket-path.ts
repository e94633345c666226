// Where a socket lies in the file system.
//
// Rule: only a socket that nobody listens at makes room for another.

import { lstatSync, unlinkSync } from 'node:fs';
import { isListening } from '../../shim/socket.js';

/** A socket's path cannot be had. */
export class SocketError extends Error {
  override readonly name = 'SocketError';
  readonly code = 'ERR_UFFD_SOCKET';
}

/** Removes a socket at a path that nobody listens at; anything else there is left. */
export function makeRoom(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isSocket()) throw new SocketError(`${path} is there already, and is no socket`);
  if (isListening(path)) throw new SocketError(`somebody listens at ${path} already`);
  unlinkSync(path);
}

export function inodeOf(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.ino;
}
