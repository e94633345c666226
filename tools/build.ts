// `npm run build`: makes what is run, tested and published. A step whose inputs and outputs are unchanged is skipped.
//
//   npm run build -- [STEP…]     only steps whose name begins with one of the words
//   npm run build -- --clean     removes what was built before, and makes all of it

import { rmSync } from 'node:fs';
import { runSteps } from './incremental.js';
import { STEPS } from './steps.js';

/** What every step depends on: the tools, their versions, and the versions and engines of the package. */
const ALWAYS = ['build/tools', 'package-lock.json'];
const STATE = 'build/steps.json';

const words = process.argv.slice(2).filter((word) => word !== '--clean');
if (process.argv.includes('--clean')) {
  for (const path of ['dist', STATE, ...STEPS.flatMap(({ outputs }) => outputs)]) {
    rmSync(path, { recursive: true, force: true });
  }
}
const steps = STEPS.filter(({ name }) => words.length === 0 || words.some((word) => name.startsWith(word)));
if (steps.length === 0) {
  console.error(`there is no such step; there are: ${STEPS.map(({ name }) => name).join(', ')}`);
  process.exitCode = 2;
} else {
  await runSteps(steps, ALWAYS, STATE).catch((error: Error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
