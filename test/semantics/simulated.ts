// The simulated kernel as a World. An actor is a simulated thread that gets one action at a time, and runs until the
// action is done or the thread is asleep; meanwhile other threads run only if they are awake.

import { errnoName } from '../../src/errors/errors.js';
import {
  type Action,
  advise,
  exec,
  exit,
  forked,
  lock,
  protect,
  read,
  readOf,
  remap,
  replace,
  SimulatedKernel,
  type SimulatedThread,
  unmap,
  write,
} from '../../src/sim/index.js';
import type { AddressSpace } from '../../src/sim/memory.js';
import { P } from '../support/real-kernel.js';
import type { Actor, Area, By, Facility, MapOptions, MemoryKind, Outcome, PageBits, World } from './world.js';

/** Offset in the world's memory at which an actor's own reads store their result. */
const READ_AT = 32768;

class SimulatedActor implements Actor {
  readonly #world: SimulatedWorld;
  #thread: SimulatedThread | undefined;

  constructor(world: SimulatedWorld, thread?: SimulatedThread) {
    this.#world = world;
    this.#thread = thread;
  }

  get tid(): number {
    return this.#thread?.tid ?? 0;
  }

  get thread(): SimulatedThread {
    if (!this.#thread) throw new Error('the fork is not through');
    return this.#thread;
  }

  set thread(thread: SimulatedThread) {
    this.#thread = thread;
  }

  #step(action: Action): Outcome {
    this.thread.begin(action);
    return this.outcome();
  }

  outcome(): Outcome {
    this.#world.settle();
    const { done, wait, outcome } = this.thread;
    if (done) return 'gone';
    return wait?.place ?? outcome;
  }

  read(address: bigint, by: By = 'user'): Outcome {
    return this.#step(read(address, by));
  }

  write(address: bigint, value: number, by: By = 'user'): Outcome {
    return this.#step(write(address, value, by));
  }

  readOf(process: Actor, address: bigint): Outcome {
    return this.#step(readOf((process as SimulatedActor).thread.process, address));
  }

  madvise(address: bigint, length: number, advice: number): Outcome {
    return this.#step(advise(address, length, advice));
  }

  munmap(address: bigint, length: number): Outcome {
    return this.#step(unmap(address, length));
  }

  mremap(address: bigint, oldLength: number, newLength: number, flags: number, to = 0n): Outcome {
    return this.#step(remap(address, oldLength, newLength, flags, to));
  }

  mprotect(address: bigint, length: number, protection: number): Outcome {
    return this.#step(protect(address, length, protection));
  }

  mlock(address: bigint, length: number): Outcome {
    return this.#step(lock(address, length));
  }

  overlay(address: bigint, length: number): Outcome {
    return this.#step(replace(address, length));
  }

  fork(descriptors: 'shared' | 'copied' = 'shared'): Actor {
    const child = new SimulatedActor(this.#world);
    this.#step(
      forked({
        descriptors,
        started: (thread) => {
          child.thread = thread;
        },
      }),
    );
    return child;
  }

  exit(): Outcome {
    return this.#step(exit());
  }

  exec(): Outcome {
    return this.#step(exec());
  }

  kill(): void {
    this.thread.process.exit();
  }

  interrupt(): void {
    this.thread.signals++;
    this.#world.settle();
  }

  dropPrivileges(): Outcome {
    this.thread.process.privileged = false;
    return 0;
  }

  userfaultfd(flags: number): Outcome {
    return this.#call(() => this.#world.portOf(this.thread).userfaultfd(flags));
  }

  ioctl(fd: number, request: number, at: number): Outcome {
    return this.#call(() => this.#world.portOf(this.thread).ioctl(fd, request, at));
  }

  #call(call: () => number): Outcome {
    const result = call();
    return result < 0 ? errnoName(-result) : result;
  }

  readInto(fd: number, address: bigint, length: number): Outcome {
    const world = this.#world;
    const file = world.kernel.files.get(fd);
    const port = world.portOf(this.thread);
    const { space } = this.thread;
    return this.#step({
      text: `read(${fd})`,
      *steps() {
        if (file?.is !== 'userfaultfd') return 'EBADF';
        yield { place: 'read', over: () => file.context.readable };
        const result = port.read(fd, READ_AT, length);
        if (result > 0) poke(space, Number(address), new Uint8Array(world.memory.buffer, READ_AT, result));
        return result < 0 ? errnoName(-result) : result;
      },
    });
  }

  page(address: bigint): PageBits {
    return pageBits(this.thread.space, address);
  }
}

/** Writes bytes within one page. */
function poke(space: AddressSpace, address: number, bytes: Uint8Array): void {
  const page = space.pageOf(address);
  const found = space.entry(page);
  const entry = found?.is === 'page' ? found : space.take(space.pageSize);
  entry?.frame.bytes.set(bytes, address % space.pageSize);
  space.set(page, entry);
}

function pageBits(space: AddressSpace, address: bigint): PageBits {
  const entry = space.entry(space.pageOf(Number(address)));
  const marker = entry?.is === 'wp' || entry?.is === 'poison' || entry?.is === 'guard';
  return {
    present: entry?.is === 'zero' || entry?.is === 'page',
    swap: marker,
    uffdWp: entry?.is === 'wp' || (entry !== undefined && 'wp' in entry && entry.wp),
    exclusive: entry?.is === 'page' && entry.frame.mappers === 1,
  };
}

/** Memory for the structs of calls, which all worlds share. */
const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });

/** Huge pages in the simulated kernel's pool. */
const HUGE_PAGES = 8;

export class SimulatedWorld implements World {
  readonly kernel = new SimulatedKernel({ hugePages: HUGE_PAGES });
  readonly memory = memory;
  readonly #ends: (() => void)[] = [];

  lacks(what: Facility): string | undefined {
    return SimulatedWorld.lacks(what);
  }

  static lacks(what: Facility): string | undefined {
    const has: readonly Facility[] = [
      'anonymous',
      'shmem',
      'private-shmem',
      'private-hugetlb',
      'guard',
      'privileges',
      'device',
    ];
    if (has.includes(what)) return undefined;
    return `the simulated kernel has no ${what}`;
  }

  map(kind: MemoryKind, pages: number, { protection, objectLength }: MapOptions = {}): Area {
    if (kind === 'shmem' || kind === 'private-shmem')
      return this.#mapObject(pages, (objectLength ?? pages * P) / P, kind === 'private-shmem', protection);
    const huge = kind === 'private-hugetlb';
    const pageSize = huge ? this.kernel.hugePageSize : P;
    const memory = protection === undefined ? { huge } : { huge, protection };
    const address = this.kernel.mapMemory(pages, memory);
    return { address, length: pages * pageSize, pageSize, alias: 0n };
  }

  #mapObject(pages: number, objectPages: number, isPrivate: boolean, protection = 3): Area {
    const object = this.kernel.memfd(objectPages);
    const address = this.kernel.mapShared(object, { pages, protection, private: isPrivate });
    const alias = this.kernel.mapShared(object, { pages });
    return { address, length: pages * P, pageSize: P, alias };
  }

  pages(address: bigint, count: number): PageBits[] {
    const { space } = this.kernel.process;
    return Array.from({ length: count }, (_, page) => pageBits(space, address + BigInt(page * P)));
  }

  peek(address: bigint, length: number): Uint8Array {
    return this.kernel.process.space.peek(Number(address), length);
  }

  vacant(pages: number): bigint {
    return BigInt(this.kernel.place(pages * P));
  }

  thread(): Actor {
    return new SimulatedActor(this, this.kernel.thread());
  }

  /** The port of a thread's process. */
  portOf(thread: SimulatedThread) {
    return this.kernel.attach(this.memory, thread.process);
  }

  /** Runs all threads until none of them can continue. */
  settle(): void {
    // The limit is for threads that spin: they count as asleep.
    for (let steps = 0; steps < 1000 && this.kernel.step(); steps++);
  }

  queue(fd: number): { pending: number; total: number } {
    const file = this.kernel.files.get(fd);
    if (file?.is !== 'userfaultfd') throw new Error(`${fd} is no userfaultfd`);
    const { pending, reading } = file.context;
    return { pending: pending.length, total: pending.length + reading.length };
  }

  withoutDescriptors(body: () => void): void {
    const { files } = this.kernel;
    const former = files.limit;
    files.limit = files.count;
    try {
      body();
    } finally {
      files.limit = former;
    }
  }

  /** Runs the simulated kernel and Node's event loop until `something` settles. */
  async during<T>(something: T | Promise<T>): Promise<T> {
    let over = false;
    const settled = Promise.resolve(something).finally(() => {
      over = true;
    });
    while (!over) {
      this.kernel.step();
      await new Promise((resolve) => setImmediate(resolve));
    }
    return settled;
  }

  defer(end: () => void): void {
    this.#ends.push(end);
  }

  close(): void {
    for (const end of this.#ends.reverse()) end();
  }
}
