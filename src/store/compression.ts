// zstd: Node's own (from 22.15 on), else libzstd, else, to decompress only, the WebAssembly of the package zstddec. A
// swap file and a chunk store use it.

// Not the namespace: webpack makes named imports of its properties, and those that a Node lacks would be errors.
import zlib from 'node:zlib';
import { openLibzstd } from '../../shim/zstd.js';
import { UnsupportedError } from '../kernel/port.js';

export interface Decompressor {
  readonly kind: 'node:zlib' | 'libzstd' | 'zstddec';
  /** Decompresses frames that fill all of `into`, and never more; false if they do not. Synchronous. */
  decompress(frame: Uint8Array, into: Uint8Array): boolean;
  close(): void;
}

export interface Compressor extends Decompressor {
  readonly kind: 'node:zlib' | 'libzstd';
  /** The compressed bytes, valid until the next call; undefined if they would be no fewer than `most`. */
  compress(bytes: Uint8Array, most: number): Uint8Array | undefined;
  /** Compresses in libuv's thread pool, so that several calls run at once. `bytes` must not change meanwhile. */
  compressLater(bytes: Uint8Array, level: number): Promise<Uint8Array>;
}

/** Fast, and at most a few percent larger than the default level. */
const LEVEL = 1;

/** What Node 22.15 has, and the types of Node 20 do not. */
interface NodeZstd {
  zstdCompressSync?(bytes: Uint8Array, options: object): Buffer;
  zstdCompress(bytes: Uint8Array, options: object, done: (error: Error | null, frame: Buffer) => void): void;
  zstdDecompressSync?(bytes: Uint8Array, options: object): Buffer;
  constants: { ZSTD_c_compressionLevel?: number };
}

/** The level of what is stored: zstd's default, and casync's. */
export const LEVEL_STORED = 3;

/** @throws UnsupportedError if this process has no zstd */
export function needCompressor(): Compressor {
  const compressor = openCompressor();
  if (compressor) return compressor;
  throw new UnsupportedError(
    'packing needs zstd: Node 22.15 or newer, or libzstd.so.1 on this machine (Debian: libzstd1)',
  );
}

/** Undefined: this process has no zstd. */
export function openCompressor(): Compressor | undefined {
  return nodeCompressor() ?? libraryCompressor();
}

export function nodeCompressor(): Compressor | undefined {
  const { zstdCompressSync, zstdCompress, zstdDecompressSync, constants } = zlib as unknown as NodeZstd;
  if (!zstdCompressSync || !zstdDecompressSync || constants.ZSTD_c_compressionLevel === undefined)
    return undefined;
  const levelAt = constants.ZSTD_c_compressionLevel;
  const params = { [levelAt]: LEVEL };
  return {
    kind: 'node:zlib',
    compress(bytes, most) {
      // One piece of output, so that Node need not join several.
      const frame = zstdCompressSync(bytes, { params, chunkSize: Math.max(64, bytes.length) });
      return frame.length < most ? frame : undefined;
    },
    compressLater: (bytes, level) =>
      new Promise((resolve, reject) => {
        const options = { params: { [levelAt]: level }, chunkSize: Math.max(64, bytes.length) };
        zstdCompress(bytes, options, (error, frame) => (error ? reject(error) : resolve(frame)));
      }),
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
    async compressLater(bytes, level) {
      const into = Buffer.allocUnsafeSlow(library.bound(bytes.length));
      const length = await library.compressLater(into, bytes, level);
      if (length < 0) throw new Error('libzstd could not compress: there is no memory for it');
      // Copied, because it is kept while it is sent, and is mostly much smaller.
      return length < into.length / 2 ? Buffer.from(into.subarray(0, length)) : into.subarray(0, length);
    },
    decompress: (frame, into) => library.decompress(into, frame) === into.length,
    close: () => library.close(),
  };
}

/** What decompresses on any machine. Loads the package only if neither Node nor the machine has zstd. */
export async function openDecompressor(): Promise<Decompressor> {
  return openCompressor() ?? (await portableDecompressor());
}

export async function portableDecompressor(): Promise<Decompressor> {
  const { ZSTDDecoder } = await import('zstddec');
  const decoder = new ZSTDDecoder();
  await decoder.init();
  return {
    kind: 'zstddec',
    decompress(frame, into) {
      const bytes = decoder.decode(frame, into.length);
      if (bytes.length !== into.length) return false;
      into.set(bytes);
      return true;
    },
    close() {},
  };
}
