// `npm run fuzz`: random inputs, each made from a seed that repeats it. The run stops at the first failure, with exit
// code 1. `.ci/run` runs a short form.
//
//   node build/test/fuzz.js [TARGET…]   default: each target in turn
//     decoder      damaged traces: reading each ends without a crash or an endless loop
//     replay       damaged traces: replaying each ends without a crash or an endless loop
//     programs     random programs, whose results must be equal on the real and the simulated kernel; prints the
//                  shortest program for which they differ
//   --seed N       first seed; default: a random one, which is printed
//   --count N      inputs for each target; default: 1000000
//   --seconds N    time limit for each target
//   --help         prints the usage

import { parseArgs } from 'node:util';
import { SimulatedKernel } from '../src/sim/index.js';
import { differs } from './sim/support/compare.js';
import { needKernel } from './support/real-kernel.js';
import { fuzzDecoder, fuzzReplay } from './trace/support/decoder.js';
import { record } from './trace/support/traces.js';

const USAGE = 'node build/test/fuzz.js [decoder] [replay] [programs] [--seed N] [--count N] [--seconds N]';
const PRINT_EVERY_MS = 10_000;

/** Tries one seed. Returns a description of the failure, or undefined. */
type Target = (seed: number) => string | undefined | Promise<string | undefined>;

/** Functions that create the targets, each called when its turn comes. */
const TARGETS: Record<string, () => Target> = {
  decoder: () => damaging(fuzzDecoder),
  replay() {
    // Replaying a damaged trace prints many warnings that do not matter here.
    process.removeAllListeners('warning');
    return damaging(fuzzReplay);
  },
  // Last, because it pins this thread to one processor.
  programs() {
    needKernel();
    return (seed) => differs(seed) ?? differs(seed, true);
  },
};

/** Makes a target of a function that damages sample traces, and throws if it finds a failure. */
function damaging(body: (samples: Uint8Array[], seed: number) => void | Promise<void>): Target {
  const waits = ['poll', 'block', 'spin', 'adaptive'] as const;
  const samples = waits.map((wait, index) =>
    record(new SimulatedKernel({ seed: index }), { wait, seed: index, touches: 20 }),
  );
  return async (seed) => {
    try {
      await body(samples, seed);
      return undefined;
    } catch (error) {
      return `${(error as Error).stack}`;
    }
  };
}

interface Limits {
  first: number;
  count: number;
  seconds: number;
}

/** Tries one seed after another. Returns whether none failed. */
async function fuzz(name: string, { first, count, seconds }: Limits): Promise<boolean> {
  const target = (TARGETS[name] as () => Target)();
  console.log(`${name}: --seed ${first}`);
  const begun = performance.now();
  let printedAt = begun;
  const elapsed = (): number => (performance.now() - begun) / 1000;
  const rate = (tries: number): string => `${Math.round(tries / elapsed())} a second`;
  let tries = 0;
  while (tries < count && elapsed() < seconds) {
    const seed = first + tries++;
    const wrong = await target(seed);
    if (wrong !== undefined) {
      console.log(`${name}: --seed ${seed} --count 1\n${wrong}`);
      return false;
    }
    if (performance.now() - printedAt < PRINT_EVERY_MS) continue;
    printedAt = performance.now();
    console.log(`${name}: ${tries} of ${count}, ${rate(tries)}`);
  }
  console.log(`${name}: ${tries} tries, ${rate(tries)}, nothing found`);
  return true;
}

async function main(): Promise<boolean> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seed: { type: 'string', default: `${Math.floor(Math.random() * 2 ** 31)}` },
      count: { type: 'string', default: '1000000' },
      seconds: { type: 'string', default: 'Infinity' },
      help: { type: 'boolean' },
    },
  });
  if (values.help) {
    console.log(USAGE);
    return true;
  }
  const limits = { first: Number(values.seed), count: Number(values.count), seconds: Number(values.seconds) };
  const names = positionals.length > 0 ? positionals : Object.keys(TARGETS);
  const unknown = names.find((name) => !(name in TARGETS));
  if (unknown !== undefined || Object.values(limits).some(Number.isNaN)) {
    console.error(unknown === undefined ? 'not a number' : `there is no target ${unknown}`);
    console.error(USAGE);
    return false;
  }
  for (const name of names) if (!(await fuzz(name, limits))) return false;
  return true;
}

process.exitCode = (await main()) ? 0 : 1;
