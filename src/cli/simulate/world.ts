// A small world in the simulated kernel: threads that read and write pages, one that takes pages away again, and a
// handler that brings them from a source. The seed decides all of it, so a run can be repeated.
//
// What must hold, and is looked at with each read: a page holds what its source has, what was last written there, or
// zeros where it was taken away.

import { setImmediate as turn } from 'node:timers/promises';
import { type FaultHandler, Userfaultfd } from '../../index.js';
import { advise, type Program, Random, read, SimulatedKernel, write } from '../../sim/index.js';
import type { TraceWriter } from '../../trace/index.js';

export interface WorldOptions {
  seed: number;
  /** Scheduler steps after which threads begin nothing more. */
  steps: number;
}

export interface World {
  /** Steps that were made. */
  steps: number;
  reads: number;
  writes: number;
  removals: number;
  /** Faults that the handler was told of, and how many of them it could not answer at once. */
  offered: number;
  putOff: number;
  /** Reads that found what cannot be. */
  wrong: string[];
  /** What the threads do that sleep for good. */
  stuck: string[];
}

const PAGES = 64;
const TOUCHING = 3;
/** Pages that are taken away at once, at most. */
const REMOVED_MOST = 8;
const MADV_DONTNEED = 4;
/** Steps between two turns of the event loop. */
const STEPS_A_TURN = 2000;
/** What threads write: above all that the source has. */
const WRITTEN = 128;

/** Runs the world. `observer` is told each step, one line at a time. */
export async function runWorld(
  { seed, steps }: WorldOptions,
  record: TraceWriter,
  signal: AbortSignal,
  observer?: (line: string) => void,
): Promise<World> {
  const kernel = new SimulatedKernel({ seed });
  const uffd = Userfaultfd.open({ kernel, record, features: ['thread-id', 'event-remove'] });
  const { pageSize } = uffd;
  const memory = kernel.map(PAGES);
  uffd.register(memory, PAGES * pageSize);
  const world: World = {
    steps: 0,
    reads: 0,
    writes: 0,
    removals: 0,
    offered: 0,
    putOff: 0,
    wrong: [],
    stuck: [],
  };
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
  /** Of what threads do; the scheduler draws from the kernel's own. */
  random: Random;
  steps: number;
}

/** What the source has on a page: its number, plus one. */
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
    // Somewhere else meanwhile, so that pages are there to be removed.
    for (let idle = random.below(8); idle > 0; idle--)
      yield read(memory + BigInt(random.below(PAGES) * pageSize));
    const first = random.below(PAGES);
    const pages = Math.min(1 + random.below(REMOVED_MOST), PAGES - first);
    const result = yield advise(memory + BigInt(first * pageSize), pages * pageSize, MADV_DONTNEED);
    if (result !== 0) world.wrong.push(`madvise said ${result}`);
    world.removals++;
  }
}

/** Brings a page from the source, or zeros where it was taken away. */
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
    // That they are told is enough: `pageState` knows of them then.
    removed() {},
  };
}
