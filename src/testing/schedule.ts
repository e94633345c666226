// A run as lines for people: when, who, and what. Addresses are named after the pages they lie in.

import { errnoName } from '../errors.js';
import { E } from '../sim/abi.js';
import type { Call } from './port.js';

/** Bytes of virtual addresses behind 0x. */
const ADDRESS = /0x([0-9a-f]{6,})/g;
/** What asks whether the process is there still: a COPY of more than there can be. */
const ASKING_BYTES = 1n << 36n;

/** The pages of [start, end), by their addresses. */
export function pagesOf(start: bigint, end: bigint, pageSize: number): string {
  const size = BigInt(pageSize);
  const [first, last] = [start, end - size].map((page) => `0x${page.toString(16)}`);
  return end - start <= size ? `${first}` : `${first} to ${last}`;
}

export class Schedule {
  readonly lines: string[] = [];
  readonly #areas: { start: bigint; end: bigint; name: string }[] = [];
  readonly #clock: { readonly now: number };
  readonly #pageSize: number;

  /** `pageSize`: bytes of a page of the memory that is named. */
  constructor(clock: { readonly now: number }, pageSize: number) {
    this.#clock = clock;
    this.#pageSize = pageSize;
  }

  /** Calls the pages from an address on after a name. */
  name(start: bigint, length: number, name: string): void {
    this.#areas.unshift({ start, end: start + BigInt(length), name });
  }

  /** 'thread 2: …', 'handler: …'. */
  add(line: string): void {
    const [who = '', ...what] = line.split(': ');
    const time = this.#clock.now.toFixed(3).padStart(9);
    this.lines.push(`${time}  ${who.padEnd(10)}  ${this.readable(what.join(': '))}`);
  }

  /** A call of the handler's, and what the kernel answered. */
  call({ name, start, length, result, installed }: Call): void {
    if (length >= ASKING_BYTES) {
      this.add(`handler: is the process there? ${result === E.SRCH ? 'no' : 'yes'}`);
      return;
    }
    const pageSize = this.#pageSize;
    const partly = installed > 0 ? `, ${installed / pageSize} done` : '';
    const answer = result < 0 ? `${errnoName(-result)}${partly}` : 'done';
    this.add(`handler: ${name} ${pagesOf(start, start + length, pageSize)} → ${answer}`);
  }

  /** A text in which addresses that are known have names. */
  readable(text: string): string {
    return text.replaceAll(ADDRESS, (whole, digits: string) => {
      const address = BigInt(`0x${digits}`);
      const area = this.#areas.find(({ start, end }) => address >= start && address < end);
      if (!area) return whole;
      const offset = address - area.start;
      const size = BigInt(this.#pageSize);
      const rest = offset % size;
      const which = area.end - area.start > size ? ` ${offset / size}` : '';
      return `${area.name}${which}${rest > 0n ? ` byte ${rest}` : ''}`;
    });
  }
}
