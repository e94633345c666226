// Opens a store; reads and writes single files by their path or URL.

import {
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FallbackStore } from './fallback-store.js';
import { FolderStore } from './folder-store.js';
import { checkStoreOptions, isUrl, type StoreOptions } from './options.js';
import { PARTIAL_SUFFIX, type Store, StoreError } from './store.js';

/**
 * Opens a store: the path of a folder, or a URL that begins with file:, http:, https: or s3:. Nothing is connected until
 * the first call.
 *
 * @throws StoreError for another URL; TypeError, RangeError
 */
export async function openStore(place: string, options: StoreOptions = {}): Promise<Store> {
  const checked = checkStoreOptions(options);
  const first = await openOne(place, checked);
  if (checked.fallback === undefined) return first;
  return new FallbackStore(first, await openOne(checked.fallback, checked));
}

async function openOne(place: string, options: StoreOptions): Promise<Store> {
  const [, scheme] = /^([a-z][a-z0-9+.-]*):\/\//i.exec(place) ?? [];
  switch (scheme?.toLowerCase()) {
    case undefined:
      return new FolderStore(place);
    case 'file':
      return new FolderStore(fileURLToPath(place));
    // The clients are loaded when they are needed.
    case 'http':
    case 'https':
      return new (await import('./http-store.js')).HttpStore(place, options);
    case 's3':
      return new (await import('./s3-store.js')).S3Store(place, options);
    default:
      throw new StoreError(
        'unable',
        `there is no store of kind ${scheme}:; use a folder, http(s):// or s3://`,
      );
  }
}

/**
 * Reads a file, or an object of a store.
 *
 * @param place its path, or its URL
 * @param most bytes
 * @throws Node's errors for a path, StoreError otherwise
 */
export async function readPlace(
  place: string,
  most: number,
  options: StoreOptions = {},
  signal?: AbortSignal,
): Promise<Uint8Array> {
  if (!isUrl(place)) {
    const { size } = statSync(place);
    if (size > most) throw new StoreError('failed', `${place} has ${size} bytes, more than ${most}`);
    return readFileSync(place);
  }
  return withPlace(place, options, (store, key) => store.get(key, most, signal));
}

/**
 * Writes a file, or an object of a store. Readers see all of it, or what was there before; a file survives a loss of
 * power when this resolves.
 *
 * @throws as `readPlace`
 */
export async function writePlace(
  place: string,
  bytes: Uint8Array,
  options: StoreOptions = {},
  signal?: AbortSignal,
): Promise<void> {
  if (!isUrl(place)) await writeDurably(place, (fd) => writeFileSync(fd, bytes));
  else await withPlace(place, options, (store, key) => store.put(key, bytes, signal));
}

/**
 * Opens the store that a file or an object lies in.
 *
 * @param place its path, or its URL
 * @returns the store, for the caller to close, and the name of the object there
 * @throws StoreError
 */
export async function openPlace(
  place: string,
  { fallback: _, ...options }: StoreOptions,
): Promise<{ store: Store; key: string }> {
  if (!isUrl(place)) return { store: new FolderStore(dirname(place)), key: basename(place) };
  const [, folder = '', key = '', query = ''] = /^([^?#]*)\/([^/?#]+)(\?[^#]*)?$/.exec(place) ?? [];
  if (key === '') throw new StoreError('unable', `${place.slice(0, 200)} names no object of a store`);
  return { store: await openOne(folder + query, checkStoreOptions(options)), key };
}

async function withPlace<T>(
  place: string,
  options: StoreOptions,
  use: (store: Store, key: string) => Promise<T>,
): Promise<T> {
  const { store, key } = await openPlace(place, options);
  try {
    return await use(store, key);
  } finally {
    store.close();
  }
}

/** As `writePlace`, for what `write` writes. Nothing is left of it if that fails. */
export async function writeDurably<T>(path: string, write: (fd: number) => T | Promise<T>): Promise<T> {
  let result: T;
  const partial = `${path}${PARTIAL_SUFFIX}`;
  try {
    const fd = openSync(partial, 'w');
    try {
      result = await write(fd);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(partial, path);
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  }
  const folder = openSync(dirname(path), 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
  return result;
}
