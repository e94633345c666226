// The description of a local file: plain data that a program makes and posts to the pager's thread.

import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { wrongType } from '../errors/arguments.js';

/** Describes a file, or a block device, to a pager. */
export interface FileSource {
  readonly kind: 'file';
  readonly path: string;
}

/** A regular file or a block device as a pager's source. Nothing is opened until a pager opens the description. */
export function fileSource(path: string | URL): FileSource {
  if (path instanceof URL) return { kind: 'file', path: fileURLToPath(path) };
  if (typeof path !== 'string' || path === '') throw wrongType('path', 'the path of a file', path);
  return { kind: 'file', path: resolve(path) };
}
