// Runs built test files in a runtime, which needs nothing of Node but `process.argv`: program.js FILE…

import './begin.js';
import { exec } from 'uvu';

const files = process.argv.slice(2);
for (const file of files) await import(`../${file}.js`);
await exec();
