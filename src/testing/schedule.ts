// Writes a run as readable lines: the time, the thread, and what it did. Names of pages replace addresses.

import { errnoName } from '../errors/errors.js';
import { E } from '../sim/abi.js';
import type { ObservedCall } from './observed-port.js';

/** Addresses of memory: at least six digits after 0x. */
const ADDRESS = /0x([0-9a-f]{6,})/g;
/** A COPY of at least this length only checks whether the process exists, because no mapping is that long. */
const ASKING_BYTES = 1n << 36n;

/** The pages of [start, end), by their addresses. */
export function pagesOf(start: bigint, end: bigint, pageSize: number): string {
  const size = BigInt(pageSize);
  const [first, last] = [start, end - size].map((page) => `0x${page.toString(16)}`);
  return end - start <= size ? `${first}` : `${first} to ${last}`;
}

export class Schedule {
  readonly lines: string[] = [];
  readonly #areas: { start: bigint; end: bigint; name: string; first: bigint | undefined }[] = [];
  readonly #clock: { readonly now: number };
  readonly #pageSize: number;

  /** `pageSize`: bytes of a page of the memory that gets names. */
  constructor(clock: { readonly now: number }, pageSize: number) {
    this.#clock = clock;
    this.#pageSize = pageSize;
  }

  /**
   * Gives a name to the pages that begin at an address. `first`: the number of the first one. If it is missing, several
   * pages are counted from 0, and a single one has no number.
   */
  name(start: bigint, length: number, name: string, first?: number): void {
    const from = first ?? (length > this.#pageSize ? 0 : undefined);
    const area = { start, end: start + BigInt(length), name };
    this.#areas.unshift({ ...area, first: from === undefined ? undefined : BigInt(from) });
  }

  /** Adds a line: 'thread 2: …', 'handler: …'. */
  add(line: string): void {
    const [who = '', ...what] = line.split(': ');
    const time = this.#clock.now.toFixed(3).padStart(9);
    this.lines.push(`${time}  ${who.padEnd(10)}  ${this.readable(what.join(': '))}`);
  }

  /** Adds a call of the handler, and the kernel's answer. */
  call({ name, start, length, result, installed }: ObservedCall): void {
    if (length >= ASKING_BYTES) {
      this.add(`handler: is the process there? ${result === E.SRCH ? 'no' : 'yes'}`);
      return;
    }
    const pageSize = this.#pageSize;
    const partly = installed > 0 ? `, ${installed / pageSize} done` : '';
    const answer = result < 0 ? `${errnoName(-result)}${partly}` : 'done';
    this.add(`handler: ${name} ${pagesOf(start, start + length, pageSize)} → ${answer}`);
  }

  /** Replaces known addresses in a text by names. */
  readable(text: string): string {
    return text.replaceAll(ADDRESS, (whole, digits: string) => {
      const address = BigInt(`0x${digits}`);
      const area = this.#areas.find(({ start, end }) => address >= start && address < end);
      if (!area) return whole;
      const offset = address - area.start;
      const size = BigInt(this.#pageSize);
      const rest = offset % size;
      const which = area.first === undefined ? '' : ` ${area.first + offset / size}`;
      return `${area.name}${which}${rest > 0n ? ` byte ${rest}` : ''}`;
    });
  }
}
