// A snapshot in chunks as the source of a guest's pages: which chunks are in memory, and where. The server's main thread
// puts chunks in; the guests' threads only read.
//
// Rules:
//  - A chunk's state is stored after its bytes are in place, and never changes back while a session reads it. So an
//    address that was once handed out stays valid for as long as the session lasts.
//  - An absent chunk is neither data nor zeros: its extent says `absent`.
//  - Extents end at whole pages of the region that is asked for. A page that spans chunks is absent if any of them is.

import type { Source, SourceExtent } from './snapshot-handler.js';

/** Where the bytes of a chunk are. */
export const ChunkState = {
  /** Not on this machine, or not verified yet. */
  absent: 0,
  /** In the image: the mapped file of the chunk. */
  mapped: 1,
  /** In memory of this process, at the same offset of the spill area. */
  spilled: 2,
  /** The chunk is all zeros. */
  zeros: 3,
} as const;

/** An image as it is mapped in this process. Can be posted to another thread. */
export interface MappedImage {
  /** The index, for messages. */
  readonly path: string;
  /** Bytes of the memory. */
  readonly bytes: number;
  readonly chunkSize: number;
  /** The address at which the image's first byte would be mapped. */
  readonly address: bigint;
  /** The same for chunks that are not in a file. */
  readonly spill: bigint;
  /** A byte for each chunk: its `ChunkState`. */
  readonly states: Uint8Array;
}

/** Chunks before and after a page that one lookup goes through, at most. */
const LOOKED_AT = 4096;
/** A page whose chunks lie in different places, or are partly zeros. */
const MIXED = 4;

export class ImageSource implements Source {
  readonly mapped = true;
  readonly #image: MappedImage;
  /** Copies bytes at an address of this process into a buffer. */
  readonly #read: (address: bigint, into: Uint8Array) => void;
  readonly #want: (chunks: readonly number[]) => void;
  /** Chunks that the server was asked for, and that are not there yet. */
  readonly #wanted = new Set<number>();

  /** `want`: asks the server for chunks that a thread of the guest waits for, once for each. */
  constructor(
    image: MappedImage,
    read: (address: bigint, into: Uint8Array) => void,
    want: (chunks: readonly number[]) => void,
  ) {
    this.#image = image;
    this.#read = read;
    this.#want = want;
  }

  stretchAt(offset: number, pageSize: number): SourceExtent {
    const { bytes, chunkSize } = this.#image;
    // Pages are as large as a chunk or larger only for huge pages.
    const unit = chunkSize % pageSize === 0 ? chunkSize : pageSize;
    const end = Math.ceil(bytes / unit);
    const at = Math.floor(offset / unit);
    const state = this.#stateOf(at, unit);
    let [first, last] = [at, at + 1];
    if (state !== MIXED) {
      const [least, most] = [Math.max(0, at - LOOKED_AT), Math.min(end, at + LOOKED_AT)];
      while (first > least && this.#stateOf(first - 1, unit) === state) first--;
      while (last < most && this.#stateOf(last, unit) === state) last++;
    }
    return {
      from: first * unit,
      to: Math.min(last * unit, Math.ceil(bytes / pageSize) * pageSize),
      data: state !== ChunkState.zeros,
      absent: state === ChunkState.absent,
      contiguous: state !== MIXED,
    };
  }

  /** The common state of the chunks of a unit. */
  #stateOf(index: number, unit: number): number {
    const { chunkSize, states } = this.#image;
    if (unit === chunkSize) return Atomics.load(states, index);
    const first = Math.floor((index * unit) / chunkSize);
    const end = Math.min(states.length, Math.ceil(((index + 1) * unit) / chunkSize));
    let state: number = Atomics.load(states, first);
    for (let chunk = first; chunk < end; chunk++) {
      const its = Atomics.load(states, chunk);
      if (its === ChunkState.absent) return ChunkState.absent;
      if (its !== state) state = MIXED;
    }
    return state;
  }

  bytesAt(offset: number, length: number): bigint | Uint8Array {
    const { address, spill, chunkSize, states, bytes } = this.#image;
    const first = Math.floor(offset / chunkSize);
    const last = Math.min(states.length, Math.ceil((offset + length) / chunkSize));
    const state = Atomics.load(states, first);
    let uniform = true;
    for (let chunk = first; chunk < last; chunk++) uniform &&= Atomics.load(states, chunk) === state;
    if (uniform) return (state === ChunkState.spilled ? spill : address) + BigInt(offset);
    const whole = new Uint8Array(length);
    for (let chunk = first; chunk < last; chunk++) {
      const from = Math.max(offset, chunk * chunkSize);
      const to = Math.min(offset + length, (chunk + 1) * chunkSize, bytes);
      const its = Atomics.load(states, chunk);
      if (its === ChunkState.zeros || to <= from) continue;
      const place = (its === ChunkState.spilled ? spill : address) + BigInt(from);
      this.#read(place, whole.subarray(from - offset, to - offset));
    }
    return whole;
  }

  want(offset: number, length: number): void {
    const { chunkSize, states } = this.#image;
    const chunks: number[] = [];
    const last = Math.min(states.length, Math.ceil((offset + length) / chunkSize));
    for (let chunk = Math.floor(offset / chunkSize); chunk < last; chunk++) {
      if (Atomics.load(states, chunk) !== ChunkState.absent || this.#wanted.has(chunk)) continue;
      this.#wanted.add(chunk);
      chunks.push(chunk);
    }
    if (chunks.length > 0) this.#want(chunks);
  }

  /** To call when chunks have come: those are forgotten that may be wanted again after they are dropped. */
  arrived(): void {
    for (const chunk of this.#wanted) {
      if (Atomics.load(this.#image.states, chunk) !== ChunkState.absent) this.#wanted.delete(chunk);
    }
  }
}
