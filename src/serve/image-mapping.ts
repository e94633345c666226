// The address space of a snapshot in chunks. Each chunk's file is mapped over its place; guests' threads copy from there.
//
// Rules:
//  - What is absent is not accessible: a copy from there fails with EFAULT, and never finds zeros.
//  - A chunk is mapped before its state says so, and stays mapped for as long as a session may read it. An unlinked file
//    stays usable until then.
//  - The kernel limits the mappings of a process (vm.max_map_count), and files never merge. Chunks above the limit are
//    kept in memory, and so are those that cannot be written to the cache.

import {
  MADV_DONTNEED,
  MADV_POPULATE_READ,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  madvise,
  mmap,
  munmap,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
  view,
} from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import { ChunkState, type MappedImage } from './image-source.js';
import { countMappings, mappingsLeft } from './mapping-limit.js';

export class ImageMapping {
  readonly image: MappedImage;
  /** Bytes of chunks that are in memory instead of in a file. */
  spilledBytes = 0;
  readonly #mappingsMost: number | undefined;
  #mapped = 0;

  /**
   * @param zero whether a chunk is all zeros
   * @param mappingsMost most files that all images of this process may map
   * @throws UffdError
   */
  constructor(
    path: string,
    bytes: number,
    chunkSize: number,
    count: number,
    zero: (chunk: number) => boolean,
    mappingsMost?: number,
  ) {
    this.#mappingsMost = mappingsMost;
    const reserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    const address = mmap(0n, bytes, PROT_NONE, reserved);
    if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: bytes });
    const spill = mmap(0n, bytes, PROT_READ | PROT_WRITE, reserved);
    if (spill < 0n) {
      munmap(address, bytes);
      throw new UffdError(Number(spill), 'mmap', { length: bytes });
    }
    const states = new Uint8Array(new SharedArrayBuffer(count));
    for (let chunk = 0; chunk < count; chunk++) if (zero(chunk)) states[chunk] = ChunkState.zeros;
    this.image = { path, bytes, chunkSize, address, spill, states };
  }

  has(chunk: number): boolean {
    return Atomics.load(this.image.states, chunk) !== ChunkState.absent;
  }

  /** Maps the file of a chunk. False: there is no room for one more mapping. */
  map(chunk: number, fd: number, length: number): boolean {
    const { address, chunkSize, states } = this.image;
    if (mappingsLeft(this.#mappingsMost) === 0) return false;
    const at = address + BigInt(chunk * chunkSize);
    const result = mmap(at, length, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd);
    if (result < 0n) return false;
    // The file was read or written just now, so this waits for no disk. A copy from pages that are not mapped takes
    // several times as long.
    madvise(at, length, MADV_POPULATE_READ);
    countMappings(1);
    this.#mapped++;
    Atomics.store(states, chunk, ChunkState.mapped);
    return true;
  }

  /** Keeps the bytes of a chunk in memory. */
  keep(chunk: number, bytes: Uint8Array): void {
    const { spill, chunkSize, states } = this.image;
    new Uint8Array(view(spill + BigInt(chunk * chunkSize), bytes.length)).set(bytes);
    this.spilledBytes += bytes.length;
    Atomics.store(states, chunk, ChunkState.spilled);
  }

  /**
   * Gives up chunks, so that they are absent again: those in memory, and those whose file is not `kept`. No session may
   * have the image.
   */
  trim(kept: (chunk: number) => boolean): void {
    const { address, spill, chunkSize, states, bytes } = this.image;
    for (let chunk = 0; chunk < states.length; chunk++) {
      const state = states[chunk];
      const at = BigInt(chunk * chunkSize);
      const length = Math.min(chunkSize, bytes - chunk * chunkSize);
      if (state === ChunkState.spilled) {
        madvise(spill + at, length, MADV_DONTNEED);
        this.spilledBytes -= length;
      } else if (state === ChunkState.mapped && !kept(chunk)) {
        const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        if (mmap(address + at, length, PROT_NONE, flags) < 0n) continue;
        countMappings(-1);
        this.#mapped--;
      } else continue;
      Atomics.store(states, chunk, ChunkState.absent);
    }
  }

  close(): void {
    const { address, spill, bytes } = this.image;
    munmap(address, bytes);
    munmap(spill, bytes);
    countMappings(-this.#mapped);
    this.#mapped = 0;
  }
}
