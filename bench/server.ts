// The thread that runs our handler: told to begin, it registers the region and answers each fault with one
// page until it is stopped. A stop comes through `stopHandle`; 'end' follows it as a message. One userfaultfd
// serves all rounds: what V8 has compiled for it stays.

import { parentPort, workerData } from 'node:worker_threads';
import { type FaultHandler, Mapping, type SharedMapping, Userfaultfd, type Wait } from '../src/index.js';
import { TraceWriter } from '../src/trace/index.js';
import { checked, load } from './native.js';

export interface ServerData {
  library: string;
  wait: Wait;
  region: SharedMapping;
  source: SharedMapping;
  pageSize: number;
  otherRanges: number;
  /** Record to this file. */
  record?: string;
}

/** Begin on a processor (−1: any), end, or leave for good. */
export type ServerOrder = { begin: number } | 'end' | 'leave';

/** It serves, and this stops it; or it has ended, after so many answers; or it failed. */
export type ServerReport = { stopHandle: SharedArrayBuffer } | { answered: number } | { error: string };

const { library, wait, region, source, pageSize, otherRanges, record }: ServerData = workerData;
const native = load(library);
const bytes = Mapping.attach(source).bytes;
let uffd: Userfaultfd | undefined;
let others: Mapping | undefined;
let answered = 0;

const handler: FaultHandler = {
  pagefault({ page }, userfaultfd) {
    answered += userfaultfd.copy(page, bytes) / pageSize;
  },
};

function begin(cpu: number): void {
  checked('sched_setaffinity', native.pin(cpu));
  answered = 0;
  uffd ??= open();
  uffd.register(region.address, region.length);
  report({ stopHandle: uffd.stopHandle });
  uffd.start(handler, { wait });
}

function open(): Userfaultfd {
  const opened = Userfaultfd.open(record === undefined ? {} : { record: TraceWriter.toFile(record) });
  if (otherRanges === 0) return opened;
  // Every other page: neighbours would be one range.
  others = Mapping.anonymous(2 * otherRanges * pageSize);
  for (let at = 0; at < others.length; at += 2 * pageSize)
    opened.register(others.address + BigInt(at), pageSize);
  return opened;
}

function end(): void {
  uffd?.stop();
  uffd?.unregister(region.address, region.length);
  report({ answered });
}

function leave(): void {
  uffd?.close();
  others?.close();
  report({ answered });
}

function report(message: ServerReport): void {
  parentPort?.postMessage(message);
}

parentPort?.on('message', (order: ServerOrder) => {
  try {
    if (order === 'leave') leave();
    else if (order === 'end') end();
    else begin(order.begin);
  } catch (error) {
    // Whoever still waits goes on with zeros, and the check of the pages fails.
    uffd?.close();
    report({ error: String(error) });
  }
});
