// How diff snapshots lie on top of a memory file: which layer has the bytes of a part, and what is mapped over the file so
// that the mapping holds them. It decides only; layered-mapping.ts maps.
//
// Rules:
//  - The highest layer that has data at an offset decides. A hole of a diff means: as below.
//  - The kernel maps whole pages. A page of which a diff has only a part is kept in memory.

import { wholePages } from '../memory/whole-pages.js';
import type { Extent, FileRange } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';

/** A file with holes: the extent around an offset. */
interface Sparse {
  at(offset: number): Extent;
}

/** A part of the memory whose bytes are in one layer, or zeros. */
export interface LayerExtent {
  readonly from: number;
  readonly to: number;
  readonly data: boolean;
  /** The layer that has the bytes: 0 is the memory file. */
  readonly layer: number;
}

/** A part that is mapped over the memory file. */
export interface Piece {
  readonly from: number;
  /** Whole pages, or the end of the memory. */
  readonly to: number;
  /** The layer whose file is mapped; undefined: memory, with the bytes of all layers. */
  readonly layer: number | undefined;
}

/** The part around an offset whose bytes are in the same layer. `layers`: the memory file first. */
export function layerAt(
  layers: readonly { readonly extents: Sparse }[],
  size: number,
  offset: number,
): LayerExtent {
  let [from, to] = [0, size];
  for (let layer = layers.length - 1; layer >= 0; layer--) {
    const extent = (layers[layer] as { extents: Sparse }).extents.at(offset);
    from = Math.max(from, extent.from);
    to = Math.min(to, extent.to);
    if (extent.data) return { from, to, data: true, layer };
  }
  return { from, to, data: false, layer: 0 };
}

/**
 * Where there is data, and what is to be mapped over the memory file, both in ascending order.
 *
 * @param at the part around an offset
 */
export function planned(
  size: number,
  at: (offset: number) => LayerExtent,
): { data: FileRange[]; pieces: Piece[] } {
  const data: { offset: number; length: number }[] = [];
  const pieces: Piece[] = [];
  /** Adds the page around a boundary that lies inside of it. */
  const addMixed = (boundary: number): void => {
    const from = boundary - (boundary % SYSTEM_PAGE);
    if (pieces.at(-1)?.from !== from)
      pieces.push({ from, to: Math.min(from + SYSTEM_PAGE, size), layer: undefined });
  };
  for (let offset = 0; offset < size; ) {
    const { to, data: any, layer } = at(offset);
    const last = data.at(-1);
    if (any && last && last.offset + last.length === offset) last.length += to - offset;
    else if (any) data.push({ offset, length: to - offset });
    if (any && layer > 0) {
      const first = wholePages(offset, SYSTEM_PAGE);
      const end = to === size ? to : to - (to % SYSTEM_PAGE);
      if (offset < first) addMixed(offset);
      if (first < end) pieces.push({ from: first, to: end, layer });
      if (end < to) addMixed(to);
    }
    offset = to;
  }
  return { data, pieces };
}

/** At most so many pieces: those with the smallest gaps become one, in memory. */
export function clustered(pieces: readonly Piece[], most: number): readonly Piece[] {
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
