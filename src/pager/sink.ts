// A sink that a program has written: it takes the changes of a writable pager.

import { checkFunction, checkMethod, checkOptions } from '../errors/arguments.js';
import type { Target } from './source.js';

/**
 * Takes the changes of a pager whose program has written it. What it has taken must come back from the source: blocks
 * that are evicted are read from there again.
 */
export interface Sink {
  /**
   * Writes bytes to the data from `offset` on: whole blocks, of which the last one of the data may be shorter. At most
   * 8 MiB, or one block, are under way at once, in several calls and in any order; never two calls for one block.
   *
   * @param bytes a copy, which the sink may keep
   * @param signal aborted when the pager is closed and the changes are discarded
   * @throws any error, also as a rejection: the changes stay in memory, and are written again later. A part of them may
   *   have been written
   */
  write(offset: number, bytes: Uint8Array, signal: AbortSignal): void | Promise<void>;
  /** Makes durable what was written: `flush` waits for it, after all writes. */
  sync?(): void | Promise<void>;
}

/** Most bytes that a sink is given at once, if blocks are smaller. */
export const SINK_BYTES = 8 * 2 ** 20;

/** @throws TypeError */
export function checkSink(sink: Sink, name: string, expected: string): void {
  checkOptions(sink, name);
  checkMethod(sink, name, 'write', expected);
  if (sink.sync !== undefined) checkFunction(sink.sync, `${name}: sync`);
}

/** A sink that runs in this thread. */
export function sinkTarget(sink: Sink): Target {
  return {
    bytesAtOnce: SINK_BYTES,
    async write(parts, signal) {
      for (const { offset, bytes } of parts) await sink.write(offset, bytes, signal);
    },
    async sync() {
      await sink.sync?.();
    },
    close() {},
  };
}
