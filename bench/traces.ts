// Traces and the simulated kernel: what recording costs a fault, how fast a trace is replayed and read, and how fast
// simulated threads run. Replay and simulation need no kernel.
//
// Rule: every replay is compared with the recording. If they differ, the benchmark throws.

import { Userfaultfd, type Wait } from '../src/index.js';
import { type Program, read, SimulatedKernel } from '../src/sim/index.js';
import { replay, TraceReader, TraceWriter } from '../src/trace/index.js';
import type { CoreFigure } from './core.js';
import { type FaultBench, type Placement, WrongAnswer } from './faults.js';
import { spread } from './statistics.js';

/** Pages of the replayed trace. */
const PAGES = 16_384;
const PAGE = 4096;
const THREADS = 4;
const SEED = 1;
const SAMPLE_MS = 400;
/** Wait strategies whose recording is measured. */
const RECORDED: readonly Wait[] = ['block', 'poll'];

interface Simulated {
  trace: Uint8Array;
  steps: number;
  ms: number;
}

/** Simulated threads touch each page once, and one handler fills the pages; `recorded`: with a trace. */
function simulate(recorded: boolean): Simulated {
  const blocks: Uint8Array[] = [];
  const writer = new TraceWriter({ write: (bytes) => void blocks.push(bytes.slice()), close() {} });
  const kernel = new SimulatedKernel({ seed: SEED });
  const uffd = Userfaultfd.open({ kernel, ...(recorded ? { record: writer } : {}) });
  const base = kernel.map(PAGES);
  uffd.register(base, PAGES * PAGE);
  let living = THREADS;
  const touching = function* (first: number): Program {
    for (let page = first; page < PAGES; page += THREADS) {
      yield read(base + BigInt(((page * 7919) % PAGES) * PAGE));
    }
    if (--living === 0) uffd.stop();
  };
  for (let i = 0; i < THREADS; i++) kernel.thread(touching(i));
  const source = new Uint8Array(PAGE).fill(1);
  const begun = performance.now();
  uffd.start({ pagefault: ({ page }) => uffd.copy(page, source) === PAGE }, { wait: 'block' });
  const ms = performance.now() - begun;
  uffd.close();
  return { trace: Buffer.concat(blocks), steps: kernel.steps, ms };
}

/** Works for a while; returns operations per second, in thousands or millions. */
async function rate(sample: () => Promise<{ done: number; ms: number }>): Promise<number> {
  let done = 0;
  let ms = 0;
  while (ms < SAMPLE_MS) {
    const one = await sample();
    done += one.done;
    ms += one.ms;
  }
  return (done / ms) * 1000;
}

async function replaying(trace: Uint8Array): Promise<{ done: number; ms: number }> {
  const reader = TraceReader.of(trace);
  const begun = performance.now();
  const { identical, damage, records, faults } = await replay(reader);
  const ms = performance.now() - begun;
  if (!identical || damage || faults !== PAGES) throw new WrongAnswer(`a replay of ${faults} faults differs`);
  return { done: records, ms };
}

async function reading(trace: Uint8Array): Promise<{ done: number; ms: number }> {
  const reader = TraceReader.of(trace);
  const begun = performance.now();
  while (reader.next());
  return { done: reader.records, ms: performance.now() - begun };
}

async function simulating(): Promise<{ done: number; ms: number }> {
  const { steps, ms } = simulate(false);
  return { done: steps, ms };
}

/** Measures the figures that need no kernel: each `rounds` times, after two times that do not count. */
export async function benchTraces(rounds: number): Promise<CoreFigure[]> {
  const { trace } = simulate(true);
  const measures = [
    {
      name: 'replay',
      unit: 'million calls/s',
      scale: 1e6,
      sample: () => replaying(trace),
      covers: `the whole library against ${PAGES} recorded faults of the simulated kernel, each filled by one copy; the trace decides what the handler does`,
    },
    {
      name: 'reading a trace',
      unit: 'million records/s',
      scale: 1e6,
      sample: () => reading(trace),
      covers: 'TraceReader.next over the same trace, from memory',
    },
    {
      name: 'simulated steps',
      unit: 'thousand/s',
      scale: 1e3,
      sample: simulating,
      covers: `${THREADS} simulated threads that touch ${PAGES} pages, the scheduler, the library and a handler that copies; a page takes two steps`,
    },
  ];
  const figures: CoreFigure[] = [];
  for (const { name, unit, scale, sample, covers } of measures) {
    await rate(sample);
    await rate(sample);
    const values: number[] = [];
    for (let i = 0; i < rounds; i++) values.push((await rate(sample)) / scale);
    figures.push({ name, unit, value: spread(values), covers });
  }
  return figures;
}

/** The cost of recording real faults in a placement, and the bytes that are written for each fault. */
export async function benchRecording(
  bench: FaultBench,
  placement: Placement,
  rounds: number,
): Promise<CoreFigure[]> {
  const figures: CoreFigure[] = [];
  for (const wait of RECORDED) {
    const { ratios, bytesPerFault } = await bench.recording(placement, wait, rounds);
    figures.push({
      name: `recorded, ${wait}, ${placement.title}`,
      unit: '% of the faults/s without',
      value: spread(ratios.map((ratio) => ratio * 100)),
      covers:
        'faults/s of a loop that records to a file, by those of one that does not, in rounds one after the other; both answer ' +
        'from a source',
    });
    figures.push({
      name: `trace, ${wait}, ${placement.title}`,
      unit: 'bytes a fault',
      value: spread([bytesPerFault]),
      covers: 'the size of that file by the faults in it: one thread, one page a fault in ascending order',
    });
  }
  return figures;
}
