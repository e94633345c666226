// The hand-off protocol: the JSON text of the memory regions, with descriptors attached. The protocol is described in
// Firecracker's documentation (docs/snapshotting/handling-page-faults-on-snapshot-resume.md).
//
// Rules:
//  - All input is untrusted. Every value is checked before it is used, and an error quotes the wrong value.
//  - One connection may hand over several userfaultfds, one after the other, and each text may come in pieces.
//  - The number of bytes that are kept of a peer is bounded, and the work grows linearly with it. A peer's value is
//    never walked recursively or quoted in full: it may be nested a million deep, or be a megabyte long.

import { hex } from '../errors/format.js';
import { wholePages } from '../memory/whole-pages.js';

/** A part of a guest's memory. */
export interface Region {
  /** Its address in the monitor's memory. */
  readonly start: bigint;
  readonly length: number;
  /** Its offset in the memory file. */
  readonly offset: number;
  /** 4096 or 2 MiB. */
  readonly pageSize: number;
  /** Whether it maps the memory that the server has sent (`requestSharedMemory`). Default: no. */
  readonly shared?: boolean;
}

/**
 * The text by which a monitor asks for the memory that guests share, before its hand-off. It is no hand-off, and comes
 * without a descriptor.
 */
export const MEMORY_REQUEST = '[{"request":"memory"}]';

/** The answer: the bytes of the memfd that comes with it, or why there is none. */
export type MemoryAnswer = { readonly size: number } | { readonly error: string };

export function memoryAnswerText(answer: MemoryAnswer): Uint8Array {
  return Buffer.from(JSON.stringify([{ answer: 'memory', ...answer }]));
}

/** @throws HandOffError */
export function parseMemoryAnswer(text: string): MemoryAnswer {
  const [first] = parsedArray(text) as [Record<string, unknown> | undefined];
  if (first?.answer === 'memory') {
    const { size, error } = first;
    if (typeof error === 'string') return { error };
    if (typeof size === 'number' && Number.isSafeInteger(size) && size > 0) return { size };
  }
  throw new HandOffError(`the server has answered ${quoted(text)}`);
}

/** Whether a text that came without a descriptor asks for the memory that guests share. */
export function isMemoryRequest(text: string): boolean {
  return text.replace(/\s/g, '') === MEMORY_REQUEST;
}

/** The text of a hand-off, as Firecracker writes it. */
export function handOffText(regions: readonly Region[]): Uint8Array {
  const message = regions.map(({ start, length, offset, pageSize, shared }) => ({
    base_host_virt_addr: Number(start),
    size: length,
    offset,
    page_size: pageSize,
    // The older name of the page size; Firecracker, too, sends bytes in it.
    page_size_kib: pageSize,
    ...(shared && { shared }),
  }));
  return Buffer.from(JSON.stringify(message));
}

/** The text, or its descriptors, are not a valid hand-off, or cannot be served. */
export class HandOffError extends Error {
  override readonly name = 'HandOffError';
  readonly code = 'ERR_UFFD_HAND_OFF';
  /** Whether it was a complete hand-off of a guest's memory, so that a guest waits for a handler. */
  readonly ofGuest: boolean;

  constructor(message: string, { ofGuest = false } = {}) {
    super(message);
    this.ofGuest = ofGuest;
  }
}

function unservable(message: string): HandOffError {
  return new HandOffError(message, { ofGuest: true });
}

/** Bytes of a page of the memory file, as this process maps it. */
export const SYSTEM_PAGE = 4096;
const PAGE_SIZES: readonly number[] = [SYSTEM_PAGE, 2 ** 21];
/**
 * Most bytes of a text: about seven thousand regions. BEHIND_MOST: how many bytes more are kept, because bytes of the
 * next text may follow.
 */
const TEXT_MOST = 2 ** 20;
const BEHIND_MOST = 65_536;
/** Most descriptors of a hand-off: the userfaultfd, and a memfd of the guest's memory. */
const FDS_MOST = 2;
/** Most levels of arrays and objects; a hand-off has two. */
const DEPTH_MOST = 16;
/** Most characters of a peer's value that an error quotes. */
const QUOTED_MOST = 40;

const OPENING = new Set(['[', '{'].map((text) => text.charCodeAt(0)));
const CLOSING = new Set([']', '}'].map((text) => text.charCodeAt(0)));
const QUOTE = '"'.charCodeAt(0);
const ESCAPE = '\\'.charCodeAt(0);
const ARRAY = '['.charCodeAt(0);
const SPACE: ReadonlySet<number> = new Set([0, 9, 10, 13, 32]);

/** One text, and the descriptors that came with it. */
export interface HandOff {
  readonly text: string;
  readonly fds: readonly number[];
}

/** Assembles hand-offs from received messages. Each pushed descriptor is returned exactly once. */
export class HandOffReader {
  /** The received bytes. The buffer grows in steps, so that not every byte causes a copy. */
  #buffer = Buffer.alloc(0);
  #length = 0;
  /** How far the text was scanned, and the state of the scan. */
  #at = 0;
  #depth = 0;
  #quoted = false;
  #escaped = false;
  #fds: number[] = [];
  /** Bytes between the last text and the next, which are not kept. */
  #spaces = 0;

  /** Whether a text is incomplete, or descriptors came without a text. */
  get begun(): boolean {
    return this.#length > 0 || this.#fds.length > 0;
  }

  /** @throws HandOffError if more bytes or descriptors came than are kept; `giveBack` still returns the descriptors */
  push(bytes: Uint8Array, fds: readonly number[]): void {
    this.#fds.push(...fds);
    const length = this.#length + bytes.length;
    if (length > TEXT_MOST + BEHIND_MOST) throw tooLong();
    if (length > this.#buffer.length) {
      const buffer = Buffer.alloc(Math.max(length, 2 * this.#buffer.length));
      this.#bytes.copy(buffer);
      this.#buffer = buffer;
    }
    this.#buffer.set(bytes, this.#length);
    this.#length = length;
  }

  get #bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  /** Drops bytes at the beginning. */
  #drop(bytes: number): void {
    this.#buffer.copyWithin(0, bytes, this.#length);
    this.#length -= bytes;
    if (this.#length === 0) this.#buffer = Buffer.alloc(0);
  }

  /**
   * The next whole text, if there is one.
   *
   * @throws HandOffError if no further bytes can make the text valid
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

  /** Descriptors that belong to no text yet; the caller owns them from now on. */
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

  /** Takes the next byte of the JSON text. Returns whether the text is complete with it. */
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

/** A peer's value for an error message: short, without the contents of arrays and objects. */
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

/**
 * The regions after mremap has moved a part of the monitor's memory. The moved part replaces what was mapped at `to`.
 */
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

/** The parts of a region outside of `length` bytes at `start`. */
function outside(region: Region, start: bigint, length: bigint): Region[] {
  const end = region.start + BigInt(region.length);
  const before = overlap(region, region.start, start > region.start ? start - region.start : 0n);
  const behind = overlap(region, start + length, end > start + length ? end - start - length : 0n);
  return [before, behind].flatMap((part) => part ?? []);
}

/**
 * Parses the regions of a text, in ascending order of their addresses.
 *
 * @param memoryBytes the size of the memory file
 * @throws HandOffError
 */
export function parseRegions(text: string, memoryBytes: number): Region[] {
  const parsed = parsedArray(text);
  if (parsed.length === 0) throw new HandOffError('the hand-off has no region');
  const regions = parsed.map((one, index) => parseRegion(one, index, memoryBytes));
  regions.sort((a, b) => (a.start < b.start ? -1 : 1));
  for (const [index, { start }] of regions.entries()) {
    const before = regions[index - 1];
    if (before && before.start + BigInt(before.length) > start) {
      throw unservable(`the regions at ${hex(before.start)} and ${hex(start)} overlap`);
    }
  }
  return regions;
}

function parsedArray(text: string): unknown[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new HandOffError(`the hand-off is not JSON: ${(error as Error).message.slice(0, 100)}`);
  }
  if (!Array.isArray(parsed)) throw new HandOffError('the hand-off is not an array of regions');
  return parsed;
}

function parseRegion(parsed: unknown, index: number, memoryBytes: number): Region {
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new HandOffError(`region ${index} is not an object`);
  }
  const members = parsed as Record<string, unknown>;
  const integer = (name: string, value: unknown): number => {
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
    throw unservable(
      `region ${index}: ${name} must be an integer from 0 to 2^53 - 1; it is ${quoted(value)}`,
    );
  };
  // The older name of the page size; it holds bytes, too.
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
  // The last page of a file may be incomplete: the rest of the page is zeros.
  if (offset + length > wholePages(memoryBytes, SYSTEM_PAGE)) {
    throw unservable(
      `region ${index} needs bytes ${offset} to ${offset + length} of the memory file, which has ${memoryBytes}`,
    );
  }
  const { shared = false } = members;
  if (typeof shared !== 'boolean')
    throw unservable(`region ${index}: shared must be true or false; it is ${quoted(shared)}`);
  if (shared && pageSize !== SYSTEM_PAGE)
    throw unservable(`region ${index}: only pages of ${SYSTEM_PAGE} bytes can be shared`);
  return { start: BigInt(start), length, offset, pageSize, ...(shared && { shared }) };
}
