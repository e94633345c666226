// What a monitor hands over: the JSON text of its memory's regions, with descriptors beside it. Facts of the protocol
// are those of Firecracker's documentation (docs/snapshotting/handling-page-faults-on-snapshot-resume.md).
//
// Rules:
//  - All of it comes from outside. Nothing is used before it was checked, and what is wrong is told with its value.
//  - One connection may hand over several userfaultfds, one after the other, and each text may come in pieces.
//  - What is kept of a peer's bytes is bounded when it comes, and no work grows faster than with their number. No value of a
//    peer's is walked recursively, or quoted in full: it may be nested a million deep, or a megabyte long.

import { hex } from '../names.js';
import { wholePages } from '../whole-pages.js';

/** Part of a guest's memory. */
export interface Region {
  /** Where it lies in the monitor. */
  readonly start: bigint;
  readonly length: number;
  /** Where its bytes are in the memory file. */
  readonly offset: number;
  /** 4096 or 2 MiB. */
  readonly pageSize: number;
}

/** The text, or what came with it, is not what a monitor sends, or cannot be served. */
export class HandOffError extends Error {
  override readonly name = 'HandOffError';
  readonly code = 'ERR_UFFD_HAND_OFF';
  /** It was a whole hand-off of a guest's memory, so a guest waits for it. */
  readonly ofGuest: boolean;

  constructor(message: string, { ofGuest = false } = {}) {
    super(message);
    this.ofGuest = ofGuest;
  }
}

function unservable(message: string): HandOffError {
  return new HandOffError(message, { ofGuest: true });
}

/** Bytes of a page of the memory file, as far as it is mapped here. */
export const SYSTEM_PAGE = 4096;
const PAGE_SIZES: readonly number[] = [SYSTEM_PAGE, 2 ** 21];
/** Text of some seven thousand regions. And as much of what comes behind a text that waits for its descriptor. */
const TEXT_MOST = 2 ** 20;
const BEHIND_MOST = 65_536;
/** The userfaultfd, and a memfd of the guest's memory. */
const FDS_MOST = 2;
/** Arrays and objects inside each other; a hand-off has two. */
const DEPTH_MOST = 16;
/** Characters of a peer's value that are quoted. */
const QUOTED_MOST = 40;

const OPENING = new Set(['[', '{'].map((text) => text.charCodeAt(0)));
const CLOSING = new Set([']', '}'].map((text) => text.charCodeAt(0)));
const QUOTE = '"'.charCodeAt(0);
const ESCAPE = '\\'.charCodeAt(0);
const ARRAY = '['.charCodeAt(0);
const SPACE: ReadonlySet<number> = new Set([0, 9, 10, 13, 32]);

/** One text, and the descriptors that came until its end. */
export interface HandOff {
  readonly text: string;
  readonly fds: readonly number[];
}

/** Puts hand-offs together from what is received. Whoever pushes descriptors gets each of them back exactly once. */
export class HandOffReader {
  /** Grows in steps, so that bytes that come one by one are not copied each time. */
  #room = Buffer.alloc(0);
  #length = 0;
  /** How far it was looked at, and what that came to. */
  #at = 0;
  #depth = 0;
  #quoted = false;
  #escaped = false;
  #fds: number[] = [];
  /** Bytes between the last text and the next, which are not kept. */
  #spaces = 0;

  /** A text has begun, and its end has not come; or descriptors came without a text. */
  get begun(): boolean {
    return this.#length > 0 || this.#fds.length > 0;
  }

  /** @throws HandOffError more came than is kept; the descriptors are kept, to be given back */
  push(bytes: Uint8Array, fds: readonly number[]): void {
    this.#fds.push(...fds);
    const length = this.#length + bytes.length;
    if (length > TEXT_MOST + BEHIND_MOST) throw tooLong();
    if (length > this.#room.length) {
      const room = Buffer.alloc(Math.max(length, 2 * this.#room.length));
      this.#bytes.copy(room);
      this.#room = room;
    }
    this.#room.set(bytes, this.#length);
    this.#length = length;
  }

  get #bytes(): Buffer {
    return this.#room.subarray(0, this.#length);
  }

  /** Drops bytes at the beginning. */
  #drop(bytes: number): void {
    this.#room.copyWithin(0, bytes, this.#length);
    this.#length -= bytes;
    if (this.#length === 0) this.#room = Buffer.alloc(0);
  }

  /**
   * The next whole text, if there is one.
   *
   * @throws HandOffError where no end of it will make it right
   */
  next(): HandOff | undefined {
    if (this.#at === 0) this.#skipSpace();
    const bytes = this.#bytes;
    const [first] = bytes;
    if (first !== undefined && first !== ARRAY) {
      throw new HandOffError(
        `a hand-off is a JSON array; this begins with ${quoted(bytes.toString('latin1', 0, 20))}`,
      );
    }
    if (this.#fds.length > FDS_MOST) {
      const came = `${this.#fds.length} descriptors came`;
      throw new HandOffError(`a hand-off carries a userfaultfd, and perhaps a memfd; ${came}`);
    }
    const most = Math.min(bytes.length, TEXT_MOST);
    while (this.#at < most) {
      if (!this.#ends(bytes[this.#at++] as number)) continue;
      const text = textOf(bytes.subarray(0, this.#at));
      this.#drop(this.#at);
      this.#at = 0;
      this.#spaces = 0;
      return { text, fds: this.#fds.splice(0) };
    }
    if (bytes.length >= TEXT_MOST) throw tooLong();
    return undefined;
  }

  /** Descriptors that belong to no text yet: the caller's from now on. */
  giveBack(): number[] {
    return this.#fds.splice(0);
  }

  #skipSpace(): void {
    const begin = this.#bytes.findIndex((byte) => !SPACE.has(byte));
    const spaces = begin < 0 ? this.#length : begin;
    this.#drop(spaces);
    this.#spaces += spaces;
    if (this.#spaces > TEXT_MOST) throw tooLong();
  }

  /** Whether the text ends with this byte. */
  #ends(byte: number): boolean {
    if (this.#quoted) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === ESCAPE) this.#escaped = true;
      else if (byte === QUOTE) this.#quoted = false;
      return false;
    }
    if (byte === QUOTE) this.#quoted = true;
    else if (OPENING.has(byte)) {
      if (++this.#depth > DEPTH_MOST)
        throw new HandOffError(`a hand-off is nested at most ${DEPTH_MOST} deep`);
    } else if (CLOSING.has(byte)) return --this.#depth === 0;
    return false;
  }
}

function tooLong(): HandOffError {
  return new HandOffError(`a hand-off has at most ${TEXT_MOST} bytes; this one goes on`);
}

/** A peer's value for a message: short, and without a look inside. */
function quoted(value: unknown): string {
  if (Array.isArray(value)) return 'an array';
  if (typeof value === 'object' && value !== null) return 'an object';
  if (typeof value !== 'string') return String(value);
  return JSON.stringify(value.length > QUOTED_MOST ? `${value.slice(0, QUOTED_MOST)}…` : value);
}

function textOf(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new HandOffError('the hand-off is not UTF-8');
  }
}

/** The region that holds an address. */
export function regionAt(regions: readonly Region[], address: bigint): Region | undefined {
  return regions.find(({ start, length }) => address >= start && address < start + BigInt(length));
}

/** The regions, where mremap has moved a part of the monitor's memory: over whatever was there. */
export function moveRegions(
  regions: readonly Region[],
  from: bigint,
  to: bigint,
  length: number,
): readonly Region[] {
  const bytes = BigInt(length);
  const moved = regions.flatMap((region) => {
    const part = overlap(region, from, bytes);
    return part ? [{ ...part, start: part.start - from + to }] : [];
  });
  const rest = regions.flatMap((region) => outside(region, from, bytes));
  return [...rest.flatMap((region) => outside(region, to, bytes)), ...moved];
}

/** The part of a region inside of `length` bytes at `start`. */
function overlap(region: Region, start: bigint, length: bigint): Region | undefined {
  const from = region.start > start ? region.start : start;
  const end = region.start + BigInt(region.length);
  const to = end < start + length ? end : start + length;
  if (from >= to) return undefined;
  return {
    ...region,
    start: from,
    length: Number(to - from),
    offset: region.offset + Number(from - region.start),
  };
}

/** The parts of a region outside of it. */
function outside(region: Region, start: bigint, length: bigint): Region[] {
  const end = region.start + BigInt(region.length);
  const before = overlap(region, region.start, start > region.start ? start - region.start : 0n);
  const behind = overlap(region, start + length, end > start + length ? end - start - length : 0n);
  return [before, behind].flatMap((part) => part ?? []);
}

/**
 * The regions that a text tells, in ascending order of their addresses.
 *
 * @param memoryBytes the size of the memory file
 * @throws HandOffError
 */
export function parseRegions(text: string, memoryBytes: number): Region[] {
  let told: unknown;
  try {
    told = JSON.parse(text);
  } catch (error) {
    throw new HandOffError(`the hand-off is not JSON: ${(error as Error).message.slice(0, 100)}`);
  }
  if (!Array.isArray(told)) throw new HandOffError('the hand-off is not an array of regions');
  if (told.length === 0) throw new HandOffError('the hand-off has no region');
  const regions = told.map((one, index) => parseRegion(one, index, memoryBytes));
  regions.sort((a, b) => (a.start < b.start ? -1 : 1));
  for (const [index, { start }] of regions.entries()) {
    const before = regions[index - 1];
    if (before && before.start + BigInt(before.length) > start) {
      throw unservable(`the regions at ${hex(before.start)} and ${hex(start)} overlap`);
    }
  }
  return regions;
}

function parseRegion(told: unknown, index: number, memoryBytes: number): Region {
  if (typeof told !== 'object' || told === null || Array.isArray(told)) {
    throw new HandOffError(`region ${index} is not an object`);
  }
  const members = told as Record<string, unknown>;
  const integer = (name: string, value: unknown): number => {
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
    throw unservable(
      `region ${index}: ${name} must be an integer from 0 to 2^53 - 1; it is ${quoted(value)}`,
    );
  };
  // The older name holds bytes, too.
  const pageSize = integer('page_size', members.page_size ?? members.page_size_kib ?? SYSTEM_PAGE);
  if (!PAGE_SIZES.includes(pageSize)) {
    throw unservable(
      `region ${index}: pages of ${pageSize} bytes; ${PAGE_SIZES.join(' and ')} can be served`,
    );
  }
  const whole = (name: string): number => {
    const value = integer(name, members[name]);
    if (value % pageSize === 0) return value;
    throw unservable(`region ${index}: ${name} is ${value}, no multiple of its pages' ${pageSize} bytes`);
  };
  const [start, length, offset] = [whole('base_host_virt_addr'), whole('size'), whole('offset')];
  if (length === 0) throw unservable(`region ${index} has no bytes`);
  if (!Number.isSafeInteger(start + length)) throw unservable(`region ${index} ends behind all addresses`);
  // The last page of a file may be a part of one: the rest of it is zeros.
  if (offset + length > wholePages(memoryBytes, SYSTEM_PAGE)) {
    throw unservable(
      `region ${index} needs bytes ${offset} to ${offset + length} of the memory file, which has ${memoryBytes}`,
    );
  }
  return { start: BigInt(start), length, offset, pageSize };
}
