// Prints a hash of the traces of random worlds, on the core that this process has. node trace-of.js FROM COUNT

import { createHash } from 'node:crypto';
import { simulate } from '../../../src/testing/index.js';
import { memoryTrace, randomWorld } from './worlds.js';

const [from = 1, count = 10] = process.argv.slice(2).map(Number);
const hash = createHash('sha256');
for (let seed = from; seed < from + count; seed++) {
  const { record, bytes } = memoryTrace();
  const { steps } = await simulate({ ...randomWorld(seed), record });
  hash.update(bytes());
  hash.update(`${steps}`);
}
console.log(hash.digest('hex'));
