// A memory file and diff snapshots on top of it, mapped as one: the file whole, and the data of the diffs over it. So
// guests' threads copy from it as from a plain file, and nothing is copied in advance.
//
// Rules:
//  - The mapping has the extents that the files had when it was made. A file that changes is mapped again for the next
//    guest.
//  - The kernel limits the mappings of a process. If there are too many extents, those with the smallest gaps between
//    them are kept in memory, together with what lies in the gaps.

import {
  hugeFilePageSize,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
  view,
} from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import { type SharedRanges, shared } from './extents.js';
import { clustered, type Piece, planned } from './layered-plan.js';
import { countMappings, mappingsLeft } from './mapping-limit.js';
import type { MemoryIdentity } from './memory-identity.js';
import { MemoryImage, MemoryImageError } from './memory-image.js';

/** Bytes that are read into memory at a time. */
const READ_BYTES = 2 ** 20;

export class LayeredMapping {
  readonly bytes: number;
  /** The address of the first byte. */
  readonly address: bigint;
  /** The open memory file. */
  readonly fd: number;
  /** Where any layer has data. */
  readonly data: SharedRanges;
  /** What the operator should know. */
  readonly notes: readonly string[];
  readonly #image: MemoryImage;
  readonly #made: number;

  /**
   * @param diffs the oldest first
   * @param mappingsMost most mappings of all memory of this process; default: by the kernel's limit
   * @throws MemoryImageError, UffdError; the errors of open(2)
   */
  constructor(base: string, diffs: readonly string[], mappingsMost?: number) {
    const image = new MemoryImage(base, diffs);
    this.#image = image;
    this.bytes = image.size;
    let address = 0n;
    try {
      this.fd = image.descriptorOf(0);
      if (hugeFilePageSize(this.fd) !== undefined)
        throw new MemoryImageError(
          `${base} lies on hugetlbfs, where a diff cannot be mapped over a part of it`,
        );
      const { data, pieces } = planned(image.size, (offset) => image.at(offset));
      // A piece also splits the mapping below it. The other half is left to other memory.
      const few = clustered(pieces, Math.floor(mappingsLeft(mappingsMost) / 4));
      address = mmap(0n, image.size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, this.fd);
      if (address < 0n) throw new UffdError(Number(address), 'mmap', { length: image.size });
      for (const piece of few) place(image, address, piece);
      this.address = address;
      this.data = shared(data);
      this.#made = 2 * few.length;
      this.notes = notesOf(image, pieces.length, few);
    } catch (error) {
      if (address > 0n) munmap(address, image.size);
      image.close();
      throw error;
    }
    countMappings(this.#made);
  }

  get identity(): MemoryIdentity {
    return this.#image.identity;
  }

  /** No copy may read from it any more. */
  close(): void {
    munmap(this.address, this.bytes);
    countMappings(-this.#made);
    this.#image.close();
  }
}

/** Maps a piece over the memory file. @throws UffdError, MemoryImageError */
function place(image: MemoryImage, address: bigint, { from, to, layer }: Piece): void {
  const at = address + BigInt(from);
  const length = to - from;
  const over = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  const result =
    layer === undefined
      ? mmap(at, length, PROT_READ | PROT_WRITE, over | MAP_ANONYMOUS)
      : mmap(at, length, PROT_READ, over, image.descriptorOf(layer), from);
  if (result < 0n) throw new UffdError(Number(result), 'mmap', { length });
  if (layer !== undefined) return;
  for (let done = 0; done < length; done += READ_BYTES) {
    const some = Math.min(READ_BYTES, length - done);
    image.read(from + done, new Uint8Array(view(at + BigInt(done), some)));
  }
}

function notesOf(image: MemoryImage, extents: number, few: readonly Piece[]): string[] {
  const notes = image.wholeDiffs.map((diff) => `${diff} has no holes: it replaces all memory below it`);
  const kept = few.reduce((sum, { from, to, layer }) => sum + (layer === undefined ? to - from : 0), 0);
  if (few.length < extents)
    notes.push(
      `the diffs have ${extents} extents, more than can be mapped: ${kept} bytes are kept in memory; raise vm.max_map_count, or flatten them (uffd pack --layer)`,
    );
  return notes;
}
