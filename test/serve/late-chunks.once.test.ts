// The snapshot handler of `uffd serve` and its background work with a source whose chunks come late, out of order, fail
// and come back, in simulated worlds with every disturbance that Linux can cause.
//
// UFFD_SEEDS=10000 runs more worlds of each kind, and UFFD_SEED sets the first seed.

import { strict as assert } from 'node:assert';
import type { Window } from '../../src/index.js';
import { type Answers, Tally } from '../../src/serve/index.js';
import { type Inject, type Injection, type Program, Random, read } from '../../src/sim/index.js';
import { type SimulateOptions, simulate } from '../../src/testing/index.js';
import { seed, suite } from '../support/harness.js';
import { LateImage, type Lateness } from './support/late-image.js';
import {
  always,
  answers,
  background,
  byteOf,
  DISTURBANCES,
  reads,
  remove,
  when,
} from './support/simulated-world.js';

const test = suite('serve/late-chunks');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 200);
const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

interface Kind {
  says: string;
  inject: Inject;
  huge?: boolean;
  /** Disturbances that occur only during background work. */
  inBackground?: readonly Injection[];
}

const KINDS: Kind[] = [
  { says: 'nothing else', inject: {} },
  { says: 'huge pages that span chunks', inject: { partial: 0.1, eagain: 0.05 }, huge: true },
  {
    says: 'all of it at once',
    inject: { ...DISTURBANCES, enomem: 0.03, eio: 0.03 },
    inBackground: ['enomem', 'eio'],
  },
];

function worldOf(kind: Kind, one: number, tally: Tally): SimulateOptions {
  const random = new Random(one ^ 0x1a7e);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const huge = kind.huge ?? random.chance(0.2);
  const pageSize = huge ? 65536 : 4096;
  const pages = 2 + random.below(huge ? 8 : 30);
  const hole = pick([() => false, (index: number) => index % 8 > 4]);
  const [window, wait] = [pick<Window>([1, 2, 16, 'adaptive']), pick(WAITS)];
  const prefetch = random.chance(0.5) ? [0, pageSize * 2, pageSize, pageSize * pages] : [];
  const eager = random.chance(0.3);
  const lateness: Lateness = {
    // Of a huge page, a quarter.
    chunkPages: huge ? pick([0.25, 1, 2]) : pick([1, 2, 5]),
    ...{ fails: pick([0, 0.3]), cached: pick([0, 0.5]), spilled: pick([0, 0.4]) },
    hole,
    // What is installed in the background is fetched without being asked for.
    ahead: eager || prefetch.length > 0 || random.chance(0.3),
  };
  let inStep = false;
  let served: Answers | undefined;
  let doing: ReturnType<typeof background> | undefined;
  return {
    ...{ seed: one, pages, inject: kind.inject, memory: huge ? 'huge' : 'small', wait },
    ...{ features: random.chance(0.8) ? ['event-remove'] : [], threads: 2 + random.below(4) },
    ...{ watched: pick(['own', 'another'] as const), preemption: pick([0.1, 0.3, 0.6]) },
    patienceMs: 600_000,
    source: (index) => new Uint8Array(pageSize).fill(hole(index) ? 0 : 1 + (index % 250)),
    handler: (world) => {
      inStep = false;
      const { injector } = world.kernel;
      if (injector) injector.allows = (what) => inStep || !kind.inBackground?.includes(what);
      let image: LateImage | undefined;
      const made = answers(world, {
        ...{ window, tally, zeroRuns: random.chance(0.3) },
        source: (indexOf) => {
          image = new LateImage(world, lateness, indexOf);
          return image.source;
        },
      });
      served = made;
      // Only between batches, as in a session's thread.
      if (image && wait === 'poll') image.arrived = () => world.uffd.closed || made.arrived(world.uffd);
      doing = background(made, {
        ...{ prefetch, eager, tally },
        inStep: (is) => {
          inStep = is;
        },
      });
      return served;
    },
    prepare: (world) => doing?.(world) ?? false,
  };
}

for (const kind of KINDS) {
  test(`chunks that come late, and ${kind.says}: no page is wrong, no thread sleeps forever`, async () => {
    const tally = new Tally();
    const first = seed();
    for (let world = 0; world < SEEDS; world++) await simulate(worldOf(kind, first + world, tally));
    const never = (['waited', 'copied', 'hole', 'prefetched', 'eager'] as const).filter(
      (it) => tally.get(it) === 0,
    );
    assert.deepEqual(never, []);
  }, 600_000);
}

/** The chunk that does not come until `release`. */
const HELD = 0;
const PROMPT = { chunkPages: 2, fails: 0, cached: 0, spilled: 0, hole: () => false };

test('no fault waits behind the fetch of another chunk; each chunk is asked for once', () =>
  always(
    (world) => {
      let released = false;
      let image: LateImage | undefined;
      const handler = answers(world, {
        source: (indexOf) => {
          image = new LateImage(world, { ...PROMPT, held: (chunk) => chunk === HELD && !released }, indexOf);
          return image.source;
        },
      });
      // The second region is the first in the file.
      const [held, others] = [2, [0, 1, 4, 5]];
      const threads = [
        (function* (): Program {
          yield* reads(world, held);
          assert.deepEqual(
            image?.wanted.filter((count) => count !== 1),
            [],
          );
        })(),
        (function* (): Program {
          for (const page of others) assert.equal(yield read(world.page(page) + 5n), byteOf(world, page));
          released = true;
        })(),
      ];
      return { handler, threads };
    },
    { patienceMs: 600_000 },
  ));

test('a page that is removed while its chunk is on the way is zeros, and stays zeros when the chunk has come', () =>
  always(
    (world) => {
      let [asked, removed] = [false, false];
      const tally = new Tally();
      const handler = answers(world, {
        tally,
        source: (indexOf) => new LateImage(world, { ...PROMPT, held: () => !removed }, indexOf).source,
      });
      const threads = [
        (function* (): Program {
          asked = true;
          // Zeros if it was removed before the chunk came; the thread sleeps in one fault all the while.
          assert.equal(yield read(world.page(0) + 5n), 0);
          assert.equal(yield read(world.page(0) + 5n), 0);
          assert.equal(yield read(world.page(1) + 5n), byteOf(world, 1));
        })(),
        (function* (): Program {
          yield when(() => asked && tally.get('waited') > 0);
          yield remove(world, 0);
          removed = true;
        })(),
      ];
      return { handler, threads };
    },
    { patienceMs: 600_000, features: ['event-remove'] },
  ));

test.run();
