// The simulated kernel is the real one, as far as it can be told from outside: random programs run in both, and
// whatever can be seen when both are quiet is the same. Always the same programs, unless others are asked for.
//
// UFFD_PROGRAMS=N: how many. UFFD_SEED=N: from which seed on.

import { strict as assert } from 'node:assert';
import { Random } from '../../src/sim/index.js';
import { seed, suite } from '../harness.js';
import { needKernel } from '../kernel/support.js';
import { difference, shrink } from './compare.js';
import { draw } from './program.js';

const test = suite('sim/differential');

const { UFFD_PROGRAMS, UFFD_SEED } = process.env;
const PROGRAMS = Number(UFFD_PROGRAMS ?? 20_000);
const STEPS = 24;
/** A program takes milliseconds. */
const LIMIT_MS = Math.max(900_000, PROGRAMS * 50);

test(
  `${PROGRAMS} random programs: both kernels say the same`,
  () => {
    needKernel();
    const first = UFFD_PROGRAMS || UFFD_SEED ? seed() : 1;
    for (let program = 0; program < PROGRAMS; program++) {
      const plan = draw(new Random(first + program), STEPS);
      const found = difference(plan);
      if (!found) continue;
      const small = shrink(plan);
      const told = difference(small) ?? ['it does not come every time', ...found];
      assert.fail(`seed ${first + program}, features 0x${small.features.toString(16)}:\n${told.join('\n')}`);
    }
  },
  LIMIT_MS,
);

test.run();
