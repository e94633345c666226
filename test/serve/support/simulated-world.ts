// The snapshot handler of `uffd serve` in simulated worlds: a source that tests can delay and fail, and threads that
// wait for each other.

import type { FaultHandler, Window } from '../../../src/index.js';
import { BackgroundFiller } from '../../../src/serve/background-filler.js';
import { Answers, type Region, type Source, Tally } from '../../../src/serve/index.js';
import { type Action, advise, type Inject, type Program, read } from '../../../src/sim/index.js';
import { type SimulateOptions, simulate, type World } from '../../../src/testing/index.js';

/** Runs of each scenario, each with a seed of its own. */
export const RUNS = 50;
const DONTNEED = 4;
/** Virtual milliseconds for which background work pauses if there is no memory. */
const BACKGROUND_PAUSE_MS = 5;
/** An unmapped address: a copy from there fails with EFAULT, like a copy from behind the end of a file. */
const NOWHERE = 0x1000_0000_0000n;

/** What may happen to any guest, with probabilities: what is not about memory or files. */
export const DISTURBANCES: Inject = {
  ...{ eagain: 0.03, partial: 0.05, held: 0.05, repeat: 0.03, wake: 0.03, signal: 0.03, short: 0.05 },
  ...{ eintr: 0.03, split: 0.03, exit: 0.0005, exec: 0.0005 },
};

export interface Served {
  window?: Window;
  /** Pages of the world that are holes of the file. */
  hole?: (index: number) => boolean;
  /** Called when some pages were fetched, before they are copied. If it returns true, they cannot be read. */
  fetched?: (first: number, count: number) => boolean | void;
  /** Whether the source is mapped memory. Then `fetched` is called only for the first read of each extent. */
  mapped?: boolean;
  /** Whether zeros are installed in runs. */
  zeroRuns?: boolean;
  /** The source in place of the file. `indexOf`: page at a file offset. */
  source?: (indexOf: (offset: number) => number) => Source;
  closed?: (code: string | undefined) => void;
  tally?: Tally;
}

/** The world's memory as three regions, of which the second is first in the file. `indexOf`: page at a file offset. */
export function layout({ pageSize, pages, address }: World): {
  regions: Region[];
  indexOf(offset: number): number;
} {
  const third = Math.ceil(pages / 3);
  const second = Math.min(third, pages - third);
  const region = (first: number, count: number, offset: number): Region => ({
    ...{ start: address + BigInt(first * pageSize), length: count * pageSize, pageSize },
    offset: offset * pageSize,
  });
  const regions = [
    region(0, third, second),
    region(third, second, 0),
    region(third + second, pages - third - second, third + second),
  ].filter(({ length }) => length > 0);
  const indexOf = (offset: number): number => {
    const page = Math.floor(offset / pageSize);
    if (page < second) return third + page;
    return page < second + third ? page - second : page;
  };
  return { regions, indexOf };
}

/** Maps the file into the handler's memory, where a copy reads it. */
function mapFile(world: World, indexOf: (offset: number) => number): bigint {
  const { kernel, pages, pageSize } = world;
  const { space } = kernel.process;
  const small = pageSize / kernel.pageSize;
  const address = kernel.map(pages * small);
  for (let part = 0; part < pages * small; part++) {
    const bytes = world.source(indexOf(part * kernel.pageSize));
    const from = (part % small) * kernel.pageSize;
    space.set(
      space.pageOf(Number(address)) + part,
      space.take(kernel.pageSize, bytes.subarray(from, from + kernel.pageSize)),
    );
  }
  return address;
}

/** A snapshot handler for the world's memory. */
export function answers(world: World, served: Served = {}): Answers {
  const { window = 1, hole = () => false, mapped = false, zeroRuns = false, fetched, closed } = served;
  const { tally = new Tally() } = served;
  const { pageSize, pages } = world;
  const { regions, indexOf } = layout(world);
  const { source } = served;
  const file = mapped && !source ? mapFile(world, indexOf) : 0n;
  return new Answers({
    ...{ regions, tally, window, latency() {}, now: () => world.kernel.now },
    zerosAreFree: () => zeroRuns,
    closed: (error) => closed?.(error?.code),
    shortage: {
      onStarved: 'wait',
      pool: (size) => (size > world.kernel.pageSize ? world.kernel.hugePool : undefined),
      report() {},
    },
    source: source?.(indexOf) ?? {
      mapped,
      stretchAt(offset) {
        const isHole = hole(indexOf(offset));
        let [from, to] = [Math.floor(offset / pageSize), Math.floor(offset / pageSize) + 1];
        while (from > 0 && hole(indexOf((from - 1) * pageSize)) === isHole) from--;
        while (to < pages && hole(indexOf(to * pageSize)) === isHole) to++;
        return { from: from * pageSize, to: to * pageSize, data: !isHole };
      },
      bytesAt(offset, length) {
        const [first, count] = [indexOf(offset), length / pageSize];
        if (mapped) return fetched?.(first, count) ? NOWHERE : file + BigInt(offset);
        const bytes = new Uint8Array(length);
        for (let page = 0; page < count; page++) bytes.set(world.source(first + page), page * pageSize);
        return fetched?.(first, count) ? NOWHERE : bytes;
      },
    },
  });
}

/** Background work: what is installed while no fault is queued. */
export interface Ahead {
  /** Offset and length of each range of the file, in the order of prefetching. */
  prefetch?: readonly number[];
  eager?: boolean;
  tally?: Tally;
  /** Called with true before each step, and with false after it. */
  inStep?: (is: boolean) => void;
}

/**
 * The work of a session before it waits: it resolves faults first, and then runs background steps until none is left.
 * For `prepare` of `simulate`.
 */
export function background(served: Answers, ahead: Ahead): (world: World) => boolean {
  const { prefetch = [], eager = false, inStep, tally = new Tally() } = ahead;
  let work: BackgroundFiller | undefined;
  let pausedUntil = 0;
  return (world) => {
    const { uffd, kernel } = world;
    if (uffd.closed) return false;
    work ??= new BackgroundFiller(served, { prefetch: Float64Array.from(prefetch), eager, tally }, uffd);
    uffd.poll(served);
    if (uffd.closed) return false;
    if (kernel.now < pausedUntil) {
      slowly(world, 0.5);
      return true;
    }
    inStep?.(true);
    try {
      const step = work.step();
      if (step === 'paused' || step === 'waiting') pausedUntil = kernel.now + BACKGROUND_PAUSE_MS;
      if (step === 'waiting') served.arrived(uffd);
      return step !== 'done';
    } finally {
      inStep?.(false);
    }
  };
}

/** Lets the other threads run for some virtual milliseconds, while the caller waits. */
export function slowly(world: World, ms: number): void {
  world.kernel.sleep(() => false, ms);
}

export function* reads(world: World, ...pages: number[]): Program {
  for (const page of pages) yield read(world.page(page) + 5n);
}

export const remove = (world: World, page: number, pages = 1) =>
  advise(world.page(page), pages * world.pageSize, DONTNEED);

/** The byte of the source that `reads` reads. */
export const byteOf = (world: World, page: number): number => world.source(page)[5] as number;

export interface Scene {
  readonly handler: FaultHandler;
  readonly threads: readonly Program[];
}

/** Runs a scene with many seeds, which decide all that the scene leaves open. */
export async function always(
  scene: (world: World) => Scene,
  options: Partial<SimulateOptions> = {},
): Promise<void> {
  for (let seed = 1; seed <= RUNS; seed++) {
    let threads: readonly Program[] = [];
    const handler = (world: World): FaultHandler => {
      const made = scene(world);
      threads = made.threads;
      return made.handler;
    };
    await simulate({ pages: 6, ...options, seed, handler, threads: () => threads });
  }
}

/** Waits until other threads have made a condition true. */
export const when = (over: () => boolean): Action => ({
  text: 'waits',
  *steps() {
    yield { place: 'read', over };
    return 0;
  },
});

/** Counts the threads that sleep in a fault, and those that sleep until their remove event is read. */
export function asleep({ kernel }: World): Record<'fault' | 'event', number> {
  const places = kernel.threads.map(({ wait }) => wait?.place);
  const count = (place: string): number => places.filter((one) => one === place).length;
  return { fault: count('fault'), event: count('event') };
}
