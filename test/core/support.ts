// What the tests of the core share: a core without a kernel, messages as the kernel would write them, and
// what the core says in a form that can be compared.

import { strict as assert } from 'node:assert';
import { readFileSync } from 'node:fs';
import { Core, instantiate, MODES, Next, type RangeReport, Read, Step } from '../../src/core.js';

export const PAGE = 4096;
export const P = 4096n;
/** Where the tests' memory lies: high enough that an address cut to 32 bits is noticed. */
export const BASE = 0x7f12_0000_0000n;

// By bit number, as in <linux/userfaultfd.h>.
export const EVENT_FORK = 1n << 1n;
export const EVENT_REMAP = 1n << 2n;
export const EVENT_REMOVE = 1n << 3n;
export const EVENT_UNMAP = 1n << 6n;
export const ALL_EVENTS = EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;

export const MISSING = 1;
export const WRITE_PROTECT = 2;
export const MINOR = 4;

export const State = { missing: 0, present: 1, removed: 2, inFlight: 3, writeProtected: 4 } as const;

// Flags of a fault message.
export const WRITE = 1n;
export const FLAG_WP = 2n;
export const FLAG_MINOR = 4n;

export const EAGAIN = -11;

/** A core that was started on a system with 4 KiB pages. */
export function makeCore(features = ALL_EVENTS): Core {
  const core = instantiate();
  core.exports.start(12, features);
  return core;
}

/**
 * A core whose loads from memory are counted: `loads` runs something and says how many it did. That measures
 * work without a clock. (Binaryen makes the module call back at every load.)
 */
export async function countingCore(): Promise<{ core: Core; loads(run: () => void): number }> {
  const { default: binaryen } = await import('binaryen');
  const file = `../../core/${process.env.UFFD_CORE === 'debug' ? 'debug' : 'release'}.wasm`;
  const module = binaryen.readBinary(readFileSync(new URL(file, import.meta.url)));
  module.runPasses(['instrument-memory']);
  const compiled = new WebAssembly.Module(new Uint8Array(module.emitBinary()));
  module.dispose();
  let count = 0;
  const env: Record<string, WebAssembly.ImportValue> = {};
  for (const { name } of WebAssembly.Module.imports(compiled)) {
    // Each is told a value or an address last, and gives it back.
    env[name] = (...values: unknown[]) => {
      if (name === 'load_ptr') count++;
      return values.at(-1);
    };
  }
  const instance = new WebAssembly.Instance(compiled, { env });
  const core = new Core(instance.exports as unknown as Core['exports']);
  core.exports.start(12, ALL_EVENTS);
  const loads = (run: () => void) => {
    count = 0;
    run();
    return count;
  };
  return { core, loads };
}

/** The address of the tests' page number `index`. */
export function page(index: number): bigint {
  return BASE + BigInt(index) * P;
}

// ---- messages --------------------------------------------------------------------------------------------

export type Message =
  | { is: 'fault'; address: bigint; flags?: bigint; tid?: number }
  | { is: 'fork'; fd: number }
  | { is: 'remap'; from: bigint; to: bigint; length: bigint }
  | { is: 'remove' | 'unmap'; start: bigint; end: bigint }
  | { is: 'code'; code: number };

export const fault = (address: bigint, flags = 0n, tid = 0): Message => ({
  is: 'fault',
  address,
  flags,
  tid,
});
export const fork = (fd: number): Message => ({ is: 'fork', fd });
export const remap = (from: bigint, to: bigint, length: bigint): Message => ({
  is: 'remap',
  from,
  to,
  length,
});
export const remove = (start: bigint, end: bigint): Message => ({ is: 'remove', start, end });
export const unmap = (start: bigint, end: bigint): Message => ({ is: 'unmap', start, end });

const CODES = { fault: 0x12, fork: 0x13, remap: 0x14, remove: 0x15, unmap: 0x16 } as const;

/** Writes messages into the core's buffer as read(2) would. How many bytes they are. */
export function write(core: Core, ...messages: Message[]): number {
  const view = new DataView(core.memory.buffer, core.messages, messages.length * 32);
  messages.forEach((message, index) => {
    const at = index * 32;
    // What the kernel leaves of an earlier read must not matter.
    for (let i = 1; i < 32; i++) view.setUint8(at + i, 0xee);
    view.setUint8(at, message.is === 'code' ? message.code : CODES[message.is]);
    const words = (...values: bigint[]) =>
      values.forEach((value, word) => void view.setBigUint64(at + 8 + word * 8, value, true));
    if (message.is === 'fault') {
      words(message.flags ?? 0n, message.address);
      view.setUint32(at + 24, message.tid ?? 0, true);
    } else if (message.is === 'fork') {
      view.setUint32(at + 8, message.fd, true);
    } else if (message.is === 'remap') {
      words(message.from, message.to, message.length);
    } else if (message.is !== 'code') {
      words(message.start, message.end);
    }
  });
  return messages.length * 32;
}

/** Reads messages into the core, in as many reads as it gives room for; more may be in the kernel's queue. */
export function feed(core: Core, ...messages: Message[]): void {
  for (let done = 0; done < messages.length; ) {
    const room = core.exports.inboxRoom() / 32;
    assert.ok(room > 0, 'the core gives no room');
    const some = messages.slice(done, done + room);
    const length = write(core, ...some);
    assert.equal(
      still(core, 'inboxTake', () => core.exports.inboxTake(length)),
      some.length < room ? Read.drained : Read.more,
    );
    done += some.length;
  }
  core.exports.inboxOpen();
}

/** The kernel's queue is empty. */
export function drain(core: Core): void {
  core.exports.inboxRoom();
  assert.equal(core.exports.inboxTake(EAGAIN), Read.drained);
}

/** Calls what must not make memory grow, since it runs while faults are served. */
export function still<T>(core: Core, name: string, call: () => T): T {
  const before = core.memory.buffer.byteLength;
  const result = call();
  assert.equal(core.memory.buffer.byteLength, before, `${name} made memory grow`);
  return result;
}

// ---- what the core says ----------------------------------------------------------------------------------

export type Heard =
  | { is: 'none' | 'read' | 'noMemory' }
  | { is: 'fault'; address: bigint; page: bigint; kind: string; write: boolean; tid: number }
  | { is: 'forked'; fd: bigint }
  | { is: 'remapped'; from: bigint; to: bigint; length: bigint }
  | { is: 'removed' | 'unmapped'; start: bigint; end: bigint };

/** What the handler would hear next. */
export function hear(core: Core, now = 0): Heard {
  const before = core.memory.buffer.byteLength;
  const heard = decode(core, core.exports.roundNext(now));
  if (heard.is === 'fault') assert.equal(core.memory.buffer.byteLength, before, 'a fault made memory grow');
  return heard;
}

/** Answers the fault that was heard last. */
export function answer(core: Core, answered: boolean, now = 0): void {
  still(core, 'inboxAnswer', () => {
    if (core.exports.inboxAnswer(answered ? 1 : 0)) core.exports.inboxDefer(now);
  });
}

/** Everything there is to hear at `now`, each fault answered, with nothing left in the kernel. */
export function hearAll(core: Core, now = 0): Heard[] {
  const all: Heard[] = [];
  for (;;) {
    const heard = hear(core, now);
    if (heard.is === 'none') return all;
    if (heard.is === 'read') {
      drain(core);
      continue;
    }
    all.push(heard);
    if (heard.is === 'fault') answer(core, true, now);
  }
}

/** A mapping change, without asking for faults. */
export function hearEvent(core: Core): Heard {
  return decode(core, core.exports.inboxNextEvent());
}

function decode(core: Core, next: number): Heard {
  const [a, b, c] = [core.delivered(0), core.delivered(1), core.delivered(2)];
  switch (next) {
    case Next.fault: {
      const kind = MODES[core.deliveredFault(0)] as string;
      const write = core.deliveredFault(1) !== 0;
      return { is: 'fault', address: a, page: b, kind, write, tid: core.deliveredFault(2) };
    }
    case Next.forked:
      return { is: 'forked', fd: a };
    case Next.remapped:
      return { is: 'remapped', from: a, to: b, length: c };
    case Next.removed:
      return { is: 'removed', start: a, end: b };
    case Next.unmapped:
      return { is: 'unmapped', start: a, end: b };
    case Next.none:
      return { is: 'none' };
    case Next.read:
      return { is: 'read' };
    case Next.noMemory:
      return { is: 'noMemory' };
    default:
      throw new Error(`roundNext said ${next}`);
  }
}

/** Delivers the mapping changes that were read. */
export function apply(core: Core, ...messages: Message[]): void {
  feed(core, ...messages);
  while (hearEvent(core).is !== 'none');
}

/** The page numbers of the faults in what was heard. */
export function pagesOf(heard: Heard[]): number[] {
  return heard.flatMap((one) => (one.is === 'fault' ? [Number((one.page - page(0)) / P)] : []));
}

/** A core with 100 pages registered that has read these messages, and knows that there are no more. */
export function holding(...messages: Message[]): Core {
  const core = makeCore();
  put(core, 0, 100);
  feed(core, ...messages);
  drain(core);
  return core;
}

// ---- ranges and pages ------------------------------------------------------------------------------------

export interface RangeOptions {
  modes?: number;
  operations?: bigint;
  pageShift?: number;
}

/** Registers `count` pages from page number `first` on. */
export function put(core: Core, first: number, count: number, options: RangeOptions = {}): void {
  const { modes = MISSING, operations = 0x13cn, pageShift = 12 } = options;
  const done = core.arguments(page(first), count * PAGE, operations).rangePut(modes, pageShift);
  assert.equal(done, 1, 'rangePut found no memory');
}

export function take(core: Core, first: number, count: number): void {
  assert.equal(core.arguments(page(first), count * PAGE).rangeTake(), 1, 'rangeTake found no memory');
}

/** All ranges, as the core lists them. */
export function listing(core: Core): RangeReport[] {
  const ranges: RangeReport[] = [];
  for (let more = core.exports.rangeFirst(); more; more = core.exports.rangeNext())
    ranges.push(core.reported());
  assert.equal(ranges.length, core.exports.rangeCount(), 'rangeCount');
  return ranges;
}

/** `[first page, end page, modes]` of every range: short to write in shared cases. */
export function brief(core: Core): [number, number, number][] {
  const number = (address: bigint) => Number((address - BASE) / P);
  return listing(core).map(({ start, end, modes }) => [number(start), number(end), modes]);
}

/** The range that holds an address. */
export function lookup(core: Core, address: bigint): RangeReport | undefined {
  return core.arguments(address).rangeAt() ? core.reported() : undefined;
}

/** State of page number `index`; +4 where it is write-protected. */
export function stateOf(core: Core, index: number): number {
  return core.arguments(page(index)).pageAt();
}

/** What to fill for a fault on page number `index`: the first page's number, and how many. */
export function windowOf(core: Core, index: number, size: number): [first: number, count: number] {
  const count = core.arguments(page(index)).pageWindow(size);
  const start = BigInt.asUintN(64, core.exports.pagesWindowStart());
  return [Number((start - BASE) / P), count];
}

/** Where a page of zeros lies. */
export const ZEROS = 0x66bb_0000_0000n;

/** Runs a transfer of `count` pages of which the kernel does everything that it is asked for. */
export function transfer(
  core: Core,
  op: number,
  first: number,
  count: number,
  options = 0,
  source = 0n,
): void {
  still(core, 'a transfer', () => {
    let step = core.arguments(page(first), count * PAGE, source).transferBegin(op, options);
    for (;;) {
      if (step === Step.call) step = core.exports.transferResult(0);
      else if (step === Step.zeros) step = core.arguments(0n, 0, ZEROS).transferZeros();
      else break;
    }
    assert.equal(step, Step.done);
  });
}
