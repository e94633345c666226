// The thread that answers page faults. It ends when it is stopped, or when answering fails; the descriptor is
// open then, and whoever started the thread takes it back. What it does is recorded here, where it happens.

import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { Userfaultfd } from '../../index.js';
import { TraceWriter } from '../../trace/index.js';
import { Board } from './board.js';
import { demoHandler } from './handler.js';
import type { LoopReady, LoopTask } from './messages.js';
import { told } from './recording.js';

const task: LoopTask = workerData;
const record = task.record === undefined ? undefined : TraceWriter.toFile(task.record.file, task.record);
const uffd = Userfaultfd.wrap(task.fd, {
  features: task.features,
  ranges: task.ranges,
  ...(record ? { record } : {}),
});
const handler = demoHandler(uffd, {
  board: new Board(task.board),
  memory: task.memory,
  window: task.window,
  source: (offset) => task.source + offset,
});

parentPort?.postMessage({ stopHandle: uffd.stopHandle } satisfies LoopReady);
try {
  uffd.start(handler, { wait: task.wait });
  // On the event loop `start` returns at once; the others return when they are stopped.
  if (task.wait === 'poll' && parentPort) await once(parentPort, 'message');
} finally {
  if (!uffd.closed) uffd.release();
  if (record) parentPort?.postMessage(told(record));
}
