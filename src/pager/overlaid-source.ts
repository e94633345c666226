// A source of which some blocks were changed: these are read from a store, the others from the source.

import type { BlockStore, OpenSource } from './source.js';

/** Bytes in a row that are all in the store, or all in the source. */
interface Run {
  /** From the start of the data. */
  readonly offset: number;
  /** From the start of the read. */
  readonly start: number;
  readonly end: number;
  readonly held: boolean;
}

/** Reads the blocks that `store` holds from there. `close` closes the source, and not the store. */
export function overlaid(source: OpenSource, store: BlockStore, blockSize: number): OpenSource {
  const runs = function* (offset: number, length: number): Generator<Run> {
    for (let start = 0; start < length; ) {
      let block = Math.floor((offset + start) / blockSize);
      const held = store.holds(block);
      let end: number;
      do end = Math.min(++block * blockSize - offset, length);
      while (end < length && store.holds(block) === held);
      yield { offset: offset + start, start, end, held };
      start = end;
    }
  };
  const readNow: OpenSource['read'] = (offset, into, signal) => {
    for (const run of runs(offset, into.length)) {
      const part = into.subarray(run.start, run.end);
      if (run.held) store.read(run.offset, part);
      else void source.read(run.offset, part, signal, () => {});
    }
  };
  const readLater: OpenSource['read'] = async (offset, into, signal, arrived) => {
    for (const run of runs(offset, into.length)) {
      const part = into.subarray(run.start, run.end);
      if (run.held) store.read(run.offset, part);
      else await source.read(run.offset, part, signal, (bytes) => arrived(run.start + bytes));
      signal.throwIfAborted();
      arrived(run.end);
    }
  };
  const { size, parallel, immediate = false } = source;
  return {
    size,
    parallel,
    immediate,
    read: immediate ? readNow : readLater,
    close: () => source.close(),
  };
}
