// Warms a serving thread up before a guest comes: it serves scratch guests, each some memory of this process that another
// thread reads. So V8 has compiled the code that answers faults, and the first guest is served as fast as a later one.
//
// Rules:
//  - It stops at once when the thread is wanted: for a guest, or to end.
//  - It never fails: a thread that is not warm serves the same pages, only slower at first.
//  - If userfaultfd is refused to this process (a container's seccomp filter), although it may serve the userfaultfds
//    of others, the scratch guest runs in the simulated kernel.

import { createHistogram } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import { hasEnded, startPthread } from '../../shim/pthread.js';
import { warn } from '../errors/warning.js';
import { Mapping } from '../memory/mapping.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { Tally } from './counters.js';
import { shared } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { SnapshotHandler } from './snapshot-handler.js';
import type { SessionTask } from './worker-messages.js';

/** The thread that warms up. */
export interface WarmUp extends Pick<SessionTask, 'window' | 'wait'> {
  /** Whether to stop. */
  wanted(): boolean;
  /** One word, which is not 0 once `wanted` is true: the background work of a scratch guest looks at it. */
  readonly stopped: SharedArrayBuffer;
  /** Gets the handle that stops the guest that is served now. */
  serving(stopHandle: SharedArrayBuffer): void;
  /** Serves a task until it is stopped, and closes its descriptor. `answered` is called after each batch. */
  serve(task: SessionTask, serving: WarmUp['serving'], answered: () => void): Promise<void>;
}

/** Pages of a scratch guest, and how many such guests are served: after that a guest is hardly served faster. */
const PAGES = 1024;
const GUESTS = 12;
const BYTES = PAGES * SYSTEM_PAGE;
/** What each second guest gets in the background: every other page. */
const AHEAD = Array.from({ length: PAGES / 2 }, (_, index) => ({
  offset: 2 * index * SYSTEM_PAGE,
  length: SYSTEM_PAGE,
}));
/** The simulated kernel is slower, and runs code of its own. */
const SIMULATED_PAGES = 2048;
/** Error codes: this process may not open a userfaultfd. */
const REFUSALS: ReadonlySet<string | undefined> = new Set([
  ...['EPERM', 'EACCES', 'ENOENT', 'ENOSYS'],
  'ERR_UFFD_UNSUPPORTED',
]);

/** The content of a scratch guest. Its reader stops at the first zero byte, which is the last one. */
function fillContent(bytes: Uint8Array): void {
  bytes.fill(1);
  bytes[bytes.length - 1] = 0;
}

/** A task as it comes from the server: the objects in it have other hidden classes, for which V8 compiles other code. */
function posted(task: SessionTask): SessionTask {
  const { port1, port2 } = new MessageChannel();
  port1.postMessage(task);
  const received = receiveMessageOnPort(port2)?.message as SessionTask;
  port1.close();
  return received;
}

/** Serves scratch guests. Never rejects. */
export async function warmUp(thread: WarmUp): Promise<void> {
  try {
    await serveGuests(thread);
  } catch (error) {
    warn(`a serving thread did not warm up, and is slower at first: ${(error as Error).message}`);
  }
}

async function serveGuests(thread: WarmUp): Promise<void> {
  const content = Mapping.anonymous(BYTES);
  try {
    fillContent(content.bytes);
    for (let guest = 0; guest < GUESTS && !thread.wanted(); guest++)
      await serveGuest(thread, content, guest % 2 === 1);
  } catch (error) {
    if (!REFUSALS.has((error as NodeJS.ErrnoException).code)) throw error;
    await serveSimulated(thread);
  } finally {
    content.close();
  }
}

async function serveGuest(thread: WarmUp, content: Mapping, prefetches: boolean): Promise<void> {
  const { window, wait, stopped } = thread;
  const uffd = Userfaultfd.open({ userModeOnly: true, features: ['event-remove'] });
  const memory = Mapping.anonymous(BYTES);
  let reader: bigint | undefined;
  try {
    const region = { start: memory.address, length: BYTES, offset: 0, pageSize: SYSTEM_PAGE };
    uffd.register(region.start, BYTES);
    let handle: SharedArrayBuffer | undefined;
    const tally = new Tally();
    const task: SessionTask = {
      ...{ id: 0, fd: uffd.release(), pid: process.pid, regions: [region], window },
      ...{ placement: 'none', onStarved: 'wait', shared: undefined },
      // A loop that does not block would need the event loop to end.
      wait: wait === 'poll' ? 'block' : wait,
      memory: { path: '', bytes: BYTES, address: content.address, fd: -1, sparse: false, readUnit: 0 },
      ...{
        prefetch: shared(prefetches ? AHEAD : []),
        eager: false,
        record: undefined,
        latency: createHistogram(),
      },
      ...{ tally: tally.shared, stopped, deadlineMs: undefined, news: new SharedArrayBuffer(8) },
    };
    const serving = (stopHandle: SharedArrayBuffer): void => {
      handle = stopHandle;
      thread.serving(stopHandle);
      reader = startPthread('strlen', region.start);
      if (reader === undefined || thread.wanted()) Userfaultfd.stop(stopHandle);
    };
    // A fault may have installed a window of pages.
    const answered = (): void => {
      if (handle && (tally.installed >= BYTES || thread.wanted())) Userfaultfd.stop(handle);
    };
    await thread.serve(posted(task), serving, answered);
  } finally {
    if (!uffd.closed) uffd.close();
    // The descriptor is closed: a reader that slept finds zeros in the pages that are still missing, and ends.
    while (reader !== undefined && !hasEnded(reader)) await sleep(1);
    memory.close();
  }
}

/** The same in the simulated kernel, in one turn of the event loop at most. */
async function serveSimulated({ window, wanted }: WarmUp): Promise<void> {
  const [{ SimulatedKernel }, { read }] = await Promise.all([
    import('../sim/kernel.js'),
    import('../sim/thread.js'),
  ]);
  const kernel = new SimulatedKernel();
  const start = kernel.map(SIMULATED_PAGES);
  const length = SIMULATED_PAGES * SYSTEM_PAGE;
  const bytes = new Uint8Array(SYSTEM_PAGE);
  const uffd = Userfaultfd.open({ kernel, features: ['event-remove'] });
  uffd.register(start, length);
  kernel.thread(
    (function* () {
      for (let page = 0; page < SIMULATED_PAGES && !wanted(); page++) {
        yield read(start + BigInt(page * SYSTEM_PAGE));
      }
      uffd.stop();
    })(),
  );
  const handler = new SnapshotHandler({
    regions: [{ start, length, offset: 0, pageSize: SYSTEM_PAGE }],
    source: {
      mapped: false,
      stretchAt: () => ({ from: 0, to: length, data: true }),
      bytesAt: (_, size) => (size === SYSTEM_PAGE ? bytes : new Uint8Array(size)),
    },
    ...{ tally: new Tally(), window, latency() {}, now: () => kernel.now, closed() {} },
  });
  uffd.start(handler, { wait: 'block' });
  uffd.close();
}
