// A memory file and diff snapshots on top of it, mapped as one: the file whole, and the data of the diffs over it. So
// guests' threads copy from it as from a plain file, and nothing is copied in advance.
//
// Rules:
//  - The mapping has the extents that the files had when it was made. A file that changes is mapped again for the next
//    guest.
//  - The kernel maps whole pages. A page of which a diff has only a part is kept in memory.
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
import { wholePages } from '../memory/whole-pages.js';
import { type SharedRanges, shared } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { countMappings, mappingsLeft } from './mapping-limit.js';
import type { MemoryIdentity } from './memory-identity.js';
import { MemoryImage, MemoryImageError } from './memory-image.js';

/** A part that is mapped over the memory file. */
interface Piece {
  readonly from: number;
  /** Whole pages, or the end of the memory. */
  readonly to: number;
  /** The layer whose file is mapped; undefined: memory, with the bytes of all layers. */
  readonly layer: number | undefined;
}

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
      const { data, pieces } = planned(image);
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

/** Where there is data, and what is to be mapped over the memory file, both in ascending order. */
function planned(image: MemoryImage): { data: { offset: number; length: number }[]; pieces: Piece[] } {
  const { size } = image;
  const data: { offset: number; length: number }[] = [];
  const pieces: Piece[] = [];
  /** Adds the page around a boundary that lies inside of it. */
  const addMixed = (boundary: number): void => {
    const from = boundary - (boundary % SYSTEM_PAGE);
    if (pieces.at(-1)?.from !== from)
      pieces.push({ from, to: Math.min(from + SYSTEM_PAGE, size), layer: undefined });
  };
  for (let at = 0; at < size; ) {
    const { to, data: any, layer } = image.at(at);
    const last = data.at(-1);
    if (any && last && last.offset + last.length === at) last.length += to - at;
    else if (any) data.push({ offset: at, length: to - at });
    if (any && layer > 0) {
      const first = wholePages(at, SYSTEM_PAGE);
      const end = to === size ? to : to - (to % SYSTEM_PAGE);
      if (at < first) addMixed(at);
      if (first < end) pieces.push({ from: first, to: end, layer });
      if (end < to) addMixed(to);
    }
    at = to;
  }
  return { data, pieces };
}

/** At most so many pieces: those with the smallest gaps become one, in memory. */
function clustered(pieces: readonly Piece[], most: number): readonly Piece[] {
  const surplus = pieces.length - Math.max(1, most);
  if (surplus <= 0) return pieces;
  const gaps = pieces.slice(1).map(({ from }, index) => from - (pieces[index] as Piece).to);
  const order = gaps.map((_, index) => index).sort((a, b) => (gaps[a] as number) - (gaps[b] as number));
  const joined = new Set(order.slice(0, surplus));
  const clusters: Piece[] = [];
  for (const [index, piece] of pieces.entries()) {
    const last = clusters.at(-1);
    if (last && joined.has(index - 1)) clusters.splice(-1, 1, { ...last, to: piece.to, layer: undefined });
    else clusters.push(piece);
  }
  return clusters;
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
