// What a web page does with the package: it simulates a world, records it and replays the trace. It also serves the
// faults of a userfaultfd in a simulated kernel of its own. Node runs the same program and must get the same results.

import { instantiate } from '../../src/portable.js';
import { type Program, read, SimulatedKernel, Userfaultfd } from '../../src/sim/index.js';
import { answerFromSource, simulate } from '../../src/testing/index.js';
import { replay, summarize, TraceReader, TraceWriter } from '../../src/trace/index.js';

export interface Came {
  /** The trace of the world. */
  trace: Uint8Array;
  identical: boolean;
  /** Records that were replayed. */
  records: number;
  /** The number of faults in the summary of the trace. */
  faults: number;
  /** The bytes that a thread read from memory whose faults the page itself served. */
  reads: number[];
}

const PAGES = 5;

export async function visit(seed: number): Promise<Came> {
  instantiate().arguments(0n).start(12);
  const blocks: Uint8Array[] = [];
  const sink = { write: (bytes: Uint8Array) => void blocks.push(bytes.slice()), close() {} };
  const record = new TraceWriter(sink);
  await simulate({
    seed,
    pages: 32,
    threads: 6,
    features: ['event-remove', 'event-unmap', 'event-remap', 'event-fork'],
    inject: { eagain: 0.05, partial: 0.05, held: 0.05, repeat: 0.05 },
    handler: (world) => answerFromSource(world, { later: true }),
    record,
  });
  const trace = joined(blocks);
  const { identical, records } = await replay(TraceReader.of(trace));
  const { faults } = summarize(TraceReader.of(trace));
  return { trace, identical, records, faults, reads: serve(seed) };
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Runs a loop that blocks. The handler fills each page with its number, counted from 1. */
function serve(seed: number): number[] {
  const kernel = new SimulatedKernel({ seed });
  const uffd = Userfaultfd.open({ kernel });
  const base = kernel.map(PAGES);
  uffd.register(base, PAGES * uffd.pageSize);
  const reads: number[] = [];
  const toucher = function* (): Program {
    for (let page = 0; page < PAGES; page++)
      reads.push(Number(yield read(base + BigInt(page * uffd.pageSize))));
    uffd.stop();
  };
  kernel.thread(toucher());
  const bytes = new Uint8Array(uffd.pageSize);
  const pagefault = ({ page }: { page: bigint }): void => {
    uffd.copy(page, bytes.fill(Number(page - base) / uffd.pageSize + 1));
  };
  uffd.start({ pagefault }, { wait: 'block' });
  uffd.close();
  return reads;
}

/** The error codes of calls that need an operating system or files. */
export function refusals(): string[] {
  return [
    () => Userfaultfd.open(),
    () => TraceWriter.toFile('trace'),
    () => TraceReader.fromFile('trace'),
  ].map((act) => {
    try {
      act();
      return 'nothing';
    } catch (error) {
      return (error as { code: string }).code;
    }
  });
}
