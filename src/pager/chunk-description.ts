// The description of a snapshot in a chunk store: plain data that a program makes and posts to the pager's thread.

import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkInteger, checkOptions, wrongType } from '../errors/arguments.js';
import { checkStoreOptions, isUrl, type StoreOptions } from '../store/options.js';

/** Options of a snapshot in a chunk store. All are plain data. */
export interface ChunkSourceOptions extends StoreOptions {
  /**
   * SHA-256 that the index must have, in hexadecimal. Who may write to where the index lies can otherwise replace it.
   * Default: any.
   */
  indexSha256?: string;
  /** Bytes of decompressed chunks that are kept. Default 16 MiB; at least two chunks are. */
  cacheBytes?: number;
}

/** Describes a snapshot in a chunk store to a pager. */
export interface ChunkSource {
  readonly kind: 'chunks';
  /** The path or URL of the index, or its bytes. */
  readonly index: string | Uint8Array;
  /** The path or URL of the store. */
  readonly store: string;
  readonly options: ChunkSourceOptions;
}

/**
 * Describes a snapshot whose chunks are in a store (`uffd pack`). Each chunk is checked against the index before a byte
 * of it gets into memory. Nothing is read until a pager opens the description.
 *
 * @param index the path or URL of the index, or its bytes
 * @param store a folder, or a URL that begins with http:, https: or s3:
 */
export function chunkSource(
  index: string | URL | Uint8Array,
  store: string | URL,
  options: ChunkSourceOptions = {},
): ChunkSource {
  if (!(index instanceof Uint8Array) && !isPlace(index))
    throw wrongType('index', 'a path, a URL or the bytes of an index', index);
  if (!isPlace(store)) throw wrongType('store', 'a path or a URL', store);
  checkOptions(options, 'options');
  const { indexSha256, cacheBytes } = options;
  if (cacheBytes !== undefined) checkInteger(cacheBytes, 'cacheBytes', 0, Number.MAX_SAFE_INTEGER);
  if (indexSha256 !== undefined && !(typeof indexSha256 === 'string' && /^[0-9a-f]{64}$/i.test(indexSha256)))
    throw wrongType('indexSha256', '64 hexadecimal digits', indexSha256);
  const { fallback, ...checked } = checkStoreOptions(options);
  return {
    kind: 'chunks',
    index: index instanceof Uint8Array ? index.slice() : placeOf(index),
    store: placeOf(store),
    options: {
      ...checked,
      ...(fallback !== undefined && { fallback: placeOf(fallback) }),
      ...(indexSha256 !== undefined && { indexSha256: indexSha256.toLowerCase() }),
      ...(cacheBytes !== undefined && { cacheBytes }),
    },
  };
}

function isPlace(value: unknown): value is string | URL {
  return value instanceof URL || (typeof value === 'string' && value !== '');
}

/** Paths are made absolute, because the thread may run in another folder. */
function placeOf(place: string | URL): string {
  const text = String(place);
  if (text.startsWith('file:')) return fileURLToPath(text);
  return isUrl(text) ? text : resolve(text);
}
