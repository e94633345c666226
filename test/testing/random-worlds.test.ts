// A correct handler breaks no invariant, whatever is injected: 100,000 steps of random worlds. (`npm run soak`: a
// million.)

import { strict as assert } from 'node:assert';
import type { Injection } from '../../src/sim/index.js';
import { simulate } from '../../src/testing/index.js';
import { seed, suite } from '../support/harness.js';
import { INJECTED, randomWorld } from './support/worlds.js';

const test = suite('testing/random-worlds');

// Each of the two cores runs half of the steps.
const STEPS = Number(process.env.UFFD_STEPS ?? 50_000);

test(`${STEPS} steps of random worlds with everything injected: no invariant is broken`, async () => {
  const first = seed();
  const injected = new Set<Injection>();
  for (let world = 0, steps = 0; steps < STEPS; world++) {
    const ran = await simulate(randomWorld(first + world));
    steps += ran.steps;
    for (const what of ran.injected.keys()) injected.add(what);
  }
  assert.deepEqual([...injected].sort(), [...INJECTED].sort());
}, 300_000);

test.run();
