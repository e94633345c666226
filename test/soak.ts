// `npm run soak`: a million steps of random worlds with injected failures; then ten million faults of guests of
// `uffd serve`; then a guest on huge pages, whose pool runs dry and refills every second; then eight threads that read
// and write the memory of pagers, of which a hundredth is in memory; then a program that writes through a pager, killed
// again and again; then servers of a snapshot in a store, their store and their monitors, killed again and again. No invariant may break, no memory may grow, and no byte may be lost. The tests run a short form of all.
//
// UFFD_STEPS=N, UFFD_FAULTS=N, UFFD_HUGE_ROUNDS=N, UFFD_PAGER_SECONDS=N, UFFD_KILLS=N, UFFD_STORE_KILLS=N: how many of
// each; 0: none.
// UFFD_SEED=N: the first seed.

import { strict as assert } from 'node:assert';
import { simulate } from '../src/testing/index.js';
import { hammerFile, hammerSwap } from './pager/support/hammer.js';
import { killsAndRecovers } from './pager/support/kills.js';
import { type Churned, churn, churnInDryPool } from './serve/support/churn.js';
import { killsWhileStored } from './serve/support/stored-kills.js';
import { seed as firstSeed } from './support/harness.js';
import { randomWorld } from './testing/support/worlds.js';

const STEPS = Number(process.env.UFFD_STEPS ?? 1_000_000);
const FAULTS = Number(process.env.UFFD_FAULTS ?? 10_000_000);
const HUGE_ROUNDS = Number(process.env.UFFD_HUGE_ROUNDS ?? 20_000);
const PAGER_SECONDS = Number(process.env.UFFD_PAGER_SECONDS ?? 180);
const KILLS = Number(process.env.UFFD_KILLS ?? 200);
const STORE_KILLS = Number(process.env.UFFD_STORE_KILLS ?? 200);
/** Rounds of each thread of a guest: a pair of guests causes some million faults. */
const GUEST_ROUNDS = 500_000;
/** Bytes by which a server's memory may grow in the second half of ten million faults. */
const GROWTH_MOST = 2 ** 20;

// On a signal, exit normally: the exit listeners kill the programs that this process started.
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => process.exit(1));

const first = firstSeed();
if (STEPS > 0) await worlds();
if (FAULTS > 0) await guests();
if (HUGE_ROUNDS > 0) await hugeGuest();
if (PAGER_SECONDS > 0) await pagers();
if (KILLS > 0) await kills();
if (STORE_KILLS > 0) await storeKills();

async function worlds(): Promise<void> {
  const begun = performance.now();
  let steps = 0;
  let count = 0;
  let printed = 0;
  while (steps < STEPS) {
    const options = randomWorld(first + count++);
    // An error names the seed, and ends the run.
    steps += (await simulate(options)).steps;
    if (steps - printed < STEPS / 10) continue;
    printed = steps;
    console.log(`${count} worlds, ${steps} steps`);
  }
  const seconds = (performance.now() - begun) / 1000;
  console.log(
    `${steps} steps in ${count} worlds, no invariant broken; ${Math.round(steps / seconds)} steps a second`,
  );
}

async function guests(): Promise<void> {
  const onProgress = progressPrinter(FAULTS / 20);
  const options = ['--window', '16'];
  const seen = await churn({ faults: FAULTS, rounds: GUEST_ROUNDS, seed: first, options, onProgress });
  // Garbage makes memory go up and down by some MiB, but only growth raises the minimum. The first million faults warm
  // the server up.
  const least = (from: number, to: number): number =>
    Math.min(
      ...seen
        .filter(({ faults }) => faults > FAULTS * from && faults <= FAULTS * to)
        .map(({ memory }) => memory),
    );
  const grown = least(0.5, 1) - least(0.1, 0.5);
  console.log(`${FAULTS} faults; ${(grown / 2 ** 20).toFixed(2)} MiB more than after half of them`);
  assert.ok(grown < GROWTH_MOST, 'the server grows');
}

async function hugeGuest(): Promise<void> {
  const faults = await churnInDryPool(HUGE_ROUNDS, first, progressPrinter(10_000));
  console.log(`${faults} faults on huge pages, in a pool that ran dry`);
}

/** Each pager keeps a hundredth of its data in memory: 16 of 1600 blocks. */
async function pagers(): Promise<void> {
  const ms = (PAGER_SECONDS * 1000) / 4;
  const [small, large] = [4096, 65_536];
  const of = (blockSize: number) => ({ first, blockSize, size: 1600 * blockSize - 77, ms });
  console.log(`file, 4 KiB: ${await hammerFile({ ...of(small), random: false, flushMs: 0 })}`);
  console.log(`file, 64 KiB: ${await hammerFile({ ...of(large), random: true, flushMs: 20 })}`);
  const plain = { random: true, compress: 'none', encrypt: false } as const;
  console.log(`swap, 4 KiB: ${await hammerSwap({ ...of(small), ...plain })}`);
  const packed = { random: false, compress: 'auto', encrypt: true } as const;
  console.log(`swap, 64 KiB, encrypted: ${await hammerSwap({ ...of(large), ...packed })}`);
}

async function kills(): Promise<void> {
  const { flushes, versions } = await killsAndRecovers(KILLS, first);
  console.log(`${KILLS} kills, ${flushes} after a flush, ${versions} versions written; each block was whole`);
}

async function storeKills(): Promise<void> {
  const { server, store, monitor } = await killsWhileStored(STORE_KILLS, first);
  console.log(`killed: ${server} servers, ${store} times the store, ${monitor} monitors; no page was wrong`);
}

/** Prints a line after every `every` faults. */
function progressPrinter(every: number): (churned: Churned) => void {
  const begun = performance.now();
  let printed = 0;
  return ({ faults, memory }) => {
    if (faults - printed < every) return;
    printed = faults;
    const seconds = Math.round((performance.now() - begun) / 1000);
    console.log(`${faults} faults in ${seconds} s, the server has ${(memory / 2 ** 20).toFixed(1)} MiB`);
  };
}
