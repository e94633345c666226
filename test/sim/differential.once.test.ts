// The simulated kernel is the real one, as far as it can be told from outside: random programs run in both, and
// whatever can be seen when both are quiet is the same.
//
// UFFD_PROGRAMS=N: how many. UFFD_SEED=N: from which seed on.

import { strict as assert } from 'node:assert';
import { Random } from '../../src/sim/index.js';
import { seed, suite } from '../harness.js';
import { needKernel } from '../kernel/support.js';
import { RealWorld } from '../semantics/real.js';
import { SimulatedWorld } from '../semantics/simulated.js';
import type { World } from '../semantics/world.js';
import { draw, type Plan, Run, type Step } from './program.js';

const test = suite('sim/differential');

const PROGRAMS = Number(process.env.UFFD_PROGRAMS ?? 20_000);
const STEPS = 24;

/** Where two worlds differ on a program: the lines that both agreed on, then one from each. */
function difference(plan: Plan): string[] | undefined {
  const worlds: World[] = [new RealWorld(), new SimulatedWorld()];
  try {
    const runs = worlds.map((world) => new Run(world, plan));
    const agreed: string[] = [];
    for (const step of plan.steps) {
      const [real, simulated] = runs.map((run) => run.do(step)) as [string, string];
      if (real !== simulated) return [...agreed, `real:      ${real}`, `simulated: ${simulated}`];
      agreed.push(real);
    }
    return undefined;
  } finally {
    for (const world of worlds) world.close();
  }
}

/** The same difference with as few steps as can be. */
function shrink(plan: Plan): Plan {
  let steps = plan.steps;
  for (let removed = true; removed; ) {
    removed = false;
    for (let at = steps.length - 1; at >= 0; at--) {
      const fewer: Step[] = steps.filter((_, index) => index !== at);
      if (!difference({ ...plan, steps: fewer })) continue;
      steps = fewer;
      removed = true;
    }
  }
  return { ...plan, steps };
}

test(`${PROGRAMS} random programs: both kernels say the same`, () => {
  needKernel();
  const first = seed();
  for (let program = 0; program < PROGRAMS; program++) {
    const plan = draw(new Random(first + program), STEPS);
    const found = difference(plan);
    if (!found) continue;
    const small = shrink(plan);
    const told = difference(small) ?? ['it does not come every time', ...found];
    assert.fail(`seed ${first + program}, features 0x${small.features.toString(16)}:\n${told.join('\n')}`);
  }
}, 600_000);

test.run();
