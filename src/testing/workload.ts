// Makes threads with random actions on the watched memory. It uses only actions that a handler can follow with the
// features of the world.

import { ADVICE, MREMAP } from '../sim/abi.js';
import { advise, forked, type Program, read, remap, unmap, write } from '../sim/index.js';
import type { World } from './world.js';

export interface WorkloadOptions {
  /** Number of threads. Default 3. */
  threads?: number;
  /** Most actions of each thread. Default 8. */
  actions?: number;
}

/** What threads need of their world. */
export type WorkloadWorld = Pick<
  World,
  'chooser' | 'pages' | 'page' | 'pageSize' | 'features' | 'kernel' | 'name'
>;

/** Most children of one world. */
const FORKS_MOST = 2;
/** Most actions of a child. */
const CHILD_ACTIONS = 4;
/** Before each action, a thread ends with a chance of one in this many. */
const ENDS = 8;
const MOVE_TO = MREMAP.MAYMOVE | MREMAP.FIXED;

/** Draws an action of one kind before the run begins. The returned function makes the program of that action. */
type Draw = (memory: Memory) => () => Program;

/** State that threads share: where the pages are now. */
class Memory {
  readonly world: WorkloadWorld;
  readonly places: (bigint | undefined)[];
  forks = 0;
  moves = 0;
  /** Addresses whose pages are being moved away or unmapped; and addresses to which other pages are being moved. */
  readonly leaving = new Set<{ place: bigint }>();
  readonly landing = new Set<bigint>();
  /** Removals under way. */
  readonly removing = new Set<{ start: bigint; end: bigint }>();
  /** Forks under way. */
  forking = 0;

  constructor(world: WorkloadWorld) {
    this.world = world;
    this.places = Array.from({ length: world.pages }, (_, index) => world.page(index));
  }

  /** One element; the first is the plainest. */
  pick<T>(list: readonly T[]): T {
    return list[this.world.chooser.below(list.length)] as T;
  }

  /** Draws the index of a page. */
  drawPage(): number {
    return this.world.chooser.below(this.places.length);
  }

  /**
   * Whether the page at an address is being moved away or unmapped. Each thread that does so has an entry of its own.
   */
  leaves(wanted: bigint): boolean {
    return [...this.leaving].some(({ place }) => place === wanted);
  }

  /**
   * Whether pages are being moved to [start, start + length). Then no other change of this range may begin, because the
   * messages of both changes could come in any order.
   */
  lands(start: bigint, length: number): boolean {
    return [...this.landing].some((place) => place >= start && place < start + BigInt(length));
  }

  /** The address of a page. If the page is gone, the address of another page. */
  at(index: number): bigint {
    return this.places[index] ?? this.places.find((place) => place !== undefined) ?? this.world.page(index);
  }
}

/** Makes threads, each of which ends by itself. */
export function workload(
  world: WorkloadWorld,
  { threads = 3, actions = 8 }: WorkloadOptions = {},
): Program[] {
  const memory = new Memory(world);
  const kinds: Draw[] = [reads, writes, populates];
  const features = new Set(world.features);
  if (features.has('event-remove')) kinds.push(removes, removes);
  if (features.has('event-unmap')) kinds.push(unmaps);
  if (features.has('event-remap')) kinds.push(moves, lands);
  if (features.has('event-fork')) kinds.push(forks);
  return Array.from({ length: threads }, () => draw(memory, kinds, actions));
}

/** Makes a thread with a random list of actions. The plainest thread has no action. */
function draw(memory: Memory, kinds: readonly Draw[], most: number): Program {
  const plan: (() => Program)[] = [];
  while (plan.length < most && memory.world.chooser.below(ENDS) !== 0) plan.push(memory.pick(kinds)(memory));
  return (function* () {
    for (const action of plan) yield* action();
  })();
}

/** Offsets in a page that are touched. */
const OFFSETS = [0n, 8n, 4095n];

const reads: Draw = (memory) => {
  const [index, offset] = [memory.drawPage(), memory.pick(OFFSETS)];
  return function* () {
    yield read(memory.at(index) + offset);
  };
};

const writes: Draw = (memory) => {
  const [index, offset] = [memory.drawPage(), memory.pick(OFFSETS)];
  const value = 1 + memory.world.chooser.below(255);
  return function* () {
    yield write(memory.at(index) + offset, value);
  };
};

/** Lets the kernel touch the page. */
const populates: Draw = (memory) => {
  const index = memory.drawPage();
  return function* () {
    yield advise(memory.at(index), memory.world.pageSize, ADVICE.POPULATE_READ);
  };
};

const removes: Draw = (memory) => {
  const [index, pages] = [memory.drawPage(), 1 + memory.world.chooser.below(2)];
  return function* () {
    const [address, length] = [memory.at(index), pages * memory.world.pageSize];
    if (memory.lands(address, length)) return;
    const removal = { start: address, end: address + BigInt(length) };
    memory.removing.add(removal);
    yield advise(address, length, ADVICE.DONTNEED);
    memory.removing.delete(removal);
  };
};

const unmaps: Draw = (memory) => {
  const index = memory.drawPage();
  return function* () {
    const address = memory.at(index);
    if (memory.landing.has(address)) return;
    const leaving = { place: address };
    memory.leaving.add(leaving);
    yield unmap(address, memory.world.pageSize);
    memory.leaving.delete(leaving);
    if (memory.places[index] === address) memory.places[index] = undefined;
  };
};

const moves: Draw = (memory) => {
  const index = memory.drawPage();
  return function* () {
    const { world, places } = memory;
    const address = memory.at(index);
    if (memory.landing.has(address)) return;
    const target = BigInt(world.kernel.place(world.pageSize));
    world.name(target, world.pageSize, `new place ${++memory.moves}`);
    const leaving = { place: address };
    memory.leaving.add(leaving);
    const outcome = yield remap(address, world.pageSize, world.pageSize, MOVE_TO, target);
    memory.leaving.delete(leaving);
    if (typeof outcome === 'number' && places[index] === address) places[index] = target;
  };
};

/** Moves a page to the address of another one. */
const lands: Draw = (memory) => {
  const [index, other] = [memory.drawPage(), memory.drawPage()];
  return function* () {
    const { world, places, landing } = memory;
    const [address, target] = [memory.at(index), places[other]];
    if (target === undefined || target === address || memory.forking > 0) return;
    if ([...memory.removing].some(({ start, end }) => target >= start && target < end)) return;
    if ([address, target].some((place) => memory.leaves(place) || landing.has(place))) return;
    const leaving = { place: address };
    memory.leaving.add(leaving);
    landing.add(target);
    const outcome = yield remap(address, world.pageSize, world.pageSize, MOVE_TO, target);
    memory.leaving.delete(leaving);
    landing.delete(target);
    if (typeof outcome !== 'number') return;
    for (const [at, place] of places.entries()) {
      if (place === target) places[at] = undefined;
      else if (place === address) places[at] = target;
    }
  };
};

const forks: Draw = (memory) => {
  const program = () => draw(memory, [reads, writes], CHILD_ACTIONS);
  return function* () {
    if (memory.landing.size > 0 || memory.forks++ >= FORKS_MOST) return;
    memory.forking++;
    yield forked({ program });
    memory.forking--;
  };
};
