// Diff snapshots on top of a memory file in simulated worlds: the plan of their mapping with the snapshot handler of
// `uffd serve`, while files are cut short for a moment, reads fail, and Linux disturbs in every way that it can.
//
// UFFD_SEEDS=10000 runs more worlds of each kind, and UFFD_SEED sets the first seed.

import { strict as assert } from 'node:assert';
import type { Window } from '../../src/index.js';
import { type Answers, Tally } from '../../src/serve/index.js';
import { type Inject, Random } from '../../src/sim/index.js';
import { type SimulateOptions, simulate } from '../../src/testing/index.js';
import { seed, suite } from '../support/harness.js';
import { drawLayers, LayeredSource } from './support/layered-source.js';
import { answers, background, DISTURBANCES, layout } from './support/simulated-world.js';

const test = suite('serve/layered-worlds');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 60);
const LIMIT_MS = Math.max(60_000, SEEDS * 500);
/** Milliseconds for which a file is cut: the handler tries a read again for longer. */
const CUT_MS = 50;

const ALL: Inject = { ...DISTURBANCES, enomem: 0.02, eio: 0.01 };

function worldOf(one: number, tally: Tally, inject: Inject, cuts: number): SimulateOptions {
  const random = new Random(one ^ 0x1a9e);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const huge = random.chance(0.25);
  const pageSize = huge ? 65_536 : 4096;
  const pages = 2 + random.below(huge ? 4 : 24);
  const files = drawLayers(random, pages * pageSize);
  const [window, wait] = [
    pick<Window>([1, 2, 16, 'adaptive']),
    pick(['poll', 'block', 'spin', 'adaptive'] as const),
  ];
  const prefetch = random.chance(0.4) ? [0, pageSize * 2, pageSize, pageSize * (pages - 1)] : [];
  const [eager, zeroRuns, piecesMost] = [random.chance(0.3), random.chance(0.3), pick([1, 2, 4, 1000])];
  const cut = Array.from({ length: cuts }, (_, index) => {
    // They follow each other slowly enough for every read to be tried again in between.
    const fromMs = index * 20 * CUT_MS + random.below(10) / 20;
    const firstPage = random.below((pages * pageSize) / 4096);
    return { layer: random.below(files.layers.length), firstPage, fromMs, toMs: fromMs + CUT_MS };
  });
  /** The offset in the file of each page of the world. */
  const offsets = new Map<number, number>();
  let doing: ReturnType<typeof background> | undefined;
  return {
    ...{ seed: one, pages, inject, memory: huge ? 'huge' : 'small', wait },
    ...{ features: random.chance(0.8) ? ['event-remove'] : [], threads: 2 + random.below(3) },
    ...{ watched: pick(['own', 'another'] as const), preemption: pick([0.1, 0.3, 0.6]) },
    patienceMs: 60_000,
    source: (index) => {
      const at = offsets.get(index) as number;
      return files.merged.subarray(at, at + pageSize);
    },
    handler: (world) => {
      const { indexOf } = layout(world);
      for (let at = 0; at < pages * pageSize; at += pageSize) offsets.set(indexOf(at), at);
      const mapped = new LayeredSource(world, files, piecesMost, cut);
      const made: Answers = answers(world, { window, tally, zeroRuns, source: () => mapped.source });
      doing = background(made, { prefetch, eager, tally });
      return made;
    },
    prepare: (world) => doing?.(world) ?? false,
  };
}

for (const [name, inject, cuts] of [
  ['nothing else', {}, 0],
  ['files that are cut short for a moment', {}, 2],
  ['all disturbances at once', ALL, 1],
] as const) {
  test(
    `layers, and ${name}: the guest sees the highest one that has data`,
    async () => {
      const tally = new Tally();
      const first = seed();
      for (let world = 0; world < SEEDS; world++) await simulate(worldOf(first + world, tally, inject, cuts));
      const wanted = [
        'copied',
        'hole',
        'removed',
        'prefetched',
        'eager',
        ...(cuts > 0 ? ['retried' as const] : []),
      ] as const;
      assert.deepEqual(
        wanted.filter((count) => tally.get(count) === 0),
        [],
      );
    },
    LIMIT_MS,
  );
}

test.run();
