// One program in both kernels, and where they differ.

import { RealWorld } from '../semantics/real.js';
import { SimulatedWorld } from '../semantics/simulated.js';
import type { World } from '../semantics/world.js';
import { type Plan, Run, type Step } from './program.js';

/** Where two worlds differ on a program: the lines that both agreed on, then one from each. */
export function difference(plan: Plan): string[] | undefined {
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
export function shrink(plan: Plan): Plan {
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
