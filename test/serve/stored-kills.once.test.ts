// Snapshots in a chunk store while servers, the store and monitors are killed at random moments; the long form is a part
// of `npm run soak`.

import { strict as assert } from 'node:assert';
import { seed, suite } from '../support/harness.js';
import { killsWhileStored } from './support/stored-kills.js';

const test = suite('serve/stored-kills');

test('servers that share a cache, their store, and monitors are killed at a dozen moments: no page is ever wrong', async () => {
  const killed = await killsWhileStored(12, seed());
  assert.equal(killed.store, 4);
}, 120_000);

test.run();
