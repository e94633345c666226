// Guests that share the pages of an image whose chunks come late, in simulated worlds with every disturbance that Linux
// can cause.
//
// UFFD_SEEDS=10000 runs more worlds of each kind, and UFFD_SEED sets the first seed.

import { strict as assert } from 'node:assert';
import type { Window } from '../../src/index.js';
import { Tally } from '../../src/serve/index.js';
import { type Inject, type Program, Random, read, write } from '../../src/sim/index.js';
import { seed, suite } from '../support/harness.js';
import { runSharedWorld, type SharedGuest, type SharedWorldOptions } from './support/shared-world.js';
import { DISTURBANCES } from './support/simulated-world.js';

const test = suite('serve/shared-worlds');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 40);
const LIMIT_MS = Math.max(60_000, SEEDS * 500);
const P = 4096;

const ALL: Inject = { ...DISTURBANCES, enomem: 0.02 };

function worldOf(one: number, tally: Tally, inject: Inject, troubled: boolean): SharedWorldOptions {
  const random = new Random(one ^ 0x5a4e);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const pages = 2 + random.below(30);
  const hole = pick([() => false, (index: number) => index % 8 > 4]);
  const prefetch = random.chance(0.4) ? [0, P * 2, P, P * (pages - 1)] : [];
  const eager = random.chance(0.3);
  return {
    ...{ seed: one, pages, guests: 1 + random.below(5), inject, tally, prefetch, eager },
    window: pick<Window>([1, 2, 16, 'adaptive']),
    lateness: {
      ...{ chunkPages: pick([1, 2, 5]), hole },
      ...{ fails: pick([0, 0.3]), cached: pick([0, 0.5]), spilled: pick([0, 0.4]) },
      ahead: eager || prefetch.length > 0 || random.chance(0.3),
    },
    ...{ noMemory: troubled ? 0.02 : 0, unreadable: troubled ? 0.005 : 0 },
    ...{ reclaims: pick([0, 10]), looks: random.chance(0.5), spreadMs: pick([0, 1, 50]) },
  };
}

for (const [name, inject, troubled] of [
  ['nothing else', {}, false],
  ['all disturbances at once', ALL, true],
] as const) {
  test(
    `guests that come and go share pages, and ${name}: each sees the image and its own writes only`,
    async () => {
      const tally = new Tally();
      const first = seed();
      for (let world = 0; world < SEEDS; world++)
        await runSharedWorld(worldOf(first + world, tally, inject, troubled));
      const never = (['waited', 'shared', 'hole', 'removed', 'prefetched', 'eager', 'taken'] as const).filter(
        (it) => tally.get(it) === 0,
      );
      assert.deepEqual(never, []);
    },
    LIMIT_MS,
  );
}

test('no guest, and no thread of a guest, waits behind a chunk that another waits for', async () => {
  for (let world = 0; world < 20; world++) {
    /** Threads that do not need the chunk that is held back. */
    let others = 3;
    const reader = (guest: SharedGuest) =>
      (function* (): Program {
        for (let page = 2; page < 8; page++) {
          yield read(guest.page(page) + 5n);
          yield write(guest.page(page), 100 + guest.number);
          assert.equal(yield read(guest.page(page)), 100 + guest.number);
        }
        others--;
      })();
    const waiter = (guest: SharedGuest) =>
      (function* (): Program {
        yield read(guest.page(0) + 5n);
        assert.equal(others, 0);
      })();
    await runSharedWorld({
      ...{ seed: seed() + world, pages: 8, guests: 3, window: 4, tally: new Tally() },
      lateness: {
        ...{ chunkPages: 2, fails: 0, cached: 0, spilled: 0, hole: () => false },
        held: (chunk) => chunk === 0 && others > 0,
      },
      threads: (guest) => (guest.number === 0 ? [waiter(guest), reader(guest)] : [reader(guest)]),
    });
  }
}, 60_000);

test.run();
