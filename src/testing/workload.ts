// Threads that do random things to the watched memory: whatever the features of the world let a handler follow.

import { ADVICE, MREMAP } from '../sim/abi.js';
import { type Action, advise, forked, type Program, read, remap, unmap, write } from '../sim/index.js';
import type { World } from './world.js';

export interface WorkloadOptions {
  /** Default 3. */
  threads?: number;
  /** Things that each does, at most. Default 8. */
  actions?: number;
}

/** Children of one world at most. */
const FORKS_MOST = 2;
/** Things that a child does, at most. */
const CHILD_ACTIONS = 4;

/** What threads share: where the pages are by now. */
class Memory {
  readonly world: World;
  readonly places: (bigint | undefined)[];
  readonly features: ReadonlySet<string>;
  forks = 0;
  moves = 0;

  constructor(world: World) {
    this.world = world;
    this.places = Array.from({ length: world.pages }, (_, index) => world.page(index));
    this.features = new Set(world.features);
  }

  /** One of several; the first is the plainest. */
  pick<T>(list: readonly T[]): T {
    return list[this.world.chooser.below(list.length)] as T;
  }

  /** A page that is there, and which. */
  page(): { index: number; address: bigint } {
    const there = this.places.flatMap((address, index) =>
      address === undefined ? [] : [{ index, address }],
    );
    return there.length > 0 ? this.pick(there) : { index: 0, address: this.world.page(0) };
  }
}

/** As many threads, each of which ends by itself. */
export function workload(world: World, { threads = 3, actions = 8 }: WorkloadOptions = {}): Program[] {
  const memory = new Memory(world);
  return Array.from({ length: threads }, () => thread(memory, actions));
}

function* thread(memory: Memory, most: number): Program {
  const kinds: ((memory: Memory) => Program)[] = [reads, writes, populates];
  const { features } = memory;
  if (features.has('event-remove')) kinds.push(removes, removes);
  if (features.has('event-unmap')) kinds.push(unmaps);
  if (features.has('event-remap')) kinds.push(moves);
  if (features.has('event-fork')) kinds.push(forks);
  const count = memory.world.chooser.below(most + 1);
  for (let done = 0; done < count; done++) yield* memory.pick(kinds)(memory);
}

/** Where in a page it goes. */
const OFFSETS = [0n, 8n, 4095n];

function reading(memory: Memory): Action {
  return read(memory.page().address + memory.pick(OFFSETS));
}

function writing(memory: Memory): Action {
  return write(memory.page().address + memory.pick(OFFSETS), 1 + memory.world.chooser.below(255));
}

function* reads(memory: Memory): Program {
  yield reading(memory);
}

function* writes(memory: Memory): Program {
  yield writing(memory);
}

/** The kernel touches it. */
function* populates(memory: Memory): Program {
  yield advise(memory.page().address, memory.world.pageSize, ADVICE.POPULATE_READ);
}

function* removes(memory: Memory): Program {
  const pages = 1 + memory.world.chooser.below(2);
  yield advise(memory.page().address, pages * memory.world.pageSize, ADVICE.DONTNEED);
}

function* unmaps(memory: Memory): Program {
  const { index, address } = memory.page();
  yield unmap(address, memory.world.pageSize);
  if (memory.places[index] === address) memory.places[index] = undefined;
}

function* moves(memory: Memory): Program {
  const { world, places } = memory;
  const { index, address } = memory.page();
  const target = BigInt(world.kernel.place(world.pageSize));
  world.name(target, world.pageSize, `new place ${++memory.moves} of page ${index}`);
  const outcome = yield remap(address, world.pageSize, world.pageSize, MREMAP.MAYMOVE | MREMAP.FIXED, target);
  if (typeof outcome === 'number' && places[index] === address) places[index] = target;
}

function* forks(memory: Memory): Program {
  if (memory.forks++ >= FORKS_MOST) return;
  yield forked({ program: () => child(memory) });
}

function* child(memory: Memory): Program {
  const count = memory.world.chooser.below(CHILD_ACTIONS + 1);
  for (let done = 0; done < count; done++) yield memory.pick([reading, writing])(memory);
}
