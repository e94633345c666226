// The two environments for a test of the library: the machine's own kernel, with workers as threads, and a simulated
// kernel with simulated threads. A test that works in both is written once.

import { type Feature, type OpenOptions, Userfaultfd, type WrapOptions } from '../../src/index.js';
import {
  type Action,
  advise,
  read,
  remap,
  SimulatedKernel,
  type SimulatedThread,
  unmap,
  write,
} from '../../src/sim/index.js';
import * as real from './real-kernel.js';

/** The steps of a thread that exist in both environments. */
export type Steps = Pick<
  real.Toucher,
  'read' | 'write' | 'writeInt' | 'bytes' | 'madvise' | 'munmap' | 'mremap' | 'kernelTid'
>;

export interface Place {
  /** Appended to the names of tests in this environment. */
  readonly suffix: string;
  open(features?: Feature[]): Userfaultfd;
  /** The options that `wrap` needs in this environment. */
  readonly wrapping: WrapOptions;
  map(pages: number, filled?: number): bigint;
  /** The number of threads that sleep in a fault whose message was read. */
  sleepers(fd: number): number;
  withUffd(
    features: OpenOptions['features'],
    body: (uffd: Userfaultfd, thread: Steps) => Promise<void>,
  ): Promise<void>;
}

export const REAL: Place = {
  suffix: '',
  open: real.openWith,
  wrapping: {},
  map: real.map,
  sleepers: real.sleepers,
  withUffd: real.withUffd,
};

/** A new simulated kernel; the seed decides its choices. */
export function simulated(seed: number): Place {
  const kernel = new SimulatedKernel({ seed });
  const open = (features: Iterable<Feature> = []): Userfaultfd => Userfaultfd.open({ kernel, features });
  return {
    suffix: ', simulated',
    open,
    wrapping: { kernel },
    map(pages, filled) {
      const address = kernel.map(pages);
      for (let page = 0; filled !== undefined && page < pages; page++) {
        const entry = kernel.process.space.take(real.P, new Uint8Array(real.P).fill(filled));
        kernel.process.space.set(kernel.process.space.pageOf(Number(real.at(address, page))), entry);
      }
      return address;
    },
    sleepers(fd) {
      const file = kernel.files.get(fd);
      if (file?.is !== 'userfaultfd') throw new Error(`${fd} is no userfaultfd`);
      if (file.context.pending.length > 0) throw new Error('messages are unread');
      return file.context.reading.length;
    },
    async withUffd(features, body) {
      const uffd = open(features ?? []);
      try {
        await body(uffd, stepsOf(kernel, kernel.thread()));
      } finally {
        uffd.close();
      }
    },
  };
}

function stepsOf(kernel: SimulatedKernel, thread: SimulatedThread): Steps {
  const act = async (action: Action): Promise<number> => {
    thread.begin(action);
    while (thread.action) {
      if (!kernel.step()) throw new Error(`every thread sleeps in the middle of ${action.text}`);
      // Lets an async handler continue after its callback returned.
      await undefined;
    }
    if (typeof thread.outcome === 'string') throw new Error(`${action.text}: ${thread.outcome}`);
    return thread.outcome;
  };
  const each = async (
    addresses: readonly bigint[],
    action: (address: bigint) => Action,
  ): Promise<number[]> => {
    const outcomes: number[] = [];
    for (const address of addresses) outcomes.push(await act(action(address)));
    return outcomes;
  };
  return {
    kernelTid: thread.tid,
    read: (...addresses) => each(addresses, (address) => read(address)),
    async write(value, ...addresses) {
      await each(addresses, (address) => write(address, value));
    },
    async writeInt(address, value) {
      const bytes = new Uint8Array(new Int32Array([value]).buffer);
      for (const [index, byte] of bytes.entries()) await act(write(address + BigInt(index), byte));
      const ints = new Int32Array(thread.space.peek(Number(address), 8).buffer);
      return [ints[0] as number, ints[1] as number];
    },
    async bytes(address, length) {
      for (let offset = 0; offset < length; offset += real.P) await act(read(address + BigInt(offset)));
      return thread.space.peek(Number(address), length);
    },
    madvise: (address, length, advice) => act(advise(address, length, advice)),
    munmap: (address, length) => act(unmap(address, length)),
    mremap: async (address, oldLength, newLength, flags, to) =>
      BigInt(await act(remap(address, oldLength, newLength, flags, to))),
  };
}
