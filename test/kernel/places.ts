// Where a test of the library may run: on the machine's own kernel, with threads that are workers, and on a simulated
// one, whose threads are simulated too. What is the same for both is written once.

import { munmap } from '../../shim/memory.js';
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
import * as real from './support.js';

/** The steps of a thread that both places have. */
export type Steps = Pick<
  real.Toucher,
  'read' | 'write' | 'writeInt' | 'bytes' | 'madvise' | 'munmap' | 'mremap' | 'kernelTid'
>;

export interface Place {
  /** Behind the name of a test that runs there. */
  readonly suffix: string;
  open(features?: Feature[]): Userfaultfd;
  /** What `wrap` must be told there. */
  readonly wrapping: WrapOptions;
  map(pages: number, filled?: number): bigint;
  /** Gives memory back that nobody watches. */
  unmap(address: bigint, length: number): void;
  /** Threads that sleep in a fault whose message was read. */
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
  unmap: munmap,
  sleepers: real.sleepers,
  withUffd: real.withUffd,
};

/** A simulated kernel of its own, whose choices follow from the seed. */
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
        const entry = kernel.process.space.fresh(new Uint8Array(real.P).fill(filled));
        kernel.process.space.set(kernel.process.space.pageOf(Number(real.at(address, page))), entry);
      }
      return address;
    },
    unmap: (address, length) => kernel.process.space.remove(Number(address), Number(address) + length),
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
      if (!kernel.step()) throw new Error(`everybody sleeps in the middle of ${action.text}`);
      // A handler may go on after its callback.
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
