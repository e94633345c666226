// The core by itself: no kernel, no koffi, no other thread. `covers` says what each figure includes; the clock's own
// cost (some 50 ns a sample) is in all of them.

import {
  Action,
  SIZEOF_UFFD_MSG as MESSAGE_BYTES,
  Operation as Op,
  Step,
  UFFDIO_COPY,
} from '../src/bindings/core.js';
import { type Core, instantiate } from '../src/uffd/core.js';
import { type Spread, spread } from './statistics.js';

export interface CoreFigure {
  name: string;
  unit: string;
  value: Spread;
  covers: string;
}

const PAGE_SHIFT = 12;
const PAGE = 2 ** PAGE_SHIFT;
const BASE = 0x7f00_0000_0000n;
const EAGAIN = 11;
const EEXIST = 17;
/** UFFD_EVENT_PAGEFAULT. */
const PAGEFAULT = 0x12n;
/** Messages of one read: as many as the core's buffer holds. */
const READ_MESSAGES = 128;
const SAMPLE_MS = 200;
const RANGES = 100_000;
const PAGES = 8192;
/** A prime. Its multiples, modulo any of the counts below, visit all indices in scattered order. */
const SCATTER = 48_611;

/** Works for a moment, and returns the milliseconds and the number of operations. */
type Sample = () => { ms: number; done: number };

/** Runs `sample` for a while; returns operations per second. */
function rate(sample: Sample): number {
  let ms = 0;
  let done = 0;
  const until = performance.now() + SAMPLE_MS;
  while (performance.now() < until) {
    const result = sample();
    ms += result.ms;
    done += result.done;
  }
  return (done / ms) * 1000;
}

/** A core with `count` ranges of one page each, 2 pages apart, or one range of `count` pages. */
function coreWith(count: number, apart: boolean): Core {
  const core = instantiate();
  core.arguments(0n).start(PAGE_SHIFT);
  const operations = 0x1ffn;
  if (!apart) core.arguments(BASE, count * PAGE, operations).rangePut(1, PAGE_SHIFT);
  for (let i = 0; apart && i < count; i++) {
    core.arguments(BASE + BigInt(i * 2 * PAGE), PAGE, operations).rangePut(1, PAGE_SHIFT);
  }
  return core;
}

/** Reads of `READ_MESSAGES` page faults each, as the kernel writes them: every page once, shuffled. */
function rawReads(pages: number): Uint8Array[] {
  const order = Array.from({ length: pages }, (_, i) => (i * 7919) % pages);
  const reads: Uint8Array[] = [];
  for (let at = 0; at < pages; at += READ_MESSAGES) {
    const words = new BigUint64Array((READ_MESSAGES * MESSAGE_BYTES) / 8);
    for (let i = 0; i < READ_MESSAGES; i++) {
      words[i * 4] = PAGEFAULT;
      words[i * 4 + 2] = BASE + BigInt(order[at + i] as number) * BigInt(PAGE);
    }
    reads.push(new Uint8Array(words.buffer));
  }
  return reads;
}

/** Begins a batch, whose read fills the buffer. */
function beginBatch(core: Core): void {
  if (core.exports.begin() !== Action.READ || core.room !== READ_MESSAGES * MESSAGE_BYTES)
    throw new Error('the core does not ask for a read of the whole buffer');
}

/** Continues the batch: the queue is empty, and every fault is answered. Returns how many faults there were. */
function answerAll(core: Core): number {
  const { exports } = core;
  let taken = 0;
  for (let next = exports.handleRead(-EAGAIN); next === Action.FAULT; next = exports.handleAnswer(true, true))
    taken++;
  return taken;
}

function decoding(): Sample {
  const core = coreWith(PAGES, false);
  const reads = rawReads(PAGES);
  let turn = 0;
  return () => {
    core.messageBytes(0, READ_MESSAGES * MESSAGE_BYTES).set(reads[turn++ % reads.length] as Uint8Array);
    const begin = performance.now();
    beginBatch(core);
    core.exports.handleRead(core.room);
    const ms = performance.now() - begin;
    return { ms, done: counted(answerAll(core)) };
  };
}

function cycle(): Sample {
  const core = coreWith(PAGES, false);
  const reads = rawReads(PAGES);
  let turn = 0;
  return () => {
    core.messageBytes(0, READ_MESSAGES * MESSAGE_BYTES).set(reads[turn++ % reads.length] as Uint8Array);
    const begin = performance.now();
    beginBatch(core);
    core.exports.handleRead(core.room);
    const taken = answerAll(core);
    return { ms: performance.now() - begin, done: counted(taken) };
  };
}

function counted(taken: number): number {
  if (taken !== READ_MESSAGES) throw new Error(`the core handed out ${taken} of ${READ_MESSAGES} faults`);
  return taken;
}

function lookup(ranges: number): Sample {
  const core = coreWith(ranges, true);
  const addresses = Array.from(
    { length: 4096 },
    (_, i) => BASE + BigInt(((i * SCATTER) % ranges) * 2 * PAGE + 8),
  );
  return () => {
    let found = 0;
    const begin = performance.now();
    for (const address of addresses) found += core.arguments(address).rangeAt();
    const ms = performance.now() - begin;
    if (found !== addresses.length) throw new Error(`the core found ${found} of ${addresses.length} ranges`);
    return { ms, done: found };
  };
}

function transfer(pages: number): Sample {
  const core = coreWith(pages, false);
  const count = Math.min(pages, 8192);
  const destinations = Array.from({ length: count }, (_, i) => BASE + BigInt(((i * SCATTER) % pages) * PAGE));
  return () => {
    let bytes = 0;
    let codes = 0;
    const begin = performance.now();
    for (const destination of destinations) {
      const exports = core.arguments(destination, PAGE, BASE);
      exports.beginFill(Op.COPY, 0);
      codes += core.code === UFFDIO_COPY ? 1 : 0;
      exports.handleResult(0);
      bytes += core.outcome === Step.DONE ? core.resolved : 0;
    }
    const ms = performance.now() - begin;
    if (bytes !== count * PAGE || codes !== count)
      throw new Error(`the core counted ${bytes} of ${count * PAGE} bytes`);
    return { ms, done: count };
  };
}

/**
 * Steps of one long COPY whose pages are all present. Each page takes an EEXIST and a WAKE, then the next page follows.
 */
function steps(): Sample {
  const pages = 4096;
  const core = coreWith(pages, false);
  const { exports } = core;
  return () => {
    let done = 0;
    const begin = performance.now();
    let action = core.arguments(BASE, pages * PAGE, BASE).beginFill(Op.COPY, 0);
    for (; action === Action.IOCTL; done++) {
      const copies = core.code === UFFDIO_COPY;
      action = exports.handleResult(copies ? -EEXIST : 0);
    }
    const ms = performance.now() - begin;
    if (done !== 2 * pages) throw new Error(`the core took ${done} steps, ${2 * pages} were expected`);
    return { ms, done };
  };
}

const perSecond = (value: number): number => value / 1e6;
const nanoseconds = (value: number): number => 1e9 / value;

const MEASURES = [
  {
    name: 'decode',
    unit: 'million messages/s',
    make: decoding,
    convert: perSecond,
    covers:
      'begin and handleRead of 128 raw page faults: decoded, rounded to their page by its range, merged by page ' +
      'and queued. Putting the bytes there (the kernel does) and answering the faults are not timed',
  },
  {
    name: 'whole cycle',
    unit: 'million messages/s',
    make: cycle,
    convert: perSecond,
    covers: 'the same, a read that finds no more, and handleAnswer for each message, called from TypeScript',
  },
  {
    name: 'range lookup',
    unit: 'ns',
    make: () => lookup(RANGES),
    convert: nanoseconds,
    covers: 'core.arguments and rangeAt from TypeScript, scattered addresses, 100,000 ranges of one page',
  },
  {
    name: 'whole transfer',
    unit: 'ns',
    make: () => transfer(PAGES),
    convert: nanoseconds,
    covers:
      'one page COPY with the ioctl left out: core.arguments, beginFill, core.code, handleResult, core.outcome ' +
      'and core.resolved',
  },
  {
    name: 'transfer step',
    unit: 'ns',
    make: steps,
    convert: nanoseconds,
    covers:
      'core.code and handleResult, of a COPY over 4,096 pages that are all there: EEXIST and WAKE in turn',
  },
] as const;

/** Measures each figure `rounds` times, after an uncounted first time that warms up. */
export function benchCore(rounds: number): CoreFigure[] {
  return MEASURES.map(({ name, unit, make, convert, covers }) => {
    const sample = make();
    rate(sample);
    const values = Array.from({ length: rounds }, () => convert(rate(sample)));
    return { name, unit, value: spread(values), covers };
  });
}

function nanosecondsOf(sample: Sample, rounds: number): Spread {
  rate(sample);
  return spread(Array.from({ length: rounds }, () => nanoseconds(rate(sample))));
}

/** Nanoseconds of a lookup among this number of ranges. */
export function lookupNs(ranges: number, rounds: number): Spread {
  return nanosecondsOf(lookup(ranges), rounds);
}

/** Nanoseconds of a transfer without its ioctl, anywhere in a range of this number of pages. */
export function transferNs(pages: number, rounds: number): Spread {
  return nanosecondsOf(transfer(pages), rounds);
}
