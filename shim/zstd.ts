// libzstd, as it is installed on the machine. Node has zstd itself from version 22.15 on.
//
// Contexts are reused: making one for each call would take longer than compressing a block. A call in libuv's pool makes
// its own, because several run at once.

import { koffi } from './koffi.js';

const NAME = 'libzstd.so.1';

export interface Libzstd {
  /** Most bytes that `length` bytes can be compressed to. */
  bound(length: number): number;
  /** Compresses into `into`: bytes written, or a negative number if it failed. */
  compress(into: Uint8Array, bytes: Uint8Array, level: number): number;
  /** As `compress`, in a thread of libuv's pool. Neither array may be freed, moved or changed until it has settled. */
  compressLater(into: Uint8Array, bytes: Uint8Array, level: number): Promise<number>;
  /** Decompresses one frame into `into`: bytes written, or a negative number if the frame is damaged or too large. */
  decompress(into: Uint8Array, bytes: Uint8Array): number;
  /** Frees the contexts. */
  close(): void;
}

/** Undefined: this machine has no libzstd that can be loaded. */
export function openLibzstd(): Libzstd | undefined {
  let library: ReturnType<ReturnType<typeof koffi>['load']>;
  try {
    library = koffi().load(NAME);
  } catch {
    return undefined;
  }
  const declare = (name: string, result: string, types: string[]) =>
    library.func(name, result, types) as (...values: unknown[]) => number | bigint;
  const bytes = ['void *', 'size_t', 'void *', 'size_t'];
  const compressBound = declare('ZSTD_compressBound', 'size_t', ['size_t']);
  const compress = declare('ZSTD_compressCCtx', 'size_t', ['uintptr_t', ...bytes, 'int']);
  const compressAlone = library.func('ZSTD_compress', 'size_t', [...bytes, 'int']);
  const decompress = declare('ZSTD_decompressDCtx', 'size_t', ['uintptr_t', ...bytes]);
  const freeCompressor = declare('ZSTD_freeCCtx', 'size_t', ['uintptr_t']);
  const freeDecompressor = declare('ZSTD_freeDCtx', 'size_t', ['uintptr_t']);
  const compressor = declare('ZSTD_createCCtx', 'uintptr_t', [])();
  const decompressor = declare('ZSTD_createDCtx', 'uintptr_t', [])();
  const free = (): void => {
    // Both accept a null pointer.
    freeCompressor(compressor);
    freeDecompressor(decompressor);
  };
  // Null: there is no memory for it.
  if (!Number(compressor) || !Number(decompressor)) {
    free();
    return undefined;
  }
  let closed = false;
  return {
    bound: (length) => Number(compressBound(length)),
    compress: (into, from, level) =>
      orFailed(compress(compressor, into, into.length, from, from.length, level)),
    compressLater: (into, from, level) =>
      new Promise((resolve, reject) => {
        compressAlone.async(
          ...[into, into.length, from, from.length, level],
          (error: Error | null, result: number | bigint) =>
            error ? reject(error) : resolve(orFailed(result)),
        );
      }),
    decompress: (into, from) => orFailed(decompress(decompressor, into, into.length, from, from.length)),
    close: () => {
      if (closed) return;
      closed = true;
      free();
    },
  };
}

/** libzstd's errors are small negative numbers as size_t. */
function orFailed(result: number | bigint): number {
  const bytes = Number(BigInt.asIntN(64, BigInt(result)));
  return bytes < 0 ? -1 : bytes;
}
