// A thread that touches its share of the pages, each once, in random order. It knows nothing of userfaultfd:
// reading a byte is all it does.

import { createHistogram } from 'node:perf_hooks';
import { parentPort, workerData } from 'node:worker_threads';
import { Mapping } from '../../index.js';
import { shuffledOrder } from '../guest/permutation.js';
import { Board } from './board.js';
import type { Touched, TouchTask } from './messages.js';

/** Bytes of one view. A buffer has a largest size; a power of two well below it keeps the arithmetic simple. */
const VIEW_BYTES = 2 ** 30;

const { pages, pageSize, seed, index, threads, ...shared }: TouchTask = workerData;
const board = new Board(shared.board);
const memory = Mapping.attach(shared.memory);
const views: Uint8Array[] = [];
for (let at = 0; at < memory.length; at += VIEW_BYTES) {
  views.push(memory.slice(at, Math.min(at + VIEW_BYTES, memory.length)));
}
const pagesInView = VIEW_BYTES / pageSize;
const order = shuffledOrder(pages, seed);

parentPort?.postMessage('ready');
board.awaitBegin();
parentPort?.postMessage(touchAll());

function touchAll(): Touched {
  const latency = createHistogram();
  const begunMs = monotonicMs();
  let sum = 0;
  for (let i = index; i < pages && !board.stopped; i += threads) {
    const page = order(i);
    const view = views[Math.floor(page / pagesInView)] as Uint8Array;
    const offset = (page % pagesInView) * pageSize;
    const before = performance.now();
    sum += view[offset] as number;
    const after = performance.now();
    // No other thread touches this page, so a mark on it says that this touch slept for it.
    if (board.marked(page)) latency.record(Math.max(1, Math.round((after - before) * 1e6)));
  }
  return { latency, begunMs, endedMs: monotonicMs(), sum };
}

/** performance.now() begins with each thread; this does not. */
function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
