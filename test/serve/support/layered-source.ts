// A memory file with diff snapshots on top of it in a simulated world: the plan of the mapping is the real one, and the
// simulated handler's process has the pages that mmap(2) would map. A file may be cut short for a while: its pages are
// then not there, so a copy from them fails.

import { ListedExtents, shared } from '../../../src/serve/extents.js';
import type { Source } from '../../../src/serve/index.js';
import { clustered, layerAt, type Piece, planned } from '../../../src/serve/layered-plan.js';
import type { Chooser } from '../../../src/sim/index.js';
import type { World } from '../../../src/testing/index.js';

const P = 4096;
/** PROT_READ. */
const READ = 1;

/** A file of a layer: its bytes, and the ranges that are data. Elsewhere its bytes are 0. */
interface LayerFile {
  readonly bytes: Uint8Array;
  readonly extents: ListedExtents;
}

export interface LayeredFiles {
  /** Bytes of the memory; the last page may be incomplete. */
  readonly size: number;
  readonly layers: readonly LayerFile[];
  /** What a guest must see: whole pages. Made without the code that is tested. */
  readonly merged: Uint8Array;
}

/** Draws a memory file and diffs, whose extents may begin and end at any block of a file system. */
export function drawLayers(chooser: Chooser, bytes: number): LayeredFiles {
  const pick = <T>(list: readonly T[]): T => list[chooser.below(list.length)] as T;
  const size = bytes - pick([0, 0, 1000]);
  const block = pick([P, P, 1024]);
  const merged = new Uint8Array(bytes);
  const layers: LayerFile[] = [];
  const count = 2 + chooser.below(3);
  for (let layer = 0; layer < count; layer++) {
    const file = new Uint8Array(size);
    const ranges: { offset: number; length: number }[] = [];
    const longest = layer === 0 ? 16 : 4;
    for (let at = block * chooser.below(longest); at < size; ) {
      const length = Math.min(block * (1 + chooser.below(longest)), size - at);
      ranges.push({ offset: at, length });
      // Zeros that were written hide what is below.
      const zeros = chooser.chance(0.1);
      for (let byte = at; byte < at + length; byte++) {
        file[byte] = zeros ? 0 : 1 + ((byte * 7 + (byte >> 12) * 31 + layer * 53) % 251);
        merged[byte] = file[byte] as number;
      }
      at += length + block * (1 + chooser.below(layer === 0 ? 4 : 8));
    }
    layers.push({ bytes: file, extents: new ListedExtents(shared(ranges), size) });
  }
  return { size, layers, merged };
}

/** The file of a layer ends before a page, for some virtual time. */
export interface Cut {
  readonly layer: number;
  readonly firstPage: number;
  readonly fromMs: number;
  readonly toMs: number;
}

export class LayeredSource {
  readonly source: Source;
  readonly #world: World;
  readonly #files: LayeredFiles;
  readonly #pieces: readonly Piece[];
  readonly #cuts: readonly Cut[];
  readonly #address: bigint;
  /** The kind of mapping. */
  readonly #traits: number;

  /** Maps the files. `piecesMost`: most pieces over the memory file. */
  constructor(world: World, files: LayeredFiles, piecesMost: number, cuts: readonly Cut[]) {
    const { size, layers } = files;
    this.#world = world;
    this.#files = files;
    this.#cuts = cuts;
    const { data, pieces } = planned(size, (offset) => layerAt(layers, size, offset));
    this.#pieces = clustered(pieces, piecesMost);
    const { kernel } = world;
    this.#address = kernel.map(files.merged.length / P);
    const { space } = kernel.process;
    this.#traits = space.at(Number(this.#address))?.traits ?? 0;
    space.remove(Number(this.#address), Number(this.#address) + files.merged.length);
    this.#settle();
    for (const { fromMs, toMs } of cuts)
      for (const at of [fromMs, toMs]) kernel.after(at, () => this.#settle());
    const listed = new ListedExtents(shared(data), size);
    this.source = {
      mapped: true,
      stretchAt: (offset) => {
        // Time passes while the handler works, and its loop may run no timers.
        this.#settle();
        return listed.at(offset);
      },
      bytesAt: (offset) => this.#address + BigInt(offset),
    };
  }

  /** The layer whose file is mapped at a page; undefined: memory. */
  #layerOf(page: number): number | undefined {
    const piece = this.#pieces.find(({ from, to }) => page * P >= from && page * P < to);
    return piece ? piece.layer : 0;
  }

  #map(page: number): void {
    const { layers, size } = this.#files;
    const { space } = this.#world.kernel.process;
    const at = Number(this.#address) + page * P;
    if (space.at(at)) return;
    const layer = this.#layerOf(page);
    const bytes = new Uint8Array(P);
    const end = Math.min(size, (page + 1) * P);
    if (layer !== undefined) bytes.set((layers[layer] as LayerFile).bytes.subarray(page * P, end));
    else {
      for (let offset = page * P; offset < end; ) {
        const { to, data, layer: its } = layerAt(layers, size, offset);
        const part = (layers[its] as LayerFile).bytes.subarray(offset, Math.min(to, end));
        if (data) bytes.set(part, offset - page * P);
        offset = Math.min(to, end);
      }
    }
    space.map(at, P, READ, this.#traits);
    space.set(space.pageOf(at), space.take(P, bytes));
  }

  /** Cuts the files that are to be cut now, and gives the others their pages again. */
  #settle(): void {
    const { now, process } = this.#world.kernel;
    const cut = this.#cuts.filter(({ fromMs, toMs }) => now >= fromMs && now < toMs);
    for (let page = 0; page < this.#files.merged.length / P; page++) {
      const at = Number(this.#address) + page * P;
      const layer = this.#layerOf(page);
      if (cut.some((one) => one.layer === layer && page >= one.firstPage)) process.space.remove(at, at + P);
      else this.#map(page);
    }
  }
}
