// The only file that touches WebAssembly. The module is compiled once, at first use. Each `Core` is an instance with
// its own memory, and serves one userfaultfd.

import { instantiateSync } from '@assemblyscript/loader';
import wasm from '#wasm';
import {
  CHUNK_SHIFT,
  ExchangeView,
  type Exports,
  PAGE_IN_FLIGHT,
  PAGE_MISSING,
  PAGE_PRESENT,
  PAGE_REMOVED,
  SNAPSHOT_BYTES,
} from '../bindings/core.js';
import { type LinearMemory, UnsupportedError } from '../kernel/port.js';

/** Names of the core's page states (PAGE_*), in the order of their numbers. */
export const PAGE_STATES = Object.values({
  [PAGE_MISSING]: 'missing',
  [PAGE_PRESENT]: 'present',
  [PAGE_REMOVED]: 'removed',
  [PAGE_IN_FLIGHT]: 'in-flight',
} as const);

/** Bytes of memory that one chunk of page states covers. */
export const snapshotSpan = (pageSize: number): number => 2 ** CHUNK_SHIFT * pageSize;

/** Called by a failed assertion in a debug build of the core. Release builds have no assertions, and import nothing. */
function abort(message: number, file: number, line: number, column: number): never {
  throw new Error(`the core's assertion at ${file}:${line}:${column} failed (message at ${message})`);
}

/** A WebAssembly module. It is compiled once, at first use, and can be instantiated any number of times. */
export class WasmModule<T extends Record<string, unknown>> {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #compiled: WebAssembly.Module | undefined;

  constructor(bytes: Uint8Array<ArrayBuffer>) {
    this.#bytes = bytes;
  }

  /** @throws UnsupportedError if there is no WebAssembly, or no address space for its memory */
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

/** The error to throw if WebAssembly cannot be used: it says why, and what to do. */
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

/** A core that was made before it is needed. */
let spare: Core | undefined;

/** Makes a core, or takes the one that `prepareCore` made. */
export function instantiate(): Core {
  const taken = spare ?? new Core(core.instantiate());
  spare = undefined;
  return taken;
}

/** Makes the next core in advance. Compiling and instantiating take half a millisecond, and longer the first time. */
export function prepareCore(): void {
  spare ??= new Core(core.instantiate());
}

/**
 * Copies the module's own exports, without the loader's wrappers, which count optional arguments (the core has none).
 * This one function makes the objects of all instances, so V8 gives them the same shape. With the wrappers, or with
 * several shapes, a call into the core would cost three times as much.
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
 * One instance of the core. `request`, `messages`, `polled` and `scan` are offsets in its memory, as `KernelPort`
 * expects them. The offsets never change, although the buffer is replaced when the memory grows.
 */
export class Core extends ExchangeView {
  readonly exports: Exports;
  readonly memory: LinearMemory;
  readonly request: number;
  readonly messages: number;
  readonly polled: number;
  readonly scan: number;

  constructor(exports: Exports) {
    super(exports.memory, exports.exchange.value);
    this.exports = exports;
    this.memory = exports.memory;
    this.request = exports.request.value;
    this.messages = exports.messages.value;
    this.polled = exports.polled.value;
    this.scan = exports.scan.value;
  }

  /** Sets the arguments of the next call: usually start (or destination), length, and source (or operations, features). */
  arguments(first: bigint, second = 0, third = 0n): Exports {
    this.argument0 = first;
    this.argument1 = BigInt(second);
    this.argument2 = third;
    return this.exports;
  }

  /** A chunk of page states, in the format of `pagesSave` and `pagesLoad`. */
  get snapshot(): Uint8Array {
    return new Uint8Array(this.memory.buffer, this.exports.snapshot.value, SNAPSHOT_BYTES);
  }

  /** The `length` bytes that the kernel wrote at `offset` of the message buffer. */
  messageBytes(offset: number, length: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, this.messages + offset, length);
  }
}
