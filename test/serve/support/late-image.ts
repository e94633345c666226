// An image whose chunks come late, in any order, fail and come back, in virtual time: the cache, the network and the
// store of a simulated world.
//
// What is absent is not mapped, so a copy from there fails, and a page of zeros in its place is noticed.

import { ChunkState, ImageSource } from '../../../src/serve/image-source.js';
import type { World } from '../../../src/testing/index.js';

/** How the chunks of an image come. */
export interface Lateness {
  /** Pages of a chunk. */
  readonly chunkPages: number;
  /** Probability that a fetch fails; it is tried again. */
  readonly fails: number;
  /** Probability that a chunk is there from the beginning. */
  readonly cached: number;
  /** Probability that a chunk is in the other memory, as if the cache could not be written to. */
  readonly spilled: number;
  /** Whether a page is all zeros. */
  readonly hole: (index: number) => boolean;
  /** Whether a chunk does not come for now. */
  readonly held?: (chunk: number) => boolean;
  /** Chunks that come without being asked for: a prefetch. */
  readonly ahead?: boolean;
}

/** Powers of 4 of the latencies, times 0.01 ms: 40 ms at most. */
const LATENCIES = 7;
const HELD_MS = 1;
/** PROT_READ | PROT_WRITE. */
const READ_WRITE = 3;

/** What an image needs of its world. */
export type ImageWorld = Pick<World, 'kernel' | 'chooser' | 'pages' | 'pageSize' | 'source'>;

export class LateImage {
  readonly source: ImageSource;
  /** How often a chunk was asked for, by all sources together. */
  readonly wanted: number[] = [];
  /** How often a chunk was fetched; a fetch that fails goes on. */
  readonly fetched: number[] = [];
  /** Called when chunks have come. */
  arrived = (): void => {};
  readonly #world: ImageWorld;
  readonly #lateness: Lateness;
  readonly #states: Uint8Array;
  readonly #indexOf: (offset: number) => number;
  /** The times at which chunks that are fetched come. */
  readonly #due = new Map<number, number>();
  readonly #address: bigint;
  readonly #spill: bigint;
  /** The kind of mapping. */
  readonly #traits: number;

  constructor(world: ImageWorld, lateness: Lateness, indexOf: (offset: number) => number) {
    const { kernel, pages, pageSize, chooser } = world;
    this.#world = world;
    this.#lateness = lateness;
    this.#indexOf = indexOf;
    const small = (pages * pageSize) / kernel.pageSize;
    // Addresses that are free, and mapped when chunks come.
    [this.#address, this.#spill] = [kernel.map(small), kernel.map(small)];
    const { space } = kernel.process;
    this.#traits = space.at(Number(this.#address))?.traits ?? 0;
    for (const area of [this.#address, this.#spill])
      space.remove(Number(area), Number(area) + small * kernel.pageSize);
    const count = Math.ceil(pages / lateness.chunkPages);
    this.#states = new Uint8Array(new SharedArrayBuffer(count));
    this.source = this.another();
    for (let chunk = 0; chunk < count; chunk++) {
      if (this.#offsetsOf(chunk).every((offset) => lateness.hole(indexOf(offset))))
        this.#states[chunk] = ChunkState.zeros;
      else if (chooser.below(1000) < lateness.cached * 1000) this.#put(chunk);
      else if (lateness.ahead) this.#begin(chunk);
    }
  }

  /** A source of the same image for another guest. */
  another(): ImageSource {
    const { pages, pageSize } = this.#world;
    const image = {
      ...{ path: '', bytes: pages * pageSize, chunkSize: this.#lateness.chunkPages * pageSize },
      ...{ address: this.#address, spill: this.#spill, states: this.#states },
    };
    const source = new ImageSource(
      image,
      (address, into) => this.#read(address, into),
      (chunks) => this.#want(chunks),
    );
    const stretchAt = source.stretchAt.bind(source);
    // Time passes while the handler works.
    source.stretchAt = (offset, size) => {
      this.#settle();
      return stretchAt(offset, size);
    };
    return source;
  }

  /** The offsets of the small pages of a chunk. */
  #offsetsOf(chunk: number): number[] {
    const { kernel, pages, pageSize } = this.#world;
    const bytes = this.#lateness.chunkPages * pageSize;
    const end = Math.min((chunk + 1) * bytes, pages * pageSize);
    return Array.from(
      { length: (end - chunk * bytes) / kernel.pageSize },
      (_, part) => chunk * bytes + part * kernel.pageSize,
    );
  }

  #want(chunks: readonly number[]): void {
    for (const chunk of chunks) {
      this.wanted[chunk] = (this.wanted[chunk] ?? 0) + 1;
      if (!this.#due.has(chunk)) this.#begin(chunk);
    }
  }

  #begin(chunk: number): void {
    this.fetched[chunk] = (this.fetched[chunk] ?? 0) + 1;
    this.#fetch(chunk);
  }

  #fetch(chunk: number, ms = 0.01 * 4 ** this.#world.chooser.below(LATENCIES)): void {
    const { kernel } = this.#world;
    this.#due.set(chunk, kernel.now + ms);
    kernel.after(ms, () => {
      this.#settle();
      this.arrived();
    });
  }

  #settle(): void {
    const { chooser, kernel } = this.#world;
    const { fails, held } = this.#lateness;
    for (const [chunk, due] of this.#due) {
      if (due > kernel.now) continue;
      if (held?.(chunk)) this.#fetch(chunk, HELD_MS);
      else if (chooser.below(1000) < fails * 1000) this.#fetch(chunk);
      else {
        this.#due.delete(chunk);
        this.#put(chunk);
      }
    }
  }

  #put(chunk: number): void {
    const { kernel, pageSize, chooser } = this.#world;
    const { space } = kernel.process;
    const spilled = chooser.below(1000) < this.#lateness.spilled * 1000;
    for (const offset of this.#offsetsOf(chunk)) {
      const at = Number(spilled ? this.#spill : this.#address) + offset;
      space.map(at, kernel.pageSize, READ_WRITE, this.#traits);
      const from = offset % pageSize;
      const bytes = this.#world.source(this.#indexOf(offset)).subarray(from, from + kernel.pageSize);
      space.set(space.pageOf(at), space.take(kernel.pageSize, bytes));
    }
    this.#states[chunk] = spilled ? ChunkState.spilled : ChunkState.mapped;
  }

  /** The bytes at an address, as process_vm_readv gives them; undefined: a chunk is not there. */
  bytesAt(address: bigint, length: number): Uint8Array | undefined {
    const { space } = this.#world.kernel.process;
    const [first, end] = [space.pageOf(Number(address)), space.pageOf(Number(address) + length)];
    for (let page = first; page < end; page++) if (!space.entry(page)) return undefined;
    return space.peek(Number(address), length);
  }

  #read(address: bigint, into: Uint8Array): void {
    into.set(this.#world.kernel.process.space.peek(Number(address), into.length));
  }
}
