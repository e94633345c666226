// The six operations as a table for the tests, and a transfer for which the test plays the kernel.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import {
  BASE,
  drive,
  feed,
  type Message,
  makeCore,
  P,
  PAGE,
  page,
  put,
  still,
  ZEROS,
  zeros,
} from './support.js';

export const EINTR = -4;
export const EEXIST = -17;
export const ENOENT = -2;
export const ESRCH = -3;
export const EFAULT = -14;
/** The source of the page at BASE. The sources of later pages follow in order. */
export const DATA = 0x55aa_0000_0000n;
const WAKE = 0x8010aa02;
const COPY = 0xc028aa03;
const WRITEPROTECT = 0xc018aa06;
export const SOURCE = 0x55aa_0000_1234n;
const PATTERN = 0xeeee_eeee_eeee_eeeen;

export interface Row {
  name: string;
  op: Op;
  request: number;
  /** Index of the signed result in the struct, in u64. Undefined: the operation has no result. */
  result: number | undefined;
  source: boolean;
  stepsOver: boolean;
  /** The kernel's mode bits for the options. */
  dontWake: bigint;
  writeProtect: bigint;
  holes: bigint;
  /** Options with which ENOENT can only mean that the target is unmapped or not registered. */
  plain: number;
}

const row = (name: string, op: Op, request: number, rest: Partial<Row>): Row => ({
  name,
  op,
  request,
  result: 3,
  source: false,
  stepsOver: true,
  dontWake: 1n,
  writeProtect: 0n,
  holes: 0n,
  plain: 0,
  ...rest,
});

export const ROWS: Row[] = [
  row('COPY', Op.COPY, 0xc028aa03, { result: 4, source: true, writeProtect: 2n }),
  row('ZEROPAGE', Op.ZEROPAGE, 0xc020aa04, {}),
  row('CONTINUE', Op.CONTINUE, 0xc020aa07, { writeProtect: 2n }),
  row('POISON', Op.POISON, 0xc020aa08, {}),
  row('MOVE', Op.MOVE, 0xc028aa05, {
    result: 4,
    source: true,
    holes: 2n,
    stepsOver: false,
    plain: Option.ALLOW_HOLES,
  }),
  row('WRITEPROTECT', Op.WRITEPROTECT, 0xc018aa06, { result: undefined, dontWake: 2n, writeProtect: 1n }),
];
export const FILLS = ROWS.filter((one) => one.result !== undefined);
export const STEPPERS = FILLS.filter((one) => one.stepsOver);

/** One transfer; the test plays the kernel. */
export class Run {
  readonly core: Core;
  readonly row: Row;
  readonly count: number;
  readonly mode: bigint;
  /** The core's next action. */
  action: number;

  /** Begins a transfer of `count` pages from page 0 on, in a core that may have read messages before. */
  constructor(row: Row, count = 8, options = 0, core = makeCore()) {
    this.core = core;
    this.row = row;
    this.count = count;
    this.mode =
      (options & Option.DONTWAKE ? row.dontWake : 0n) |
      (options & Option.WRITE_PROTECT ? row.writeProtect : 0n) |
      (options & Option.ALLOW_HOLES ? row.holes : 0n);
    if (core.exports.rangeCount() === 0) put(core, 0, 64);
    // Garbage, as the last call may have left.
    this.words.fill(PATTERN);
    this.action = core.arguments(BASE, count * PAGE, SOURCE).beginFill(row.op, options);
  }

  get words(): BigUint64Array {
    return requestWords(this.core);
  }

  get done(): number {
    return this.core.resolved;
  }

  /** Checks that the call is the operation, from page `first` up to page `end`, with its result zeroed. */
  isFill(first: number, end = this.count, mode = this.mode): this {
    const { row } = this;
    assert.equal(this.action, Action.IOCTL);
    assert.equal(this.core.code >>> 0, row.request);
    const length = BigInt(end - first) * P;
    const expected = row.source
      ? [page(first), SOURCE + BigInt(first) * P, length, mode, 0n]
      : [page(first), length, mode, 0n];
    // WRITEPROTECT's struct ends before the result.
    const size = row.result === undefined ? 3 : row.result + 1;
    assert.deepEqual([...this.words.subarray(0, size)], expected.slice(0, size));
    return this;
  }

  /** Checks that the call is a COPY of zeros to page `first` alone, in this mode. */
  isZeros(first: number, mode: bigint): this {
    assert.equal(this.action, Action.IOCTL);
    assert.equal(this.core.code >>> 0, COPY);
    assert.deepEqual([...this.words.subarray(0, 5)], [page(first), ZEROS, P, mode, 0n]);
    return this;
  }

  /** Checks that the call is a WRITEPROTECT of page `first` alone, in this mode. */
  isProtect(first: number, mode: bigint): this {
    assert.equal(this.action, Action.IOCTL);
    assert.equal(this.core.code >>> 0, WRITEPROTECT);
    assert.deepEqual([...this.words.subarray(0, 3)], [page(first), P, mode]);
    return this;
  }

  /** Checks that the core asks for the address of zeros, and passes it. */
  zeros(): this {
    assert.equal(this.action, Action.ZEROS);
    this.action = still(this.core, 'handleZeros', () => zeros(this.core));
    return this;
  }

  /** Checks a sequence of calls, each from `first` to `end` (exclusive), and answers each: 0, or −errno. */
  plays(...calls: readonly (readonly [first: number, end: number, result?: number])[]): this {
    for (const [first, end, result = 0] of calls) this.isFill(first, end).answers(result);
    return this;
  }

  /** Checks that the call is a WAKE of `pages` pages from page `first` on. */
  isWake(first: number, pages: number): this {
    assert.equal(this.action, Action.IOCTL);
    assert.equal(this.core.code >>> 0, WAKE);
    assert.deepEqual([...this.words.subarray(0, 2)], [page(first), BigInt(pages) * P]);
    return this;
  }

  /** Answers the call with ≥ 0 or −errno. `out`: the value that the kernel writes into the struct's result. */
  answers(result: number, out?: bigint): this {
    if (out !== undefined && this.row.result !== undefined) {
      this.words[this.row.result] = BigInt.asUintN(64, out);
    }
    const before = this.core.memory.buffer.byteLength;
    this.action = this.core.exports.handleResult(result);
    // Memory may grow before a read.
    if (this.action !== Action.READ)
      assert.equal(this.core.memory.buffer.byteLength, before, 'a result made memory grow');
    return this;
  }

  /** Checks that the core asks for a read, which returns these messages. */
  reads(...messages: Message[]): this {
    assert.equal(this.action, Action.READ);
    feed(this.core, ...messages);
    this.words.fill(PATTERN);
    this.action = drive(this.core, this.action);
    return this;
  }

  ends(outcome: Step, pages: number, errno = 0): void {
    assert.equal(this.action, Action.FILLED);
    assert.equal(this.core.outcome, outcome);
    assert.equal(this.done, pages * PAGE);
    if (outcome === Step.FAILED) assert.equal(this.core.errno, errno);
  }
}

/** All of the core's memory in u64. `core.request >>> 3` is the index of the struct of the next ioctl. */
export function wordsOf(core: Core): BigUint64Array {
  return new BigUint64Array(core.memory.buffer);
}

function requestWords(core: Core): BigUint64Array {
  return wordsOf(core).subarray(core.request >>> 3, (core.request >>> 3) + 8);
}

// ---- the call that the core has prepared -------------------------------------------------------------------

export type Requested =
  | { is: 'copy'; start: number; pages: number; source: bigint; mode: bigint }
  | { is: 'wake'; start: number; pages: number };

/** The call that `request` holds, a COPY or a WAKE, in pages from BASE. */
export function requested(core: Core): Requested {
  const code = core.code >>> 0;
  const [start = 0n, second = 0n, third = 0n, mode = 0n] = requestWords(core);
  const first = Number((start - BASE) / P);
  if (code === WAKE) return { is: 'wake', start: first, pages: Number(second / P) };
  assert.equal(code, COPY);
  return { is: 'copy', start: first, pages: Number(third / P), source: second, mode };
}

/** Writes the result of a COPY that installed this many pages. */
export function partly(core: Core, pages: number): void {
  requestWords(core)[4] = BigInt(pages * PAGE);
}

/** The core's counts of answered faults, deferred faults and installed pages. */
export function tallied(core: Core): { faults: number; writes: number; deferred: number; pages: number } {
  return {
    faults: core.answered,
    writes: core.writes,
    deferred: core.deferred,
    pages: core.answeredBytes / PAGE,
  };
}
