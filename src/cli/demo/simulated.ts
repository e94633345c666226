// The demo on the simulated kernel, for machines that have no userfaultfd: the same handler and the same file, with
// simulated threads that touch simulated memory. Times are virtual.
//
// Rule: the loop stops now and then, and is started again, so that the event loop has its turn: it draws progress and
// hears signals.

import { createHash } from 'node:crypto';
import { openSync, readSync, statSync } from 'node:fs';
import { createHistogram } from 'node:perf_hooks';
import { setImmediate as turn } from 'node:timers/promises';
import { Userfaultfd } from '../../index.js';
import { type Program, read, SimulatedKernel } from '../../sim/index.js';
import { TraceWriter } from '../../trace/index.js';
import { Refusal } from '../exit.js';
import { shuffledOrder } from '../guest/permutation.js';
import { printable } from '../text.js';
import { Board } from './board.js';
import { demoHandler } from './handler.js';
import type { Touched } from './messages.js';
import type { Progress } from './progress.js';
import { checkWritable, told } from './recording.js';
import { aboutOf, createReport, type DemoOptions, type Report } from './report.js';
import { checkRoom, hashFile } from './run.js';

/** Touches between two turns of the event loop. */
const TOUCHES_A_TURN = 2000;
/** Pages hashed at once. */
const SLICE_PAGES = 4096;

/** @throws Refusal, what the file system throws, the signal's reason */
export async function runSimulated(
  options: DemoOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<Report> {
  const { file, record } = options;
  const fileBytes = sizeOf(file);
  checkRoom(fileBytes);
  if (record !== undefined) checkWritable(record);
  const kernel = new SimulatedKernel({ seed: options.seed });
  const { pageSize } = kernel;
  const pages = Math.ceil(fileBytes / pageSize);
  const memory = kernel.map(pages);
  const writer = record === undefined ? undefined : TraceWriter.toFile(record, { about: aboutOf(options) });
  const uffd = Userfaultfd.open({ kernel, ...(writer ? { record: writer } : {}) });
  uffd.register(memory, pages * pageSize);
  const board = Board.forPages(pages);
  const { via = 'syscall', userModeOnly = false } = uffd;
  progress.begin(options, fileBytes, pages);
  progress.watch(board);
  const touched: Touched[] = [];
  try {
    await populate({ kernel, uffd, memory, board, pages, touched }, options, signal);
  } finally {
    uffd.close();
    progress.end();
  }
  progress.hashing();
  const hash = createHash('sha256');
  const slice = SLICE_PAGES * pageSize;
  for (let at = 0; at < fileBytes; at += slice) {
    hash.update(kernel.process.space.peek(Number(memory) + at, Math.min(slice, fileBytes - at)));
    await turn();
    signal.throwIfAborted();
  }
  return createReport(options, {
    kernel: 'simulated',
    recorded: writer && told(writer),
    fileBytes,
    pageSize,
    pages,
    faults: board.faults,
    fills: board.fills,
    via,
    userModeOnly,
    touched,
    memorySha256: hash.digest('hex'),
    fileSha256: await hashFile(file, fileBytes, signal),
  });
}

interface Scene {
  kernel: SimulatedKernel;
  uffd: Userfaultfd;
  memory: bigint;
  board: Board;
  pages: number;
  touched: Touched[];
}

/** Has every page touched once. */
async function populate(scene: Scene, options: DemoOptions, signal: AbortSignal): Promise<void> {
  const { kernel, uffd, memory, board, pages, touched } = scene;
  const { file, seed, threads, wait, window } = options;
  const { pageSize } = kernel;
  const order = shuffledOrder(pages, seed);
  let left = threads;
  let touches = 0;
  const toucher = function* (index: number): Program {
    const latency = createHistogram();
    const begunMs = kernel.now;
    let sum = 0;
    for (let i = index; i < pages; i += threads) {
      const page = order(i);
      const before = kernel.now;
      sum += Number(yield read(memory + BigInt(page * pageSize)));
      if (board.marked(page)) latency.record(Math.max(1, Math.round((kernel.now - before) * 1e6)));
      if (++touches % TOUCHES_A_TURN === 0) uffd.stop();
    }
    touched.push({ latency, begunMs, endedMs: kernel.now, sum });
    if (--left === 0) uffd.stop();
  };
  for (let index = 0; index < threads; index++) kernel.thread(toucher(index));
  const handler = demoHandler(uffd, { board, memory, window, source: reader(file, pages * pageSize) });
  while (left > 0) {
    uffd.start(handler, { wait });
    while (wait === 'poll' && uffd.waiting && kernel.step());
    await turn();
    signal.throwIfAborted();
  }
}

/** Reads parts of a file, with zeros behind its end. */
function reader(file: string, bytes: number): (offset: bigint, length: number) => Uint8Array {
  const fd = openSync(file, 'r');
  let buffer = new Uint8Array();
  return (offset, length) => {
    if (buffer.length < length) buffer = new Uint8Array(Math.min(length, bytes));
    const part = buffer.subarray(0, length).fill(0);
    for (let done = 0; done < length; ) {
      const some = readSync(fd, part, done, length - done, offset + BigInt(done));
      if (some === 0) break;
      done += some;
    }
    return part;
  };
}

function sizeOf(file: string): number {
  const stat = statSync(file);
  if (!stat.isFile()) throw new Refusal(`${printable(file)} is no regular file`);
  if (stat.size === 0) throw new Refusal(`${printable(file)} must be at least 1 byte long`);
  return stat.size;
}
