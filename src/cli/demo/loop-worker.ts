// The thread that answers page faults. It ends when it is stopped, or when answering fails; the descriptor is
// open then, and whoever started the thread takes it back.

import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { type FaultHandler, type Pagefault, Userfaultfd } from '../../index.js';
import { Board } from './board.js';
import type { LoopReady, LoopTask } from './messages.js';

const task: LoopTask = workerData;
const board = new Board(task.board);
const uffd = Userfaultfd.wrap(task.fd, { features: task.features, ranges: task.ranges });
const pageBytes = BigInt(uffd.pageSize);

const handler: FaultHandler = {
  pagefault({ page }: Pagefault): boolean {
    const { start, length } = uffd.window(page, task.window);
    if (uffd.pageState(page) === 'present') {
      // A neighbour's fill brought this page while its message was under way; filling it again wakes.
      uffd.copy(page, task.source + (page - task.memory), uffd.pageSize);
      board.countFault(0);
      return true;
    }
    board.mark(Number((page - task.memory) / pageBytes));
    const done = uffd.copy(start, task.source + (start - task.memory), length);
    if (done < length) return false;
    board.countFault(length / uffd.pageSize);
    return true;
  },
};

parentPort?.postMessage({ stopHandle: uffd.stopHandle } satisfies LoopReady);
try {
  uffd.start(handler, { wait: task.wait });
  // On the event loop `start` returns at once; the others return when they are stopped.
  if (task.wait === 'poll' && parentPort) await once(parentPort, 'message');
} finally {
  if (!uffd.closed) uffd.release();
}
