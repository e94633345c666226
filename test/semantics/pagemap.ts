// /proc/<pid>/pagemap: a word of 64 bits for each page (Documentation/admin-guide/mm/pagemap.rst).

import { closeSync, openSync, readSync } from 'node:fs';
import { pageSize } from '../../shim/memory.js';
import type { PageBits } from './world.js';

const WORD_BYTES = 8;

export function pageBits(process: string, address: bigint): PageBits {
  const fd = openSync(`/proc/${process}/pagemap`, 'r');
  const word = Buffer.alloc(WORD_BYTES);
  try {
    readSync(fd, word, 0, WORD_BYTES, (address / BigInt(pageSize())) * BigInt(WORD_BYTES));
  } finally {
    closeSync(fd);
  }
  return decode(word, 0);
}

let self: number | undefined;

/** Reads part of an open file. */
export type Read = (file: number, buffer: Uint8Array, length: number, from: bigint) => number;

/** State of `count` consecutive pages of this process. */
export function pagesOfSelf(address: bigint, count: number, read: Read): PageBits[] {
  self ??= openSync('/proc/self/pagemap', 'r');
  const words = Buffer.alloc(count * WORD_BYTES);
  read(self, words, words.length, (address / BigInt(pageSize())) * BigInt(WORD_BYTES));
  return Array.from({ length: count }, (_, page) => decode(words, page));
}

/** Decodes the upper half of a word. */
function decode(words: Buffer, index: number): PageBits {
  const upper = words.readUInt32LE(index * WORD_BYTES + WORD_BYTES / 2);
  const bit = (number: number): boolean => ((upper >>> (number - 32)) & 1) === 1;
  return { present: bit(63), swap: bit(62), uffdWp: bit(57), exclusive: bit(56) };
}
