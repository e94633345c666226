// `npm run soak`: random worlds with everything injected, until a million steps are through; then guests of `uffd serve`,
// until ten million faults are; then a guest on huge pages, whose pool runs dry and refills every second. Nothing may break,
// and nothing may grow. The tests run a short form of all of them.
//
// UFFD_STEPS=N, UFFD_FAULTS=N, UFFD_HUGE_ROUNDS=N: how many; 0: none. UFFD_SEED=N: from which seed on.

import { strict as assert } from 'node:assert';
import { simulate } from '../src/testing/index.js';
import { seed as firstSeed } from './harness.js';
import { type Churned, churn, churnInDryPool } from './serve/churn.js';
import { randomWorld } from './testing/worlds.js';

const STEPS = Number(process.env.UFFD_STEPS ?? 1_000_000);
const FAULTS = Number(process.env.UFFD_FAULTS ?? 10_000_000);
const HUGE_ROUNDS = Number(process.env.UFFD_HUGE_ROUNDS ?? 20_000);
/** Of each thread of a guest: a pair of guests is some million faults. */
const GUEST_ROUNDS = 500_000;
/** What a server's memory may grow by in the second half of ten million faults. */
const GROWTH_MOST = 2 ** 20;

// What was started goes with it.
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => process.exit(1));

const first = firstSeed();
if (STEPS > 0) await worlds();
if (FAULTS > 0) await guests();
if (HUGE_ROUNDS > 0) await hugeGuest();

async function worlds(): Promise<void> {
  const begun = performance.now();
  let steps = 0;
  let count = 0;
  let told = 0;
  while (steps < STEPS) {
    const options = randomWorld(first + count++);
    // What is thrown names the seed, and ends this.
    steps += (await simulate(options)).steps;
    if (steps - told < STEPS / 10) continue;
    told = steps;
    console.log(`${count} worlds, ${steps} steps`);
  }
  const seconds = (performance.now() - begun) / 1000;
  console.log(
    `${steps} steps in ${count} worlds, no invariant broken; ${Math.round(steps / seconds)} steps a second`,
  );
}

async function guests(): Promise<void> {
  const tell = teller(FAULTS / 20);
  const options = ['--window', '16'];
  const seen = await churn({ faults: FAULTS, rounds: GUEST_ROUNDS, seed: first, options, tell });
  // What garbage there is at a time is not growth: the least that was seen in a quarter of the faults is compared.
  const least = (part: number): number =>
    Math.min(
      ...seen
        .filter(({ faults }) => faults > FAULTS * (part - 0.25) && faults <= FAULTS * part)
        .map(({ memory }) => memory),
    );
  const grown = least(1) - least(0.5);
  console.log(`${FAULTS} faults; ${(grown / 2 ** 20).toFixed(2)} MiB more than after half of them`);
  assert.ok(grown < GROWTH_MOST, 'the server grows');
}

async function hugeGuest(): Promise<void> {
  const faults = await churnInDryPool(HUGE_ROUNDS, first, teller(10_000));
  console.log(`${faults} faults on huge pages, in a pool that ran dry`);
}

/** Prints a line for so many faults. */
function teller(every: number): (churned: Churned) => void {
  const begun = performance.now();
  let told = 0;
  return ({ faults, memory }) => {
    if (faults - told < every) return;
    told = faults;
    const seconds = Math.round((performance.now() - begun) / 1000);
    console.log(`${faults} faults in ${seconds} s, the server has ${(memory / 2 ** 20).toFixed(1)} MiB`);
  };
}
