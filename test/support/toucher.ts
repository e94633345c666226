// The worker behind `Toucher` in real-kernel.ts: performs requested accesses to memory, and posts their results. It may
// sleep in a page fault until a handler resolves the fault.

import { writeSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { libc } from '../../shim/libc.js';
import { madvise, mremap, munmap, view } from '../../shim/memory.js';

/** Requests to the thread. Addresses are bigint, lengths are in bytes. */
export interface Actions {
  tid(): number;
  /** The byte at each address. */
  read(...addresses: bigint[]): number[];
  /** Writes a byte to each address. */
  write(value: number, ...addresses: bigint[]): void;
  /** Writes a 32-bit integer, and reads the two at the start of the page. */
  writeInt(address: bigint, value: number): [number, number];
  /** The byte that fills a range; −1 if the bytes differ. */
  filling(address: bigint, length: number): number;
  /** A copy of the bytes. */
  bytes(address: bigint, length: number): Uint8Array;
  /**
   * Reads the first 8 bytes of each page of a range, going `step` pages further each time. Returns how many differ from
   * their page number plus 1.
   */
  verify(start: bigint, pages: number, pageSize: number, step: number): number;
  /** Lets the kernel read the bytes, with write(2) to a descriptor. Returns the bytes written, or the error's code. */
  send(fd: number, address: bigint, length: number): number | string;
  /** Calls a function of a compiled library, declared as in C. */
  native(library: string, declaration: string, ...args: (number | bigint)[]): number;
  /** Forks with the compiled fork.c; returns the child's wait status. */
  fork(library: string): number;
  /**
   * Forks with fork.c; the child touches `count` numbered pages from page `first` on. Returns the child's wait status:
   * 0 if all pages were right.
   */
  forkTouch(library: string, base: bigint, first: number, count: number): number;
  madvise(address: bigint, length: number, advice: number): number;
  munmap(address: bigint, length: number): number;
  mremap(address: bigint, oldLength: number, newLength: number, flags: number, to: bigint): bigint;
}

const actions: Actions = {
  tid: () => libc().syscall(process.arch === 'x64' ? 186 : 178, 0),
  read: (...addresses) => addresses.map((address) => new Uint8Array(view(address, 1))[0] as number),
  write(value, ...addresses) {
    for (const address of addresses) new Uint8Array(view(address, 1))[0] = value;
  },
  writeInt(address, value) {
    const ints = new Int32Array(view(address, 8));
    ints[0] = value;
    return [ints[0] as number, ints[1] as number];
  },
  filling(address, length) {
    const bytes = new Uint8Array(view(address, length));
    // True if every byte equals the one before it.
    return Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) === 0 ? (bytes[0] as number) : -1;
  },
  native: (library, declaration, ...args) => libc().koffi.load(library).func(declaration)(...args),
  bytes: (address, length) => new Uint8Array(view(address, length)).slice(),
  verify(start, pages, pageSize, step) {
    const words = new BigUint64Array(view(start, pages * pageSize));
    let wrong = 0;
    for (let i = 0, page = 0; i < pages; i++, page = (page + step) % pages) {
      if (words[(page * pageSize) / 8] !== BigInt(page + 1)) wrong++;
    }
    return wrong;
  },
  fork: (library) => libc().koffi.load(library).func('int fork_once()')(),
  forkTouch: (library, base, first, count) =>
    libc().koffi.load(library).func('int fork_touch(uint64_t, uint64_t, uint64_t)')(base, first, count),
  send(fd, address, length) {
    try {
      return writeSync(fd, new Uint8Array(view(address, length)), 0, length);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code as string;
    }
  },
  madvise,
  munmap,
  mremap,
};

parentPort?.on('message', ({ id, action, args }: { id: number; action: keyof Actions; args: unknown[] }) => {
  const result = (actions[action] as (...args: unknown[]) => unknown)(...args);
  parentPort?.postMessage({ id, result });
});
