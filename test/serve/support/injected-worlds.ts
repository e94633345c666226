// Worlds in which the snapshot handler of `uffd serve` and its background work meet every disturbance that Linux can
// cause.

import type { Feature, Window } from '../../../src/index.js';
import type { Answers } from '../../../src/serve/index.js';
import { type Inject, type Injection, Random } from '../../../src/sim/index.js';
import type { SimulateOptions } from '../../../src/testing/index.js';
import { answers, background, DISTURBANCES } from './simulated-world.js';

const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;
const REMOVES: Feature[] = ['event-remove'];

/** The fixed properties of a kind of worlds; the seed chooses the others. */
export interface Kind {
  says: string;
  inject: Inject;
  window?: Window;
  mapped?: boolean;
  eager?: boolean;
  prefetch?: boolean;
  memory?: 'huge';
  /** Several memory objects, and addresses where nothing is mapped. */
  pieces?: boolean;
  /** Zeros of removed pages and holes are installed in runs. */
  zeroRuns?: boolean;
  /** Disturbances that occur only during background work. */
  inBackground?: readonly Injection[];
}

export const KINDS: Kind[] = [
  { says: 'borders of mappings, a window', inject: { split: 0.05 }, window: 16, mapped: false },
  { says: 'borders of mappings, answers from memory', inject: { split: 0.05 }, window: 16, mapped: true },
  { says: 'borders of mappings, everything is installed', inject: { split: 0.2 }, window: 1, eager: true },
  { says: 'borders of mappings, a trace is prefetched', inject: { split: 0.2 }, window: 1, prefetch: true },
  { says: 'several objects and holes', inject: {}, pieces: true },
  { says: 'a pool that runs dry', inject: { dry: 0.02 }, memory: 'huge' },
  { says: 'zeros in runs', inject: { eagain: 0.05, partial: 0.1, held: 0.05 }, mapped: true, zeroRuns: true },
  { says: 'a wake that is interrupted', inject: { 'eintr-wake': 0.3 }, mapped: true, window: 1 },
  {
    says: 'memory and disk that fail for a moment in the background',
    inject: { enomem: 0.05, enospc: 0.05, eio: 0.05, efault: 0.05 },
    eager: true,
    prefetch: true,
    inBackground: ['enomem', 'enospc', 'eio', 'efault'],
  },
  {
    says: 'all of it at once',
    inject: {
      ...DISTURBANCES,
      ...{ dry: 0.01, enomem: 0.03, enospc: 0.03, eio: 0.03 },
    },
    inBackground: ['enomem', 'enospc', 'eio'],
  },
];

/** A world of a kind; the seed chooses its other properties. */
export function worldOf(kind: Kind, seed: number): SimulateOptions {
  const random = new Random(seed ^ 0x0b57);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const window = kind.window ?? pick<Window>([1, 2, 16, 'adaptive']);
  const mapped = kind.mapped ?? random.chance(0.5);
  const eager = kind.eager ?? random.chance(0.3);
  const prefetch = kind.prefetch ?? random.chance(0.3);
  const huge = (kind.memory ?? pick(['small', 'small', 'huge'] as const)) === 'huge';
  const hole = pick([() => false, (index: number) => index % 4 > 1]);
  const pages = 2 + random.below(huge ? 8 : 30);
  const pieces = (kind.pieces ?? random.chance(0.3)) && pages > 4;
  const pageSize = huge ? 65536 : 4096;
  const trace = Array.from({ length: 6 }, () => [
    random.below(pages) * pageSize,
    pageSize * (1 + random.below(4)),
  ]);
  const zeroRuns = kind.zeroRuns ?? random.chance(0.3);
  let inStep = false;
  let served: Answers | undefined;
  const step = (): ((world: Parameters<NonNullable<SimulateOptions['prepare']>>[0]) => boolean) =>
    background(served as Answers, {
      eager,
      prefetch: prefetch ? trace.flat() : [],
      inStep: (is) => {
        inStep = is;
      },
    });
  let doing: ReturnType<typeof step> | undefined;
  return {
    ...{ seed, pages, inject: kind.inject, memory: huge ? 'huge' : 'small', features: REMOVES },
    ...{ wait: pick(WAITS), threads: 2 + random.below(4), watched: pick(['own', 'another'] as const) },
    ...{ preemption: pick([0.1, 0.3, 0.6]), patienceMs: 20_000 },
    ...(pieces ? { objects: [2], holes: [3 + random.below(pages - 3)] } : {}),
    source: (index) => new Uint8Array(pageSize).fill(hole(index) ? 0 : 1 + (index % 250)),
    handler: (world) => {
      inStep = false;
      doing = undefined;
      const { injector } = world.kernel;
      if (injector) injector.allows = (what) => inStep || !kind.inBackground?.includes(what);
      served = answers(world, { window, hole, mapped, zeroRuns });
      return served;
    },
    prepare: (world) => {
      doing ??= step();
      return doing(world);
    },
  };
}
