// The only file that touches WebAssembly. The module is compiled once, when first needed; each `Core` is an
// instance of its own with its own memory, because one instance serves one userfaultfd.

import { instantiateSync } from '@assemblyscript/loader';
import wasm from '#wasm';
import { type LinearMemory, type MemoryPlace, UnsupportedError } from './kernel.js';

/** What assembly/index.ts exports. Booleans are 0 or 1; `u64` and addresses travel through memory. */
export interface Exports extends Record<string, unknown> {
  memory: LinearMemory;
  // Regions of memory that never move, as offsets.
  parameters: MemoryPlace;
  report: MemoryPlace;
  delivery: MemoryPlace;
  messages: MemoryPlace;
  request: MemoryPlace;
  polled: MemoryPlace;
  scan: MemoryPlace;
  tally: MemoryPlace;
  code: MemoryPlace;
  snapshot: MemoryPlace;
  /** Once, before anything else: log2 of the page size, and the features granted. */
  start(pageShift: number, features: bigint): void;
  openFlags(userModeOnly: number): number;
  openRequest(): number;
  requestApi(features: bigint): number;
  requestRegister(modes: number): number;
  requestUnregister(): number;
  requestWake(): number;
  requestPresence(): number;
  apiFeatures(): bigint;
  apiOperations(): bigint;
  registerOperations(): bigint;
  pollWatch(userfaultfd: number, stop: number, process: number): void;
  pollExited(): number;
  rangePut(modes: number, pageShift: number): number;
  rangeTake(): number;
  rangeKept(): number;
  rangeFresh(): void;
  rangeAt(): number;
  rangeMeets(): number;
  rangeFirst(): number;
  rangeNext(): number;
  rangeCount(): number;
  pageAt(): number;
  pageClaim(): number;
  pageWindow(size: number): number;
  pagesWindowStart(): bigint;
  pagesWindowSize(): number;
  pagesBytes(): number;
  /** How many places of the directory there are to ask `pagesSave` for. */
  pagesPlaces(): number;
  /** Writes what is known of the pages at a place into `snapshot`. 0: nothing is. */
  pagesSave(place: number): number;
  /** Takes over what `snapshot` holds. */
  pagesLoad(): void;
  messageDecode(offset: number): number;
  inboxPutOff(): number;
  inboxOpen(): void;
  inboxRoom(): number;
  inboxTake(result: number): number;
  inboxUnknown(): number;
  inboxNextEvent(): number;
  inboxAnswer(answered: number): number;
  inboxDefer(now: number): void;
  inboxDelay(now: number): number;
  inboxWaiting(): number;
  inboxEvict(): number;
  /** Arguments: start, length, where the data lies. `keeper`: a number for whoever keeps the data; 0: nobody has to. */
  sourcePut(window: number, keeper: number): void;
  /** A keeper whose source has ended since; 0: no more. */
  sourceEnded(): number;
  sourcesClear(): void;
  aheadBegin(options: number): number;
  aheadPassed(): number;
  /** What is next in a round; the others, what behind a call or a read that this asked for. */
  roundNext(now: number): number;
  roundResult(result: number): number;
  roundResume(): number;
  transferBegin(operation: number, options: number): number;
  transferResult(result: number): number;
  transferResume(): number;
  transferDone(): number;
  /** Of those, the bytes that the kernel said it installed. */
  transferInstalled(): number;
  /** Argument 2: where a page of zeros lies. */
  transferZeros(): number;
  transferErrno(): number;
  transferCursor(): bigint;
  transferSource(): bigint;
  /** log2 of the bytes of a page, and of an entry's of pagemap; how many planes. 0: no memory left. */
  dirtyOpen(pageShift: number, systemShift: number, planeCount: number): number;
  dirtyMark(): void;
  planeSet(plane: Plane): void;
  planeClear(plane: Plane): void;
  planeMove(source: Plane, target: Plane): void;
  planeNext(plane: Plane, inside: number): number;
  runStart(): bigint;
  runEnd(): bigint;
  scanBuffer(): number;
  scanBegin(): void;
  scanRequest(): number;
  scanCheckRequest(): number;
  scanTake(result: number): number;
  entriesBegin(): void;
  entriesOffset(): bigint;
  entriesRoom(): number;
  entriesTake(bytes: number): void;
  entriesNext(): number;
}

/** What a read brought (assembly/inbox.ts, READ_*). */
export const Read = { more: 0, drained: 1, ended: 2, failed: 3, ragged: 4, unknown: 5, starved: 6 } as const;

/** What is next in a round (assembly/inbox.ts and assembly/round.ts, NEXT_*). */
export const Next = {
  none: 0,
  fault: 1,
  removed: 2,
  unmapped: 3,
  remapped: 4,
  forked: 5,
  read: 6,
  noMemory: 7,
  call: 8,
  reread: 9,
  answered: 10,
} as const;

/** What a transfer needs next (assembly/transfer.ts, STEP_*). */
export const Step = {
  call: 0,
  read: 1,
  done: 2,
  short: 3,
  unmapped: 4,
  exited: 5,
  failed: 6,
  ask: 7,
  zeros: 8,
} as const;

/** Rows of the transfer table (assembly/transfer.ts, OP_*). */
export const Op = { copy: 0, zero: 1, continue: 2, poison: 3, move: 4, writeProtect: 5 } as const;
export type Op = (typeof Op)[keyof typeof Op];

/** Options of a transfer (assembly/transfer.ts, OPTION_*). */
export const Option = { dontWake: 1, writeProtect: 2, allowHoles: 4 } as const;

/** A window's bit: what is left of it is the most that a run of faults may get (assembly/streams.ts). */
export const ADAPTIVE = 2 ** 31;

/** Which pages were written since what (assembly/pagemap.ts, PLANE_*). */
export const Plane = { untold: 0, unsaved: 1, saving: 2 } as const;
export type Plane = (typeof Plane)[keyof typeof Plane];

/** What a scan of the page tables needs next (assembly/pagemap.ts, SCAN_*). */
export const Scan = { more: 0, done: 1, nonsense: 2 } as const;

/** Kinds of faults, and modes by bit number, in the kernel's order (missing 1, wp 2, minor 4). */
export const MODES = ['missing', 'write-protect', 'minor'] as const;

/** States of a page (assembly/pages.ts, PAGE_*). */
export const PAGE_STATES = ['missing', 'present', 'removed', 'in-flight'] as const;

/** Bytes of a uffd_msg. */
export const MESSAGE_BYTES = 32;

/** Bytes of a chunk of page states on its way to another core (assembly/pages.ts), and how many bytes of memory it is about. */
export const SNAPSHOT_BYTES = 8 + 3 * 1024;
export const snapshotSpan = (pageSize: number): number => 8192 * pageSize;

/** Messages that the buffer at `Core.messages` holds. */
export const MESSAGES_MOST = 128;

/** A registered range, as the core tells it. */
export interface RangeReport {
  start: bigint;
  end: bigint;
  operations: bigint;
  modes: number;
  pageShift: number;
}

/** Raised by the debug builds' assertions; the release builds have none, and import nothing. */
function abort(message: number, file: number, line: number, column: number): never {
  throw new Error(`the core's assertion at ${file}:${line}:${column} failed (message at ${message})`);
}

/** A module: compiled once, when first needed, and instantiated as often as it is needed. Runs anywhere WebAssembly does. */
export class WasmModule<T extends Record<string, unknown>> {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #compiled: WebAssembly.Module | undefined;

  constructor(bytes: Uint8Array<ArrayBuffer>) {
    this.#bytes = bytes;
  }

  /** @throws UnsupportedError where there is no WebAssembly, or no room for its memory */
  instantiate(): T {
    try {
      this.#compiled ??= new WebAssembly.Module(this.#bytes);
      const imports = WebAssembly.Module.imports(this.#compiled).length === 0 ? {} : { env: { abort } };
      return bare(instantiateSync<T>(this.#compiled, imports).exports);
    } catch (error) {
      throw explained(error);
    }
  }
}

/** What is in WebAssembly's way, in words. */
function explained(error: unknown): unknown {
  if (typeof WebAssembly === 'undefined') {
    return new UnsupportedError(
      "there is no WebAssembly here, which the library's core is made of: Node was started with --jitless (on its " +
        'command line or in NODE_OPTIONS). Start it without',
      { cause: error },
    );
  }
  if (!(error instanceof RangeError)) return error;
  return new UnsupportedError(
    `WebAssembly cannot have its memory (${error.message}): each takes 10 GiB of address space, which is no memory, and ` +
      'the address space of this process is limited. Raise the limit (ulimit -v unlimited; LimitAS=infinity in a ' +
      'unit of systemd), or start Node with --disable-wasm-trap-handler, which takes no more than is used',
    { cause: error },
  );
}

const core = new WasmModule<Exports>(wasm);

/** One that was made before it is needed. */
let spare: Core | undefined;

/** Makes a core, or takes the one that was prepared. */
export function instantiate(): Core {
  const taken = spare ?? new Core(core.instantiate());
  spare = undefined;
  return taken;
}

/** Has the next core ready: compiling and making one takes half a millisecond, and more the first time. */
export function prepareCore(): void {
  spare ??= new Core(core.instantiate());
}

/**
 * The module's own exports, without what the loader puts around them: it wraps every function, to count optional
 * arguments that the core has none of. And in objects that are alike to V8, however many instances there are: it knows
 * no two objects of so many properties to be alike, unless they came from one text. Both together cost twice as much as
 * the calls themselves.
 */
function bare<T extends Record<string, unknown>>(exports: T): T {
  const names = Object.keys(exports);
  const own: Record<string, unknown> = JSON.parse(`{${names.map((name) => `"${name}":null`)}}`);
  for (const name of names) {
    own[name] = (exports[name] as { original?: unknown } | undefined)?.original ?? exports[name];
  }
  return own as T;
}

/**
 * One instance of the core, with views of the regions it shares. Offsets (`request`, `messages`, `polled`, `scan`)
 * are what a `KernelPort` takes; they never change, while the buffer behind them does when memory grows.
 */
export class Core {
  readonly exports: Exports;
  readonly memory: LinearMemory;
  readonly request: number;
  readonly messages: number;
  readonly polled: number;
  readonly scan: number;
  readonly #parameters: number;
  readonly #report: number;
  readonly #delivery: number;
  readonly #tally: number;
  readonly #code: number;
  #words = new BigUint64Array();
  #halves = new Uint32Array();

  constructor(exports: Exports) {
    this.exports = exports;
    this.memory = exports.memory;
    this.request = exports.request.value;
    this.messages = exports.messages.value;
    this.polled = exports.polled.value;
    this.scan = exports.scan.value;
    this.#parameters = exports.parameters.value >>> 3;
    this.#report = exports.report.value >>> 3;
    this.#delivery = exports.delivery.value >>> 3;
    this.#tally = exports.tally.value >>> 2;
    this.#code = exports.code.value >>> 2;
  }

  /** All of memory as u64; taken again after it grew. */
  get words(): BigUint64Array {
    if (this.#words.length === 0) this.#views();
    return this.#words;
  }

  #views(): void {
    this.#words = new BigUint64Array(this.memory.buffer);
    this.#halves = new Uint32Array(this.memory.buffer);
  }

  /** Sets the arguments of the next call: usually start (or dst), length, and src (or operations). */
  arguments(first: bigint, second = 0, third = 0n): Exports {
    const words = this.words;
    words[this.#parameters] = first;
    words[this.#parameters + 1] = BigInt(second);
    words[this.#parameters + 2] = third;
    return this.exports;
  }

  /** The u64 number `index` of what was delivered: see `Delivery` in assembly/inbox.ts. */
  delivered(index: 0 | 1 | 2): bigint {
    return this.words[this.#delivery + index] as bigint;
  }

  /**
   * Of the fault that was delivered: 0 its kind (an index of MODES), 1 whether it is a write, 2 the tid, 3 how often in a
   * row a fill of its page was answered with EEXIST.
   */
  deliveredFault(index: 0 | 1 | 2 | 3): number {
    if (this.#halves.length === 0) this.#views();
    return this.#halves[(this.#delivery + 3) * 2 + index] as number;
  }

  /** The number of the ioctl whose struct a transfer has put into `request`, signed: V8 keeps that without an object. */
  get code(): number {
    if (this.#halves.length === 0) this.#views();
    return (this.#halves[this.#code] as number) | 0;
  }

  /**
   * Of what was answered: 0 how many faults, 1 how many of them writes, 2 how many were put off, 3 whether the process is
   * gone.
   */
  answered(index: 0 | 1 | 2 | 3): number {
    if (this.#halves.length === 0) this.#views();
    return this.#halves[this.#tally + index] as number;
  }

  /** Bytes that were installed for them. */
  get answeredBytes(): number {
    const low = this.#halves[this.#tally + 4] as number;
    const high = this.#halves[this.#tally + 5] as number;
    return high === 0 ? low : high * 2 ** 32 + low;
  }

  /** The range reported last. */
  reported(): RangeReport {
    const at = this.#report;
    const [start, end, operations, last] = this.words.subarray(at, at + 4) as unknown as bigint[];
    return {
      start: start as bigint,
      end: end as bigint,
      operations: operations as bigint,
      modes: Number((last as bigint) & 0xffffffffn),
      pageShift: Number((last as bigint) >> 32n),
    };
  }

  /** A chunk of page states, as `pagesSave` writes and `pagesLoad` reads it. */
  get snapshot(): Uint8Array {
    return new Uint8Array(this.memory.buffer, this.exports.snapshot.value, SNAPSHOT_BYTES);
  }

  /** The `length` bytes that the kernel wrote at `offset` of the message buffer. */
  messageBytes(offset: number, length: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, this.messages + offset, length);
  }
}
