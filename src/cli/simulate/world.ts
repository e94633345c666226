// A small world in the simulated kernel: threads that read and write pages, one that removes pages, and a handler
// that copies them from a source. The seed decides everything, so a run can be repeated.
//
// Each read checks that a page holds the data of its source, or the last write, or zeros after a removal.

import { setImmediate as turn } from 'node:timers/promises';
import { type FaultHandler, Userfaultfd } from '../../index.js';
import { advise, type Program, Random, read, SimulatedKernel, write } from '../../sim/index.js';
import type { TraceWriter } from '../../trace/index.js';

/** What has happened. */
export class World {
  /** Steps that were made. */
  steps = 0;
  reads = 0;
  writes = 0;
  removals = 0;
  /** Faults that the handler got, and how many of them it deferred. */
  offered = 0;
  putOff = 0;
  /** Reads that found wrong contents. */
  readonly wrong: string[] = [];
  /** The actions of the threads that sleep for ever. */
  readonly stuck: string[] = [];
}

const PAGES = 64;
const TOUCHING = 3;
/** Most pages that are removed at once. */
const REMOVED_MOST = 8;
const MADV_DONTNEED = 4;
/** Steps between two turns of the event loop. */
const STEPS_A_TURN = 2000;
/** Written values are above all source values. */
const WRITTEN = 128;

/** Runs the world. After `steps`, threads begin nothing more. `observer` gets each step, as a line. */
export async function runWorld(
  { seed, steps }: { seed: number; steps: number },
  record: TraceWriter,
  signal: AbortSignal,
  observer?: (line: string) => void,
): Promise<World> {
  const kernel = new SimulatedKernel({ seed });
  const uffd = Userfaultfd.open({ kernel, record, features: ['thread-id', 'event-remove'] });
  const { pageSize } = uffd;
  const memory = kernel.map(PAGES);
  uffd.register(memory, PAGES * pageSize);
  const world = new World();
  const scene: Scene = { kernel, memory, pageSize, world, random: new Random(seed ^ 0x5eed), steps };
  for (let i = 0; i < TOUCHING; i++) kernel.thread(touching(scene));
  kernel.thread(removing(scene));
  kernel.observer = observer;
  try {
    uffd.start(handler(scene));
    while (kernel.threads.some((thread) => !thread.done) && kernel.step()) {
      if (kernel.steps % STEPS_A_TURN !== 0) continue;
      await turn();
      signal.throwIfAborted();
    }
  } finally {
    world.steps = kernel.steps;
    for (const { tid, done, action } of kernel.threads) {
      if (!done) world.stuck.push(`thread ${tid}: ${action?.text ?? 'between two actions'}`);
    }
    uffd.close();
  }
  return world;
}

interface Scene {
  kernel: SimulatedKernel;
  memory: bigint;
  pageSize: number;
  world: World;
  /** The source of the threads' random choices. The simulated kernel's scheduler uses another one. */
  random: Random;
  steps: number;
}

/** The source value of a page: its number plus one. */
function sourceOf(page: number): number {
  return page + 1;
}

function* touching({ kernel, memory, pageSize, world, random, steps }: Scene): Program {
  while (kernel.steps < steps) {
    const page = random.below(PAGES);
    const address = memory + BigInt(page * pageSize);
    if (random.chance(0.3)) {
      yield write(address, WRITTEN + random.below(WRITTEN));
      world.writes++;
      continue;
    }
    const value = yield read(address);
    world.reads++;
    const possible =
      value === 0 || value === sourceOf(page) || (typeof value === 'number' && value >= WRITTEN);
    if (!possible) world.wrong.push(`page ${page} held ${value}`);
  }
}

function* removing({ kernel, memory, pageSize, world, random, steps }: Scene): Program {
  while (kernel.steps < steps) {
    // Touch other pages meanwhile, so that there are pages to remove.
    for (let idle = random.below(8); idle > 0; idle--)
      yield read(memory + BigInt(random.below(PAGES) * pageSize));
    const first = random.below(PAGES);
    const pages = Math.min(1 + random.below(REMOVED_MOST), PAGES - first);
    const result = yield advise(memory + BigInt(first * pageSize), pages * pageSize, MADV_DONTNEED);
    if (result !== 0) world.wrong.push(`madvise said ${result}`);
    world.removals++;
  }
}

/** Copies the page from the source, or installs zeros if it was removed. */
function handler({ memory, pageSize, world }: Scene): FaultHandler {
  const bytes = new Uint8Array(pageSize);
  return {
    pagefault({ page }, uffd) {
      world.offered++;
      const removed = uffd.pageState(page) === 'removed';
      const done = removed
        ? uffd.zero(page, pageSize)
        : uffd.copy(page, bytes.fill(sourceOf(Number(page - memory) / pageSize)));
      if (done === pageSize) return true;
      world.putOff++;
      return false;
    },
    // The event is enough: `pageState` then knows of the removal.
    removed() {},
  };
}
