// The thread that runs the library's handler. On 'begin' it registers the region. It answers each fault with one page,
// by the handler or from a source, until `stopHandle` stops the loop. Then it gets the message 'end'. One userfaultfd
// serves all rounds, so that V8 keeps the code that it has compiled.

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
  /** Answer from a source, without calling the handler. */
  sourced?: boolean;
  /** Record to this file. */
  record?: string;
}

/** Messages to the thread: begin on a processor (−1: any), end the round, or end the thread. */
export type ServerOrder = { begin: number } | 'end' | 'leave';

/**
 * Messages from the thread: the loop serves, and `stopHandle` stops it; or the round has ended, after this many
 * answers; or the thread has failed.
 */
export type ServerReport = { stopHandle: SharedArrayBuffer } | { answered: number } | { error: string };

const { library, wait, region, source, pageSize, otherRanges, sourced, record }: ServerData = workerData;
const native = load(library);
const bytes = Mapping.attach(source).bytes;
let uffd: Userfaultfd | undefined;
let others: Mapping | undefined;
/** The source of answers: as long as the region, with a copy of the source page in each page. */
const pages = sourced ? repeated() : undefined;
let answered = 0;

const handler: FaultHandler = {
  pagefault({ page }, userfaultfd) {
    answered += userfaultfd.copy(page, bytes) / pageSize;
  },
  answered(faults) {
    answered += faults;
  },
};

function repeated(): Mapping {
  const all = Mapping.anonymous(region.length);
  for (let at = 0; at < all.length; at += pageSize) all.bytes.set(bytes, at);
  return all;
}

function begin(cpu: number): void {
  checked('sched_setaffinity', native.pin(cpu));
  answered = 0;
  uffd ??= open();
  uffd.register(region.address, region.length);
  if (pages) uffd.answerFrom(region.address, region.length, pages.address);
  report({ stopHandle: uffd.stopHandle });
  uffd.start(handler, { wait });
}

function open(): Userfaultfd {
  const opened = Userfaultfd.open(record === undefined ? {} : { record: TraceWriter.toFile(record) });
  if (otherRanges === 0) return opened;
  // Register every other page, because adjacent pages would be one range.
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
  pages?.close();
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
    // Closing lets threads that still wait continue with zeros, so the check of the pages fails.
    uffd?.close();
    report({ error: String(error) });
  }
});
