// `npm run fuzz`: random inputs for as long as is asked for, each from a seed that repeats it. The tests run a short
// form of each target.
//
//   node dist/test/fuzz.js [SECONDS]   default: 60 for each target
//   UFFD_SEED=N                        from this seed on
//   UFFD_TARGET=NAME                   only this target

import { SimulatedKernel } from '../src/sim/index.js';
import { seed } from './harness.js';
import { fuzzDecoder } from './trace/decoder.js';
import { record } from './trace/support.js';

/** Makes a target: a function that tries one seed, and throws where something is wrong. */
const TARGETS: Record<string, () => (seed: number) => void> = {
  decoder() {
    const waits = ['poll', 'block', 'spin', 'adaptive'] as const;
    const samples = waits.map((wait, index) =>
      record(new SimulatedKernel({ seed: index }), { wait, seed: index, touches: 20 }),
    );
    return (one) => fuzzDecoder(samples, one);
  },
};

const seconds = Number(process.argv[2] ?? 60);
const first = seed();
for (const [name, make] of Object.entries(TARGETS)) {
  if ((process.env.UFFD_TARGET ?? name) !== name) continue;
  const target = make();
  const until = performance.now() + seconds * 1000;
  let tries = 0;
  for (; performance.now() < until; tries++) {
    try {
      target(first + tries);
    } catch (error) {
      console.error(`${name}: UFFD_SEED=${first + tries}`);
      throw error;
    }
  }
  console.log(`${name}: ${tries} tries, nothing found`);
}
