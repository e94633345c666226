// The snapshot handler of `uffd serve` and its background work, in simulated worlds with every disturbance that Linux
// can cause: mappings that are split without an event, exhausted pools of huge pages, interrupted calls, brief
// shortages of memory. Each once revealed a defect: a page of zeros instead of the file's bytes, a thread asleep
// forever, a guest that was killed because background work failed.
//
// UFFD_SEEDS=100000 runs more worlds of each kind, and UFFD_SEED sets the first seed.

import { strict as assert } from 'node:assert';
import type { Injection } from '../../src/sim/index.js';
import { simulate } from '../../src/testing/index.js';
import { seed, suite } from '../support/harness.js';
import { KINDS, worldOf } from './support/injected-worlds.js';

const test = suite('serve/injected-worlds');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 100);

for (const kind of KINDS) {
  test(`${kind.says}: no page is wrong, no thread sleeps forever, no guest is killed`, async () => {
    const injected = new Set<Injection>();
    const first = seed();
    for (let world = 0; world < SEEDS; world++) {
      const run = await simulate(worldOf(kind, first + world));
      for (const what of run.injected.keys()) injected.add(what);
    }
    // Few worlds have an exit or an exec.
    const rare = ['exit', 'exec'];
    const never = Object.keys(kind.inject).filter(
      (what) => !rare.includes(what) && !injected.has(what as Injection),
    );
    assert.deepEqual(never, []);
  }, 3_600_000);
}

test.run();
