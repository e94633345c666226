// One program in both kernels, and where they differ.

import { Random } from '../../src/sim/index.js';
import { RealWorld } from '../semantics/real.js';
import { SimulatedWorld } from '../semantics/simulated.js';
import type { World } from '../semantics/world.js';
import { draw, type Plan, Run, type Step } from './program.js';

/** Of a random program. */
const STEPS = 24;

/** Where two worlds differ on a program: the lines that both agreed on, the step, then a line from each. */
export function difference(plan: Plan): string[] | undefined {
  const worlds: World[] = [new RealWorld(), new SimulatedWorld()];
  try {
    const runs = worlds.map((world) => new Run(world, plan));
    const agreed: string[] = [];
    for (const step of plan.steps) {
      const [real, simulated] = runs.map((run) => run.do(step)) as [string, string];
      if (real !== simulated) {
        const before = agreed.map((line, index) => `${JSON.stringify(plan.steps[index])} → ${line}`);
        return [...before, JSON.stringify(step), `real:      ${real}`, `simulated: ${simulated}`];
      }
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

/** Where the worlds differ on the random program of a seed, told by the shortest program that shows it. */
export function differs(seed: number): string | undefined {
  const plan = draw(new Random(seed), STEPS);
  const found = difference(plan);
  if (!found) return undefined;
  const told = difference(shrink(plan)) ?? ['it does not come every time', ...found];
  return `seed ${seed}, features 0x${plan.features.toString(16)}:\n${told.join('\n')}`;
}
