// The simulated kernel behaves like the real one: random programs run in both, and all observable state is equal
// whenever both are quiet. Each run uses the same programs; `npm run fuzz` tries others.

import { strict as assert } from 'node:assert';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { differs } from './support/compare.js';

const test = suite('sim/differential');

const PROGRAMS = 6_000;
const SHARED_PROGRAMS = 2_000;
/** Many times the duration on an idle CPU. */
const LIMIT_MS = 900_000;

test(
  `${PROGRAMS} random programs: both kernels say the same`,
  () => {
    needKernel();
    for (let seed = 1; seed <= PROGRAMS; seed++) {
      const wrong = differs(seed);
      if (wrong) assert.fail(wrong);
    }
  },
  LIMIT_MS,
);

test(
  `${SHARED_PROGRAMS} random programs with shared memory: both kernels say the same`,
  () => {
    needKernel();
    for (let seed = 1; seed <= SHARED_PROGRAMS; seed++) {
      const wrong = differs(seed, true);
      if (wrong) assert.fail(wrong);
    }
  },
  LIMIT_MS,
);

test.run();
