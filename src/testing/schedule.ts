// A run as lines for people: when, who, and what. Addresses are named after the pages they lie in.

import { errnoName } from '../errors.js';
import { E } from '../sim/abi.js';
import type { Call } from './port.js';

/** Bytes of virtual addresses behind 0x. */
const ADDRESS = /0x([0-9a-f]{6,})/g;
/** What asks whether the process is there still: a COPY of more than there can be. */
const ASKING_BYTES = 1n << 36n;

export class Schedule {
  readonly lines: string[] = [];
  readonly #areas: { start: bigint; end: bigint; name: string }[] = [];
  readonly #kernel: { readonly now: number };
  readonly #page: bigint;

  constructor(kernel: { readonly now: number; readonly pageSize: number }) {
    this.#kernel = kernel;
    this.#page = BigInt(kernel.pageSize);
  }

  /** Calls the pages from an address on after a name. */
  name(start: bigint, length: number, name: string): void {
    this.#areas.unshift({ start, end: start + BigInt(length), name });
  }

  /** 'thread 2: …', 'handler: …'. */
  add(line: string): void {
    const [who = '', ...what] = line.split(': ');
    const time = this.#kernel.now.toFixed(3).padStart(9);
    this.lines.push(`${time}  ${who.padEnd(10)}  ${this.readable(what.join(': '))}`);
  }

  /** An answer of the kernel. */
  answer(call: Call): void {
    const pages = this.#range(call.start, call.length);
    const partly =
      call.installed > 0 && call.result < 0 ? `, ${BigInt(call.installed) / this.#page} done` : '';
    if (call.length >= ASKING_BYTES) {
      this.add(`kernel: is the process there? ${call.result === E.SRCH ? 'no' : 'yes'}`);
      return;
    }
    const result = call.result < 0 ? `${errnoName(-call.result)}${partly}` : 'done';
    this.add(`kernel: ${call.name} ${pages} → ${result}`);
  }

  #range(start: bigint, length: bigint): string {
    const pages = length / this.#page;
    const first = `0x${start.toString(16)}`;
    return pages === 1n ? first : `${first} and ${pages - 1n} more`;
  }

  /** A text in which addresses that are known have names. */
  readable(text: string): string {
    return text.replaceAll(ADDRESS, (whole, digits: string) => {
      const address = BigInt(`0x${digits}`);
      const area = this.#areas.find(({ start, end }) => address >= start && address < end);
      if (!area) return whole;
      const offset = address - area.start;
      const rest = offset % this.#page;
      const which = area.end - area.start > this.#page ? ` ${offset / this.#page}` : '';
      return `${area.name}${which}${rest > 0n ? ` byte ${rest}` : ''}`;
    });
  }
}
