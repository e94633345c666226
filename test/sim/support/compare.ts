// Runs one program in both kernels and finds the first difference.

import { Random } from '../../../src/sim/index.js';
import { RealWorld } from '../../semantics/real.js';
import { SimulatedWorld } from '../../semantics/simulated.js';
import type { World } from '../../semantics/world.js';
import { draw, type Plan, Run, type Step } from './program.js';

/** Steps of a random program. */
const STEPS = 24;

/** The first difference: the lines on which both worlds agreed, the step, then a line from each world. */
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

/** Removes all steps that the program does not need to show a difference. */
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

/** Runs the random program of a seed in both worlds; `shared`: with shared memory. If they differ, describes the shortest program that shows it. */
export function differs(seed: number, shared = false): string | undefined {
  const plan = draw(new Random(seed), STEPS, shared);
  const found = difference(plan);
  if (!found) return undefined;
  const lines = difference(shrink(plan)) ?? ['it does not come every time', ...found];
  return `seed ${seed}${shared ? ' with shared memory' : ''}, features 0x${plan.features.toString(16)}:\n${lines.join('\n')}`;
}
