// The simulated kernel is the real one, as far as it can be told from outside: random programs run in both, and
// whatever can be seen when both are quiet is the same. Always the same programs; `npm run fuzz` tries others.

import { strict as assert } from 'node:assert';
import { suite } from '../harness.js';
import { needKernel } from '../kernel/support.js';
import { differs } from './compare.js';

const test = suite('sim/differential');

const PROGRAMS = 20_000;
/** Many times what it takes on a processor of its own. */
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

test.run();
