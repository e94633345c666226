// An overlay (the format: overlay-format.ts): a file that holds the changed blocks of a source, and whose blocks are
// whole after a crash.
//
// Rules:
//  - A block that the bitmap in the file does not name may be torn: nothing reads it. So it is written in place without
//    the journal, and, with 'power', is on disk before the journal gets the bitmap that names it.
//  - Blocks that the bitmap names, and the bitmap itself, are written through the journal, in one batch.
//  - If that batch fails, the bitmap may be in the journal already, and recovery would write it. So its blocks count as
//    held from then on, and the next batch has the bitmap again.

import { closeSync, constants, ftruncateSync, openSync } from 'node:fs';
import type { Recovery } from './journal.js';
import { JournaledFile, type JournaledFileOptions } from './journal-file.js';
import { codeOf, syncData, syncFolderOf, writeFully } from './journal-io.js';
import { openTarget } from './journal-target.js';
import {
  decodeOverlayHeader,
  encodeOverlayHeader,
  layoutOf,
  OverlayError,
  type OverlayHeader,
  storedIdentity,
  UNIT,
  wholeUnits,
} from './overlay-format.js';
import { type BlockStore, type Part, SourceError, type Target } from './source.js';

export type OverlayOptions = Omit<JournaledFileOptions, 'blockSize'>;

const { O_RDWR, O_CREAT, O_EXCL } = constants;

export class Overlay implements Target, BlockStore {
  readonly #file: JournaledFile;
  readonly #path: string;
  readonly #of: OverlayHeader;
  readonly #bitmapAt: number;
  readonly #bitmap: Buffer;
  /** Units of the bitmap that differ from the file. */
  readonly #unwritten = new Set<number>();

  /**
   * Opens and locks an overlay, and recovers it if a journal was left behind. Makes the file if there is none, or if it
   * is empty.
   *
   * @throws OverlayError if the file is no overlay, or that of another source; JournalError; Node's errors
   */
  static open(path: string, of: OverlayHeader, options: OverlayOptions): Overlay {
    prepare(path, of, options);
    const file = JournaledFile.open(path, { ...options, blockSize: UNIT });
    try {
      return new Overlay(file, path, of);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  private constructor(file: JournaledFile, path: string, of: OverlayHeader) {
    this.#file = file;
    this.#path = path;
    this.#of = of;
    const bytes = Buffer.alloc(UNIT);
    if (file.size >= UNIT) file.read(bytes, file.size - UNIT);
    checkIsOf(decodeOverlayHeader(bytes, path), of, path);
    const { bitmap, header } = layoutOf(of);
    if (file.size !== header + UNIT)
      throw new OverlayError(
        `${path} has ${file.size} bytes instead of ${header + UNIT}; restore the file from a backup`,
      );
    this.#bitmapAt = bitmap;
    this.#bitmap = Buffer.alloc(header - bitmap);
    file.read(this.#bitmap, bitmap);
  }

  /** What was recovered when the file was opened. */
  get recovery(): Recovery {
    return this.#file.recovery;
  }

  holds(block: number): boolean {
    return ((this.#bitmap[block >> 3] as number) & (1 << (block & 7))) !== 0;
  }

  read(offset: number, into: Uint8Array): void {
    let read: number;
    try {
      read = this.#file.read(into, offset);
    } catch (error) {
      throw new SourceError(`${this.#path}: ${(error as Error).message}`, false, { cause: error });
    }
    if (read < into.length)
      throw new SourceError(`${this.#path} is shorter than it was when it was opened`, true);
  }

  write(parts: readonly Part[]): void {
    const { blockSize } = this.#of;
    const named = parts.filter(({ offset }) => this.holds(offset / blockSize)).map(padded);
    const fresh = parts.filter(({ offset }) => !this.holds(offset / blockSize));
    this.#file.writeUnread(fresh.map(padded));
    for (const { offset } of fresh) this.#name(offset / blockSize);
    this.#file.write([...named, ...[...this.#unwritten].map((unit) => this.#unitOf(unit))]);
    this.#unwritten.clear();
  }

  sync(): void {
    this.#file.sync();
  }

  close(): void {
    this.#file.close();
  }

  #name(block: number): void {
    const byte = block >> 3;
    this.#bitmap[byte] = (this.#bitmap[byte] as number) | (1 << (block & 7));
    this.#unwritten.add(Math.floor(byte / UNIT));
  }

  #unitOf(unit: number): Part {
    const at = unit * UNIT;
    return { offset: this.#bitmapAt + at, bytes: this.#bitmap.subarray(at, at + UNIT) };
  }
}

/** The last block of a source may be shorter: it is stored in whole units. */
function padded({ offset, bytes }: Part): Part {
  const length = wholeUnits(bytes.length);
  if (length === bytes.length) return { offset, bytes };
  const whole = new Uint8Array(length);
  whole.set(bytes);
  return { offset, bytes: whole };
}

/** Makes an overlay that holds nothing, if there is no file, or an empty one: another process may have been killed here. */
function prepare(path: string, of: OverlayHeader, { durability, journal }: OverlayOptions): void {
  try {
    closeSync(openSync(path, O_RDWR | O_CREAT | O_EXCL));
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error;
  }
  const target = openTarget(path, journal);
  try {
    if (target.size > 0) return;
    try {
      // One call, at the end of the file: it has no header, or all of it.
      writeFully(target.fd, [encodeOverlayHeader(of)], layoutOf(of).header);
      if (durability === 'power') {
        syncData(target.fd);
        syncFolderOf(target.path);
      }
    } catch (error) {
      ftruncateSync(target.fd, 0);
      throw error;
    }
  } finally {
    target.close();
  }
}

/** @throws OverlayError if an overlay was made for another source, or other blocks */
function checkIsOf(made: OverlayHeader, of: OverlayHeader, path: string): void {
  if (made.size !== of.size)
    throw new OverlayError(
      `${path} is the overlay of a source of ${made.size} bytes, and this one has ${of.size}; open the source that it ` +
        'was made for, or choose another path',
    );
  const identity = storedIdentity(of.identity);
  if (made.identity !== identity)
    throw new OverlayError(
      `${path} is the overlay of another source, or of another version of it: of ${made.identity}, and this one is ` +
        `${identity}; open the source that it was made for, or choose another path`,
    );
  if (made.blockSize !== of.blockSize)
    throw new OverlayError(
      `${path} has blocks of ${made.blockSize} bytes, and the pager has blocks of ${of.blockSize}; open it with ` +
        `blockSize: ${made.blockSize}, or choose another path`,
    );
}
