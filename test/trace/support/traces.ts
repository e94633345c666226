// What the tests of traces share: traces in memory, and worlds of the simulated kernel to record.

import type { FaultHandler, OpenOptions, Pagefault, Wait } from '../../../src/index.js';
import {
  advise,
  type Program,
  Random,
  read,
  type SimulatedKernel,
  Userfaultfd,
  write,
} from '../../../src/sim/index.js';
import { type TraceOptions, TraceReader, TraceWriter } from '../../../src/trace/index.js';

/** A writer, and the bytes that it wrote. */
export function inMemory(options: TraceOptions = {}): { writer: TraceWriter; bytes(): Uint8Array } {
  const blocks: Uint8Array[] = [];
  const sink = { write: (bytes: Uint8Array) => void blocks.push(bytes.slice()), close() {} };
  // A Buffer would not do: its `slice` does not copy.
  return { writer: new TraceWriter(sink, options), bytes: () => new Uint8Array(Buffer.concat(blocks)) };
}

/** All records of a trace, as text with every field; the last line is its end. */
export function textOf(bytes: Uint8Array): string[] {
  const reader = TraceReader.of(bytes);
  const lines: string[] = [];
  while (reader.next()) {
    const { kind, time, words } = reader.call;
    lines.push(`${kind} ${time} ${words.join(',')} ${Buffer.from(reader.payload).toString('hex')}`);
  }
  return [...lines, reader.damage ?? 'whole'];
}

export const P = 4096;

export interface Storm {
  wait?: Wait;
  threads?: number;
  touches?: number;
  pages?: number;
  features?: OpenOptions['features'];
  /** Threads also remove pages. */
  removing?: boolean;
  /** Stops the loop now and then, and starts it again. */
  stopping?: boolean;
  seed?: number;
}

/** Serves threads that touch pages at random until all have ended; returns the trace. */
export function record(
  kernel: SimulatedKernel,
  storm: Storm,
  handler: (uffd: Userfaultfd, base: bigint) => FaultHandler = filling,
): Uint8Array {
  const { wait = 'poll', threads = 3, touches = 50, pages = 32, removing = true, stopping = false } = storm;
  const { writer, bytes } = inMemory();
  const features = storm.features ?? ['event-remove', 'thread-id'];
  const uffd = Userfaultfd.open({ kernel, record: writer, features });
  const { pageSize } = kernel;
  const base = kernel.map(pages);
  uffd.register(base, pages * pageSize);
  const random = new Random(storm.seed ?? 1);
  let living = threads;
  const touching = function* (): Program {
    for (let i = 0; i < touches; i++) {
      const page = random.below(pages);
      const address = base + BigInt(page * pageSize);
      if (removing && random.chance(0.2)) {
        yield advise(address, Math.min(1 + random.below(4), pages - page) * pageSize, 4);
      } else if (random.chance(0.5)) yield write(address, 1);
      else yield read(address);
      if (stopping && random.chance(0.05)) uffd.stop();
    }
    if (--living === 0) uffd.stop();
  };
  for (let i = 0; i < threads; i++) kernel.thread(touching());
  // Time passes only while threads run: this one runs while all others wait for a deferred fault to be due.
  const elsewhere = kernel.map(1);
  const ticking = function* (): Program {
    while (living > 0) yield read(elsewhere);
  };
  kernel.thread(ticking());
  const served = handler(uffd, base);
  while (living > 0) {
    uffd.start(served, { wait });
    while (wait === 'poll' && uffd.waiting && kernel.step());
  }
  uffd.close();
  return bytes();
}

/** Fills removed pages with zeros, and all others with 7s. */
export function filling(uffd: Userfaultfd): FaultHandler {
  const bytes = new Uint8Array(uffd.pageSize).fill(7);
  return {
    pagefault({ page }: Pagefault) {
      const zero = uffd.pageState(page) === 'removed';
      return (zero ? uffd.zero(page, uffd.pageSize) : uffd.copy(page, bytes)) === uffd.pageSize;
    },
    removed() {},
  };
}
