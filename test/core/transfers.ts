// The six operations as the tests see them, and a transfer whose kernel is played by the test.

import { strict as assert } from 'node:assert';
import { type Core, Op, Option, Step } from '../../src/core.js';
import { BASE, EAGAIN, feed, type Message, makeCore, P, PAGE, page, put, still, ZEROS } from './support.js';

export const EINTR = -4;
export const EEXIST = -17;
export const ENOENT = -2;
export const ESRCH = -3;
export const EFAULT = -14;
/** Where sources lie: page by page as far behind it as behind BASE. */
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
  /** Where the signed result is, in u64; undefined: there is none. */
  result: number | undefined;
  source: boolean;
  stepsOver: boolean;
  /** The kernel's mode bits for the options. */
  dontWake: bigint;
  writeProtect: bigint;
  holes: bigint;
  /** Options with which ENOENT can only mean that the memory is gone. */
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
  row('COPY', Op.copy, 0xc028aa03, { result: 4, source: true, writeProtect: 2n }),
  row('ZEROPAGE', Op.zero, 0xc020aa04, {}),
  row('CONTINUE', Op.continue, 0xc020aa07, { writeProtect: 2n }),
  row('POISON', Op.poison, 0xc020aa08, {}),
  row('MOVE', Op.move, 0xc028aa05, {
    result: 4,
    source: true,
    holes: 2n,
    stepsOver: false,
    plain: Option.allowHoles,
  }),
  row('WRITEPROTECT', Op.writeProtect, 0xc018aa06, { result: undefined, dontWake: 2n, writeProtect: 1n }),
];
export const FILLS = ROWS.filter((one) => one.result !== undefined);
export const STEPPERS = FILLS.filter((one) => one.stepsOver);

/** One transfer, with the kernel played by the test. */
export class Run {
  readonly core: Core;
  readonly row: Row;
  readonly count: number;
  readonly mode: bigint;
  step: number;

  /** Over `count` pages from page 0 on, in a core that may have read messages before. */
  constructor(row: Row, count = 8, options = 0, core = makeCore()) {
    this.core = core;
    this.row = row;
    this.count = count;
    this.mode =
      (options & Option.dontWake ? row.dontWake : 0n) |
      (options & Option.writeProtect ? row.writeProtect : 0n) |
      (options & Option.allowHoles ? row.holes : 0n);
    if (core.exports.rangeCount() === 0) put(core, 0, 64);
    // Whatever the last call left in the struct.
    this.words.fill(PATTERN);
    this.step = core.arguments(BASE, count * PAGE, SOURCE).transferBegin(row.op, options);
  }

  get words(): BigUint64Array {
    return this.core.words.subarray(this.core.request >>> 3, (this.core.request >>> 3) + 8);
  }

  get done(): number {
    return this.core.exports.transferDone();
  }

  /** The call to make is the operation, from page `first` on up to page `end`, with its result zeroed. */
  isFill(first: number, end = this.count, mode = this.mode): this {
    const { row } = this;
    assert.equal(this.step, Step.call);
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

  /** The call to make is a COPY of zeros to page `first` alone, in this mode. */
  isZeros(first: number, mode: bigint): this {
    assert.equal(this.step, Step.call);
    assert.equal(this.core.code >>> 0, COPY);
    assert.deepEqual([...this.words.subarray(0, 5)], [page(first), ZEROS, P, mode, 0n]);
    return this;
  }

  /** The call to make is a WRITEPROTECT of page `first` alone, in this mode. */
  isProtect(first: number, mode: bigint): this {
    assert.equal(this.step, Step.call);
    assert.equal(this.core.code >>> 0, WRITEPROTECT);
    assert.deepEqual([...this.words.subarray(0, 3)], [page(first), P, mode]);
    return this;
  }

  /** The address of zeros is asked for: this is it. */
  zeros(): this {
    assert.equal(this.step, Step.zeros);
    this.step = still(this.core, 'transferZeros', () => this.core.arguments(0n, 0, ZEROS).transferZeros());
    return this;
  }

  /** Calls in a row, each `first` to `end` (exclusive), and what the kernel answers: 0, or −errno. */
  plays(...calls: readonly (readonly [first: number, end: number, result?: number])[]): this {
    for (const [first, end, result = 0] of calls) this.isFill(first, end).answers(result);
    return this;
  }

  /** The call to make is a WAKE of `pages` pages from page `first` on. */
  isWake(first: number, pages: number): this {
    assert.equal(this.step, Step.call);
    assert.equal(this.core.code >>> 0, WAKE);
    assert.deepEqual([...this.words.subarray(0, 2)], [page(first), BigInt(pages) * P]);
    return this;
  }

  /** The call's answer: ≥ 0 or −errno, and what the kernel wrote into the result. */
  answers(result: number, out?: bigint): this {
    if (out !== undefined && this.row.result !== undefined) {
      this.words[this.row.result] = BigInt.asUintN(64, out);
    }
    this.step = still(this.core, 'transferResult', () => this.core.exports.transferResult(result));
    return this;
  }

  /** Events are to be read; these are what there was. */
  reads(...messages: Message[]): this {
    assert.equal(this.step, Step.read);
    feed(this.core, ...messages);
    this.core.exports.inboxTake(EAGAIN);
    this.words.fill(PATTERN);
    this.step = still(this.core, 'transferResume', () => this.core.exports.transferResume());
    return this;
  }

  ends(step: number, pages: number, errno = 0): void {
    assert.equal(this.step, step);
    assert.equal(this.done, pages * PAGE);
    if (step === Step.failed) assert.equal(this.core.exports.transferErrno(), errno);
  }
}

// ---- the call that the core has prepared -------------------------------------------------------------------

export type Requested =
  | { is: 'copy'; start: number; pages: number; source: bigint; mode: bigint }
  | { is: 'wake'; start: number; pages: number };

/** What `request` asks of the kernel: a COPY, or a WAKE; in pages from BASE. */
export function requested(core: Core): Requested {
  const code = core.code >>> 0;
  const [start = 0n, second = 0n, third = 0n, mode = 0n] = core.words.subarray(core.request >>> 3);
  const first = Number((start - BASE) / P);
  if (code === WAKE) return { is: 'wake', start: first, pages: Number(second / P) };
  assert.equal(code, COPY);
  return { is: 'copy', start: first, pages: Number(third / P), source: second, mode };
}

/** The kernel's result of a COPY that it did so many pages of. */
export function partly(core: Core, pages: number): void {
  core.words[(core.request >>> 3) + 4] = BigInt(pages * PAGE);
}

/** What was answered. */
export function tallied(core: Core): { faults: number; writes: number; putOff: number; pages: number } {
  return {
    faults: core.answered(0),
    writes: core.answered(1),
    putOff: core.answered(2),
    pages: core.answeredBytes / PAGE,
  };
}
