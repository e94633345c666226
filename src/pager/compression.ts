// zstd for the blocks of a swap file: Node's own (from 22.15 on), else libzstd, else none. All calls are synchronous.

// Not the namespace: webpack makes named imports of its properties, and those that a Node lacks would be errors.
import zlib from 'node:zlib';
import { openLibzstd } from '../../shim/zstd.js';

export interface Compressor {
  readonly kind: 'node:zlib' | 'libzstd';
  /** The compressed bytes, valid until the next call; undefined if they would be no fewer than `most`. */
  compress(bytes: Uint8Array, most: number): Uint8Array | undefined;
  /** Decompresses a frame that fills all of `into`; false if it does not. */
  decompress(frame: Uint8Array, into: Uint8Array): boolean;
  close(): void;
}

/** Fast, and at most a few percent larger than the default level. */
const LEVEL = 1;

/** What Node 22.15 has, and the types of Node 20 do not. */
interface NodeZstd {
  zstdCompressSync?(bytes: Uint8Array, options: object): Buffer;
  zstdDecompressSync?(bytes: Uint8Array, options: object): Buffer;
  constants: { ZSTD_c_compressionLevel?: number };
}

/** Undefined: this process has no zstd. */
export function openCompressor(): Compressor | undefined {
  return nodeCompressor() ?? libraryCompressor();
}

export function nodeCompressor(): Compressor | undefined {
  const { zstdCompressSync, zstdDecompressSync, constants } = zlib as unknown as NodeZstd;
  if (!zstdCompressSync || !zstdDecompressSync || constants.ZSTD_c_compressionLevel === undefined)
    return undefined;
  const params = { [constants.ZSTD_c_compressionLevel]: LEVEL };
  return {
    kind: 'node:zlib',
    compress(bytes, most) {
      // One piece of output, so that Node need not join several.
      const frame = zstdCompressSync(bytes, { params, chunkSize: Math.max(64, bytes.length) });
      return frame.length < most ? frame : undefined;
    },
    decompress(frame, into) {
      let bytes: Buffer;
      try {
        bytes = zstdDecompressSync(frame, {
          maxOutputLength: into.length,
          chunkSize: Math.max(64, into.length),
        });
      } catch {
        return false;
      }
      if (bytes.length !== into.length) return false;
      into.set(bytes);
      return true;
    },
    close() {},
  };
}

export function libraryCompressor(): Compressor | undefined {
  const library = openLibzstd();
  if (!library) return undefined;
  let output = Buffer.alloc(0);
  return {
    kind: 'libzstd',
    compress(bytes, most) {
      const bound = library.bound(bytes.length);
      if (output.length < bound) output = Buffer.allocUnsafeSlow(bound);
      const length = library.compress(output, bytes, LEVEL);
      return length >= 0 && length < most ? output.subarray(0, length) : undefined;
    },
    decompress: (frame, into) => library.decompress(into, frame) === into.length,
    close: () => library.close(),
  };
}
