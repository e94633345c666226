// The worker behind `looper()` in support.ts: adopts a userfaultfd, serves it with one of the wait strategies,
// and tells what it saw. Pages come from `source`, page by page; without one they are zero. All ranges have pages
// of one size.

import { readlinkSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { linuxProcessors } from '../../shim/processors.js';
import {
  type FaultHandler,
  type Placement,
  type RegisteredRange,
  type UffdError,
  Userfaultfd,
  type Wait,
} from '../../src/index.js';
import { TraceWriter } from '../../src/trace/index.js';

export interface LooperOptions {
  fd: number;
  features: Userfaultfd['features'];
  ranges: readonly RegisteredRange[];
  wait: Wait;
  placement?: Placement;
  /** Where page 0's bytes are, and which page is page 0. */
  source?: bigint;
  base?: bigint;
  /** Who answers: the handler, or the core, which knows the source of all ranges. */
  answers?: 'handler' | 'core';
  /** Install pages write-protected; whoever writes is let through. */
  protect?: boolean;
  /** Serve this many faults, then throw. */
  throwAfter?: number;
  /** What to do when the loop has stopped. Default: close. */
  after?: 'close' | 'release';
  /** Record to this file. */
  record?: string;
  /** Collect garbage again and again while waiting. */
  collect?: boolean;
}

export type LooperMessage =
  | { type: 'ready'; stopHandle: SharedArrayBuffer; tid: number }
  | { type: 'event'; call: string }
  | { type: 'stopped'; faults: number; cpus: number[]; error?: string }
  | { type: 'released'; fd: number; ranges: readonly RegisteredRange[] }
  | { type: 'closed'; error?: string };

const options = workerData as LooperOptions;
const port = parentPort as NonNullable<typeof parentPort>;
const tell = (message: LooperMessage): void => port.postMessage(message);

const uffd = Userfaultfd.wrap(options.fd, {
  features: options.features,
  ranges: options.ranges,
  ...(options.record === undefined ? {} : { record: TraceWriter.toFile(options.record) }),
});
const pageSize = options.ranges[0]?.pageSize ?? uffd.pageSize;
const { placement = 'none' } = options;
let faults = 0;
let finished = false;

const handler: FaultHandler = {
  pagefault(fault) {
    if (faults === options.throwAfter) throw new Error('the handler gives up');
    faults++;
    const { source, base = 0n, protect = false } = options;
    if (fault.kind === 'write-protect') return uffd.writeProtect(fault.page, pageSize, false) === pageSize;
    const done =
      source === undefined
        ? uffd.zero(fault.page, pageSize)
        : uffd.copy(fault.page, source + (fault.page - base), pageSize, { writeProtect: protect });
    return done === pageSize;
  },
  removed: (start, end) => tell({ type: 'event', call: `removed ${start} ${end}` }),
  unmapped: (start, end) => tell({ type: 'event', call: `unmapped ${start} ${end}` }),
  remapped: (from, to, length) => tell({ type: 'event', call: `remapped ${from} ${to} ${length}` }),
  forked(child) {
    tell({ type: 'event', call: `forked ${child.ranges.length}` });
    child.close();
  },
  closed: (error?: UffdError) => tell({ type: 'closed', ...(error ? { error: error.message } : {}) }),
};

if (options.answers === 'core') {
  const { source = 0n, base = 0n } = options;
  handler.answered = (some) => {
    faults += some;
  };
  for (const { start, length } of options.ranges) {
    // Otherwise the handler would answer, and nobody would notice.
    if (!uffd.answerFrom(start, length, source + (start - base)))
      throw new Error('the shortcut is not taken');
  }
}

const tid = Number(readlinkSync('/proc/thread-self').split('/').at(-1));
tell({ type: 'ready', stopHandle: uffd.stopHandle, tid });
if (options.collect) setInterval(() => (globalThis as { gc?: () => void }).gc?.(), 1).unref();
if (options.wait === 'poll') {
  process.once('uncaughtException', (error) => finish(error));
  uffd.start(handler, { placement });
  const timer = setInterval(() => {
    if (uffd.waiting) return;
    clearInterval(timer);
    // An error that stopped it is thrown by a timer that was set before this one.
    setTimeout(finish, 10);
  }, 1);
} else {
  try {
    uffd.start(handler, { wait: options.wait, placement });
    finish();
  } catch (error) {
    finish(error as Error);
  }
}

function finish(error?: Error): void {
  if (finished) return;
  finished = true;
  tell({
    type: 'stopped',
    faults,
    cpus: linuxProcessors.allowed(),
    ...(error ? { error: error.message } : {}),
  });
  if (options.after === 'release') {
    const { ranges } = uffd;
    tell({ type: 'released', fd: uffd.release(), ranges });
  } else {
    uffd.close();
  }
}
