// Checks the demo's arguments: a file that can be a guest's memory, and a path for its trace.

import { accessSync, closeSync, constants, openSync, statSync } from 'node:fs';
import { freemem } from 'node:os';
import { Refusal } from '../exit.js';
import { byteSize, printable } from '../text.js';

/**
 * The size of a file, all of which will be put into memory. If it does not fit, refuse now rather than be killed
 * later.
 *
 * @throws Refusal; errors of the file system
 */
export function sizeOf(file: string): number {
  const stat = statSync(file);
  if (!stat.isFile()) throw new Refusal(`${printable(file)} is no regular file`);
  if (stat.size === 0) throw new Refusal(`${printable(file)} must be at least 1 byte long`);
  accessSync(file, constants.R_OK);
  const limit = process.constrainedMemory() || Number.POSITIVE_INFINITY;
  const available = Math.min(freemem(), limit);
  if (stat.size <= available) return stat.size;
  throw new Refusal(
    `the file's ${byteSize(stat.size)} would all be put into memory, and ${byteSize(available)} are available; ` +
      'choose a smaller file',
  );
}

/** @throws if a trace cannot be written, before anything else begins */
export function checkWritable(file: string): void {
  closeSync(openSync(file, 'w'));
}
