// What the demo's threads are started with and what they answer. All of it can be posted.

import type { RecordableHistogram } from 'node:perf_hooks';
import type { Feature, RegisteredRange, SharedMapping, Wait } from '../../index.js';
import type { RecordTask } from './recording.js';

/** For loop-worker.ts. It answers LoopReady. */
export interface LoopTask {
  /** A userfaultfd, lent: whoever started the thread takes it back when the thread has ended. */
  fd: number;
  features: ReadonlySet<Feature>;
  ranges: readonly RegisteredRange[];
  board: SharedArrayBuffer;
  /** Where the watched memory begins, and where the bytes that belong there. */
  memory: bigint;
  source: bigint;
  wait: Wait;
  window: number;
  record?: RecordTask;
}

/** Behind it comes, when the loop has ended, `Recorded`, where it was to record. */
export interface LoopReady {
  stopHandle: SharedArrayBuffer;
}

/** For touch-worker.ts. It answers 'ready', and Touched at the end. */
export interface TouchTask {
  board: SharedArrayBuffer;
  memory: SharedMapping;
  pageSize: number;
  pages: number;
  seed: number;
  /** This thread touches the index-th, (index + threads)-th… page of the order. */
  index: number;
  threads: number;
}

export interface Touched {
  /** Nanoseconds of the touches for which the loop filled that very page. */
  latency: RecordableHistogram;
  /** By the monotonic clock that all threads share. */
  begunMs: number;
  endedMs: number;
  /** The sum of the bytes that were read: what keeps the reads from being optimized away. */
  sum: number;
}

/** For hash-worker.ts. It answers with the digest in hexadecimal. */
export interface HashTask {
  memory: SharedMapping;
  /** Bytes to hash: the file's size. */
  length: number;
}
