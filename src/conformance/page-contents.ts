// The contents of the memory file: each page differs from all others, so that wrong contents can be told in words.
//
// A page begins with its number plus one as decimal digits, which `atol` reads in a thread without JavaScript. The bytes
// that COUNTER names are zero; threads count there. Every eighth page is zeros.

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';

/** Where threads add 1: a word of a semaphore. */
export const COUNTER = { at: 64, length: 32 } as const;
const DIGITS = 16;
const ZEROS_EVERY = 8;
const SPREAD = 0x9e3779b9;

/** Whether the memory file has zeros in a page. */
export function isZeroPage(page: number): boolean {
  return page % ZEROS_EVERY === ZEROS_EVERY - 1;
}

/** What a thread reads at the beginning of a page of the file, as a number. */
export function numberIn(page: number): number {
  return isZeroPage(page) ? 0 : page + 1;
}

/** The file's bytes of a page. */
export function contentsOf(page: number, pageSize: number): Buffer {
  const bytes = Buffer.alloc(pageSize);
  if (isZeroPage(page)) return bytes;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, pageSize / 4);
  let state = Math.imul(page + 1, SPREAD) | 1;
  for (let at = 0; at < words.length; at++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
  bytes.fill(0, 0, DIGITS).write(String(page + 1), 'latin1');
  return bytes.fill(0, COUNTER.at, COUNTER.at + COUNTER.length);
}

/** Writes the memory file. `sparse`: its zero pages are holes. */
export function writeMemoryFile(
  path: string,
  { pages, pageSize, sparse }: { pages: number; pageSize: number; sparse: boolean },
): void {
  const fd = openSync(path, 'w', 0o644);
  try {
    ftruncateSync(fd, pages * pageSize);
    for (let page = 0; page < pages; page++) {
      if (!sparse || !isZeroPage(page))
        writeSync(fd, contentsOf(page, pageSize), 0, pageSize, page * pageSize);
    }
  } finally {
    closeSync(fd);
  }
}

/** Contents of a page in words. */
export function inWords(bytes: Buffer): string {
  if (bytes.every((byte) => byte === 0)) return 'zeros';
  const page = Number.parseInt(bytes.toString('latin1', 0, DIGITS), 10) - 1;
  if (!(page >= 0)) return `other bytes, which begin with ${bytes.toString('hex', 0, 8)}`;
  const expected = contentsOf(page, bytes.length);
  const at = bytes.findIndex((byte, index) => byte !== expected[index]);
  if (at < 0) return `the bytes of page ${page}`;
  return `the bytes of page ${page}, but ${bytes[at]} instead of ${expected[at]} at byte ${at}`;
}
