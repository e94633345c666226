// What a monitor hands over: the JSON text of its memory's regions, with descriptors beside it. Facts of the protocol
// are those of Firecracker's documentation (docs/snapshotting/handling-page-faults-on-snapshot-resume.md).
//
// Rules:
//  - All of it comes from outside. Nothing is used before it was checked, and what is wrong is told with its value.
//  - One connection may hand over several userfaultfds, one after the other, and each text may come in pieces.

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

/** The text, or what came with it, is not what a monitor sends. */
export class HandOffError extends Error {
  override readonly name = 'HandOffError';
  readonly code = 'ERR_UFFD_HAND_OFF';
}

/** Bytes of a page of the memory file, as far as it is mapped here. */
export const SYSTEM_PAGE = 4096;
const PAGE_SIZES: readonly number[] = [SYSTEM_PAGE, 2 ** 21];
/** Text of some seven thousand regions. */
const TEXT_MOST = 2 ** 20;
/** The userfaultfd, and a memfd of the guest's memory. */
const FDS_MOST = 2;

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
  #bytes = new Uint8Array();
  /** How far it was looked at, and what that came to. */
  #at = 0;
  #depth = 0;
  #quoted = false;
  #escaped = false;
  #fds: number[] = [];

  /** A text has begun, and its end has not come; or descriptors came without a text. */
  get begun(): boolean {
    return this.#bytes.length > 0 || this.#fds.length > 0;
  }

  push(bytes: Uint8Array, fds: readonly number[]): void {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    this.#fds.push(...fds);
  }

  /**
   * The next whole text, if there is one.
   *
   * @throws HandOffError where no end of it will make it right
   */
  next(): HandOff | undefined {
    if (this.#at === 0) this.#skipSpace();
    const [first] = this.#bytes;
    if (first !== undefined && first !== ARRAY) {
      throw new HandOffError(
        `a hand-off is a JSON array; this begins with ${JSON.stringify(this.#excerpt())}`,
      );
    }
    if (this.#fds.length > FDS_MOST) {
      const came = `${this.#fds.length} descriptors came`;
      throw new HandOffError(`a hand-off carries a userfaultfd, and perhaps a memfd; ${came}`);
    }
    while (this.#at < this.#bytes.length) {
      if (!this.#ends(this.#bytes[this.#at++] as number)) continue;
      const text = textOf(this.#bytes.subarray(0, this.#at));
      this.#bytes = this.#bytes.subarray(this.#at);
      this.#at = 0;
      return { text, fds: this.#fds.splice(0) };
    }
    if (this.#bytes.length > TEXT_MOST) {
      throw new HandOffError(`a hand-off has at most ${TEXT_MOST} bytes; this one goes on`);
    }
    return undefined;
  }

  /** Descriptors that belong to no text yet: the caller's from now on. */
  giveBack(): number[] {
    return this.#fds.splice(0);
  }

  #skipSpace(): void {
    const begin = this.#bytes.findIndex((byte) => !SPACE.has(byte));
    this.#bytes = begin < 0 ? new Uint8Array() : this.#bytes.subarray(begin);
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
    else if (OPENING.has(byte)) this.#depth++;
    else if (CLOSING.has(byte)) return --this.#depth === 0;
    return false;
  }

  #excerpt(): string {
    return Buffer.from(this.#bytes.subarray(0, 20)).toString('latin1');
  }
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
    throw new HandOffError(`the hand-off is not JSON: ${(error as Error).message}`);
  }
  if (!Array.isArray(told)) throw new HandOffError('the hand-off is not an array of regions');
  if (told.length === 0) throw new HandOffError('the hand-off has no region');
  const regions = told.map((one, index) => parseRegion(one, index, memoryBytes));
  regions.sort((a, b) => (a.start < b.start ? -1 : 1));
  for (const [index, { start }] of regions.entries()) {
    const before = regions[index - 1];
    if (before && before.start + BigInt(before.length) > start) {
      throw new HandOffError(`the regions at ${hex(before.start)} and ${hex(start)} overlap`);
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
    throw new HandOffError(
      `region ${index}: ${name} must be an integer from 0 to 2^53 - 1; it is ${JSON.stringify(value)}`,
    );
  };
  // The older name holds bytes, too.
  const pageSize = integer('page_size', members.page_size ?? members.page_size_kib ?? SYSTEM_PAGE);
  if (!PAGE_SIZES.includes(pageSize)) {
    throw new HandOffError(
      `region ${index}: pages of ${pageSize} bytes; ${PAGE_SIZES.join(' and ')} can be served`,
    );
  }
  const whole = (name: string): number => {
    const value = integer(name, members[name]);
    if (value % pageSize === 0) return value;
    throw new HandOffError(
      `region ${index}: ${name} is ${value}, no multiple of its pages' ${pageSize} bytes`,
    );
  };
  const [start, length, offset] = [whole('base_host_virt_addr'), whole('size'), whole('offset')];
  if (length === 0) throw new HandOffError(`region ${index} has no bytes`);
  if (!Number.isSafeInteger(start + length))
    throw new HandOffError(`region ${index} ends behind all addresses`);
  // The last page of a file may be a part of one: the rest of it is zeros.
  if (offset + length > wholePages(memoryBytes, SYSTEM_PAGE)) {
    throw new HandOffError(
      `region ${index} needs bytes ${offset} to ${offset + length} of the memory file, which has ${memoryBytes}`,
    );
  }
  return { start: BigInt(start), length, offset, pageSize };
}
