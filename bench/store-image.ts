// Memory for the benchmark of stores: it compresses as well as that of a process, and the guest of the benchmark knows
// what each page must hold.

import { closeSync, openSync, writeSync } from 'node:fs';
import { randomFrom } from './statistics.js';

const PAGE = 4096;
/** Of each page, so many bytes are random, and the rest is pieces of one table. zstd leaves about a fifth of that. */
const RANDOM_BYTES = 400;
const PIECE_BYTES = 24;

/** The contents of pages, each other than all before. A page ends with its number, as guest.c expects. */
export class PageMaker {
  readonly #random: () => number;
  readonly #table: Buffer;
  readonly #page = Buffer.alloc(PAGE);

  constructor(seed: number) {
    this.#random = randomFrom(seed);
    this.#table = Buffer.from(Array.from({ length: PAGE }, () => this.#random() * 256));
  }

  /** The bytes of page number `page`, counted from 0; valid until the next call. */
  make(page: number): Buffer {
    const random = this.#random;
    const bytes = this.#page;
    for (let at = 0; at < RANDOM_BYTES; at += 4) bytes.writeUInt32LE(random() * 2 ** 32, at);
    for (let at = RANDOM_BYTES; at < PAGE; at += PIECE_BYTES) {
      const from = Math.floor(random() * (PAGE - PIECE_BYTES));
      this.#table.copy(bytes, at, from, from + PIECE_BYTES);
    }
    bytes.writeUInt32LE(page + 1, PAGE - 4);
    return bytes;
  }
}

/** Writes a memory file. */
export function writeImage(path: string, bytes: number, seed: number): void {
  const pages = new PageMaker(seed);
  const fd = openSync(path, 'w');
  for (let page = 0; page < bytes / PAGE; page++) writeSync(fd, pages.make(page), 0, PAGE, page * PAGE);
  closeSync(fd);
}

/** Writes other pages in runs at random places, until `most` bytes differ. Returns how many do. */
export function changeImage(path: string, bytes: number, run: number, most: number, seed: number): number {
  const random = randomFrom(seed);
  const pages = new PageMaker(seed);
  const changed = new Set<number>();
  const fd = openSync(path, 'r+');
  while (changed.size * PAGE < most) {
    const first = Math.floor((random() * (bytes - run)) / PAGE);
    for (let page = first; page < first + run / PAGE; page++) {
      writeSync(fd, pages.make(page), 0, PAGE, page * PAGE);
      changed.add(page);
    }
  }
  closeSync(fd);
  return changed.size * PAGE;
}
