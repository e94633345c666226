// `npm run soak`: random worlds with everything injected, until a million steps are through; then guests that are served,
// until ten million faults are. Nothing may break, and nothing may grow. The tests run a short form of both.
//
// UFFD_STEPS=N, UFFD_FAULTS=N: how many; 0: none. UFFD_SEED=N: from which seed on.

import { simulate } from '../src/testing/index.js';
import { seed as firstSeed } from './harness.js';
import { endure } from './serve/endurance.js';
import { randomWorld } from './testing/worlds.js';

const STEPS = Number(process.env.UFFD_STEPS ?? 1_000_000);
const FAULTS = Number(process.env.UFFD_FAULTS ?? 10_000_000);

const first = firstSeed();
const begun = performance.now();
let steps = 0;
let worlds = 0;
let told = 0;
while (steps < STEPS) {
  const options = randomWorld(first + worlds++);
  // What is thrown names the seed, and ends this.
  steps += (await simulate(options)).steps;
  if (steps - told < STEPS / 10) continue;
  told = steps;
  console.log(`${worlds} worlds, ${steps} steps`);
}
const seconds = (performance.now() - begun) / 1000;
console.log(
  `${steps} steps in ${worlds} worlds, no invariant broken; ${Math.round(steps / seconds)} steps a second`,
);

let toldFaults = 0;
await endure(FAULTS, (faults, grown) => {
  if (faults - toldFaults < FAULTS / 10 && faults < FAULTS) return;
  toldFaults = faults;
  console.log(`${faults} faults served, ${(grown / 2 ** 20).toFixed(1)} MiB more`);
});
