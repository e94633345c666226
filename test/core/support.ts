// Shared by the tests of the core: a core without a kernel, messages as the kernel would write them, and the core's
// answers in a form that can be compared.

import { strict as assert } from 'node:assert';
import { readFileSync } from 'node:fs';
import { Action, Operation, Step, UFFDIO_WAKE } from '../../src/bindings/core.js';
import { MODES } from '../../src/kernel/features.js';
import { Core, instantiate } from '../../src/uffd/core.js';

export const PAGE = 4096;
export const P = 4096n;
/** The address of the tests' memory: so high that an address cut to 32 bits is noticed. */
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
  core.arguments(0n, 0, features).start(12);
  return core;
}

/**
 * A core whose loads from memory are counted: `loads` runs a function and returns the number of loads. That measures
 * work without a clock. (Binaryen inserts a call of an import at every load.)
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
    // Each import gets a value or an address as its last argument, and returns it.
    env[name] = (...values: unknown[]) => {
      if (name === 'load_ptr') count++;
      return values.at(-1);
    };
  }
  const instance = new WebAssembly.Instance(compiled, { env });
  const core = new Core(instance.exports as unknown as Core['exports']);
  core.arguments(0n, 0, ALL_EVENTS).start(12);
  const loads = (run: () => void) => {
    count = 0;
    run();
    return count;
  };
  return { core, loads };
}

/** The address of page number `index`. */
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

/** Writes messages into the core's buffer as read(2) would; returns their length in bytes. */
export function write(core: Core, ...messages: Message[]): number {
  const view = new DataView(core.memory.buffer, core.messages, messages.length * 32);
  messages.forEach((message, index) => {
    const at = index * 32;
    // Garbage, as an earlier read may have left: the core must ignore it.
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

/** The kernel's queue of each core. */
const queues = new WeakMap<Core, Message[]>();

function queueOf(core: Core): Message[] {
  const queue = queues.get(core) ?? [];
  queues.set(core, queue);
  return queue;
}

/** Appends these messages to the kernel's queue. */
export function feed(core: Core, ...messages: Message[]): void {
  // A loop: 100,000 arguments are too many for one call.
  const queue = queueOf(core);
  for (const message of messages) queue.push(message);
}

/** Answers the read that the core asks for, with as many messages as fit. Returns the next action. */
export function readOnce(core: Core): number {
  const some = queueOf(core).splice(0, core.room / 32);
  const result = some.length > 0 ? write(core, ...some) : EAGAIN;
  return growsForNoFault(core, () => core.exports.handleRead(result));
}

/** Passes an input to the core. Memory may grow for a change or a read, but not for a fault. */
function growsForNoFault(core: Core, input: () => number): number {
  const before = core.memory.buffer.byteLength;
  const action = input();
  if (action === Action.FAULT)
    assert.equal(core.memory.buffer.byteLength, before, 'a fault made memory grow');
  return action;
}

/** Answers the core's requests to read and for the time, until it asks for something else. Returns that action. */
export function drive(core: Core, first: number, now = 0): number {
  for (let action = first; ; ) {
    if (action === Action.READ) action = readOnce(core);
    else if (action === Action.TIME) action = growsForNoFault(core, () => core.exports.handleTime(now));
    else return action;
  }
}

/** An address far from all memory that the tests register. */
const ELSEWHERE = 0x2000_0000_0000n;

/**
 * Lets a fill read these messages, so that none is delivered; the fill then fails and has no other effect. Returns the
 * number of bytes that the first read may bring. 0: the core asks for no read.
 */
export function bring(core: Core, ...messages: Message[]): number {
  feed(core, ...messages);
  let action = core.arguments(ELSEWHERE, PAGE, ELSEWHERE).beginFill(Operation.COPY, 0);
  action = core.exports.handleResult(EAGAIN);
  const room = action === Action.READ ? core.room : 0;
  action = drive(core, action);
  assert.equal(action, Action.IOCTL);
  assert.equal(core.exports.handleResult(-14), Action.FILLED);
  assert.equal(core.outcome, Step.FAILED);
  return room;
}

/** Begins a batch, and drives it until the core asks for something other than a read or the time. */
export function dispatch(core: Core, now = 0): number {
  return drive(core, core.exports.begin(), now);
}

/** Runs a call that must not make memory grow, because it runs while faults are served. */
export function still<T>(core: Core, name: string, call: () => T): T {
  const before = core.memory.buffer.byteLength;
  const result = call();
  assert.equal(core.memory.buffer.byteLength, before, `${name} made memory grow`);
  return result;
}

// ---- the core's requests ---------------------------------------------------------------------------------

export type Delivery =
  | { is: 'none' | 'starved' | 'gone' | 'ended' }
  | { is: 'fault'; address: bigint; page: bigint; kind: string; write: boolean; tid: number }
  | { is: 'forked'; fd: bigint }
  | { is: 'remapped'; from: bigint; to: bigint; length: bigint }
  | { is: 'removed' | 'unmapped'; start: bigint; end: bigint };

/** The next delivery to the handler, in a batch of its own. Every WAKE before it succeeds. */
export function deliver(core: Core, now = 0): Delivery {
  return deliverFrom(core, dispatch(core, now), now);
}

/** As `deliver`, starting with an action that the core has already asked for. */
export function deliverFrom(core: Core, first: number, now = 0): Delivery {
  let action = drive(core, first, now);
  while (action === Action.IOCTL) {
    assert.equal(core.code >>> 0, UFFDIO_WAKE, 'only waiters at the place of a change are woken here');
    action = drive(core, core.exports.handleResult(0), now);
  }
  return delivered(core, action);
}

/** Answers the fault that was delivered last. */
export function answer(core: Core, answered: boolean, now = 0): void {
  still(core, 'handleAnswer', () => {
    assert.equal(drive(core, core.exports.handleAnswer(answered, false), now), Action.DONE);
  });
}

/** Everything that is due for delivery at `now`. Each fault is answered. */
export function deliverAll(core: Core, now = 0): Delivery[] {
  const all: Delivery[] = [];
  for (;;) {
    const one = deliver(core, now);
    if (one.is === 'none') return all;
    all.push(one);
    if (one.is === 'fault') answer(core, true, now);
  }
}

function delivered(core: Core, action: number): Delivery {
  const { start, end, third } = core;
  switch (action) {
    case Action.FAULT: {
      const kind = MODES[core.kind] as string;
      return { is: 'fault', address: third, page: start, kind, write: core.write !== 0, tid: core.tid };
    }
    case Action.FORKED:
      return { is: 'forked', fd: start };
    case Action.REMAPPED:
      return { is: 'remapped', from: start, to: end, length: third };
    case Action.REMOVED:
      return { is: 'removed', start, end };
    case Action.UNMAPPED:
      return { is: 'unmapped', start, end };
    case Action.DONE:
      return { is: 'none' };
    case Action.STARVED:
      return { is: 'starved' };
    case Action.GONE:
      return { is: 'gone' };
    case Action.ENDED:
      return { is: 'ended' };
    default:
      throw new Error(`the core asks for action ${action}`);
  }
}

/** Delivers these changes. No fault may be delivered. */
export function apply(core: Core, ...changes: Message[]): void {
  feed(core, ...changes);
  for (const change of changes) assert.notEqual(deliver(core).is, 'fault', change.is);
}

/** The page numbers of the delivered faults. */
export function pagesOf(delivered: Delivery[]): number[] {
  return delivered.flatMap((one) => (one.is === 'fault' ? [Number((one.page - page(0)) / P)] : []));
}

/** A core with 100 registered pages, and these messages in the kernel's queue. */
export function holding(...messages: Message[]): Core {
  const core = makeCore();
  put(core, 0, 100);
  feed(core, ...messages);
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

export interface RangeReport {
  start: bigint;
  end: bigint;
  operations: bigint;
  modes: number;
  pageShift: number;
}

function reported({ start, end, third: operations, modes, pageShift }: Core): RangeReport {
  return { start, end, operations, modes, pageShift };
}

/** All ranges, as the core lists them. */
export function listing(core: Core): RangeReport[] {
  const ranges: RangeReport[] = [];
  for (let from = 0n; core.arguments(from).rangeFrom(); from = core.end) ranges.push(reported(core));
  assert.equal(ranges.length, core.exports.rangeCount(), 'rangeCount');
  return ranges;
}

/** `[first page, end page, modes]` of every range, as the tests' cases write them. */
export function brief(core: Core): [number, number, number][] {
  const number = (address: bigint) => Number((address - BASE) / P);
  return listing(core).map(({ start, end, modes }) => [number(start), number(end), modes]);
}

/** The range that holds an address. */
export function lookup(core: Core, address: bigint): RangeReport | undefined {
  return core.arguments(address).rangeAt() ? reported(core) : undefined;
}

/** The state of page number `index`, plus 4 if the page is write-protected. */
export function stateOf(core: Core, index: number): number {
  return core.arguments(page(index)).pageAt();
}

/** The window to fill for a fault of page number `index`: the first page's number, and the number of pages. */
export function windowOf(core: Core, index: number, size: number): [first: number, count: number] {
  const count = core.arguments(page(index)).pageWindow(size);
  return [Number((core.start - BASE) / P), count];
}

/** The address of a page of zeros. */
export const ZEROS = 0x66bb_0000_0000n;

/** Fills `count` pages; every call to the kernel succeeds. */
export function transfer(
  core: Core,
  operation: Operation,
  first: number,
  count: number,
  options = 0,
  source = 0n,
): void {
  still(core, 'a fill', () => {
    let action = core.arguments(page(first), count * PAGE, source).beginFill(operation, options);
    while (action !== Action.FILLED) {
      if (action === Action.IOCTL) action = core.exports.handleResult(0);
      else if (action === Action.ZEROS) action = zeros(core);
      else throw new Error(`the core asks for action ${action}`);
    }
    assert.equal(core.outcome, Step.DONE);
  });
}

/** Passes the address of a page of zeros to the core. */
export function zeros(core: Core): number {
  core.argument2 = ZEROS;
  return core.exports.handleZeros();
}
