// The demo on the simulated kernel, for machines without userfaultfd: the same answers and the same file, with
// simulated threads and memory. Times are virtual.
//
// Rule: the loop stops now and then and is started again, so that the event loop can draw progress and handle
// signals.

import { closeSync, openSync, readSync } from 'node:fs';
import { createHistogram } from 'node:perf_hooks';
import { setImmediate as turn } from 'node:timers/promises';
import { type UffdError, Userfaultfd } from '../../index.js';
import { Answers, Tally } from '../../serve/index.js';
import { type Program, read, SimulatedKernel } from '../../sim/index.js';
import { TraceWriter } from '../../trace/index.js';
import { shuffledOrder } from '../guest/permutation.js';
import { percentileUs } from '../latency.js';
import { recordedBy } from '../traces.js';
import { checkWritable, sizeOf } from './file.js';
import type { DemoProgress } from './progress.js';
import { aboutOf, createReport, type DemoOptions, type GuestResults, type Report } from './report.js';

/** Touches between two turns of the event loop. */
const TOUCHES_A_TURN = 2000;
const WRONG_TOLD = 10;

/** @throws Refusal, errors of the file system, the signal's reason */
export async function runSimulated(
  options: DemoOptions,
  progress: DemoProgress,
  signal: AbortSignal,
): Promise<Report> {
  const { file, record, seed } = options;
  const fileBytes = sizeOf(file);
  if (record !== undefined) checkWritable(record);
  const kernel = new SimulatedKernel({ seed });
  const { pageSize } = kernel;
  const pages = Math.ceil(fileBytes / pageSize);
  const memory = kernel.map(pages);
  const writer = record === undefined ? undefined : TraceWriter.toFile(record, { about: aboutOf(options) });
  const uffd = Userfaultfd.open({ kernel, ...(writer ? { record: writer } : {}) });
  uffd.register(memory, pages * pageSize);
  const tally = new Tally();
  progress.begin(options, fileBytes);
  progress.watch(() => ({ faults: tally.get('faults'), resident: tally.installed }));
  const fd = openSync(file, 'r');
  let first: GuestResults;
  try {
    const guest = new SimulatedGuest({ kernel, uffd, memory, pages, fd, tally }, options);
    first = await guest.run(options, signal);
  } finally {
    uffd.close();
    closeSync(fd);
    progress.end();
  }
  return createReport(options, {
    ...{ kernel: 'simulated', recorded: writer && recordedBy(writer), fileBytes, pageSize, pages },
    ...{ first, again: undefined },
  });
}

interface Scene {
  kernel: SimulatedKernel;
  uffd: Userfaultfd;
  memory: bigint;
  pages: number;
  /** The descriptor of the file. */
  fd: number;
  tally: Tally;
}

/** Threads that touch every page once, and compare each. */
class SimulatedGuest {
  readonly #scene: Scene;
  readonly #latency = createHistogram();
  readonly #wrong: string[] = [];
  #wrongCount = 0;
  #touches = 0;
  #firstMs = 0;
  #ms = 0;
  /** Number of threads that have not finished. */
  #left: number;

  constructor(scene: Scene, { threads, seed }: DemoOptions) {
    this.#scene = scene;
    this.#left = threads;
    const order = shuffledOrder(scene.pages, seed);
    for (let index = 0; index < threads; index++) {
      scene.kernel.thread(this.#touch(order, index, threads, scene.kernel.now));
    }
  }

  /** Serves the threads until all are done. */
  async run({ window, wait }: DemoOptions, signal: AbortSignal): Promise<GuestResults> {
    const { kernel, uffd, memory, pages, fd, tally } = this.#scene;
    const { pageSize } = kernel;
    const length = pages * pageSize;
    let failure: UffdError | undefined;
    const answers = new Answers({
      regions: [{ start: memory, length, offset: 0, pageSize }],
      source: {
        mapped: false,
        stretchAt: () => ({ from: 0, to: length, data: true }),
        bytesAt: (offset, bytes) => bytesOf(fd, offset, bytes),
      },
      ...{ tally, window, latency() {}, now: () => kernel.now },
      closed: (error) => {
        failure = error;
      },
    });
    while (this.#left > 0) {
      uffd.start(answers, { wait });
      while (wait === 'poll' && uffd.waiting && kernel.step());
      if (failure) throw failure;
      await turn();
      signal.throwIfAborted();
    }
    return {
      faults: tally.get('faults'),
      ...{ touches: this.#touches, wrongCount: this.#wrongCount, wrong: this.#wrong },
      ...{ firstMs: this.#firstMs, ms: this.#ms },
      p50Us: percentileUs(this.#latency, 50),
      p99Us: percentileUs(this.#latency, 99),
    };
  }

  *#touch(order: (index: number) => number, first: number, step: number, begunMs: number): Program {
    const { kernel, uffd, memory, pages } = this.#scene;
    for (let index = first; index < pages; index += step) {
      const page = order(index);
      const before = kernel.now;
      yield read(memory + BigInt(page * kernel.pageSize));
      this.#latency.record(Math.max(1, Math.round((kernel.now - before) * 1e6)));
      this.#firstMs ||= kernel.now - begunMs;
      this.#compare(page);
      if (++this.#touches % TOUCHES_A_TURN === 0) uffd.stop();
    }
    this.#ms = kernel.now - begunMs;
    if (--this.#left === 0) uffd.stop();
  }

  #compare(page: number): void {
    const { kernel, memory, fd } = this.#scene;
    const { pageSize, process } = kernel;
    const found = process.space.peek(Number(memory) + page * pageSize, pageSize);
    const should = bytesOf(fd, page * pageSize, pageSize);
    if (Buffer.compare(found, should) === 0) return;
    this.#wrongCount++;
    if (this.#wrong.length === WRONG_TOLD) return;
    const at = found.findIndex((byte, index) => byte !== should[index]);
    this.#wrong.push(`page ${page} has ${found[at]} at byte ${at}, and should have ${should[at]}`);
  }
}

/** A part of the file, with zeros after its end. */
function bytesOf(fd: number, offset: number, length: number): Uint8Array {
  const part = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const some = readSync(fd, part, done, length - done, offset + done);
    if (some === 0) break;
    done += some;
  }
  return part;
}
