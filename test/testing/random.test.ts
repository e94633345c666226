// A handler that is right breaks nothing, whatever is injected: 100,000 steps of random worlds. (`npm run soak`: a
// million.)

import { strict as assert } from 'node:assert';
import type { Injection } from '../../src/sim/index.js';
import { simulate } from '../../src/testing/index.js';
import { seed, suite } from '../harness.js';
import { INJECTED, randomWorld } from './worlds.js';

const test = suite('testing/random');

// Half of them on each core.
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
