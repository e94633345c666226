// The working set beside an index: the parts of the memory that a recorded guest has touched, in the order of the first
// touch. A text in JSON:
//
//   { "kind": "uffd working set", "version": 1, "index": SHA-256 of the index, "ranges": [[offset, bytes], …] }

import { identityOfIndex } from '../serve/memory-identity.js';
import type { MemoryImage } from '../serve/memory-image.js';
import { workingSet } from '../serve/working-set.js';
import { type ChunkIndex, IndexError, indexHash, parseIndex } from './chunk-index.js';

/** A part of the memory that was touched. Bytes, in whole pages. */
export interface TouchedRange {
  readonly offset: number;
  readonly length: number;
}

const KIND = 'uffd working set';
const VERSION = 1;
const PAGE = 4096;
/** Most bytes of the file: two million ranges. */
export const WORKING_SET_BYTES_MOST = 64 << 20;

/** Where the working set of an index lies. */
export function workingSetPlace(index: string): string {
  const [, place = index, query = ''] = /^([^?]*:\/\/[^?]*)(\?.*)$/.exec(index) ?? [];
  return `${place}.working-set${query}`;
}

/**
 * The working set of recorded runs, as a file for an index.
 *
 * @param traces of the memory file, or of a guest that was served from this index
 * @param force accept traces of other memory
 * @returns its bytes, and a note if a trace was too long
 * @throws TraceError, WorkingSetError
 */
export function makeWorkingSet(
  traces: readonly string[],
  image: MemoryImage,
  index: Uint8Array,
  force: boolean,
): { bytes: Buffer; ranges: readonly TouchedRange[]; truncated: string | undefined } {
  const hash = indexHash(index);
  // A run may have been recorded from the memory file, or from the store.
  const identities = [image.identity, identityOfIndex(image.size, hash)];
  const { ranges, truncated } = workingSet(traces, identities, force);
  const pairs = ranges.map(({ offset, length }) => [offset, length]);
  const content = { kind: KIND, version: VERSION, index: hash, ranges: pairs };
  return { bytes: Buffer.from(`${JSON.stringify(content)}\n`), ranges, truncated };
}

/**
 * Reads a working set.
 *
 * @param index the bytes of the index that it lies beside
 * @param name of the working set, for messages
 * @throws IndexError if it is damaged, or belongs to another index
 */
export function parseWorkingSet(bytes: Uint8Array, index: Uint8Array, name: string): TouchedRange[] {
  const { size } = parseIndex(index, name);
  let content: { kind?: unknown; version?: unknown; index?: unknown; ranges?: unknown } | null;
  try {
    content = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8'));
  } catch {
    throw new IndexError(`${name} is damaged: it is no JSON`);
  }
  if (content?.kind !== KIND) throw new IndexError(`${name} is no working set`);
  if (content.version !== VERSION)
    throw new IndexError(`${name} has version ${String(content.version).slice(0, 20)} of the format`);
  if (content.index !== indexHash(index)) throw new IndexError(`${name} is the working set of another index`);
  if (!Array.isArray(content.ranges)) throw new IndexError(`${name} is damaged: it has no ranges`);
  return content.ranges.map((range: unknown) => {
    const [offset, length] = Array.isArray(range) ? range : [];
    const valid = isPages(offset) && isPages(length) && length > 0 && offset + length <= roundedUp(size);
    if (!valid) throw new IndexError(`${name} is damaged: a range does not lie in the memory`);
    return { offset, length };
  });
}

function isPages(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) % PAGE === 0;
}

function roundedUp(size: ChunkIndex['size']): number {
  return Math.ceil(size / PAGE) * PAGE;
}
