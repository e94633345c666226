// Hostile and broken clients of `uffd serve`, some of each kind: a short form of `npm run suite -- hostile`.

import { strict as assert } from 'node:assert';
import { seed, suite } from '../support/harness.js';
import { besiege } from './support/hostile-clients.js';

const test = suite('serve/hostile');

const TRIES = 240;
const KINDS_LEAST = 30;

test(`${TRIES} hostile clients leave the server alive, nothing behind, and honest guests served`, async () => {
  const { kinds } = await besiege({ seed: seed(), tries: TRIES, batch: TRIES / 2 });
  assert.ok(Object.keys(kinds).length >= KINDS_LEAST, `${Object.keys(kinds).length} kinds`);
}, 300_000);

test.run();
