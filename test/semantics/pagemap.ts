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
  return decode(word.readBigUInt64LE());
}

let self: number | undefined;

/** Of this process, `count` pages in a row. */
export function pagesOfSelf(address: bigint, count: number): PageBits[] {
  self ??= openSync('/proc/self/pagemap', 'r');
  const words = new BigUint64Array(count);
  const at = (address / BigInt(pageSize())) * BigInt(WORD_BYTES);
  readSync(self, words, 0, words.byteLength, at);
  return [...words].map(decode);
}

function decode(bits: bigint): PageBits {
  const bit = (number: bigint): boolean => ((bits >> number) & 1n) === 1n;
  return { present: bit(63n), swap: bit(62n), uffdWp: bit(57n), exclusive: bit(56n) };
}
