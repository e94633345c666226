// The garbage of a loop, and the cost of installing ahead, both in this process, from data in memory.

import { once } from 'node:events';
import { freemem } from 'node:os';
import { PerformanceObserver } from 'node:perf_hooks';
import { parentPort, Worker, workerData } from 'node:worker_threads';
import { Mapping, type SharedMapping, Userfaultfd } from '../src/index.js';
import type { CoreFigure } from './core.js';
import { WrongAnswer } from './faults.js';
import { spread } from './statistics.js';

const PAGE = 4096;
/** Faults until a loop is warm, and the most faults of a measured loop, which has fewer if memory is short. */
const WARM = 200_000;
const FAULTS_MOST = 1_000_000;
/** A working set, 64 MiB, in runs of 256 KiB. */
const AHEAD_BYTES = 2 ** 26;
const RUN_BYTES = 2 ** 18;

interface Task {
  /** Whether this thread serves; the other one touches. */
  readonly serves: boolean;
  readonly memory: SharedMapping;
}

interface Looked {
  readonly faults: number;
  readonly collections: number;
  readonly heapBytes: number;
}

/** Measures a loop that waits with `block` and answers the faults of another thread. */
async function look(faults: number): Promise<Looked> {
  const memory = Mapping.anonymous((WARM + faults) * PAGE);
  const thread = (serves: boolean): Worker =>
    new Worker(new URL(import.meta.url), { workerData: { serves, memory: memory.share() } satisfies Task });
  const loop = thread(true);
  // Listen for 'exit' from now on, because the last message and the exit may come in one turn of the event loop.
  const ended = once(loop, 'exit');
  const [stop] = (await once(loop, 'message')) as [SharedArrayBuffer];
  await once(thread(false), 'exit');
  Userfaultfd.stop(stop);
  const [looked] = (await once(loop, 'message')) as [Looked];
  await ended;
  memory.close();
  if (looked.faults !== faults) throw new WrongAnswer(`a loop was told of ${looked.faults} faults`);
  return looked;
}

function serve(shared: SharedMapping): void {
  const { address, length } = Mapping.attach(shared);
  const data = Mapping.anonymous(length);
  const uffd = Userfaultfd.open();
  uffd.register(address, length);
  uffd.answerFrom(address, length, data.address);
  let faults = 0;
  let next = WARM / 4;
  let heapBytes = 0;
  let since = 0;
  const collected: number[] = [];
  const observer = new PerformanceObserver((list) => {
    collected.push(...list.getEntries().map(({ startTime }) => startTime));
  });
  observer.observe({ entryTypes: ['gc'] });
  parentPort?.postMessage(uffd.stopHandle);
  const handler = {
    pagefault: () => false,
    // V8 compiles the loop while it warms up, and makes garbage. So the measurement restarts until the loop is warm.
    answered(some: number): void {
      faults += some;
      if (faults < next || next > WARM) return;
      next += WARM / 4;
      heapBytes = process.memoryUsage().heapUsed;
      since = performance.now();
    },
  };
  uffd.start(handler, { wait: 'block' });
  const until = performance.now();
  heapBytes = process.memoryUsage().heapUsed - heapBytes;
  // Garbage collections are reported in a later turn of the event loop.
  setTimeout(() => {
    observer.disconnect();
    uffd.close();
    data.close();
    const collections = collected.filter((time) => time > since && time < until).length;
    parentPort?.postMessage({ faults: faults - WARM, collections, heapBytes } satisfies Looked);
  }, 100);
}

function touch(shared: SharedMapping): void {
  const memory = Mapping.attach(shared);
  for (let at = 0; at < memory.length; at += RUN_BYTES) {
    const bytes = memory.slice(at, Math.min(at + RUN_BYTES, memory.length));
    for (let page = 0; page < bytes.length; page += PAGE)
      if (bytes[page] !== 0) throw new WrongAnswer(`${page}`);
  }
}

/** Milliseconds until a working set is installed ahead, divided by those of a copy of it into fresh memory. */
function ahead(): { ratio: number; gibPerSecond: number } {
  const data = Mapping.anonymous(AHEAD_BYTES);
  data.bytes.fill(1);
  const uffd = Userfaultfd.open();
  const memory = Mapping.anonymous(AHEAD_BYTES);
  uffd.register(memory.address, AHEAD_BYTES);
  uffd.answerFrom(memory.address, AHEAD_BYTES, data.address);
  const begun = performance.now();
  for (let at = 0; at < AHEAD_BYTES; at += RUN_BYTES) {
    for (let end = at; end < at + RUN_BYTES; ) {
      const { passed = 0, installed = 0 } =
        uffd.fillAhead(memory.address + BigInt(end), at + RUN_BYTES - end) ?? {};
      if (passed + installed === 0) throw new WrongAnswer('nothing was installed ahead');
      end += passed + installed;
    }
  }
  const ms = performance.now() - begun;
  uffd.close();
  const right = Buffer.compare(memory.bytes, data.bytes) === 0;
  memory.close();
  const fresh = Mapping.anonymous(AHEAD_BYTES);
  const copying = performance.now();
  fresh.bytes.set(data.bytes);
  const copyMs = performance.now() - copying;
  fresh.close();
  data.close();
  if (!right) throw new WrongAnswer('a page that was installed ahead is wrong');
  return { ratio: ms / copyMs, gibPerSecond: AHEAD_BYTES / 2 ** 30 / (ms / 1000) };
}

export async function benchSteady(rounds: number): Promise<CoreFigure[]> {
  const faults = Math.min(FAULTS_MOST, Math.floor(freemem() / 4 / PAGE));
  const { collections, heapBytes } = await look(faults);
  ahead();
  const filled = Array.from({ length: rounds }, ahead);
  const one = (value: number): CoreFigure['value'] => spread([value]);
  const covers = `${faults.toLocaleString('en')} faults in ascending order, answered from a source by a loop that blocks`;
  return [
    { name: 'collections of garbage', unit: '', value: one(collections), covers },
    { name: 'growth of the heap', unit: 'KiB', value: one(heapBytes / 1024), covers: 'the same faults' },
    {
      name: 'installed ahead, by a plain copy',
      unit: 'times the time',
      value: spread(filled.map(({ ratio }) => ratio)),
      covers: '64 MiB in runs of 256 KiB, by fillAhead; and copied into fresh memory by TypedArray.set',
    },
    {
      name: 'installed ahead',
      unit: 'GiB/s',
      value: spread(filled.map(({ gibPerSecond }) => gibPerSecond)),
      covers: 'the same',
    },
  ];
}

const task = workerData as Task | null;
if (task?.serves === true) serve(task.memory);
else if (task?.serves === false) touch(task.memory);
