// What a journal and a swap file do when their disk is full. It runs in a mount namespace of its own, with a small
// tmpfs as its disk, and prints what it saw as JSON: see journal-full.once.test.ts.
//
//   node journal-small-disk.js FOLDER CASE

import { readFileSync, statfsSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { recover } from '../../../src/pager/journal.js';
import { JournaledFile } from '../../../src/pager/journal-file.js';
import { Overlay } from '../../../src/pager/overlay-file.js';
import { SwapStore } from '../../../src/pager/swap-file.js';
import { blockOf } from './journal-blocks.js';

const BLOCK = 16_384;
const BLOCKS = 8;
const [, , folder = '', what = ''] = process.argv;
const seen: Record<string, unknown> = {};
const target = join(folder, 'target');
const filler = join(folder, 'filler');

/** Leaves this many bytes free. */
function fillUp(free: number): void {
  const { bavail, bsize } = statfsSync(folder);
  writeFileSync(filler, Buffer.alloc(bavail * bsize - free));
}

function codeOf(action: () => void): string | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    seen.message ??= (error as Error).message;
    return (error as NodeJS.ErrnoException).code;
  }
}

const parts = (version: number, ...blocks: number[]) =>
  blocks.map((block) => ({ offset: block * BLOCK, bytes: blockOf(block, version, BLOCK) }));
const holds = (version: number, ...blocks: number[]): boolean => {
  const bytes = readFileSync(target);
  return parts(version, ...blocks).every(({ offset, bytes: part }) =>
    bytes.subarray(offset, offset + BLOCK).equals(part),
  );
};

function journalIsFull(): void {
  writeFileSync(target, Buffer.concat(parts(0, 0, 1, 2, 3).map(({ bytes }) => bytes)));
  const file = JournaledFile.open(target, { blockSize: BLOCK, durability: 'power' });
  fillUp(BLOCK);
  seen.first = codeOf(() => file.write(parts(1, 1, 2)));
  seen.again = codeOf(() => file.write(parts(1, 1, 2)));
  seen.unchanged = holds(0, 0, 1, 2, 3);
  seen.less = codeOf(() => file.write(parts(2, 0).slice(0, 0)));
  unlinkSync(filler);
  seen.freed = codeOf(() => file.write(parts(1, 1, 2)));
  seen.written = holds(1, 1, 2) && holds(0, 0, 3);
  file.close();
}

/** A target with holes: the journal has room for a batch, and the target has not. */
function targetIsFull(): void {
  writeFileSync(target, '');
  truncateSync(target, BLOCKS * BLOCK);
  const open = () => JournaledFile.open(target, { blockSize: BLOCK, durability: 'process' });
  const file = open();
  // The header's page, the journal's records, and half of the blocks.
  fillUp(4 * BLOCK + 4096 + 2 * BLOCK);
  seen.first = codeOf(() => file.write(parts(1, 0, 1, 2, 3)));
  seen.other = codeOf(() => file.write(parts(1, 5)));
  seen.sync = codeOf(() => file.sync());
  file.close();
  seen.refused = codeOf(() => void recover(target));
  unlinkSync(filler);
  const again = open();
  seen.recovery = again.recovery;
  seen.whole = holds(1, 0, 1, 2, 3);
  // It also ends without a close in between.
  fillUp(2 * BLOCK + 4096 + BLOCK);
  seen.second = codeOf(() => again.write(parts(2, 4, 5)));
  unlinkSync(filler);
  seen.freed = codeOf(() => again.write(parts(3, 6)));
  seen.written = holds(1, 0, 1, 2, 3) && holds(2, 4, 5) && holds(3, 6);
  again.close();
}

function swapIsFull(): void {
  const size = BLOCKS * BLOCK;
  const store = SwapStore.create(folder, { size, blockSize: BLOCK, compress: 'none', encrypt: false });
  const read = (block: number): Buffer => {
    const bytes = Buffer.alloc(BLOCK);
    store.read(block * BLOCK, bytes);
    return bytes;
  };
  fillUp(4 * BLOCK + 4096);
  seen.fits = codeOf(() => store.write(parts(1, 0, 1, 2, 3)));
  seen.first = codeOf(() => store.write(parts(1, 4)));
  // A new version needs room, too, until it is written.
  seen.again = codeOf(() => store.write(parts(2, 1)));
  seen.kept = [0, 1, 2, 3].every((block) => read(block).equals(blockOf(block, 1, BLOCK)));
  seen.absent = read(4).every((byte) => byte === 0);
  seen.stats = store.stats;
  seen.zeros = codeOf(() => store.write([{ offset: 0, bytes: Buffer.alloc(BLOCK) }]));
  seen.freed = codeOf(() => store.write(parts(2, 1)));
  seen.written = read(1).equals(blockOf(1, 2, BLOCK)) && read(0).every((byte) => byte === 0);
  store.close();
  seen.free = statfsSync(folder).bavail * statfsSync(folder).bsize >= 4 * BLOCK;
}

/** A batch fails in the journal after its new block was written in place; then a new block does not fit. */
function overlayIsFull(): void {
  const of = { blockSize: BLOCK, size: 64 * BLOCK, identity: 'small' };
  const open = () => Overlay.open(target, of, { durability: 'process' });
  const held = (overlay: Overlay): string => [0, 1, 2, 3].filter((block) => overlay.holds(block)).join(' ');
  const overlay = open();
  overlay.write(parts(1, 0, 1));
  // Room for the new block, and not for the journal of the two others.
  fillUp(2 * BLOCK);
  seen.journal = codeOf(() => overlay.write(parts(2, 0, 1, 2)));
  // The bitmap in the file, as a killed process would leave it.
  seen.afterJournal = readFileSync(target)[64 * BLOCK];
  unlinkSync(filler);
  seen.again = codeOf(() => overlay.write(parts(2, 0, 1, 2)));
  overlay.close();
  const again = open();
  seen.held = held(again);
  fillUp(4096);
  seen.place = codeOf(() => again.write(parts(3, 3)));
  seen.afterPlace = held(again);
  seen.whole = holds(2, 0, 1, 2);
  again.close();
}

const CASES: Record<string, () => void> = { journalIsFull, targetIsFull, swapIsFull, overlayIsFull };
CASES[what]?.();
process.stdout.write(JSON.stringify(seen));
