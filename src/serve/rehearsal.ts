// The other parts of a rehearsal: before a monitor connects, the server takes a scratch hand-off once, so that V8 has
// compiled that code. Without it, the first guest of a process waits about five milliseconds longer for its first page.
//
// Rules:
//  - The hand-off comes over a socket pair, which no other process can reach.
//  - No thread serves the scratch guest: it has no memory that is watched.

import { EventEmitter } from 'node:events';
import { MessageChannel } from 'node:worker_threads';
import { closeDescriptor } from '../../shim/descriptors.js';
import { trySyscall } from '../../shim/linux.js';
import { send, socketPair } from '../../shim/socket.js';
import type { SessionWorker, Threads } from './guest-session.js';
import { handOffText, SYSTEM_PAGE } from './handoff-protocol.js';
import type { Retention } from './retained-uffds.js';
import type { SessionCommand, SessionReport } from './worker-messages.js';

/** O_CLOEXEC and UFFD_USER_MODE_ONLY. */
const USERFAULTFD_FLAGS = 0x80001;

/**
 * Sends a scratch hand-off of one page. Returns the connection to accept; undefined if there is none, because userfaultfd
 * or a call that is needed is refused to this process, or too many descriptors are open. The first guest then waits a
 * little longer.
 */
export function scratchHandOff(): number | undefined {
  const uffd = trySyscall(USERFAULTFD_FLAGS);
  if (uffd < 0) return undefined;
  try {
    const [monitor, server] = socketPair();
    if (monitor < 0) return undefined;
    const region = { start: BigInt(SYSTEM_PAGE), length: SYSTEM_PAGE, offset: 0, pageSize: SYSTEM_PAGE };
    const sent = send(monitor, handOffText([region]), [uffd]);
    closeDescriptor(monitor);
    if (sent > 0) return server;
    closeDescriptor(server);
    return undefined;
  } finally {
    closeDescriptor(uffd);
  }
}

/** In place of a thread: it serves nothing, and reports the end of each session at once. */
class NoWorker extends EventEmitter implements SessionWorker {
  postMessage(command: SessionCommand): void {
    if (command.is !== 'task') return;
    const { port1, port2 } = new MessageChannel();
    port1.postMessage(command);
    port2.close();
    const end = { is: 'ended', how: 'stopped', open: true, recorded: undefined } satisfies SessionReport;
    setImmediate(() => this.emit('message', end));
  }
}

/** In place of the pool of threads. */
export class NoThreads implements Threads {
  expect(): void {}

  take(): { readonly worker: SessionWorker } {
    return { worker: new NoWorker() };
  }

  giveBack(): void {}

  async close(): Promise<void> {}
}

/** In place of retaining userfaultfds: no thread waits for scratch memory. */
export const NO_RETENTION: Retention = {
  size: 0,
  dying: 0,
  present: () => false,
  retain(fd) {
    closeDescriptor(fd);
    return true;
  },
  abandon() {},
};
