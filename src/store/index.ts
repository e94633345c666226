// The entry `userfaultfd/store`: snapshots as chunks in a folder, on a web server or in S3, in casync's format.

import '../kernel/linux.js';

export { MemoryImage, MemoryImageError } from '../serve/memory-image.js';
export {
  CHUNK_DEFAULT,
  CHUNK_LEAST,
  CHUNK_MOST,
  type ChunkIndex,
  type Chunks,
  chunkBytes,
  chunkId,
  chunkKey,
  DIGESTS,
  type Digest,
  encodeIndex,
  INDEX_BYTES_MOST,
  IndexError,
  idOf,
  idOfKey,
  indexHash,
  parseIndex,
  zeroIds,
} from './chunk-index.js';
export { ChunkReader, DamagedChunkError } from './chunk-reader.js';
export type { FrameCheck, FrameProof } from './frame-check.js';
export { openStore, readPlace, writePlace } from './open-store.js';
export { checkStoreOptions, isUrl, type StoreOptions } from './options.js';
export { type PackCounts, type PackOptions, pack } from './pack.js';
export { type PackSeekableCounts, type PackSeekableOptions, packSeekable } from './pack-seekable.js';
export { type PruneCounts, type PruneOptions, prune } from './prune.js';
export { isSeekableName, SeekableReader } from './seekable-reader.js';
export type { ChunkParts, FramePart, SeekTable } from './seekable-table.js';
export {
  type Abilities,
  GRACE_MS,
  type ListedObject,
  type ObjectRange,
  type Room,
  type Store,
  StoreError,
} from './store.js';
export { type UnpackCounts, type UnpackOptions, unpack } from './unpack.js';
export { type BadChunk, type VerifyCounts, type VerifyOptions, verify } from './verify.js';
export {
  makeWorkingSet,
  parseWorkingSet,
  type TouchedRange,
  WORKING_SET_BYTES_MOST,
  workingSetPlace,
} from './working-set-file.js';
