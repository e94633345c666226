// The worker behind `looper()` in real-kernel.ts: adopts a userfaultfd, serves it with one of the wait strategies, and
// posts what happened. It fills each page from `source`, or with zeros if there is no source. All ranges have pages of
// one size.

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
  /** The address of the data, and the address of the page that gets the first page of data. */
  source?: bigint;
  base?: bigint;
  /** Whether the handler resolves faults, or the core, which then gets sources for all ranges. */
  answers?: 'handler' | 'core';
  /** Install pages write-protected; the first write to a page lifts its protection. */
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
const post = (message: LooperMessage): void => port.postMessage(message);

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
  removed: (start, end) => post({ type: 'event', call: `removed ${start} ${end}` }),
  unmapped: (start, end) => post({ type: 'event', call: `unmapped ${start} ${end}` }),
  remapped: (from, to, length) => post({ type: 'event', call: `remapped ${from} ${to} ${length}` }),
  forked(child) {
    post({ type: 'event', call: `forked ${child.ranges.length}` });
    child.close();
  },
  closed: (error?: UffdError) => post({ type: 'closed', ...(error ? { error: error.message } : {}) }),
};

if (options.answers === 'core') {
  const { source = 0n, base = 0n } = options;
  handler.answered = (some) => {
    faults += some;
  };
  for (const { start, length } of options.ranges) {
    // If this failed silently, the handler would answer and the test would not notice.
    if (!uffd.answerFrom(start, length, source + (start - base)))
      throw new Error('the shortcut is not taken');
  }
}

const tid = Number(readlinkSync('/proc/thread-self').split('/').at(-1));
post({ type: 'ready', stopHandle: uffd.stopHandle, tid });
if (options.collect) setInterval(() => (globalThis as { gc?: () => void }).gc?.(), 1).unref();
if (options.wait === 'poll') {
  process.once('uncaughtException', (error) => finish(error));
  uffd.start(handler, { placement });
  const timer = setInterval(() => {
    if (uffd.waiting) return;
    clearInterval(timer);
    // If an error stopped the loop, a timer set before this one throws that error first.
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
  post({
    type: 'stopped',
    faults,
    cpus: linuxProcessors.allowed(),
    ...(error ? { error: error.message } : {}),
  });
  if (options.after === 'release') {
    const { ranges } = uffd;
    post({ type: 'released', fd: uffd.release(), ranges });
  } else {
    uffd.close();
  }
}
