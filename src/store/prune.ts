// Removes chunks that no index names.
//
// Rule: a chunk that a running `pack` uses again is made young by it. So the time of each chunk is looked
// up once more just before it is removed.

import { type ChunkIndex, chunkId, idOfKey } from './chunk-index.js';
import { withTasks } from './parallel.js';
import { GRACE_MS, PARTIAL_SUFFIX, type Store, StoreError } from './store.js';

export interface PruneOptions {
  /** Younger chunks stay: they may belong to a pack that is not done. Milliseconds; default: a day. */
  readonly graceMs?: number;
  /** Whether to remove nothing, and only to count. Default false. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  /** Called with the name of each chunk that is removed, or would be. */
  readonly removing?: (key: string) => void;
}

export interface PruneCounts {
  /** Chunks that an index names, and those that are too young. */
  readonly namedChunks: number;
  readonly youngChunks: number;
  /** Chunks that were removed, or would be, and parts of chunks that a killed process has left in a folder. */
  readonly removedChunks: number;
  readonly removedBytes: number;
  /** Objects that are no chunks: they stay. */
  readonly otherObjects: number;
}

/** What a process that was killed leaves of a chunk that it was writing to a folder. */
const REMAINS = new RegExp(`\\.\\d+-\\d+\\${PARTIAL_SUFFIX}$`);

/**
 * Removes the chunks that none of the indexes names.
 *
 * @param indexes all indexes whose chunks are in the store
 * @throws StoreError, also if the store cannot be listed; the reason of the signal
 */
export async function prune(
  indexes: readonly ChunkIndex[],
  store: Store,
  { graceMs = GRACE_MS, dryRun = false, signal, removing }: PruneOptions = {},
): Promise<PruneCounts> {
  if (!store.can.list || !store.can.delete) {
    throw new StoreError(
      'unable',
      `${store.name} cannot be pruned: this kind of store cannot list what it has; use its folder, or s3://`,
    );
  }
  const named = new Set<string>();
  for (const index of indexes)
    for (let chunk = 0; chunk < index.count; chunk++) named.add(chunkId(index, chunk));
  const counts = { namedChunks: 0, youngChunks: 0, removedChunks: 0, removedBytes: 0, otherObjects: 0 };
  const before = Date.now() - graceMs;
  await withTasks(store.parallel, signal, async (pool) => {
    for await (const { key, bytes, modifiedMs } of store.list(signal)) {
      const id = idOfKey(key.replace(REMAINS, ''));
      if (id === undefined) counts.otherObjects++;
      else if (named.has(id) && !REMAINS.test(key)) counts.namedChunks++;
      else if (modifiedMs > before) counts.youngChunks++;
      else {
        await pool.start(async (aborted) => {
          const written = dryRun ? modifiedMs : await store.writtenMs(key, aborted);
          if (written !== undefined && written > before) {
            counts.youngChunks++;
            return;
          }
          if (!dryRun) await store.delete(key, aborted);
          counts.removedChunks++;
          counts.removedBytes += bytes;
          removing?.(key);
        });
      }
    }
  });
  return counts;
}
