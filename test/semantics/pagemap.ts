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
  const bits = word.readBigUInt64LE();
  const bit = (number: bigint): boolean => ((bits >> number) & 1n) === 1n;
  return { present: bit(63n), swap: bit(62n), uffdWp: bit(57n), exclusive: bit(56n) };
}
