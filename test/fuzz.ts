// `npm run fuzz`: random inputs, each from a seed that repeats it. It ends with the first that shows something wrong,
// and exit code 1. `.ci/run` runs a short form.
//
//   node dist/test/fuzz.js [TARGET…]   default: each target in turn
//     decoder      damaged traces, which are read to a clear end
//     replay       damaged traces, whose replay comes to a clear end
//     programs     random programs, which the real kernel and the simulated one answer alike; the shortest that they
//                  do not is told
//   --seed N       from this seed on; default: one by chance, which is told
//   --count N      so many inputs for each target; default: 1000000
//   --seconds N    no more for each target after so long
//   --help         tells the usage

import { parseArgs } from 'node:util';
import { SimulatedKernel } from '../src/sim/index.js';
import { needKernel } from './kernel/support.js';
import { differs } from './sim/compare.js';
import { fuzzDecoder, fuzzReplay } from './trace/decoder.js';
import { record } from './trace/support.js';

const USAGE = 'node dist/test/fuzz.js [decoder] [replay] [programs] [--seed N] [--count N] [--seconds N]';
const TOLD_EVERY_MS = 10_000;

/** Tries one seed, and tells what is wrong. */
type Target = (seed: number) => string | undefined | Promise<string | undefined>;

/** Targets are made when their turn comes. */
const TARGETS: Record<string, () => Target> = {
  decoder: () => damaging(fuzzDecoder),
  replay() {
    // What a damaged trace lets happen is worth a warning, and not what is looked for.
    process.removeAllListeners('warning');
    return damaging(fuzzReplay);
  },
  // The last: it keeps this thread on one processor.
  programs() {
    needKernel();
    return differs;
  },
};

/** A target that is given traces to damage, and throws where something is wrong. */
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

/** Tries one seed after another; whether nothing is wrong. */
async function fuzz(name: string, { first, count, seconds }: Limits): Promise<boolean> {
  const target = (TARGETS[name] as () => Target)();
  console.log(`${name}: --seed ${first}`);
  const begun = performance.now();
  let told = begun;
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
    if (performance.now() - told < TOLD_EVERY_MS) continue;
    told = performance.now();
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
