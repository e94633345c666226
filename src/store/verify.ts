// Checks that a store has all chunks of an index, and that each is what its id says.

import { setImmediate as turn } from 'node:timers/promises';
import { type ChunkIndex, chunkBytes, chunkId } from './chunk-index.js';
import { ChunkReader, DamagedChunkError } from './chunk-reader.js';
import { tasksFor, withTasks } from './parallel.js';
import { type Store, StoreError } from './store.js';

export interface VerifyCounts {
  /** Different chunks, and how many of them are checked. */
  readonly distinctChunks: number;
  readonly doneChunks: number;
}

/** A chunk that cannot be read. */
export interface BadChunk {
  readonly id: string;
  /** Where the memory has it first, in bytes. */
  readonly offset: number;
  /** `refused`: the server does not allow it to be read. S3 also says this of what is not there. */
  readonly state: 'missing' | 'damaged' | 'refused';
  readonly reason: string;
}

export interface VerifyOptions {
  readonly signal?: AbortSignal;
  readonly progress?: (counts: VerifyCounts) => void;
}

/**
 * Fetches each chunk once. Chunks of zeros are checked, too, because casync needs them.
 *
 * @returns the chunks that cannot be read, in the order of the memory
 * @throws StoreError if the store cannot be reached, or refuses everything; the reason of the signal
 */
export async function verify(
  index: ChunkIndex,
  store: Store,
  { signal, progress }: VerifyOptions = {},
): Promise<{ bad: BadChunk[]; counts: VerifyCounts }> {
  const first = new Map<string, number>();
  for (let chunk = 0; chunk < index.count; chunk++) {
    const id = chunkId(index, chunk);
    if (!first.has(id)) first.set(id, chunk);
  }
  const reader = await ChunkReader.open(index, store);
  const bad: BadChunk[] = [];
  let refused: StoreError | undefined;
  let doneChunks = 0;
  try {
    await withTasks(tasksFor(store.parallel, index.chunkSize), signal, async (pool) => {
      const free: Buffer[] = [];
      for (const [id, chunk] of first) {
        await pool.start(async (aborted) => {
          const memory = free.pop() ?? Buffer.allocUnsafeSlow(index.chunkSize);
          try {
            await reader.fetch(chunk, () => memory.subarray(0, chunkBytes(index, chunk)), aborted);
          } catch (error) {
            const state = stateOf(error);
            if (state === 'refused') refused = error as StoreError;
            bad.push({ id, offset: chunk * index.chunkSize, state, reason: (error as Error).message });
          }
          free.push(memory);
          doneChunks++;
          progress?.({ distinctChunks: first.size, doneChunks });
        });
        await turn();
      }
    });
  } finally {
    reader.close();
  }
  // That is a matter of the credentials, not of chunks.
  if (refused && bad.length === first.size) throw refused;
  bad.sort((one, other) => one.offset - other.offset);
  return { bad, counts: { distinctChunks: first.size, doneChunks } };
}

/** @throws the error if it is not about one chunk */
function stateOf(error: unknown): BadChunk['state'] {
  if (error instanceof DamagedChunkError) return 'damaged';
  if (error instanceof StoreError && (error.kind === 'missing' || error.kind === 'refused'))
    return error.kind;
  throw error;
}
