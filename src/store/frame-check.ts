// Decompresses and verifies what a store has of a chunk: a frame whose data has the chunk's hash, or frames of a zstd
// file in the seekable format.
//
// Rule: each byte is verified: by the hash of the chunk, or by the checksum that the seek table has of its frame, or
// else by the frame's own checksum. A frame that has none of them is refused.

import createXxhash from 'xxhash-wasm';
import { type Digest, idOf } from './chunk-index.js';
import { type Decompressor, openDecompressor } from './compression.js';
import type { FramePart } from './seekable-table.js';

/** What verifies a chunk: the hash that its id is, or its frames' checksums. */
export type FrameProof = Digest | readonly FramePart[];

/**
 * Decompresses what was read for a chunk into as many bytes as the chunk has, and verifies them. Returns what is wrong;
 * undefined: nothing is. `into` is called when the bytes are needed, because frames may wait for their check.
 */
export type FrameCheck = (
  frame: Uint8Array,
  into: () => Uint8Array,
  by: FrameProof,
  id: string,
) => string | undefined | Promise<string | undefined>;

/** What a check needs. Has memory of its own. */
export interface FrameTools {
  readonly decompressor: Decompressor;
  /** The low half of XXH64 of bytes. */
  checksum(bytes: Uint8Array): number;
}

/** The library copies what it hashes into its own memory, which never shrinks. */
const PIECE = 256 << 10;
/** The bit of a frame's descriptor (its fifth byte) that says that a checksum of the data follows the data. */
const OWN_CHECKSUM = 4;

export async function openFrameTools(): Promise<FrameTools> {
  const { create64 } = await createXxhash();
  return {
    decompressor: await openDecompressor(),
    checksum(bytes) {
      const hash = create64();
      for (let at = 0; at < bytes.length; at += PIECE) hash.update(bytes.subarray(at, at + PIECE));
      return Number(hash.digest() & 0xffffffffn);
    },
  };
}

/** A FrameCheck with tools. */
export function checkFrame(
  tools: FrameTools,
  ...[frame, room, by, id]: Parameters<FrameCheck>
): string | undefined {
  if (typeof by !== 'string') return checkParts(tools, frame, room(), by);
  if (!isZstd(frame)) return 'it is no zstd frame (casync must make it with --compression=zstd)';
  const into = room();
  if (!tools.decompressor.decompress(frame, into)) return `it cannot be decompressed to ${into.length} bytes`;
  if (idOf(into, by) !== id) return 'its bytes have another hash';
  return undefined;
}

function checkParts(
  { decompressor, checksum }: FrameTools,
  bytes: Uint8Array,
  into: Uint8Array,
  parts: readonly FramePart[],
): string | undefined {
  let filled = 0;
  for (const { at, length, dataAt, dataLength, checksum: expected } of parts) {
    const frame = bytes.subarray(at, at + length);
    if (!isZstd(frame)) return 'there is no zstd frame where the seek table says';
    if (expected === undefined && !hasOwnChecksum(frame)) return 'a frame has no checksum';
    const whole = dataAt >= 0 && dataAt + dataLength <= into.length;
    const data = whole ? into.subarray(dataAt, dataAt + dataLength) : new Uint8Array(dataLength);
    if (!decompressor.decompress(frame, data)) return `a frame cannot be decompressed to ${dataLength} bytes`;
    if (expected !== undefined && checksum(data) !== expected) return 'a frame has another checksum';
    const from = Math.max(0, -dataAt);
    const part = data.subarray(from, Math.min(dataLength, into.length - dataAt));
    if (!whole) into.set(part, dataAt + from);
    filled += part.length;
  }
  return filled === into.length ? undefined : 'its frames do not fill it';
}

/** Whether bytes begin like a zstd frame. */
export function isZstd(frame: Uint8Array): boolean {
  return [0x28, 0xb5, 0x2f, 0xfd].every((byte, at) => frame[at] === byte);
}

/** Whether a frame has a checksum of its own, which is compared when it is decompressed. */
export function hasOwnChecksum(frame: Uint8Array): boolean {
  return ((frame[4] ?? 0) & OWN_CHECKSUM) !== 0;
}
